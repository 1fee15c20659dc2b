"""One small module in all modes of optimization, for leyden and, where 2.x has the mode, for Lightning."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader

import leyden
from leyden import Joint

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

BATCHES = 6
DATA = [(torch.randn(2, 3, generator=torch.Generator().manual_seed(i)), torch.ones(2, 1)) for i in range(BATCHES)]


class Rows:
    """What a module and callbacks gave to the loggers; a logger for leyden, and the heart of one for Lightning."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def of(self, prefix: str) -> list[tuple[int, dict[str, Any]]]:
        """Rows that hold a key with this prefix."""
        return [(step, row) for step, row in self.rows if any(key.startswith(prefix) for key in row)]


class LightningRows(Rows, pytorch_lightning.loggers.Logger):
    """The same for Lightning."""

    name = "rows"
    version = 0

    def log_hyperparams(self, params: Any) -> None:
        pass


class Steps:
    """Two networks and the losses; a mode says how they are optimized."""

    is_manual = False
    scheduled = True

    def build(self) -> None:
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.head = nn.Linear(4, 1)
        self.values: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.head(self.backbone(x)), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=2)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=2)

    def trained(self, part: nn.Module) -> list[nn.Parameter]:
        return [p for p in part.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.trained(self), lr=0.1, momentum=0.9)
        return ([optimizer], [StepLR(optimizer, 1)]) if self.scheduled else optimizer


class Alternating(Steps):
    """Two optimizers take turns."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        first, second = (
            SGD(self.trained(self.backbone) or self.trained(self.head), lr=0.1),
            SGD(self.head.parameters(), lr=0.05),
        )
        return [first, second], [ExponentialLR(second, 0.5)] if self.scheduled else []


class Together(Steps):
    """A Joint."""

    def configure_optimizers(self) -> Any:
        members = [Adam([self.head.weight], lr=0.01), SGD([self.head.bias, *self.trained(self.backbone)], lr=0.1)]
        joint = Joint(members)
        return ([joint], [ExponentialLR(members[1], 0.5)]) if self.scheduled else joint


class ByHand(Steps):
    """Two optimizers in manual mode."""

    is_manual = True

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx) if optimizer is None else self.loss(batch))
            optimizer.step()
        self.log("train_loss", self.loss(batch).detach(), on_step=False, on_epoch=True, batch_size=2)

    def configure_optimizers(self) -> Any:
        first = SGD([self.head.weight, *self.trained(self.backbone)], lr=0.1)
        return [first, SGD([self.head.bias], lr=0.05)]


#: name -> mode, Trainer's arguments, whether 2.x runs it
MODES: dict[str, tuple[type[Steps], dict[str, Any], bool]] = {
    "one": (Steps, {}, True),
    "accumulated": (Steps, {"accumulate_grad_batches": 3}, True),
    "manual": (ByHand, {}, True),
    "alternating": (Alternating, {}, False),
    "joint": (Together, {}, False),
}
SHARED = [name for name, (_, _, shared) in MODES.items() if shared]


def build(name: str, framework: Any = leyden, **attributes: Any) -> Any:
    """The module of a mode."""
    kind = MODES[name][0]

    class Module(kind, framework.LightningModule):  # type: ignore[misc, valid-type, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not kind.is_manual
            self.build()
            self.__dict__.update(attributes)

    return Module()


def run(name: str, callbacks: Any, framework: Any = leyden, *, module: Any = None, **arguments: Any) -> Any:
    """Fit the module of a mode; returns Trainer, module and rows."""
    rows = Rows() if framework is leyden else LightningRows()
    module = build(name, framework) if module is None else module
    silent: dict[str, Any] = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    given = {"max_epochs": 4, "log_every_n_steps": 2, "accelerator": "cpu", "logger": rows, **silent}
    trainer = framework.Trainer(**{**given, **MODES[name][1], **arguments}, callbacks=callbacks)
    trainer.fit(module, DataLoader(DATA, batch_size=None), DataLoader(DATA[:2], batch_size=None))
    return trainer, module, rows
