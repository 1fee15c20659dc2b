"""The place in the data is exact, with any loader and no code of the user's: order, and numbers drawn in workers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

import modes
from leyden.data.combined import CombinedLoader
from leyden.data.tracking import Tracked
from leyden.errors import CheckpointError
from resumption import SAMPLES, SaveAt, differences, run

Options = dict[str, Any]


def drawn(index: float) -> Any:
    """A sample with numbers from every global generator; gauss and randn keep a number for the next call."""
    numbers = [random.gauss(0, 1), numpy.random.randn(), random.random()]
    return torch.tensor([index, *numbers[:2]], dtype=torch.float32) + torch.rand(3), torch.tensor([numbers[2]]).float()


class Drawing(Dataset[Any]):
    """Draws for every sample, also from generators of its own."""

    def __init__(self, size: int = SAMPLES, own: bool = False, late: bool = False) -> None:
        self.size, self.late = size, late
        self.nested = {"transforms": [[numpy.random.default_rng(1), random.Random(1)]]} if own else {}
        self.made: Any = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        x, y = drawn(index / 10)
        if self.nested:
            first, second = self.nested["transforms"][0]
            y = y + first.random() + second.random()
        if self.late:
            self.made = self.made or random.Random(5)
            y = y + self.made.random()
        return x, y


class Stream(IterableDataset[Any]):
    """Draws for every sample and at its end; workers have different numbers of samples, which makes batches uneven."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        number, workers = (0, 1) if info is None else (info.id, info.num_workers)
        assert info is None or isinstance(info.dataset, Stream)  # the user's own, not a wrapper
        yield from (drawn(index / 10) for index in range(number, 12 + 4 * number, workers))
        torch.rand(3), random.random(), numpy.random.rand()


class Remembering(Stream):
    """Keeps its place itself, as it does from one epoch to the next."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Any]:
        while self.next < 8:
            self.next += 1
            yield drawn(self.next / 10)
        self.next = 2 * random.randrange(2)

    def state_dict(self) -> Any:
        return {"next": self.next}

    def load_state_dict(self, state: Any) -> None:
        self.next = state["next"]


class OneByOne(Sampler[int]):
    """Draws each index when it is asked for, from a global generator, between the numbers of all others."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(SAMPLES):
            yield int(torch.randint(SAMPLES, ()))  # as does the dropout of the module

    def __len__(self) -> int:
        return SAMPLES


class Buckets:
    """A batch sampler that derives from nothing, with a generator of its own and no length, eager."""

    def __init__(self) -> None:
        self.random = random.Random(2)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.random.sample(range(SAMPLES), SAMPLES)
        return iter([order[:3], order[3:5], order[5:7], order[7:10], order[10:]])


class Numbered(DataLoader[Any]):
    """A subclass that has an __iter__ of its own."""

    def __iter__(self) -> Any:
        return iter(list(super().__iter__()))


