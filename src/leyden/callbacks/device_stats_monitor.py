"""``DeviceStatsMonitor``: memory of the GPU and load of the machine as rows of the loggers."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from leyden.callback import Callback
from leyden.callbacks.rows import is_evaluation_row_due, is_row_due, write_row
from leyden.errors import MisconfigurationException, MissingExtraError

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class DeviceStatsMonitor(Callback):
    """Writes memory statistics of a CUDA device, and the load of the machine, to the loggers.

    Keys are "DeviceStatsMonitor.on_train_batch_end/" and the like, followed by the names of
    ``torch.cuda.memory_stats`` (bytes), and "cpu_percent", "cpu_vm_percent", "cpu_swap_percent" (of the machine).

    Args:
        cpu_stats: whether the load of the machine is written, which needs ``pip install 'leyden[psutil]'``. None
            (default) writes it where the model runs on the CPU.

    >>> monitor = DeviceStatsMonitor(cpu_stats=False)
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu_stats = cpu_stats
        self._has_cpu = False
        self._eval_batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for what is needed.

        Raises:
            MisconfigurationException: there is no logger to write to (``device-stats-logger``).
            MissingExtraError: psutil is not installed.
        """
        if not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationException(
                "DeviceStatsMonitor has nothing to write to: give the Trainer a logger, or leave the callback out",
                code="device-stats-logger",
            )
        on_cpu = trainer.strategy.root_device.type == "cpu"
        self._has_cpu = on_cpu if self._cpu_stats is None else self._cpu_stats
        if self._has_cpu and importlib.util.find_spec("psutil") is None:
            raise MissingExtraError("psutil", extra="psutil")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write, on batches that have a row."""
        if is_row_due(trainer):
            self._write(trainer, "on_train_batch_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, on batches that have a row."""
        if is_row_due(trainer):
            self._write(trainer, "on_train_batch_end")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._eval_batches = 0

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write, every ``log_every_n_steps`` batches."""
        self._start_eval_batch(trainer, "on_validation_batch_start")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write, every ``log_every_n_steps`` batches."""
        self._end_eval_batch(trainer, "on_validation_batch_end")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._eval_batches = 0

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write, every ``log_every_n_steps`` batches."""
        self._start_eval_batch(trainer, "on_test_batch_start")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write, every ``log_every_n_steps`` batches."""
        self._end_eval_batch(trainer, "on_test_batch_end")

    def _start_eval_batch(self, trainer: Trainer, hook: str) -> None:
        self._eval_batches += 1
        self._end_eval_batch(trainer, hook)

    def _end_eval_batch(self, trainer: Trainer, hook: str) -> None:
        if is_evaluation_row_due(trainer, self._eval_batches):
            self._write(trainer, hook)

    def _write(self, trainer: Trainer, hook: str) -> None:
        stats: dict[str, float] = {}
        device = trainer.strategy.root_device
        if device.type == "cuda":
            stats.update(torch.cuda.memory_stats(device))
        if self._has_cpu:
            stats.update(_cpu_stats())
        prefix = f"{type(self).__qualname__}.{hook}/"
        write_row(trainer, {prefix + name: value for name, value in stats.items()}, trainer.num_updates)


def _cpu_stats() -> dict[str, float]:
    """Load of the machine, memory and swap in use, in percent."""
    import psutil

    return {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
