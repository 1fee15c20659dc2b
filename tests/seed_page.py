"""What the examples of Lightning 1.5's page on optimization leave open: data, networks, losses, numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from leyden import Callback, LightningModule, Trainer

EPOCHS = 3
BATCHES = 5  # per epoch; odd, so that windows of two batches do not end with the epoch


class Recorder(Callback):
    """Keeps every learning rate, by optimizer, after each batch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])


class Regression(LightningModule):
    """What the examples with one network leave open."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def compute_loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1, momentum=0.9)


class TwoPlayers(LightningModule):
    """What the examples with two optimizers leave open: A fits data, B fits A, each through both."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Linear(4, 1)
        self.B = nn.Linear(1, 1)
        self.steps: list[tuple[int, int, bool, bool]] = []  # batch_idx, optimizer_idx, whose weights want gradients

    def loss(self, batch: list[Tensor], optimizer_idx: int) -> Tensor:
        x, y = batch
        a = self.A(x)
        return (self.B(a) - y).square().mean() if optimizer_idx == 0 else (self.B(a) - a).abs().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
        self.steps.append((batch_idx, optimizer_idx, self.A.weight.requires_grad, self.B.weight.requires_grad))
        return self.loss(batch, optimizer_idx)

    def configure_optimizers(self) -> Any:
        return Adam(self.A.parameters(), lr=0.02), SGD(self.B.parameters(), lr=0.1)


def batches(count: int = BATCHES, features: int = 4) -> DataLoader[Any]:
    """``count`` batches of two samples. The generator of its own keeps the loader off the global one."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2 * count, features, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=2, generator=generator)


def create(module_class: type[Any]) -> tuple[Any, Any]:
    """A module with seeded weights, and its twin for the loop written by hand."""
    torch.manual_seed(1)
    module = module_class()
    return module, copy.deepcopy(module)


def fit(module: LightningModule, data: Iterable[Any] | None = None, **arguments: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    torch.manual_seed(2)
    trainer = Trainer(**{"max_epochs": EPOCHS, "accelerator": "cpu", **quiet, **arguments})
    trainer.fit(module, batches() if data is None else data)
    torch.manual_seed(2)
    return trainer


def assert_same_weights(module: nn.Module, twin: nn.Module) -> None:
    start = create(type(twin))[0].state_dict()
    for (name, weight), expected in zip(module.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(expected, weight), name
        assert not torch.equal(start[name], weight), f"{name} was not trained"


def lbfgs(module: nn.Module) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(module.parameters(), lr=0.5, max_iter=4, history_size=3)


def train_with_lbfgs(twin: Regression) -> int:
    """By hand; the number of times that the optimizer has called the closure."""
    opt, calls = lbfgs(twin), 0
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                nonlocal calls
                calls += 1
                loss = twin.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                return loss

            opt.step(closure)
    return calls
