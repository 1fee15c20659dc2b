"""The progress bar, on a pseudo-terminal and in a pipe, with a Trainer of a few attributes."""

from __future__ import annotations

import copy
import fcntl
import io
import os
import re
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leyden.callback import Callback
from leyden.callbacks import ProgressBar, TQDMProgressBar
from leyden.callbacks.progress import tqdm_progress
from leyden.callbacks.progress.drawing import LateReader, is_interactive, with_digits
from leyden.errors import InvalidValueError, OrderError
from leyden.hooks.dispatch import where_raised
from leyden.loops.cadence import Limits


class FakeTrainer:
    """What a bar may ask of a Trainer; counts how often values are read."""

    def __init__(self, **attributes: Any) -> None:
        self.num_training_batches: float = 5
        self.num_val_batches: list[float] = [3]
        self.num_test_batches: list[float] = [3]
        self.num_predict_batches: list[float] = [3]
        self.current_epoch = 0
        self.max_epochs = 2
        self.fit_loop = SimpleNamespace(limits=Limits(max_epochs=2))
        self.sanity_checking = False
        self.is_global_zero = True
        self.loggers: list[Any] = []
        self.metrics: dict[str, float] = {"loss": 0.5}
        self.reads = {"exact": 0, "late": 0}
        self.__dict__.update(attributes)

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        self.reads["exact"] += 1
        return dict(self.metrics)

    @property
    def progress_bar_tensors(self) -> dict[str, torch.Tensor]:
        self.reads["late"] += 1
        return {name: torch.tensor(value) for name, value in self.metrics.items()}


class Clock:
    """Time that goes on by itself only a little, and by ``sleep``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


class Terminal:
    """A pseudo-terminal of a given width, and the screen that its output makes."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST  # "\n" stays "\n"
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        os.set_blocking(self.master, False)
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self.raw = ""

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)

    def read(self) -> str:
        """What was written since the last call."""
        self.stream.flush()
        parts = []
        while True:
            try:
                parts.append(os.read(self.master, 1 << 16))
            except BlockingIOError:
                break
        new = b"".join(parts).decode()
        self.raw += new
        return new

    def screen(self) -> list[str]:
        """The lines that are on the screen now."""
        self.read()
        lines: list[list[str]] = [[]]
        row = column = 0
        for token in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]", self.raw):
            if token == "\x1b[A":
                row = max(row - 1, 0)
            elif token == "\r":
                column = 0
            elif token == "\n":
                row, column = row + 1, 0
            else:
                assert column < (self.columns or 80), "a line was broken"
                while len(lines) <= row:
                    lines.append([])
                line = lines[row]
                line.extend(" " * (column + 1 - len(line)))
                line[column] = token
                column += 1
        texts = ["".join(line).rstrip() for line in lines]
        while texts and not texts[-1]:
            texts.pop()
        return texts


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> Iterator[Terminal]:
    screen = Terminal(columns)
    monkeypatch.setattr(sys, "stdout", screen.stream)
    try:
        yield screen
    finally:
        monkeypatch.undo()
        screen.close()


def setup(bar: TQDMProgressBar, stage: str = "fit", **attributes: Any) -> Any:
    trainer: Any = FakeTrainer(**attributes)
    bar.setup(trainer, MODULE, stage)
    return trainer


MODULE: Any = object()


def train(bar: TQDMProgressBar, trainer: Any, batches: int, *, epochs: int = 1, between: Any = None) -> None:
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        bar.on_train_epoch_start(trainer, MODULE)
        for batch_idx in range(batches):
            bar.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
            if between is not None:
                between(batch_idx)
        bar.on_train_epoch_end(trainer, MODULE)
    bar.on_train_end(trainer, MODULE)


def test_an_epoch_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        train(bar, setup(bar), 5, between=lambda _: clock.sleep(0.5))
        [line] = screen.screen()
    assert re.fullmatch(r"Epoch 0: 100%\|#*█*\| 5/5 \[00:02<00:00,  2\.00it/s, loss=0\.500\]", line), line


