"""Runs that are saved somewhere and resumed by fresh objects, and all that must then be the same as without a break."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import modes
from leyden import Callback, Trainer, seed_everything
from leyden.callbacks import Checkpoint
from sameness import differences as differences

SAMPLES = 12


class Noisy(Dataset[Any]):
    """A map-style data set that draws random numbers for every sample, from torch and from Python."""

    def __init__(self, size: int = SAMPLES) -> None:
        self.inputs = torch.randn(size, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index] + 0.1 * torch.randn(3), torch.full((1,), random.random())


def shuffled(**options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), **{"batch_size": 2, "shuffle": True, **options})


class SaveAt(Checkpoint):
    """Saves once, in a hook of an epoch and batch: the time ``number`` that it is called there."""

    def __init__(self, path: Path, hook: str, epoch: int = 1, batch: int = 2, number: int | None = None) -> None:
        self.path, self.place = path, (epoch, batch)
        self.number, self.calls = number, 0
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *args: Any) -> None:
        loop = trainer.fit_loop
        batch = loop.clocks.batch_idx if loop.phase != "epoch_end" else self.place[1]
        if (trainer.current_epoch, batch) == self.place and not trainer.sanity_checking:
            self.calls += 1
            if self.number in (None, self.calls):
                trainer.save_checkpoint(self.path)


@dataclass
class Outcome:
    """What a run has come to."""

    trainer: Trainer
    module: Any
    rows: list[tuple[int, dict[str, Any]]]

    @property
    def state(self) -> dict[str, Any]:
        """Everything that must not depend on a break."""
        trainer = self.trainer
        clocks = {name: getattr(trainer.clocks, name) for name in ("epoch", "batch_idx", "micro_batches", "updates")}
        return {
            "weights": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "clocks": {**clocks, "global_step": trainer.global_step},
            "attempted": [(clock.attempted, clock.applied) for clock in trainer.clocks.optimizers],
            "metrics": dict(trainer.callback_metrics),
            "random": torch.get_rng_state(),
            "python": random.getstate(),
        }


def noisy(module: Any) -> Any:
    """The module of a mode with a loss that draws random numbers."""

    def loss(batch: Any) -> Tensor:
        x, y = batch
        if not isinstance(x, Tensor):  # of several loaders
            return loss(x) + loss(y)
        hidden = nn.functional.dropout(module.backbone(x), 0.3)
        return nn.functional.mse_loss(module.head(hidden), y)

    module.__dict__["loss"] = loss
    return module


def run(name: str, *callbacks: Callback, seed: int = 1, loader: Any = None, **options: Any) -> Outcome:
    """Train a mode of :mod:`modes` for three epochs on random data, with fresh objects and the given seed."""
    ckpt_path, validation, rows = options.pop("ckpt_path", None), options.pop("validation", None), modes.Rows()
    seed_everything(seed, verbose=False)
    module = noisy(options.pop("module", None) or modes.build(name))
    torch.manual_seed(seed)  # the module has seeded
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    given = {"max_epochs": 3, "log_every_n_steps": 1, "accelerator": "cpu", "logger": rows, **silent}
    trainer = Trainer(**{**given, **modes.MODES[name][1], **options}, callbacks=list(callbacks))
    validation = DataLoader(Noisy(4), batch_size=2) if validation is None else validation
    trainer.fit(module, shuffled() if loader is None else loader, validation, ckpt_path=ckpt_path)
    return Outcome(trainer, module, rows.rows)
