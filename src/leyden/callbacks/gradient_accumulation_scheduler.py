"""``GradientAccumulationScheduler``: other window sizes in other epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leyden.callback import Callback
from leyden.errors import InvalidTypeError, InvalidValueError, MisconfigurationException, OrderError

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Sets the number of micro-batches of an update by epoch.

    ``Trainer(accumulate_grad_batches={...})`` is the same in one word.

    Args:
        scheduling: ``{epoch: micro-batches}``: from that epoch on (0-based), until the next one named.
            Before the first one named it is 1.

    Raises:
        InvalidTypeError: not a dict, or an empty one (``accumulation-schedule``).
        MisconfigurationException: an epoch that is no int >= 0, or a number of micro-batches that is no
            int >= 1 (``accumulation-schedule``).

    >>> schedule = GradientAccumulationScheduler({2: 4, 6: 8})
    >>> [schedule.get_accumulate_grad_batches(epoch) for epoch in (0, 1, 2, 5, 6)]
    [1, 1, 4, 4, 8]
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        if not isinstance(scheduling, dict) or not scheduling:
            raise InvalidTypeError(
                f"GradientAccumulationScheduler({scheduling!r}): expected a dict {{epoch: micro-batches}} "
                "with at least one entry, such as {0: 1, 4: 8}",
                code="accumulation-schedule",
            )
        for epoch, factor in scheduling.items():
            if not _is_int(epoch) or epoch < 0:
                raise MisconfigurationException(
                    f"GradientAccumulationScheduler({scheduling!r}): the epoch {epoch!r} must be an int >= 0",
                    code="accumulation-schedule",
                )
            if not _is_int(factor) or factor < 1:
                raise MisconfigurationException(
                    f"GradientAccumulationScheduler({scheduling!r}): {factor!r} micro-batches from "
                    f"epoch {epoch} on must be an int >= 1",
                    code="accumulation-schedule",
                )
        self.scheduling = {0: 1, **scheduling}
        self._was_set: int | None = None

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether any epoch has windows of more than one micro-batch."""
        return any(factor > 1 for factor in self.scheduling.values())

    def __repr__(self) -> str:
        return f"GradientAccumulationScheduler({self.scheduling})"

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Micro-batches of an update in ``epoch`` (0-based)."""
        return self.scheduling[max(start for start in self.scheduling if start <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work together.

        Raises:
            OrderError: the module uses manual optimization, where its own code says when to step
                (``accumulation-manual``).
            InvalidValueError: the Trainer has a number of its own (``accumulation-twice``).
        """
        if not pl_module.automatic_optimization:
            raise OrderError(
                "GradientAccumulationScheduler needs automatic optimization; in manual optimization remove "
                "it and accumulate in training_step",
                code="accumulation-manual",
            )
        # what a fit before this one has set is our own doing
        if trainer.accumulate_grad_batches not in (1, self._was_set):
            raise InvalidValueError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) and a "
                "GradientAccumulationScheduler were both given; keep one of them",
                code="accumulation-twice",
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number of this epoch."""
        self._was_set = self.get_accumulate_grad_batches(trainer.current_epoch)
        trainer.accumulate_grad_batches = self._was_set


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