class Wrapper:
    """Hands on what a loader has, and its length."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def collating() -> Callable[[Any], Any]:
    generator = torch.Generator().manual_seed(6)

    def collate(samples: Any) -> Any:
        x, y = default_collate(samples)
        return x + torch.rand(1, generator=generator), y

    return collate


def seeding(worker_id: int) -> None:
    numpy.random.seed(torch.initial_seed() % 2**32)


def loader(kind: Callable[..., Any] = DataLoader, dataset: Any = None, **options: Any) -> Any:
    dataset = Drawing() if dataset is None else dataset
    is_ordered = isinstance(dataset, IterableDataset) or {"sampler", "batch_sampler", "shuffle"} & set(options)
    if "batch_sampler" not in options:
        options = {"batch_size": 2, **({} if is_ordered else {"shuffle": True}), **options}
    return kind(dataset, **options)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


TWO: Options = {"num_workers": 2}
STAY: Options = {"num_workers": 2, "persistent_workers": True}
#: Whether workers begin anew in each epoch or stay, or there are none.
WHERE: dict[str, Options] = {"here": {}, "workers": TWO, "persistent": STAY}
LOADERS: dict[str, Callable[[Options], Any]] = {
    "shuffled": lambda where: loader(**where),
    "own generator": lambda where: loader(generator=generator(), **where),
    "without batches": lambda where: DataLoader(modes.DATA, None, shuffle=True, **where),
    "sampler that draws one by one": lambda where: loader(sampler=OneByOne(), **where),
    "batch sampler": lambda where: loader(batch_sampler=Buckets(), **where),
    "generators of the data set": lambda where: loader(dataset=Drawing(own=True), **where),
    "generator of collate_fn": lambda where: loader(collate_fn=collating(), **where),
    "stream": lambda where: loader(dataset=Stream(), **where),
    "stream, whole batches": lambda where: loader(dataset=Stream(), batch_size=4, drop_last=True, **where),
    "stream with a state": lambda where: loader(dataset=Remembering(), **where),
    "subclass": lambda where: loader(Numbered, **where),
    "wrapper": lambda where: Wrapper(loader(**where)),
}
#: Loaders whose workers stay, for they do not all need it: it takes time.
STAYING = ("shuffled", "sampler that draws one by one", "generators of the data set", "stream, whole batches")
CASES = [(name, where) for where in WHERE for name in LOADERS if where != "persistent" or name in STAYING]


def resumed(build: Callable[[], Options], *savers: SaveAt) -> None:
    """Assert that a run goes on from each of the places, all saved by the run without a break."""
    whole = run("one", *savers, **build())
    for saver in savers:
        second = run("one", seed=99, ckpt_path=saver.path, **build())
        assert differences(whole.state, second.state) == [], saver.place
        assert differences(whole.rows[-len(second.rows) :], second.rows) == []


def savers(folder: Path, last: int = 5) -> list[SaveAt]:
    places = [("on_train_batch_end", 0, 0), ("on_train_batch_end", 1, 2), ("on_train_epoch_end", 1, last)]
    return [SaveAt(folder / f"{index}.ckpt", *place) for index, place in enumerate(places)]


@pytest.mark.parametrize(("name", "where"), CASES)
def test_order_and_numbers_go_on(name: str, where: str, tmp_path: Path) -> None:
    """V10: in the first epoch, in a later one, and between two."""
    resumed(lambda: {"loader": LOADERS[name](WHERE[where])}, *savers(tmp_path))


@pytest.mark.parametrize(
    ("name", "where"), [("shuffled", "workers"), ("shuffled", "persistent"), ("stream", "persistent")]
)
def test_an_epoch_that_is_left_early_leaves_nothing_behind(name: str, where: str, tmp_path: Path) -> None:
    """What workers have loaded ahead is dropped; persistent ones have drawn numbers for it."""

    def build() -> Options:
        validation = {"validation": loader(**STAY), "limit_val_batches": 1} if where == "persistent" else {}
        return {"loader": LOADERS[name](WHERE[where]), "limit_train_batches": 3, **validation}

    resumed(build, *savers(tmp_path, last=2))


MODES = ["min_size", "max_size", "max_size_cycle"]


@pytest.mark.parametrize("where", ["here", "workers"])
@pytest.mark.parametrize("mode", MODES)
def test_each_of_several_loaders_goes_on(mode: Any, where: str, tmp_path: Path) -> None:
    """One that has begun again, or has ended, in the middle of the epoch; order and numbers of each."""

    def loss(module: Any, batch: Any) -> Any:
        return sum(module.loss(part) for part in batch if part is not None)

    def build() -> Options:
        module = modes.build("one")
        module.training_step = lambda batch, batch_idx: loss(module, batch)
        short = Drawing(10 if mode == "min_size" else 4)
        parts = [loader(**WHERE[where]), loader(dataset=short, generator=generator(), **WHERE[where]), modes.DATA]
        return {"module": module, "loader": CombinedLoader(parts, mode)}

    resumed(build, *savers(tmp_path))


@pytest.mark.filterwarnings("ignore:.*set_vital")
@pytest.mark.parametrize("where", WHERE)
def test_torchdatas_loader_goes_on(where: str, tmp_path: Path) -> None:
    """Its own state has no random numbers of its workers."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    resumed(lambda: {"loader": loader(stateful.StatefulDataLoader, **WHERE[where])}, *savers(tmp_path))


