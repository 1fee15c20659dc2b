"""BasePredictionWriter: when it writes, and which samples it is told a batch is made of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

import leyden
from leyden import CombinedLoader, LightningModule, MisconfigurationException, Trainer
from leyden.callbacks import BasePredictionWriter
from leyden.data.loaders import RecordedLoader

numbers = torch.arange(10.0, 17.0)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(numbers)


class Buckets:
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[5], [1, 2, 0]])

    def __len__(self) -> int:
        return 2


class EveryOther:
    """Indices of samples."""

    def __iter__(self) -> Iterator[int]:
        return iter([6, 4, 2])

    def __len__(self) -> int:
        return 3


def writer(library: Any, interval: str) -> Any:
    class Writer(library.callbacks.BasePredictionWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(interval)
            self.written: list[Any] = []

        def write_on_batch_end(
            self,
            trainer: Any,
            pl_module: Any,
            prediction: Any,
            batch_indices: Any,
            batch: Any,
            batch_idx: int,
            dataloader_idx: int,
        ) -> None:
            self.written.append((prediction, list(batch_indices), batch.tolist(), batch_idx, dataloader_idx))

        def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
            self.written.append((list(predictions), list(batch_indices)))

    return Writer()


def module_of(library: Any) -> Any:
    class Module(library.LightningModule):  # type: ignore[misc]
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return (batch + 1).tolist()

    return Module()


def predict(library: Any, data: Any, interval: str = "batch_and_epoch", **arguments: Any) -> Any:
    """What was written, and what came back."""
    callback = writer(library, interval)
    limit = arguments.pop("limit_predict_batches", 1.0)
    silent = dict.fromkeys(("logger", "enable_progress_bar"), False)
    trainer = library.Trainer(accelerator="cpu", callbacks=[callback], limit_predict_batches=limit, **silent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        returned = trainer.predict(module_of(library), data, **arguments)
    return callback.written, returned, trainer.predict_loop.epoch_batch_indices


DATA: dict[str, Any] = {
    "plain": lambda: DataLoader(numbers, batch_size=3),
    "shuffled": lambda: DataLoader(numbers, batch_size=3, shuffle=True),
    "the last batch is not dropped": lambda: DataLoader(numbers, batch_size=3, drop_last=True),
    "workers": lambda: DataLoader(numbers, batch_size=2, num_workers=2),
    "several": lambda: [DataLoader(numbers, batch_size=4), DataLoader(numbers[:2])],
    "a dict": lambda: {"a": DataLoader(numbers, batch_size=4), "b": [DataLoader(numbers[:2])]},
    "own sampler": lambda: DataLoader(numbers, batch_size=2, sampler=EveryOther()),  # type: ignore[arg-type]
    "own batch sampler": lambda: DataLoader(numbers, batch_sampler=Buckets()),  # type: ignore[arg-type]
    "torch's batch sampler": lambda: DataLoader(numbers, batch_sampler=BatchSampler(range(7), 3, False)),
    "one is empty": lambda: [DataLoader(numbers[:0]), DataLoader(numbers[:2])],
    "stream": lambda: DataLoader(Stream(), batch_size=3),
}


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize("name", DATA)
def test_what_is_written_is_what_lightning_writes(name: str, interval: str) -> None:
    """Predictions, the samples in each batch, batches, indices; every sample is predicted."""
    ours, theirs = (predict(library, DATA[name](), interval) for library in (leyden, pytorch_lightning))
    if name == "stream":  # no indices; Lightning then has an empty list of lists as well
        assert ours[:2] == theirs[:2]
    else:
        assert ours == theirs


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_nothing_comes_back_if_nobody_wants_it(interval: str) -> None:
    """But a writer of epochs gets all predictions all the same."""
    ours, theirs = (
        predict(library, DATA["several"](), interval, return_predictions=False)
        for library in (leyden, pytorch_lightning)
    )
    assert ours == theirs and ours[1] is None


def test_predictions_are_not_held_for_a_writer_of_batches() -> None:
    class Watching(LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch

        def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            held.append(list(self.trainer.predict_loop.predictions))

    held: list[Any] = []
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    trainer.predict(Watching(), DATA["plain"](), return_predictions=False)
    assert held == [[], [], []]


def test_limits() -> None:
    ours, theirs = (
        predict(library, DATA["workers"](), limit_predict_batches=2) for library in (leyden, pytorch_lightning)
    )
    assert ours == theirs and len(ours[0]) == 3


def test_batches_made_by_the_dataset_have_indices_too() -> None:
    """Lightning gives none for batch_size=None."""
    written, _, _ = predict(leyden, DataLoader(numbers[:2], batch_size=None), "batch")
    assert [indices for _, indices, *_ in written] == [[0], [1]]
    by_sampler = DataLoader(numbers, batch_size=None, sampler=BatchSampler(range(4), 2, False))
    assert [indices for _, indices, *_ in predict(leyden, by_sampler, "batch")[0]] == [[0, 1], [2, 3]]


def test_combined_in_sequence() -> None:
    combined = CombinedLoader({"a": DataLoader(numbers[:2]), "b": DataLoader(numbers[:1])}, "sequential")
    assert predict(leyden, combined, "epoch")[0] == [([[[11.0], [12.0]], [[11.0]]], [[[0], [1]], [[0]]])]


@pytest.mark.parametrize("data", [DataLoader(Stream()), [torch.zeros(1)], [[torch.zeros(1)], DataLoader(Stream())]])
def test_where_samples_are_not_known_a_warning_says_so(data: Any) -> None:
    callback = writer(leyden, "batch")
    trainer = Trainer(accelerator="cpu", callbacks=[callback], enable_progress_bar=False)
    with pytest.warns(UserWarning, match=r"get no indices.*map-style.*\[prediction-indices\]"):
        trainer.predict(module_of(leyden), data)
    assert all(indices == [] for _, indices, *_ in callback.written)


def test_without_a_writer_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(loader: Any) -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(RecordedLoader, "can_record", fail)
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    assert len(trainer.predict(module_of(leyden), DATA["plain"]()) or []) == 3
    assert trainer.predict_loop.current_batch_indices == trainer.predict_loop.epoch_batch_indices == []


def test_recording_leaves_the_users_loader_alone() -> None:
    loader = DataLoader(numbers, batch_size=3, shuffle=True, drop_last=True)
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    assert len(predict(leyden, loader, "batch")[0]) == 3
    assert loader.sampler is sampler and loader.batch_sampler is batch_sampler
    assert len(loader) == 2 and loader.drop_last


def test_a_recorded_loader_is_asked_as_the_loader_is() -> None:
    """The same random numbers, the same length."""
    loader = DataLoader(numbers, batch_size=3, shuffle=True)
    recorded = RecordedLoader(loader)
    torch.manual_seed(5)
    expected = [(batch.tolist(), torch.rand(()).item()) for batch in loader]
    torch.manual_seed(5)
    found = [(batch.tolist(), torch.rand(()).item()) for batch in recorded]
    assert found == expected
    assert [numbers[recorded.next_indices()].tolist() for _ in found] == [batch for batch, _ in expected]
    assert len(recorded) == len(loader)


def test_a_loader_that_reorders_batches_has_no_indices() -> None:
    loader = DataLoader(numbers, num_workers=2, in_order=False)
    assert not RecordedLoader.can_record(loader)
    assert RecordedLoader.can_record(DataLoader(numbers))


def test_intervals() -> None:
    with pytest.raises(MisconfigurationException, match=r"write_interval='hour'.*batch_and_epoch.*\[write-interval\]"):
        BasePredictionWriter("hour")
    callback = BasePredictionWriter("batch_and_epoch")
    assert callback.interval == "batch_and_epoch" and callback.interval.on_batch and callback.interval.on_epoch
    with pytest.raises(NotImplementedError):
        callback.write_on_batch_end(None, None, None, None, None, 0, 0)
    with pytest.raises(NotImplementedError):
        callback.write_on_epoch_end(None, None, [], [])
