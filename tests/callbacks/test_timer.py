"""``Timer``."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import pytorch_lightning

from leyden import Callback
from leyden.callbacks import Timer
from leyden.errors import InvalidValueError
from modes import BATCHES, MODES, run


class Clock(Callback):
    """Ten seconds go by with every batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.now += 10


@pytest.mark.parametrize("mode", MODES)
def test_ends_a_fit_after_a_batch(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(timedelta(seconds=80), verbose=False)
    trainer, _, _ = run(mode, [Clock(monkeypatch), timer])
    assert trainer.fit_loop.clocks.micro_batches == 8
    assert timer.time_elapsed() == 80.0
    assert timer.time_remaining() == 0.0


def test_ends_a_fit_after_an_epoch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    timer = Timer({"seconds": 80}, interval="epoch")
    trainer, _, _ = run("one", [Clock(monkeypatch), timer])
    assert trainer.fit_loop.clocks.micro_batches == 2 * BATCHES
    assert "The time is over: 0:02:00 of training. The fit ends." in capsys.readouterr().out


def test_only_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer()
    assert (timer.start_time(), timer.time_elapsed(), timer.time_remaining()) == (None, 0.0, None)
    clock = Clock(monkeypatch)
    run("one", [clock, timer])
    assert (timer.start_time(), timer.end_time(), timer.time_elapsed("train")) == (1000.0, 1240.0, 240.0)
    run("one", [clock, timer], max_epochs=1)  # a second fit is measured by itself
    assert timer.time_elapsed("train") == 60.0
    assert timer.time_elapsed("validate") == 0.0


def test_state_goes_on_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """R149: the state is Lightning's."""
    timer = Timer("00:00:01:30", verbose=False)
    run("one", [Clock(monkeypatch), timer], max_epochs=1)
    state = timer.state_dict()
    theirs = pytorch_lightning.callbacks.Timer()
    assert state["time_elapsed"].keys() == theirs.state_dict()["time_elapsed"].keys()
    theirs.load_state_dict(state)
    assert theirs.time_elapsed() == 60.0
    resumed = Timer("00:00:01:30", verbose=False)
    resumed.load_state_dict(state)
    trainer, _, _ = run("one", [Clock(monkeypatch), resumed])
    assert trainer.fit_loop.clocks.micro_batches == 3
    over = Timer("00:00:00:30", verbose=False)
    over.load_state_dict(state)
    assert run("one", [over])[0].global_step == 0


@pytest.mark.parametrize("duration", ["12:00", "1:1:1:1", 30, {"fortnights": 1}, "a:bb:cc:dd"])
def test_no_duration(duration: Any) -> None:
    with pytest.raises(InvalidValueError, match="expected 'DD:HH:MM:SS'"):
        Timer(duration)


def test_bad_names() -> None:
    with pytest.raises(InvalidValueError, match="expected 'step' or 'epoch'"):
        Timer(interval="batch")
    with pytest.raises(InvalidValueError, match="no stage 'fit'"):
        Timer().time_elapsed("fit")