@pytest.mark.filterwarnings("ignore:.*set_vital")
def test_torchdatas_loader_goes_on_in_a_stream(tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    resumed(lambda: {"loader": loader(stateful.StatefulDataLoader, Remembering(), num_workers=0)}, *savers(tmp_path))


class Counted(Drawing):
    """Notes in a file which samples are asked for, in whatever process."""

    path: Path

    def __getitem__(self, index: int) -> Any:
        with self.path.open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


@pytest.mark.parametrize("where", WHERE)
def test_used_samples_are_not_loaded_again(where: str, tmp_path: Path) -> None:
    """But for less than one batch of each worker."""
    Counted.path = tmp_path / "asked"

    def build() -> Options:
        return {"loader": loader(dataset=Counted(60), **WHERE[where]), "max_epochs": 1}

    saver = SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 0, 24)
    whole = run("one", saver, **build())
    assert len(Counted.path.read_text().split()) == 60
    Counted.path.unlink()
    second = run("one", seed=99, ckpt_path=saver.path, **build())
    assert differences(whole.state, second.state) == []
    assert len(Counted.path.read_text().split()) == (10 if where == "here" else 12)  # batch 24 is its worker's


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 1)])
def test_the_order_goes_on_with_another_number_of_workers(before: int, after: int, tmp_path: Path) -> None:
    seen: list[Any] = []

    def build(workers: int) -> Options:
        module = modes.build("one")
        module.on_train_batch_start = lambda batch, batch_idx: seen.append(batch[0].tolist())
        data = torch.arange(36.0).reshape(12, 3)
        samples = [(data[index], torch.zeros(1)) for index in range(12)]
        return {"module": module, "loader": DataLoader(samples, 2, shuffle=True, num_workers=workers)}

    saver = SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2)
    run("one", saver, **build(before))
    whole = seen[6 + 3 :]
    seen.clear()
    with pytest.warns(match=f"num_workers={before}, and there are {after} now.*resume-workers"):
        run("one", seed=99, ckpt_path=saver.path, **build(after))
    assert seen == whole


@pytest.mark.parametrize("where", ["here", "workers"])
def test_a_generator_that_is_made_late_goes_on(where: str, tmp_path: Path) -> None:
    """Then batches are loaded once more, since only they can make it."""
    saver = SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2)
    resumed(lambda: {"loader": loader(dataset=Drawing(late=True), **WHERE[where])}, saver)


def test_a_loader_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 4)
    run("one", saver, loader=loader(sampler=OneByOne(), **TWO))
    with pytest.raises(CheckpointError, match="fewer than|samples"):
        run("one", ckpt_path=saver.path, loader=loader(sampler=range(4), **TWO))


def test_a_place_is_known_before_the_next_batch_is_asked_for() -> None:
    """A run that goes on inside of a validation may be saved there again, before it trains another batch."""

    def tracked(place: Any = None) -> tuple[Tracked, Iterator[Any]]:
        loader = DataLoader(Drawing(16), 2, num_workers=2, sampler=range(15, -1, -1))
        loaders.append(loader)  # a Tracked does not keep it
        one = Tracked(loader)
        if place is not None:
            assert one.seek(place) == 0
        return one, iter(one)

    loaders: list[Any] = []
    first, batches = tracked()
    for _ in range(4):
        next(batches)
    place = first.place(4)
    second, _ = tracked(place)
    again = second.place(4)
    assert (again["count"], again["first"]) == (4, 4)
    _, rest = tracked(again)
    assert differences(list(batches), list(rest)) == []
