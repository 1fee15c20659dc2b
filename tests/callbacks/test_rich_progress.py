"""``RichProgressBar``, on a console that takes what it writes for a terminal."""

from __future__ import annotations

import importlib.util
import io
import pickle
import re
import time
from typing import Any

import pytest
import torch

from leyden import Callback
from leyden.callbacks import RichProgressBar
from leyden.callbacks.progress.rich_progress import RichProgressBarTheme
from leyden.errors import InvalidValueError, MissingExtraError
from modes import MODES, build, run

rich = pytest.importorskip("rich")


class Slow(Callback):
    """A quarter of a second goes by with every batch, for the bar."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for name in ("monotonic", "time"):
            monkeypatch.setattr(time, name, lambda: self.now)

    def on_train_batch_start(self, *args: Any) -> None:
        self.now += 0.25

    def on_validation_batch_start(self, *args: Any) -> None:
        self.now += 0.25


def bar_on(width: int = 120, **arguments: Any) -> tuple[RichProgressBar, io.StringIO]:
    stream = io.StringIO()
    console = {"file": stream, "force_terminal": True, "width": width, "color_system": None, "_environ": {}}
    return RichProgressBar(console_kwargs=console, **arguments), stream


def lines(stream: io.StringIO) -> list[str]:
    """What was written, without control sequences, frame by frame."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", stream.getvalue())
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


class Shown:
    """Logs a value for the bar."""

    def training_step(self: Any, batch: Any, *args: Any) -> Any:
        self.log("shown", 0.25, prog_bar=True)
        return super().training_step(batch, *args)  # type: ignore[misc]


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_and_its_validation(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(mode)
    module.__class__ = type("Shows", (Shown, type(module)), {})
    bar, stream = bar_on()
    run(mode, [Slow(monkeypatch), bar], module=module, max_epochs=2, enable_progress_bar=True)
    drawn = lines(stream)
    assert any(line.startswith("Sanity Checking:") or line.startswith("Sanity Checking") for line in drawn)
    assert any(line.startswith("Validation") and "1/2" in line for line in drawn)
    assert drawn[-1].startswith("Epoch 1") and "6/6" in drawn[-1] and drawn[-1].endswith("shown: 0.250")
    assert [line for line in drawn if "3/6" in line and "it/s" in line]
    assert bar._screen is not None and bar._screen.progress is None


def test_every_epoch_leaves_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, stream = bar_on(leave=True)
    run("one", [Slow(monkeypatch), bar], max_epochs=3, enable_progress_bar=True)
    text = stream.getvalue()
    assert text.count("\x1b[?25h") >= 3  # the cursor is shown again after each of them
    for epoch in range(3):
        assert any(line.startswith(f"Epoch {epoch}") and "6/6" in line for line in lines(stream))


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (62, "Epoch 0 ━━━━━━━━━━ 6/6 0:00:01 / 0:00:00 4.00it/s shown: 0.250"),
        (61, "Epoch 0 6/6 0:00:01 / 0:00:00 4.00it/s shown: 0.250"),
        (50, "Epoch 0 6/6 4.00it/s shown: 0.250"),
        (32, "Epoch 0 6/6 shown: 0.250"),
        (23, "Epoch 0 6/6"),
    ],
)
def test_narrow_terminals(width: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no room for is left out as a whole, the bar first, numbers last."""
    module = build("one")
    module.__class__ = type("Shows", (Shown, type(module)), {})
    bar, stream = bar_on(width)
    run("one", [Slow(monkeypatch), bar], module=module, max_epochs=1, enable_progress_bar=True)
    drawn = lines(stream)
    assert drawn[-1] == line
    assert max(len(line) for line in drawn) <= width and not any("\u2026" in line for line in drawn)


def test_evaluations_and_unknown_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, stream = bar_on()
    trainer, module, _ = run("one", [Slow(monkeypatch), bar], max_epochs=1, enable_progress_bar=True)
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 3
    module.test_step = module.training_step
    trainer.test(module, iter(data), verbose=False)
    assert any(line.startswith("Testing") and "3/--" in line for line in lines(stream))


def test_lines_where_nothing_can_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    run("one", [RichProgressBar()], max_epochs=2, enable_progress_bar=True)
    out = capsys.readouterr().out
    assert re.fullmatch(r"(Epoch [01]: 6/6 in .* s.*\n){2}The fit took .*\n", out) and "\x1b" not in out


def test_an_exception_gives_the_screen_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.progress_bar_callback.print("above", "[the bar]")
            raise ZeroDivisionError

    bar, stream = bar_on()
    with pytest.raises(ZeroDivisionError):
        run("one", [Slow(monkeypatch), Fails(), bar], enable_progress_bar=True)
    assert "above [the bar]" in stream.getvalue()
    assert bar._screen is not None and bar._screen.progress is None and not bar._screen.bars


def test_settings() -> None:
    theme = RichProgressBarTheme(metrics="bold")
    bar = RichProgressBar(refresh_rate=0, theme=theme)
    assert bar.is_disabled and bar.theme is theme
    assert pickle.loads(pickle.dumps(bar)).theme == theme
    with pytest.raises(InvalidValueError, match="refresh_rate=-1"):
        RichProgressBar(refresh_rate=-1)


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leyden\[rich\]'"):
        RichProgressBar()


def test_a_subclass_has_its_bars_where_nothing_can_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """Hidden ones, with no trace of rich in the file."""

    class Mine(RichProgressBar):
        def on_train_batch_end(self, *values: Any) -> None:
            super().on_train_batch_end(*values)
            self.train_progress_bar.set_description("mine")
            seen.append(self.train_progress_bar.n)

    seen: list[int] = []
    run("one", [Mine()], max_epochs=1, enable_progress_bar=True)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert re.fullmatch(r"Epoch 0: 6/6 in .*\nThe fit took .*\n", capsys.readouterr().out)


def test_the_rate_of_1_5() -> None:
    assert RichProgressBar(refresh_rate_per_second=0).is_disabled
    assert RichProgressBar(refresh_rate_per_second=10).is_enabled
