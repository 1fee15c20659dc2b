"""``ThroughputMonitor``: batches, samples and operations per second as rows of the loggers."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from leyden.callback import Callback
from leyden.callbacks.rows import is_evaluation_row_due, is_row_due, write_row
from leyden.errors import InvalidValueError

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class _Point(NamedTuple):
    """What a stage has done up to a moment, on this process."""

    seconds: float
    batches: int
    samples: int
    lengths: int
    flops: float


class ThroughputMonitor(Callback):
    """Writes how fast training, validation, test and prediction are.

    Keys begin with the stage, e.g. "train/". "time" (seconds), "batches", "samples" and "lengths" are totals of the
    stage; "device/batches_per_sec", "device/samples_per_sec", "device/items_per_sec" and "device/flops_per_sec" are
    means over the last batches, of one process, and without "device/" of all where there are several. "device/mfu" is
    the used part of ``available_flops``. The time of validations does not count as training.

    ``module.flops_per_batch`` (operations of a batch, forward and backward), if there is one, is asked for with every
    batch. A row waits for the device, so that the time is true; other batches do not.

    Args:
        batch_size_fn: ``batch`` -> number of samples in it.
        length_fn: ``batch`` -> number of items (tokens, pixels) in it; None does not count items.
        window_size: batches that a mean is over, at least 2; there is no mean before so many have run.
        separator: stands behind the stage and behind "device".
        available_flops: operations per second that one device could do, e.g. 989e12; None leaves out "mfu".

    Raises:
        InvalidValueError: a window of less than two batches (``throughput-window``).

    >>> monitor = ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=20)
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int],
        length_fn: Callable[[Any], int] | None = None,
        *,
        window_size: int = 100,
        separator: str = "/",
        available_flops: float | None = None,
    ) -> None:
        if window_size < 2:
            raise InvalidValueError(
                f"ThroughputMonitor(window_size={window_size!r}): a mean takes two batches, so expected at least 2",
                code="throughput-window",
            )
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.window_size = window_size
        self.separator = separator
        self.available_flops = available_flops
        self._points: dict[str, deque[_Point]] = {}
        self._starts: dict[str, float] = {}
        self._in_fit = False
        self._paused_at = 0.0
        self._num_evaluated: Counter[str] = Counter()  # batches by stage, over all validations of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count anew."""
        self._points, self._in_fit = {}, stage == "fit"
        self._num_evaluated.clear()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("train")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; write, where a window closes on a batch that has a row."""
        closes = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        is_due = closes and is_row_due(trainer)
        self._count("train", trainer, pl_module, batch, waits=is_due)
        if is_due:
            values = {"epoch": trainer.current_epoch, **self._values("train", trainer.world_size)}
            self._write(trainer, values, trainer.num_updates)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation, stop that of the training."""
        self._paused_at = time.perf_counter()
        self._start("validate")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch; write, every ``log_every_n_steps`` batches."""
        if not trainer.sanity_checking:
            self._end_batch("validate", trainer, pl_module, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock of the training go on."""
        if self._in_fit and "train" in self._starts:
            self._starts["train"] += time.perf_counter() - self._paused_at

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("test")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch; write, every ``log_every_n_steps`` batches."""
        self._end_batch("test", trainer, pl_module, batch)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start("predict")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch; write, every ``log_every_n_steps`` batches."""
        self._end_batch("predict", trainer, pl_module, batch)

    def _start(self, stage: str) -> None:
        self._starts[stage] = time.perf_counter()
        self._points[stage] = deque(maxlen=self.window_size)

    def _end_batch(self, stage: str, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        points = self._points[stage]
        number = points[-1].batches + 1 if points else 1
        self._num_evaluated[stage] += 1
        is_due = is_evaluation_row_due(trainer, number)
        self._count(stage, trainer, pl_module, batch, waits=is_due)
        if is_due:
            self._write(trainer, self._values(stage, trainer.world_size), self._num_evaluated[stage])

    def _count(self, stage: str, trainer: Trainer, pl_module: LightningModule, batch: Any, *, waits: bool) -> None:
        points = self._points[stage]
        last = points[-1] if points else _Point(0.0, 0, 0, 0, 0.0)
        if waits and trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        seconds = time.perf_counter() - self._starts[stage]
        with torch.no_grad():
            samples = self.batch_size_fn(batch)
            lengths = self.length_fn(batch) if self.length_fn is not None else 0
        flops = float(getattr(pl_module, "flops_per_batch", None) or 0)
        points.append(
            _Point(seconds, last.batches + 1, last.samples + samples, last.lengths + lengths, last.flops + flops)
        )

    def _values(self, stage: str, world_size: int) -> dict[str, float]:
        """What a row says of a stage."""
        sign, points = self.separator, self._points[stage]
        first, last = points[0], points[-1]
        values: dict[str, float] = {"time": last.seconds, "batches": last.batches, "samples": last.samples}
        if self.length_fn is not None:
            values["lengths"] = last.lengths
        seconds = last.seconds - first.seconds
        if len(points) == self.window_size and seconds > 0:
            rates = {"batches_per_sec": last.batches - first.batches, "samples_per_sec": last.samples - first.samples}
            if self.length_fn is not None:
                rates["items_per_sec"] = last.lengths - first.lengths
            per_second = {name: amount / seconds for name, amount in rates.items()}
            if last.flops > first.flops:
                per_second["flops_per_sec"] = (last.flops - first.flops) / seconds
            values.update({f"device{sign}{name}": rate for name, rate in per_second.items()})
            if world_size > 1:
                values.update({name: rate * world_size for name, rate in per_second.items()})
            if self.available_flops and "flops_per_sec" in per_second:
                values[f"device{sign}mfu"] = per_second["flops_per_sec"] / self.available_flops
        return {f"{stage}{sign}{name}": value for name, value in values.items()}

    def _write(self, trainer: Trainer, values: dict[str, float], step: int) -> None:
        if trainer.is_global_zero:
            write_row(trainer, values, step)
