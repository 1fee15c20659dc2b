"""The smallest modules and data sets, for trying things out: what ``demos.boring_classes`` has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from leyden.datamodule import LightningDataModule
from leyden.module import LightningModule

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "ManualOptimBoringModel",
    "RandomDataset",
    "RandomDictDataset",
    "RandomIterableDataset",
]


class RandomDataset(Dataset[Tensor]):
    """``length`` vectors of ``size`` random numbers."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(RandomDataset):
    """Likewise, in a dict with a second one."""

    def __getitem__(self, index: int) -> Any:
        value = self.data[index]
        return {"a": value, "b": value + 2}


class RandomIterableDataset(IterableDataset[Tensor]):
    """A stream of ``count`` vectors."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class BoringModel(LightningModule):
    """One layer with 32 inputs and 2 outputs, and all steps, loaders and an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        result: Tensor = self.layer(x)
        return result

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """The distance from ``labels``, by default from ones."""
        return nn.functional.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> Any:
        """SGD, whose rate falls to a tenth with each epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> Any:
        """64 vectors."""
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> Any:
        """64 vectors."""
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> Any:
        """64 vectors."""
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> Any:
        """64 vectors."""
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """The same in manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Run the update."""
        optimizer: Any = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class BoringDataModule(LightningDataModule):
    """The loaders of :class:`BoringModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full: Any = None

    def setup(self, stage: str) -> None:
        """Make the data, and split it."""
        self.random_full = RandomDataset(32, 64 * 4)
        parts = {"train": 0, "val": 64, "test": 128, "predict": 192}
        for name, first in parts.items():
            setattr(self, f"random_{name}", Subset(self.random_full, range(first, first + 64)))

    def train_dataloader(self) -> Any:
        """The first quarter."""
        return DataLoader(self.random_train)  # type: ignore[attr-defined]

    def val_dataloader(self) -> Any:
        """The second quarter."""
        return DataLoader(self.random_val)  # type: ignore[attr-defined]

    def test_dataloader(self) -> Any:
        """The third quarter."""
        return DataLoader(self.random_test)  # type: ignore[attr-defined]

    def predict_dataloader(self) -> Any:
        """The last quarter."""
        return DataLoader(self.random_predict)  # type: ignore[attr-defined]
