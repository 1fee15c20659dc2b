"""What a run is doing, in the words of ``trainer.state``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]


class _Word(str, Enum):
    """A text; compared with texts without regard to case."""

    def __eq__(self, other: object) -> bool:
        other = other.value if isinstance(other, Enum) else other
        return isinstance(other, str) and self.value.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.value.lower())

    def __str__(self) -> str:
        return str(self.value)


class TrainerStatus(_Word):
    """Whether the last run has ended, and how."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Whether no run is on."""
        return self in (self.FINISHED, self.INTERRUPTED)


class TrainerFn(_Word):
    """Which of the Trainer's methods runs."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"
    TUNING = "tune"


class RunningStage(_Word):
    """What the loop does at this moment."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"
    TUNING = "tune"

    @property
    def evaluating(self) -> bool:
        """Whether it validates, for whatever reason, or tests."""
        return self in (self.VALIDATING, self.TESTING, self.SANITY_CHECKING)

    @property
    def dataloader_prefix(self) -> str | None:
        """The beginning of the names of this stage's loaders and steps."""
        if self in (self.VALIDATING, self.SANITY_CHECKING):
            return "val"
        return None if self is self.TUNING else self.value


@dataclass(frozen=True)
class TrainerState:
    """What ``trainer.state`` tells.

    Attributes:
        status: whether a run is on.
        fn: the method that runs; None outside of a run.
        stage: what its loop does; None outside of a run.
    """

    status: TrainerStatus
    fn: TrainerFn | None
    stage: RunningStage | None

    @property
    def finished(self) -> bool:
        """Whether the last run has come to its end."""
        return self.status is TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Whether no run is on, after one was."""
        return self.status.stopped


def state_of(stage: str | None, run: str | None, status: str) -> TrainerState:
    """The state of a Trainer.

    Args:
        stage: what its loop does, or None.
        run: "fit", "validate", "test", "predict", or None.
        status: a value of TrainerStatus.

    >>> str(state_of("sanity_check", "fit", "running").stage), state_of(None, None, "finished").finished
    ('sanity_check', True)
    """

    def word(kind: Any, value: str | None) -> Any:
        return None if value is None else kind(value)

    return TrainerState(TrainerStatus(status), word(TrainerFn, run), word(RunningStage, stage))
