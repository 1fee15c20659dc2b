"""A module whose gradients are given: the gradient of a micro-batch is the batch itself.

With ``SGD(lr=1)`` from 0 the weights are minus the sum of the gradients that were applied, so a test reads off them
which gradient every update had::

    module = Given()
    fit(module, [torch.tensor([1.0]), torch.tensor([3.0])], accumulate_grad_batches=2)
    assert module.gradients == [[2.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from leyden import LightningModule, Trainer


class Given(LightningModule):
    """One weight (or several), optimized by ``SGD(lr=1)``; a None or an unusual loss is given as ``loss``."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.events: list[Any] = []
        self.weights: list[Tensor] = []

    def loss(self, batch: Tensor) -> Any:
        """A number whose derivative by the weight is the batch."""
        return (self.weight * batch).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=1.0)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(self.weight.detach().clone())

    @property
    def gradients(self) -> list[list[float]]:
        """The gradient of every update that moved the weight."""
        path = [torch.zeros_like(self.weight), *self.weights]
        moves = [(before - after).tolist() for before, after in zip(path, path[1:], strict=False)]
        return [move for move in moves if any(move)]


class Manual(Given):
    """The same, driven by hand."""

    def __init__(self, size: int = 1) -> None:
        super().__init__(size)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.before_step(optimizer)
        optimizer.step()

    def before_step(self, optimizer: Any) -> None:
        """What a test does between backward and step."""


class Unsized:
    """Batches without a length."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def given(*gradients: float | list[float]) -> list[Tensor]:
    """A loader of batches, one for each gradient."""
    return [torch.tensor(g if isinstance(g, list) else [g]) for g in gradients]


def fit(module: LightningModule, data: Any, **arguments: Any) -> Trainer:
    """Train for one epoch, if nothing else is said, without output."""
    trainer = Trainer(**{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **arguments})
    trainer.fit(module, data)
    return trainer


def seeded(build: Callable[[], Any], seed: int = 1) -> Any:
    """What ``build`` makes from a seeded generator, leaving the global one as it was."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return build()
