"""``Timer``: how long training, validation and test take, and an end to the fit after a given time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from leyden.callback import Callback
from leyden.errors import InvalidValueError
from leyden.units import seconds_of

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer

_STAGES: Final = ("train", "sanity_check", "validate", "test", "predict")


class Timer(Callback):
    """Measures stages and ends the fit when its time is over.

    Args:
        duration: longest time to train: "DD:HH:MM:SS", a timedelta, or a dict of its arguments. None only measures.
        interval: "step" looks at the clock after every batch, "epoch" after every epoch.
        verbose: whether the end of the time is printed.

    Raises:
        InvalidValueError: a duration that is none (``duration``), or another interval (``timer-interval``).

    >>> timer = Timer(duration="00:12:00:00")
    >>> timer.time_remaining()
    43200.0
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, float] | None = None,
        interval: str = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise InvalidValueError(f"Timer(interval={interval!r}): expected 'step' or 'epoch'", code="timer-interval")
        self._seconds = None if duration is None else seconds_of(duration, what="Timer(duration=...)")
        self._interval = interval
        self._verbose = verbose
        self._starts: dict[str, float] = {}
        self._ends: dict[str, float] = {}
        self._before = 0.0  # seconds of training before the checkpoint that this run goes on from
        self._has_stopped = False

    def start_time(self, stage: str = "train") -> float | None:
        """When a stage began last, in seconds of ``time.monotonic``; None if it did not.

        Args:
            stage: "train", "validate" or "test".
        """
        return self._starts.get(_known(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """When a stage ended last, likewise; None while it runs."""
        return self._ends.get(_known(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds that a stage took or has taken so far; a training that was resumed counts from its beginning."""
        start, end = self.start_time(stage), self.end_time(stage)
        before = self._before if stage == "train" else 0.0
        if start is None:
            return before
        return before + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds until the duration is over; None without one."""
        return None if self._seconds is None else self._seconds - self.time_elapsed(stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train if a checkpoint says that the time is over; train on if it was, and there is more now."""
        self._starts.pop("train", None)
        if self._has_stopped:
            trainer.should_stop = self._has_stopped = False
        self._check(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("train")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._ends["train"] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._start("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the validation."""
        self._ends["validate"] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the test."""
        self._start("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the test."""
        self._ends["test"] = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, if steps are watched."""
        if self._interval == "step":
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock, if epochs are watched."""
        if self._interval == "epoch":
            self._check(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Seconds by stage."""
        elapsed = {stage: self.time_elapsed(stage) for stage in _STAGES}
        return {"time_elapsed": elapsed, "has_stopped": self._has_stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from the training's seconds."""
        self._before = float(state_dict.get("time_elapsed", {}).get("train", 0.0))
        self._has_stopped = bool(state_dict.get("has_stopped"))

    def _start(self, stage: str) -> None:
        self._starts[stage] = time.monotonic()
        self._ends.pop(stage, None)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seconds is None or trainer.should_stop:
            return
        elapsed = self.time_elapsed()
        if trainer.strategy.broadcast(elapsed >= self._seconds):  # the first process's clock is everybody's
            trainer.should_stop = self._has_stopped = True
            if self._verbose:
                pl_module.print(f"The time is over: {timedelta(seconds=int(elapsed))} of training. The fit ends.")


def _known(stage: str) -> str:
    if stage not in _STAGES:
        raise InvalidValueError(f"a timer has no stage {stage!r}; it has {', '.join(_STAGES)}", code="timer-stage")
    return stage
