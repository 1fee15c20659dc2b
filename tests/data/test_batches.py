"""One epoch of a loader: which batch is the last, and what is asked of the loader when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from leyden.data import Batches


class Recorder:
    """A loader that writes down what it is asked for."""

    def __init__(self, count: int, events: list[str]) -> None:
        self.count = count
        self.events = events

    def __iter__(self) -> Iterator[int]:
        self.events.append("begin")
        for index in range(self.count):
            self.events.append(f"load {index}")
            yield index
        self.events.append("end")


class SizedRecorder(Recorder):
    claimed: int | None = None

    def __len__(self) -> int:
        return self.count if self.claimed is None else self.claimed


def run(loader: Any, limit: float = math.inf, events: list[str] | None = None) -> list[tuple[Any, bool]]:
    batches = Batches(loader, limit)
    seen = []
    for batch in batches:
        if events is not None:
            events.append(f"train {batch}")
        seen.append((batch, batches.is_last))
    return seen


@pytest.mark.parametrize("kind", [Recorder, SizedRecorder])
@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (3, math.inf, [(0, False), (1, False), (2, True)]),
        (3, 3, [(0, False), (1, False), (2, True)]),
        (3, 9, [(0, False), (1, False), (2, True)]),
        (3, 2, [(0, False), (1, True)]),
        (3, 1, [(0, True)]),
        (1, math.inf, [(0, True)]),
        (0, math.inf, []),
        (3, 0, []),
    ],
)
def test_r94_the_last_batch_is_known_also_at_the_limit(
    kind: type[Recorder], count: int, limit: float, expected: list[tuple[int, bool]]
) -> None:
    assert run(kind(count, []), limit) == expected


def test_a_sized_loader_is_asked_as_a_for_loop_asks() -> None:
    ours: list[str] = []
    run(SizedRecorder(2, ours), events=ours)
    by_hand: list[str] = []
    for batch in SizedRecorder(2, by_hand):
        by_hand.append(f"train {batch}")
    assert ours == by_hand == ["begin", "load 0", "train 0", "load 1", "train 1", "end"]


def test_an_unsized_loader_is_asked_one_ahead() -> None:
    events: list[str] = []
    run(Recorder(2, events), events=events)
    assert events == ["begin", "load 0", "load 1", "train 0", "end", "train 1"]


@pytest.mark.parametrize("kind", [Recorder, SizedRecorder])
def test_nothing_is_asked_beyond_the_limit(kind: type[Recorder]) -> None:
    events: list[str] = []
    run(kind(5, events), limit=2)
    assert events == ["begin", "load 0", "load 1"]


@pytest.mark.parametrize("kind", [Recorder, SizedRecorder])
def test_a_limit_of_zero_does_not_touch_the_loader(kind: type[Recorder]) -> None:
    events: list[str] = []
    run(kind(5, events), limit=0)
    assert events == []


def test_the_iterator_is_made_when_iteration_begins() -> None:
    events: list[str] = []
    iterator = iter(Batches(SizedRecorder(1, events)))
    assert events == []
    next(iterator)
    assert events == ["begin", "load 0"]


def test_an_endless_loader_under_a_limit() -> None:
    class Endless:
        def __iter__(self) -> Iterator[int]:
            while True:
                yield 7

    assert run(Endless(), limit=2) == [(7, False), (7, True)]


def test_none_is_a_batch() -> None:
    assert run(iter([None, None])) == [(None, False), (None, True)]


def test_every_epoch_starts_anew() -> None:
    batches = Batches([1, 2])
    for _ in range(2):
        assert [(batch, batches.is_last) for batch in batches] == [(1, False), (2, True)]


def test_a_loader_shorter_than_its_length_ends_with_a_warning() -> None:
    loader = SizedRecorder(2, [])
    loader.claimed = 4
    batches = Batches(loader)
    with pytest.warns(UserWarning, match=r"length of 4 but ended after 2.*\[loader-shorter-than-its-length\]"):
        assert [(batch, batches.is_last) for batch in batches] == [(0, False), (1, False)]
    assert not batches.is_last


def test_a_loader_shorter_than_its_length_may_still_fill_the_limit() -> None:
    loader = SizedRecorder(2, [])
    loader.claimed = 4
    assert run(loader, limit=2) == [(0, False), (1, True)]


def test_a_loader_longer_than_its_length_is_cut_with_a_warning() -> None:
    loader = SizedRecorder(3, [])
    loader.claimed = 2
    with pytest.warns(UserWarning, match=r"\[loader-longer-than-its-length\]"):
        assert run(loader) == [(0, False), (1, True)]


def test_what_can_only_be_indexed_is_not_asked_beyond_its_length() -> None:
    class Rows:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            if index >= 2:
                raise RuntimeError("no such row")
            return index

    assert run(Rows()) == [(0, False), (1, True)]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for _ in range(3):
            yield torch.rand(2)


def shared_generator() -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(torch.arange(6.0)),
        batch_size=2,
        shuffle=True,
        generator=torch.Generator().manual_seed(5),
    )


def augmented() -> DataLoader[Any]:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return self.tensors[0][index] + torch.rand(())

    return DataLoader(Noisy(torch.arange(6.0)), batch_size=2, shuffle=True)


@pytest.mark.parametrize("make", [shared_generator, augmented, lambda: DataLoader(TensorDataset(torch.arange(5)), 2)])
@pytest.mark.parametrize("limit", [math.inf, 2])
def test_loading_and_training_draw_random_numbers_as_in_a_hand_written_loop(
    make: Callable[[], DataLoader[Any]], limit: float
) -> None:
    def draw(iterate: Callable[[DataLoader[Any]], Iterator[Any]]) -> list[Any]:
        torch.manual_seed(1)
        loader = make()
        drawn = []
        for _ in range(3):
            for batch in iterate(loader):
                noise = torch.rand(())
                drawn.append((str(batch), float(noise)))
        return drawn

    def by_hand(loader: DataLoader[Any]) -> Iterator[Any]:
        for index, batch in enumerate(loader, start=1):
            yield batch
            if index == limit:
                break

    assert draw(lambda loader: iter(Batches(loader, limit))) == draw(by_hand)


def test_an_unsized_dataloader_gives_all_its_batches() -> None:
    torch.manual_seed(0)
    loader = DataLoader(Stream(), batch_size=1)
    assert [last for _, last in run(loader)] == [False, False, True]


def test_workers_deliver_the_same_epochs() -> None:
    def epochs(workers: int) -> list[Any]:
        loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, num_workers=workers)
        return [[(batch[0].tolist(), last) for batch, last in run(loader, limit)] for limit in (math.inf, 2)]

    assert epochs(workers=1) == epochs(workers=0)


def test_errors_of_the_loader_pass() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run(broken())
