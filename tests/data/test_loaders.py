"""Length, limits, overfitting, epochs and workers of a loader."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from leyden import seed
from leyden.data import length_of, num_batches, overfit, prepare_workers, set_epoch
from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.rank import rank_zero_only

numbers = TensorDataset(torch.arange(10))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(10))


class SizedStream(Stream):
    def __len__(self) -> int:
        return 10


class Lengthless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


def values(loader: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        ([1, 2, 3], 3),
        (range(4), 4),
        (DataLoader(numbers, batch_size=4), 3),
        (DataLoader(numbers, batch_size=4, drop_last=True), 2),
        (DataLoader(numbers, batch_size=None), 10),
        (DataLoader(Stream(), batch_size=2), None),
        (DataLoader(SizedStream(), batch_size=2), None),
        (DataLoader(numbers, sampler=Lengthless()), None),
        (iter([1]), None),
        (torch.zeros(3, 2), 3),
    ],
)
def test_length(loader: Any, expected: int | None) -> None:
    assert length_of(loader) == expected


def test_an_error_inside_of_a_users_len_passes() -> None:
    class Broken:
        def __len__(self) -> int:
            raise RuntimeError("no database")

        def __iter__(self) -> Iterator[Any]:
            return iter([])

    with pytest.raises(RuntimeError, match="no database"):
        length_of(Broken())


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [
        (10, 1.0, 10),
        (10, None, 10),
        (10, 1, 1),
        (10, 20, 10),
        (10, 0, 0),
        (10, 0.0, 0),
        (10, 0.25, 2),
        (10, 0.1, 1),
        (100, 0.29, 28),  # int(100 * 0.29), as Lightning has it
        (0, 0.5, 0),
        (0, 3, 0),
        (None, 1.0, math.inf),
        (None, None, math.inf),
        (None, 7, 7),
        (None, 0, 0),
        (None, 0.0, 0),
    ],
)
def test_limits(length: int | None, limit: Any, expected: float) -> None:
    assert num_batches(length, limit, name="limit_train_batches") == expected


@pytest.mark.parametrize("limit", [-1, -0.5, 1.5, 2.0, math.nan, True, "1"])
def test_limits_out_of_range(limit: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"limit_val_batches .*\[batch-limit\]") as caught:
        num_batches(10, limit, name="limit_val_batches")
    assert isinstance(caught.value, ValueError)


def test_a_fraction_needs_a_length() -> None:
    with pytest.raises(MisconfigurationException, match=r"limit_val_batches.*\[fraction-of-unsized\]"):
        num_batches(None, 0.5, name="limit_val_batches")


def test_a_fraction_that_leaves_nothing() -> None:
    with pytest.raises(MisconfigurationException, match=r"at least 0\.1 \[fraction-too-small\]"):
        num_batches(10, 0.05, name="limit_val_batches")


@pytest.mark.parametrize("length", [1, 3, 10, 97])
@pytest.mark.parametrize("limit", [0, 1, 3, 50, 0.34, 0.5, 0.999, 1.0])
def test_limits_equal_lightnings(length: int, limit: Any) -> None:
    from pytorch_lightning.trainer.connectors.data_connector import _parse_num_batches
    from pytorch_lightning.trainer.states import RunningStage
    from pytorch_lightning.utilities.exceptions import MisconfigurationException as TheirError

    try:
        expected = _parse_num_batches(RunningStage.TRAINING, length, limit)
    except TheirError:
        with pytest.raises(MisconfigurationException):
            num_batches(length, limit, name="limit_train_batches")
    else:
        assert num_batches(length, limit, name="limit_train_batches") == expected


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True, "batch_size": 4},
        {"shuffle": True, "batch_size": 4, "drop_last": True},
        {"shuffle": True, "batch_size": None},
        {"sampler": WeightedRandomSampler([1.0] * 10, 5), "batch_size": 4},
        {"batch_sampler": BatchSampler(RandomSampler(numbers), 4, False)},
    ],
    ids=["shuffle", "drop_last", "batch_size=None", "weighted", "batch sampler"],
)
def test_overfitting_goes_through_the_samples_in_order(options: dict[str, Any]) -> None:
    loader = DataLoader(numbers, **options)
    sampler = loader.sampler
    with pytest.warns(UserWarning, match=r"sequential order.*\[overfit-shuffle\]"):
        replaced = overfit(loader, 2)
    plain = {key: value for key, value in options.items() if key in ("batch_size", "drop_last")}
    expected = DataLoader(numbers, **(plain or {"batch_size": 4}))
    if options.get("batch_size", 4) is None:
        assert [int(item[0]) for item in replaced] == list(range(10))
    else:
        assert values(replaced) == values(expected)
        assert values(replaced) == values(expected)  # in every epoch
    assert len(replaced) == len(expected)  # type: ignore[arg-type]
    assert loader.sampler is sampler and replaced is not loader


def test_overfitting_keeps_a_subset_a_subset() -> None:
    loader = DataLoader(numbers, sampler=SubsetRandomSampler([7, 1, 5]), batch_size=2)
    with pytest.warns(UserWarning, match="overfit-shuffle"):
        assert values(overfit(loader, 1)) == [[7, 1], [5]]


def test_overfitting_keeps_the_class_and_what_it_has() -> None:
    class Own(DataLoader[Any]):
        def __init__(self, tag: str) -> None:
            super().__init__(numbers, batch_size=5, shuffle=True)
            self.tag = tag

    with pytest.warns(UserWarning, match="overfit-shuffle"):
        replaced = overfit(Own("mine"), 0.5)
    assert isinstance(replaced, Own) and replaced.tag == "mine"
    assert values(replaced) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("loader", "amount"),
    [
        (DataLoader(numbers, shuffle=True), 0),
        (DataLoader(numbers), 2),
        (DataLoader(numbers, sampler=[3, 1, 2]), 2),
        (DataLoader(Stream()), 2),
        ([1, 2], 2),
    ],
)
def test_nothing_to_do_for_overfitting(loader: Any, amount: int) -> None:
    assert overfit(loader, amount) is loader


def test_a_batch_sampler_without_a_sampler_is_kept_and_named() -> None:
    class Buckets:
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[2, 1]])

    loader = DataLoader(numbers, batch_sampler=Buckets())  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"Buckets.*\[overfit-shuffle\]"):
        assert overfit(loader, 1) is loader


def test_overfitting_shares_no_iterator_of_persistent_workers() -> None:
    loader = DataLoader(numbers, shuffle=True)
    loader._iterator = iter(loader)
    with pytest.warns(UserWarning, match="overfit-shuffle"):
        replaced = overfit(loader, 1)
    assert replaced._iterator is None  # type: ignore[attr-defined]


class Epochs:
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_everything_that_shuffles_by_epoch_is_told_once() -> None:
    class EpochDataset(Epochs, TensorDataset):
        def __init__(self) -> None:
            Epochs.__init__(self)
            TensorDataset.__init__(self, torch.arange(4))

    class EpochSampler(Epochs, SequentialSampler):
        def __init__(self) -> None:
            Epochs.__init__(self)
            SequentialSampler.__init__(self, range(4))

    dataset, sampler = EpochDataset(), EpochSampler()
    loader = DataLoader(dataset, sampler=sampler, batch_size=2)
    set_epoch(loader, 3)
    assert (dataset.epochs, sampler.epochs) == ([3], [3])


def test_batch_samplers_and_loaders_are_told_too() -> None:
    class OwnLoader(Epochs):
        batch_sampler = Epochs()
        sampler = None

    loader = OwnLoader()
    loader.batch_sampler.sampler = Epochs()  # type: ignore[attr-defined]
    set_epoch(loader, 5)
    told = (loader.epochs, loader.batch_sampler.epochs, loader.batch_sampler.sampler.epochs)  # type: ignore[attr-defined]
    assert told == ([5], [5], [5])


@pytest.mark.parametrize("loader", [[1, 2], DataLoader(numbers, shuffle=True), SimpleNamespace(set_epoch=3)])
def test_loaders_without_epochs_are_left_alone(loader: Any) -> None:
    set_epoch(loader, 1)


def test_workers_get_seeds_of_their_own_only_if_asked_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 2)
    free, taken = DataLoader(numbers), DataLoader(numbers, worker_init_fn=print)
    prepare_workers(free, False)
    assert free.worker_init_fn is None
    prepare_workers(free, True)
    prepare_workers(taken, True)
    prepare_workers([1, 2], True)
    assert free.worker_init_fn.func is seed.worker_init  # type: ignore[attr-defined]
    assert free.worker_init_fn.keywords == {"rank": 2}  # type: ignore[attr-defined]
    assert taken.worker_init_fn is print


def test_copies_for_overfitting_do_not_warn_later() -> None:
    loader = DataLoader(numbers, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(overfit(loader, 1)) == values(loader)
