"""``BasePredictionWriter``: a place to write predictions from, instead of holding all of them in memory."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from leyden.callback import Callback
from leyden.errors import InvalidValueError


class WriteInterval(str, Enum):
    """When a ``BasePredictionWriter`` writes."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether after every batch."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Whether once all batches are through."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Gets the predictions of ``trainer.predict``; override one or both of its methods.

    With ``trainer.predict(..., return_predictions=False)`` and the interval "batch" no prediction stays in memory.

    Args:
        write_interval: "batch" (default) calls ``write_on_batch_end``, "epoch" calls ``write_on_epoch_end``,
            "batch_and_epoch" calls both.

    Attributes:
        interval: the same, as a ``WriteInterval``.

    Raises:
        InvalidValueError: no such interval (code ``write-interval``).

    >>> class Writer(BasePredictionWriter):
    ...     def write_on_batch_end(
    ...         self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx
    ...     ):
    ...         print(batch_idx, prediction, batch_indices)
    >>> Writer("batch").interval.on_epoch
    False
    """

    def __init__(self, write_interval: str = "batch") -> None:
        known = [interval.value for interval in WriteInterval]
        if write_interval not in known:
            raise InvalidValueError(
                f"{type(self).__name__}(write_interval={write_interval!r}): expected one of {known}",
                code="write-interval",
            )
        self.interval = WriteInterval(write_interval)

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the prediction for one batch.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            prediction: what ``predict_step`` returned.
            batch_indices: positions in the dataset of the samples in the batch; empty where they are not known: for
                streams and loaders that are no ``DataLoader``.
            batch: the batch.
            batch_idx: index of the batch in its loader.
            dataloader_idx: index of the loader.
        """
        raise NotImplementedError

    def write_on_epoch_end(
        self, trainer: Any, pl_module: Any, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write all predictions.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            predictions: one for each batch; a list of them for each loader if there are several.
            batch_indices: for each loader and each of its batches the samples in it.
        """
        raise NotImplementedError

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write a batch, if the interval says so."""
        if self.interval.on_batch:
            indices = trainer.predict_loop.current_batch_indices
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write all, if the interval says so."""
        if self.interval.on_epoch:
            loop = trainer.predict_loop
            self.write_on_epoch_end(trainer, pl_module, loop.predictions, loop.epoch_batch_indices)