def test_the_last_epoch_stays_on_the_screen(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for leave, expected in ((False, ["Epoch 2"]), (True, ["Epoch 0", "Epoch 1", "Epoch 2"])):
        with terminal(monkeypatch) as screen:
            bar = TQDMProgressBar(leave=leave)
            train(bar, setup(bar), 5, epochs=3, between=lambda _: clock.sleep(0.5))
            assert [line.split(":")[0] for line in screen.screen()] == expected


def test_final_values_of_the_fit_are_shown_however_short_it_is(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar)

        def log(batch_idx: int) -> None:
            trainer.metrics["loss"] = float(batch_idx)

        train(bar, trainer, 5, epochs=2, between=log)
        [line] = screen.screen()
    assert "Epoch 1" in line and "5/5" in line and "loss=4.00" in line


def test_drawings_are_limited_by_the_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Also with refresh_rate=1, with epochs of a few steps, and with a validation after each."""
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar(refresh_rate=1)
        trainer = setup(bar)
        drawings = 0
        for epoch in range(100):  # 100 epochs of 5 ms
            trainer.current_epoch = epoch
            bar.on_train_epoch_start(trainer, MODULE)
            for batch_idx in range(5):
                clock.sleep(0.001)
                bar.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
                bar.on_validation_start(trainer, MODULE)
                bar.on_validation_batch_end(trainer, MODULE, None, None, 0)
                bar.on_validation_end(trainer, MODULE)
                drawings += bool(screen.read())
            bar.on_train_epoch_end(trainer, MODULE)
            drawings += bool(screen.read())
        bar.on_train_end(trainer, MODULE)
    assert 4 <= drawings <= 7
    assert trainer.reads["exact"] + trainer.reads["late"] <= 8


def test_a_slow_terminal_takes_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch):
        bar = TQDMProgressBar()
        trainer = setup(bar)
        spent = 0.0

        def slow(*args: Any, **kwargs: Any) -> dict[str, Any]:
            nonlocal spent
            spent += 0.2
            clock.sleep(0.2)
            return {}

        monkeypatch.setattr(bar, "get_metrics", slow)
        start = clock.now
        train(bar, trainer, 1000, between=lambda _: clock.sleep(0.01))
        assert spent <= 0.13 * (clock.now - start)
        monkeypatch.undo()


def test_refresh_rate_counts_batches(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar(refresh_rate=4)
        trainer = setup(bar, num_training_batches=10)
        drawn = []
        bar.on_train_epoch_start(trainer, MODULE)
        screen.read()
        for batch_idx in range(10):
            clock.sleep(1)
            bar.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
            if screen.read():
                drawn.append(batch_idx + 1)
    assert drawn == [4, 8]


def test_refresh_rate_zero_shows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar(refresh_rate=0)
        assert bar.is_disabled and not bar.is_enabled
        train(bar, setup(bar), 5)
        assert screen.screen() == []
    train(bar, setup(bar), 5)
    assert capsys.readouterr().out == ""


def test_only_the_first_process_shows_anything(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar()
    train(bar, setup(bar, is_global_zero=False), 5)
    assert capsys.readouterr() == ("", "")


def test_enable_and_disable(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar()
    trainer = setup(bar)
    bar.disable()
    assert bar.is_disabled
    train(bar, trainer, 5)
    assert capsys.readouterr().out == ""
    bar.enable()
    train(bar, trainer, 5)
    assert "Epoch 0" in capsys.readouterr().out


def test_a_validation_in_an_epoch(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar)
        bar.on_train_epoch_start(trainer, MODULE)
        for batch_idx in range(5):
            clock.sleep(1)
            bar.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
        clock.sleep(1)
        bar.on_validation_start(trainer, MODULE)
        clock.sleep(10)
        bar.on_validation_batch_end(trainer, MODULE, None, None, 0)
        during = screen.screen()
        trainer.metrics["val_loss"] = 0.25
        clock.sleep(1)
        bar.on_validation_end(trainer, MODULE)
        after = screen.screen()
        bar.on_train_epoch_end(trainer, MODULE)
        bar.on_train_end(trainer, MODULE)
        end = screen.screen()
    assert [line.split(":")[0] for line in during] == ["Epoch 0", "Validation"]
    assert "1/3" in during[1] and "5/5" in during[0]
    assert len(after) == len(end) == 1
    assert "val_loss=0.250" in after[0]
    assert " 0.83it/s" in end[0]  # 5 batches in 6 s: the validation's 10 s do not count


def test_the_sanity_check_has_a_row_and_leaves_none(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar, sanity_checking=True, num_val_batches=[2])
        bar.on_sanity_check_start(trainer, MODULE)
        bar.on_validation_start(trainer, MODULE)
        clock.sleep(1)
        bar.on_validation_batch_end(trainer, MODULE, None, None, 0)
        [during] = screen.screen()
        bar.on_validation_end(trainer, MODULE)
        bar.on_sanity_check_end(trainer, MODULE)
        assert screen.screen() == []
    assert during.startswith("Sanity Checking:  50%") and "1/2" in during


@pytest.mark.parametrize("kind", ["validate", "test", "predict"])
def test_an_evaluation_with_several_loaders(monkeypatch: pytest.MonkeyPatch, clock: Clock, kind: str) -> None:
    hook = {"validate": "validation"}.get(kind, kind)
    batches = [3, 2]
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar, kind, num_val_batches=batches, num_test_batches=batches, num_predict_batches=batches)
        getattr(bar, f"on_{hook}_start")(trainer, MODULE)
        seen = []
        for index, count in enumerate(batches):
            for batch_idx in range(count):
                clock.sleep(1)
                getattr(bar, f"on_{hook}_batch_end")(trainer, MODULE, None, None, batch_idx, index)
                [line] = screen.screen()
                seen.append(" ".join([line.split(":")[0], *re.findall(r"\d/\d", line)]))
        getattr(bar, f"on_{hook}_end")(trainer, MODULE)
        bar.teardown(trainer, MODULE, kind)
        [line] = screen.screen()
    name = {"validate": "Validation", "test": "Testing", "predict": "Predicting"}[kind]
    assert seen == [
        *(f"{name} DataLoader 0 {n}/3" for n in (1, 2, 3)),
        *(f"{name} DataLoader 1 {n}/2" for n in (1, 2)),
    ]
    assert "2/2" in line  # it stays


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 0])
def test_narrow_terminals_do_not_break_lines(monkeypatch: pytest.MonkeyPatch, clock: Clock, columns: int) -> None:
    with terminal(monkeypatch, columns) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar, metrics={f"metric/{i}": i / 7 for i in range(9)})
        train(bar, trainer, 5, epochs=3, between=lambda _: clock.sleep(0.3))
        lines = screen.screen()  # it checks
    assert len(lines) == 1 and lines[0].startswith("Epoch 2: ")


def test_numbers_come_first_where_there_is_no_room_for_a_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch, 40) as screen:
        bar = TQDMProgressBar()
        train(bar, setup(bar), 5, between=lambda _: clock.sleep(0.5))
        assert screen.screen() == ["Epoch 0: 5/5  2.00it/s, loss=0.500"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (48, "Epoch 0: 5/5  2.00it/s, loss=0.500, score=0.250"),
        (47, "Epoch 0: 5/5, loss=0.500, score=0.250"),
        (37, "Epoch 0: 5/5, loss=0.500"),
        (24, "Epoch 0: 5/5"),
    ],
)
def test_values_are_shown_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, columns: int, line: str
) -> None:
    """A number that is cut off would be another number."""
    with terminal(monkeypatch, columns) as screen:
        bar = TQDMProgressBar()
        train(bar, setup(bar, metrics={"loss": 0.5, "score": 0.25}), 5, between=lambda _: clock.sleep(0.5))
        assert screen.screen() == [line]


def test_a_loader_of_unknown_length(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        train(bar, setup(bar, num_training_batches=float("inf")), 5, between=lambda _: clock.sleep(0.5))
        [line] = screen.screen()
    assert "5/?" in line and "loss=0.500" in line


def test_a_pipe_gets_one_plain_line_per_epoch(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar()
    trainer = setup(bar)
    train(bar, trainer, 5, epochs=2, between=lambda _: clock.sleep(0.5))
    out, err = capsys.readouterr()
    assert out == (
        "Epoch 0: 5/5 in 2.5 s (2.00 it/s), loss=0.500\n"
        "Epoch 1: 5/5 in 2.5 s (2.00 it/s), loss=0.500\n"
    )  # fmt: skip
    assert err == ""
    assert trainer.reads == {"exact": 2, "late": 0}


def test_the_speed_in_a_pipe_is_that_of_the_training(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar()
    trainer = setup(bar)
    for _ in range(2):
        bar.on_train_epoch_start(trainer, MODULE)
        clock.sleep(1)
        bar.on_train_batch_end(trainer, MODULE, None, None, 4)
        bar.on_validation_start(trainer, MODULE)
        clock.sleep(3)
        bar.on_validation_end(trainer, MODULE)
        bar.on_train_epoch_end(trainer, MODULE)
    assert capsys.readouterr().out.count("Epoch 0: 5/5 in 4.0 s (5.00 it/s), loss=0.500\n") == 2


def test_evaluations_in_a_pipe(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar()
    trainer = setup(bar, "test")
    bar.on_test_start(trainer, MODULE)
    for batch_idx in range(3):
        clock.sleep(0.5)
        bar.on_test_batch_end(trainer, MODULE, None, None, batch_idx)
    bar.on_test_end(trainer, MODULE)
    assert capsys.readouterr().out == "Testing: 3 in 1.5 s (2.00 it/s)\n"

    setup(bar, "fit")
    bar.on_validation_start(trainer, MODULE)
    bar.on_validation_batch_end(trainer, MODULE, None, None, 0)
    bar.on_validation_end(trainer, MODULE)
    assert capsys.readouterr().out == ""  # its values are on the epoch's line


def test_print_does_not_tear_the_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar)
        bar.print("before", 1)
        train(bar, trainer, 5, between=lambda index: bar.print("in", index, sep="-"))
        bar.print("after")
        lines = screen.screen()
    assert lines[:6] == ["before 1", "in-0", "in-1", "in-2", "in-3", "in-4"]
    assert lines[6].startswith("Epoch 0: 100%") and lines[7:] == ["after"]


def test_an_exception_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch) as screen:
        bar = TQDMProgressBar()
        trainer = setup(bar)
        bar.on_train_epoch_start(trainer, MODULE)
        bar.on_train_batch_end(trainer, MODULE, None, None, 0)
        bar.on_validation_start(trainer, MODULE)
        bar.on_exception(trainer, MODULE, KeyboardInterrupt())
        print("Traceback")
        lines = screen.screen()
    assert [line.split(":")[0] for line in lines] == ["Epoch 0", "Traceback"]


def test_get_metrics_can_be_overridden(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    class Mine(TQDMProgressBar):
        def get_metrics(self, trainer: Any, pl_module: Any) -> Any:
            items = super().get_metrics(trainer, pl_module)
            items.pop("v_num", None)
            return {**items, "answer": 42, "word": "yes"}

    class Logger:
        version = 7

    with terminal(monkeypatch, 140) as screen:
        bar = Mine()
        train(bar, setup(bar, loggers=[Logger()]), 5)
        [line] = screen.screen()
    assert line.endswith("loss=0.500, answer=42, word=yes]")


def test_the_loggers_version_is_shown() -> None:
    class Logger:
        def __init__(self, version: Any) -> None:
            self.version = version

    for version, shown in ((3, 3), ("2024-abcd", "abcd"), (None, None)):
        bar = ProgressBar()
        trainer: Any = FakeTrainer(loggers=[Logger(version)])
        assert bar.get_metrics(trainer, MODULE).get("v_num") == shown


def test_bars_can_be_overridden(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    class Mine(TQDMProgressBar):
        def init_validation_tqdm(self) -> Any:
            bar = super().init_validation_tqdm()
            bar.set_description("mine")
            return bar

    with terminal(monkeypatch) as screen:
        bar = Mine()
        trainer = setup(bar, "validate")
        bar.on_validation_start(trainer, MODULE)
        assert bar.val_progress_bar.total == 3
        bar.on_validation_end(trainer, MODULE)
        [line] = screen.screen()
    assert line.startswith("mine:")


class Custom(TQDMProgressBar):
    """What bars of programs do: they change a bar, count along with it and make others."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def init_sanity_tqdm(self) -> Any:
        return self.made("sanity", super().init_sanity_tqdm())

    def init_train_tqdm(self) -> Any:
        return self.made("train", super().init_train_tqdm())

    def init_validation_tqdm(self) -> Any:
        return self.made("validation", super().init_validation_tqdm())

    def init_test_tqdm(self) -> Any:
        return self.made("test", super().init_test_tqdm())

    def init_predict_tqdm(self) -> Any:
        return self.made("predict", super().init_predict_tqdm())

    def made(self, kind: str, bar: Any) -> Any:
        self.seen.append((kind, bar.total))
        return bar


class Changes(TQDMProgressBar):
    """It makes none, and reads those of its base."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[Any] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch}")
        self.train_progress_bar.set_postfix({"a": 1})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seen.append(("train", int(self.train_progress_bar.n), self.main_progress_bar.total))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *values: Any) -> None:
        super().on_validation_batch_end(trainer, pl_module, *values)
        self.seen.append(("val", int(self.val_progress_bar.n), self.val_progress_bar.total))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.seen.append(("end", int(self.train_progress_bar.n), self.train_progress_bar.total))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self.train_progress_bar.close()


def run_all(bar: TQDMProgressBar) -> None:
    trainer = setup(bar, sanity_checking=True)
    bar.on_validation_start(trainer, MODULE)
    bar.on_validation_end(trainer, MODULE)
    bar.on_sanity_check_end(trainer, MODULE)
    trainer.sanity_checking = False
    for trainer.current_epoch in range(2):
        bar.on_train_epoch_start(trainer, MODULE)
        for batch_idx in range(2):
            bar.on_train_batch_end(trainer, MODULE, None, None, batch_idx)
        bar.on_validation_start(trainer, MODULE)
        bar.on_validation_batch_end(trainer, MODULE, None, None, 0)
        bar.on_validation_end(trainer, MODULE)
        bar.on_train_epoch_end(trainer, MODULE)
    bar.on_train_end(trainer, MODULE)
    bar.teardown(trainer, MODULE, "fit")
    for stage in ("test", "predict"):
        bar.setup(trainer, MODULE, stage)
        getattr(bar, f"on_{stage}_start")(trainer, MODULE)
        getattr(bar, f"on_{stage}_end")(trainer, MODULE)
        bar.teardown(trainer, MODULE, stage)


@pytest.mark.parametrize("where", ["terminal", "pipe", "nowhere"])
def test_bars_of_a_subclass_are_made_wherever_it_runs(
    where: str, monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a subclass makes is asked for on a terminal, in a file, and on processes that show nothing."""
    bar = Custom()
    if where == "nowhere":
        bar.disable()
    if where == "terminal":
        with terminal(monkeypatch):
            run_all(bar)
    else:
        run_all(bar)
        captured = capsys.readouterr()
        assert captured.err == "" and captured.out.count("\n") == (4 if where == "pipe" else 0)  # two of them epochs
        assert "\r" not in captured.out
    kinds = [("sanity", 3), ("train", 5), ("validation", 3), ("validation", 3), ("test", 3), ("predict", 3)]
    assert bar.seen == kinds


@pytest.mark.parametrize("options", [{}, {"leave": True}, {"refresh_rate": 0}])
@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_bars_that_are_read_are_there(
    where: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They count the batches, however rarely they are drawn; the lines in a file are those of the plain bar."""
    bar = Changes(**options)
    if where == "terminal":
        with terminal(monkeypatch):
            run_all(bar)
    else:
        run_all(bar)
        out = capsys.readouterr().out
        assert out.count("Epoch ") == (0 if options == {"refresh_rate": 0} else 2) and "epoch 0" not in out
    assert bar.seen == [("train", 1, 5), ("train", 2, 5), ("val", 1, 3), ("end", 2, 5)] * 2
    for name in ("train", "main", "val", "test", "predict"):
        assert not hasattr(bar, f"{name}_progress_bar")


def test_a_bar_of_a_subclass_counts_as_the_subclass_says(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """One bar for the whole fit, set and moved by hand."""

    class Global(TQDMProgressBar):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.main_progress_bar = self.init_train_tqdm()
            self.train_progress_bar.total = 10

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.train_progress_bar.set_description("mine")

        def on_train_batch_end(self, *values: Any) -> None:
            self.train_progress_bar.update(1)

    bar = Global()
    trainer = setup(bar)
    bar.on_train_start(trainer, MODULE)
    train(bar, trainer, 3, epochs=2)
    assert bar.train_progress_bar.n == 6 and bar.train_progress_bar.total == 10


def test_a_plain_bar_makes_none_where_nothing_can_be_drawn(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TQDMProgressBar, "_build", lambda *_, **__: pytest.fail("a bar was made"))
    run_all(TQDMProgressBar())


def test_bars_exist_while_they_are_shown() -> None:
    bar = TQDMProgressBar()
    for name in ("train", "val", "test", "predict"):
        with pytest.raises(OrderError, match=f"no {name} bar"):
            getattr(bar, f"{name}_progress_bar")
        assert not hasattr(bar, f"{name}_progress_bar")
    with pytest.raises(OrderError, match="not attached to a Trainer"):
        bar.trainer  # noqa: B018


def test_an_error_is_told_once_and_no_property_is_asked_again() -> None:
    """What looks for the hook that an error came out of leaves the properties on its way alone."""

    class Mine(TQDMProgressBar):
        asked = 0

        @property
        def trainer(self) -> Any:
            Mine.asked += 1
            raise ZeroDivisionError

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            _ = self.trainer.current_epoch

    bar = Mine()
    try:
        bar.on_fit_start(None, None)
    except ZeroDivisionError as error:
        assert where_raised(error, (Callback,)) == "Mine.on_fit_start"
    assert Mine.asked == 1


@pytest.mark.parametrize("options", [{"refresh_rate": -1}, {"refresh_rate": "1"}, {"process_position": -1}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        TQDMProgressBar(**options)


def test_totals_of_the_base_class() -> None:
    bar = ProgressBar()
    trainer: Any = FakeTrainer(num_val_batches=[3, 4])
    bar.setup(trainer, MODULE, "fit")
    assert bar.total_train_batches == 5
    assert bar.total_val_batches == 7
    assert bar.has_dataloader_changed(1) and not bar.has_dataloader_changed(1)
    assert bar.total_val_batches_current_dataloader == 4
    bar.reset_dataloader_idx_tracker()
    assert bar.total_val_batches_current_dataloader == 3
    assert bar.has_dataloader_changed(0)


def test_a_bar_can_be_copied_while_it_is_shown(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch):
        bar = TQDMProgressBar(refresh_rate=3, leave=True)
        trainer = setup(bar)
        bar.on_train_epoch_start(trainer, MODULE)
        other = copy.deepcopy(bar)
        bar.on_train_end(trainer, MODULE)
    assert other.refresh_rate == 3 and other.is_enabled
    with pytest.raises(OrderError):
        other.train_progress_bar  # noqa: B018


def test_no_thread_is_started(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    import threading

    before = threading.active_count()
    with terminal(monkeypatch):
        bar = TQDMProgressBar()
        trainer = setup(bar)
        bar.on_train_epoch_start(trainer, MODULE)
        assert threading.active_count() == before
        bar.on_train_end(trainer, MODULE)


def test_a_step_without_drawing_asks_nothing_of_anybody(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch):
        bar = TQDMProgressBar()
        trainer = setup(bar)
        bar.on_train_epoch_start(trainer, MODULE)
        bar.on_train_batch_end(trainer, MODULE, None, None, 0)
        calls: list[str] = []
        sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
        try:
            bar.on_train_batch_end(trainer, MODULE, None, None, 1)
        finally:
            sys.setprofile(None)
        bar.on_train_end(trainer, MODULE)
    assert calls == ["on_train_batch_end", "__call__"]  # the clock of this test is a Python function


def test_values_are_read_late_between_and_exactly_at_the_end(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with terminal(monkeypatch):
        bar = TQDMProgressBar()
        trainer = setup(bar)
        train(bar, trainer, 5, between=lambda _: clock.sleep(1))
    assert trainer.reads == {"exact": 1, "late": 4}


def test_a_late_reader_reads_the_cpu_at_once() -> None:
    reader = LateReader()
    assert reader.read({"a": torch.tensor(1.5)}) == {"a": 1.5}
    assert reader.read({}) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_late_reader_does_not_wait_for_the_gpu() -> None:
    reader = LateReader()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = reader.read({"a": torch.full((), 1.0, device="cuda"), "b": torch.full((), 2.0, device="cuda").half()})
        time.sleep(0.1)
        second = reader.read({"a": torch.full((), 3.0, device="cuda"), "b": torch.full((), 4.0, device="cuda")})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first == {}
    assert second == {"a": 1.0, "b": 2.0}


def test_where_can_be_drawn() -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    closed = io.StringIO()
    closed.close()
    assert is_interactive(Tty())
    assert not is_interactive(io.StringIO())
    assert not is_interactive(closed)
    assert not is_interactive(None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (0.123456, "0.123"), (12.0, "12.0"), (123.4, "123"), (1e-7, "1.00e-07"), (3, "3"), ("a", "a")],
)
def test_digits(value: Any, text: str) -> None:
    assert with_digits(value) == text


def test_interval_is_ten_hertz() -> None:
    assert tqdm_progress.INTERVAL == 0.1
