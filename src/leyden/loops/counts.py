"""Where a fit is, under the names that Lightning's loops have for it; read from the clocks when it is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from leyden.loops.evaluate import EvaluationLoop
    from leyden.loops.fit import FitLoop
    from leyden.optimization.clocks import Clocks


class Counts(NamedTuple):
    """How far batches or epochs are.

    Attributes:
        ready: begun.
        started: the same; Lightning counts it a hook later.
        processed: those whose step is done.
        completed: those that are through with all that comes after it.
    """

    ready: int
    started: int
    processed: int
    completed: int

    def after(self, count: int) -> Counts:
        """The same with ``count`` more, which were before."""
        return Counts(*(number + count for number in self))


class Settable(Counts):
    """Counts that a program may set at the start of a fit, as those do that go on from files of their own.

    What is set is the clock that counts; numbers without one follow from it, and setting them does nothing.
    """

    def __setattr__(self, name: str, value: int) -> None:
        if name in vars(self)["names"]:
            setattr(vars(self)["clocks"], vars(self)["names"][name], value)


def _settable(counts: Counts, clocks: Clocks, **names: str) -> Settable:
    own = Settable(*counts)
    vars(own).update(clocks=clocks, names=names)
    return own


class Progress(NamedTuple):
    """What Lightning calls a progress.

    Attributes:
        total: since the first epoch.
        current: of batches, in the running epoch.
        is_last_batch: whether the batch in hand is the epoch's last.
    """

    total: Counts
    current: Counts
    is_last_batch: bool = False


@final
class EpochLoop:
    """The running epoch of a fit: ``trainer.fit_loop.epoch_loop``.

    Args:
        loop: the fit's.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._loop = loop

    @property
    def global_step(self) -> int:
        """Optimizer steps so far."""
        return self._loop.clocks.steps

    @property
    def batch_idx(self) -> int:
        """Index of the batch in hand within its epoch; -1 before the first."""
        return self.batch_progress.current.ready - 1

    @property
    def total_batch_idx(self) -> int:
        """Index of the batch in hand since the first epoch; -1 before the first."""
        return self._loop.clocks.micro_batches - 1

    @property
    def batch_progress(self) -> Progress:
        """Batches of this epoch, and of all."""
        loop, clocks = self._loop, self._loop.clocks
        ready = min(clocks.batch_idx + 1, clocks.micro_batches)
        completed = loop.done if loop.phase == "validation" else loop.ended
        current = Counts(ready, ready, loop.done, completed)
        total = _settable(current.after(clocks.micro_batches - ready), clocks, ready="micro_batches")
        return Progress(total, current, loop.data.is_last_batch)

    @property
    def manual_optimization(self) -> Any:
        """Optimizer steps so far, as ``optim_step_progress.total.completed``."""
        clocks = self._loop.clocks
        steps = Counts(*[clocks.global_step] * 4)
        total = _settable(steps, clocks, completed="global_step")
        return SimpleNamespace(optim_step_progress=Progress(total, steps))

    @property
    def automatic_optimization(self) -> Any:
        """The same, as ``optim_progress.optimizer.step.total.completed``."""
        step = self.manual_optimization.optim_step_progress
        return SimpleNamespace(optim_progress=SimpleNamespace(optimizer=SimpleNamespace(step=step)))

    @property
    def val_loop(self) -> EvaluationLoop | None:
        """Runs the fit's validations."""
        return self._loop.validation

    @property
    def _batches_that_stepped(self) -> int:
        return self._loop.clocks.updates

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:
        self._loop.clocks.updates = value


def epochs_of(loop: FitLoop) -> Progress:
    """``trainer.fit_loop.epoch_progress``."""
    epoch = loop.clocks.epoch
    ready, processed = epoch + (loop.phase != "between"), epoch + (loop.phase == "epoch_end")
    counts = _settable(Counts(ready, ready, processed, epoch), loop.clocks, processed="epoch", completed="epoch")
    return Progress(counts, counts)
