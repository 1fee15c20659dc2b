"""What the 1.x hooks ``training_epoch_end`` and ``validation_epoch_end`` are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from leyden.errors import MisconfigurationException


@final
class EpochOutputs:
    """Collects the outputs of an epoch; exists only if the module has ``training_epoch_end``.

    One optimizer: ``[output of each batch]``. Several: ``[[output of each batch] for each optimizer]``, as in 1.5, or
    ``[[output of each optimizer] for each batch]`` if the hook has a parameter ``new_format``, as from 1.6 on.

    Args:
        hook: ``training_epoch_end``.
        num_optimizers: number of optimizers that take turns; 1 in manual mode.
        indices: tells whose outputs the last batch returned.
        by_batch: whether to give the later format.

    Attributes:
        batches: what the epoch has so far.
    """

    def __init__(
        self,
        hook: Callable[[list[Any]], Any],
        *,
        num_optimizers: int = 1,
        indices: Callable[[], Sequence[int]] = lambda: (),
        by_batch: bool = False,
    ) -> None:
        self._hook = hook
        self._num_optimizers = num_optimizers
        self._indices = indices
        self._by_batch = by_batch
        self.batches: list[Any] = []

    def add(self, outputs: Any) -> None:
        """Take in the outputs of one batch; a batch that returned nothing leaves none."""
        if not outputs:
            return
        if self._num_optimizers > 1:
            self.batches.append(list(zip(self._indices(), outputs, strict=True)))
        else:
            self.batches.append(outputs)

    def end_epoch(self) -> None:
        """Call the hook and forget the epoch.

        Raises:
            MisconfigurationException: the hook returned something.
        """
        batches, self.batches = self.batches, []
        if self._num_optimizers > 1:
            if self._by_batch:
                batches = [[output for _, output in batch] for batch in batches]
            else:
                each = range(self._num_optimizers)
                batches = [[out for batch in batches for i, out in batch if i == index] for index in each]
        if self._hook(batches) is not None:
            raise MisconfigurationException(
                "training_epoch_end returned a value; it must return None. Log values with self.log",
                code="epoch-end-output",
            )
