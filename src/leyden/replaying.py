"""``replay``: a step that has failed, run again from its record."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from leyden import checkpoint
from leyden.callback import Callback
from leyden.callbacks.failure_recorder import is_finite
from leyden.errors import CheckpointError, NonFiniteError
from leyden.module import LightningModule
from leyden.optimization.gradients import gradients_of
from leyden.seed import set_rng_state
from leyden.trainer import Trainer


def replay(
    file: str | os.PathLike[str],
    module: LightningModule,
    *,
    callbacks: Sequence[Callback] = (),
    weights_only: bool | None = None,
    **arguments: Any,
) -> Trainer:
    """Run the step again that ``Trainer(record_failures=True)`` has recorded, under anomaly detection.

    The run goes on from the state in the file, with its batches and its random numbers, up to the step that has
    failed. That fails again, now with the operation named that made the first nan, unless it needs what is not in the
    file: another callback, a device that is not here, something that the module reads from outside.

    Args:
        file: what the recorder has written.
        module: one like that of the run; its weights are replaced.
        callbacks: those of the run that change a step, if there were any.
        weights_only: as for ``trainer.fit``: None and True read the file as plain data.
        arguments: for the Trainer, in place of what the file says: ``accelerator="cpu"``, ``detect_anomaly=False``.

    Returns:
        The Trainer of the replay, if the step did not fail this time.

    Raises:
        CheckpointError: the file is no record of a failure (``replay-file``), or cannot be read.
        Exception: what the step raises.
        NonFiniteError: its loss or a gradient is not finite (``non-finite``).

    >>> # trainer = leyden.replay("failures/epoch=3-batch=17.failure", Model())
    """
    content = checkpoint.read_checkpoint(file, weights_only=weights_only)
    failure = content.get("failure")
    if failure is None:
        raise CheckpointError(
            f"{os.fspath(file)!r} is a checkpoint, and no record of a failing step; pass a file that "
            "Trainer(record_failures=True) has written",
            code="replay-file",
        )
    silent = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "handle_signals")
    settings = {**failure["trainer"], **dict.fromkeys(silent, False), "detect_anomaly": True, **arguments}
    trainer = Trainer(callbacks=[*callbacks, _Again(failure)], limit_val_batches=0, **settings)
    trainer.fit(module, _Recorded(failure, content["leyden"]), ckpt_path=file, weights_only=weights_only)
    return trainer


class _Recorded:
    """The training data as far as it was recorded; batches before it are not asked for."""

    def __init__(self, failure: dict[str, Any], place: dict[str, Any]) -> None:
        self._batches, self._length = failure["batches"], failure["num_batches"]
        self._first = place["batches"] - 1

    def __len__(self) -> int:
        if self._length == math.inf:
            raise TypeError("the loader had no length")
        return int(self._length)

    def __iter__(self) -> Iterator[Any]:
        yield from [None] * self._first
        yield from self._batches
        yield None  # never reached: it says that the last one was not the epoch's last


class _Again(Callback):
    """Gives every batch its random numbers, judges it as the recorder did, and ends after the last."""

    def __init__(self, failure: dict[str, Any]) -> None:
        self._generators = list(failure["generators"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        set_rng_state(self._generators.pop(0))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.scaler is None and not is_finite([loss]):
            raise NonFiniteError(f"the loss is not finite: {loss.detach()}", code="non-finite")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.scaler is None and not is_finite(gradients_of(optimizer)):
            names = [name for name, p in pl_module.named_parameters() if p.grad is not None and not is_finite([p.grad])]
            raise NonFiniteError(f"gradients are not finite: {', '.join(names)}", code="non-finite")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = not self._generators
