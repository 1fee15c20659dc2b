"""Samplers and batch samplers of the user's own, iterable datasets, loaders without a length: as in Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

import leyden
from given import Unsized

numbers = torch.arange(7.0)


class Backwards(Sampler[int]):
    """A sampler of the user's own, without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(6, -1, -1))


class Buckets:
    """A batch sampler that derives from nothing: batches of different sizes."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2], [3], [4, 5, 6]])


class Alternating(Buckets):
    """Another order in every epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(super().__iter__())
        return iter(batches if self.epoch % 2 == 0 else batches[::-1])


class Stream(IterableDataset[Any]):
    """Split among workers, as such datasets have to be."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return iter(numbers if info is None else numbers[info.id :: info.num_workers])


class Sized(Stream):
    """Claims a length."""

    def __len__(self) -> int:
        return len(numbers)


LOADERS: dict[str, Any] = {
    "sampler without a length": lambda: DataLoader(numbers, batch_size=2, sampler=Backwards()),
    "list of indices": lambda: DataLoader(numbers, batch_size=2, sampler=[5, 1, 3]),
    "subset": lambda: DataLoader(numbers, batch_size=2, sampler=SubsetRandomSampler([4, 2, 0])),
    "weighted": lambda: DataLoader(numbers, batch_size=2, sampler=WeightedRandomSampler([1.0] * 7, 4)),
    "own batch sampler": lambda: DataLoader(numbers, batch_sampler=Buckets()),  # type: ignore[arg-type]
    "torch's batch sampler": lambda: DataLoader(numbers, batch_sampler=BatchSampler(range(7), 3, True)),
    "batches by a sampler": lambda: DataLoader(numbers, batch_size=None, sampler=BatchSampler(range(7), 4, False)),
    "shuffled": lambda: DataLoader(numbers, batch_size=2, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "stream with workers": lambda: DataLoader(Stream(), batch_size=2, num_workers=2),
    "persistent workers": lambda: DataLoader(Stream(), batch_size=2, num_workers=1, persistent_workers=True),
    "stream without batches": lambda: DataLoader(Stream(), batch_size=None),
    "an iterable without a length": lambda: Unsized(numbers.split(3)),
}


def run(library: Any, make: Any, **arguments: Any) -> Any:
    """Train, validate and predict on one kind of loader; returns what was seen, and the weights."""
    seen: list[Any] = []

    class Module(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append((batch.tolist(), batch_idx, self.trainer.is_last_batch))
            return (self.weight - batch.sum()).square().sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(("validation", batch.tolist(), batch_idx))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch.tolist()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = library.Trainer(accelerator="cpu", num_sanity_val_steps=0, **silent, **{"max_epochs": 2, **arguments})
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        trainer.fit(module, make(), make())
        predicted = trainer.predict(module, make())
    return seen, module.weight.item(), predicted


@pytest.mark.parametrize("name", LOADERS)
def test_batches_order_and_weights_are_lightnings(name: str) -> None:
    """R94: every batch, which is the last, the order of every epoch, and the weights, bit for bit."""
    assert run(leyden, LOADERS[name]) == run(pytorch_lightning, LOADERS[name])


@pytest.mark.parametrize("name", ["stream", "stream with workers", "sampler without a length"])
def test_limits_and_windows_are_lightnings(name: str) -> None:
    """R94: an int limits what has no length; the window that it cuts off closes."""
    arguments = {"limit_train_batches": 3, "limit_val_batches": 1, "limit_predict_batches": 2}
    ours, theirs = (run(library, LOADERS[name], **arguments) for library in (leyden, pytorch_lightning))
    assert ours == theirs
    assert len(ours[0]) == 2 * (3 + 1) and len(ours[2]) == 2


def test_a_stream_with_a_length_is_counted() -> None:
    """Two workers yield five batches where the claimed length makes four: none is lost, and the last is known."""
    seen, _, predicted = run(leyden, lambda: DataLoader(Sized(), batch_size=2, num_workers=2))
    assert [item[2] for item in seen if item[0] != "validation"] == 2 * [False, False, False, True]
    assert sorted(sum(predicted, [])) == numbers.tolist()


def test_a_batch_sampler_is_told_the_epoch_as_well() -> None:
    """Lightning tells the sampler inside of it only."""
    seen, _, _ = run(leyden, lambda: DataLoader(numbers, batch_sampler=Alternating()))  # type: ignore[arg-type]
    batches = [[0.0, 1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]
    assert [item[0] for item in seen if item[0] != "validation"] == [*batches, *batches[::-1]]


def test_a_prediction_keeps_the_order_of_a_batch_sampler_and_every_sample() -> None:
    """Lightning makes the batch sampler anew from the loader's own sampler, which is not the one inside."""
    _, _, predicted = run(leyden, lambda: DataLoader(numbers, batch_sampler=BatchSampler(Backwards(), 3, True)))
    assert predicted == [[6.0, 5.0, 4.0], [3.0, 2.0, 1.0], [0.0]]
