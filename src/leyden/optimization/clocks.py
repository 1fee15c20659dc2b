"""The counters of a run. Everything that happens "every n" names one of them.

``trainer.global_step`` is a view over these clocks: the number of optimizer steps attempted, as Lightning has counted
since 1.6. With two optimizers it rises by two per batch; ``updates`` rises by one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar


class Verdict(Enum):
    """What became of an update; the value says why it moved nothing."""

    APPLIED = "applied"
    NON_FINITE = "non-finite gradients"
    NO_LOSS = "no loss"
    NOT_STEPPED = "not stepped by its handle"


@dataclass(slots=True)
class UpdateClock:
    """What became of the updates of one optimizer.

    Attributes:
        attempted: closes of a window; every one counts for ``global_step``.
        applied: updates that moved the parameters.
        skipped: updates that did not, by reason: "non-finite gradients", "no loss", "not stepped by its handle".
    """

    attempted: int = 0
    applied: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def tick(self, verdict: Verdict) -> None:
        """Count one update."""
        self.attempted += 1
        if verdict is Verdict.APPLIED:
            self.applied += 1
        else:
            self.skipped[verdict.value] = self.skipped.get(verdict.value, 0) + 1


@dataclass(slots=True)
class Clocks:
    """All clocks of a run; they go on when ``fit`` is called again.

    Attributes:
        epoch: epochs finished, which is also the index of the one that runs.
        batch_idx: index of the batch within its epoch.
        micro_batches: batches started since the first epoch.
        updates: batches on which a window closed; the x-axis of loggers, and what 1.5 called ``global_step``.
        global_step: optimizer steps attempted, over all optimizers.
        optimizers: a clock for each optimizer, in configured order.
        samples: sizes of all batches, summed up; counted only while a limit or an interval names samples.
        window_closes: whether the batch in hand is done and closes a window that ``updates`` does not count yet; told
            only while an interval needs to know.
        epoch_ends: likewise, whether the running epoch is complete.
        seconds_before: seconds that earlier fits took, and the one that is resumed.
        started: ``time.monotonic()`` at the start of the running fit; None between fits.
        batches_are_steps: for all runs, whether the steps that code sees and limits are ``updates``, as in Lightning
            1.5; ``leyden.compat.install(era="1.5")`` says so.
    """

    batches_are_steps: ClassVar[bool] = False

    epoch: int = 0
    batch_idx: int = 0
    micro_batches: int = 0
    updates: int = 0
    global_step: int = 0
    optimizers: list[UpdateClock] = field(default_factory=list)
    samples: int = 0
    window_closes: bool = False
    epoch_ends: bool = False
    seconds_before: float = 0.0
    started: float | None = None

    @property
    def steps(self) -> int:
        """``trainer.global_step``: the steps of all optimizers, or in the era of 1.5 the batches that stepped."""
        return self.updates if Clocks.batches_are_steps else self.global_step

    @property
    def seconds(self) -> float:
        """Seconds of all fits so far, validations included."""
        return self.seconds_before + (0.0 if self.started is None else time.monotonic() - self.started)

    def start(self) -> None:
        """Let the seconds run: a fit begins."""
        self.started = time.monotonic()

    def stop(self) -> None:
        """Stop the seconds: the fit is over."""
        self.seconds_before, self.started = self.seconds, None
        self.window_closes = self.epoch_ends = False

    def for_optimizers(self, count: int) -> list[UpdateClock]:
        """The clocks of ``count`` optimizers; those of an earlier fit go on."""
        while len(self.optimizers) < count:
            self.optimizers.append(UpdateClock())
        return self.optimizers[:count]
