"""Where the workers of a loader are with their random numbers, so that a run can go on in the middle of an epoch.

With each batch comes what its worker's generators were before and after it. From that, and from the indices that the
sampler gives, the rest of an epoch is loaded without what was used before. N workers have N batches in each round, one
each; a run goes on at the beginning of a round, and drops fewer than N batches::

    batch        0 1 2 | 3 4 5 | 6 7 . .         3 workers, 8 batches used: the sampler skips 6, each worker begins as
    its worker   0 1 2 | 0 1 2 | 0 1 2           it was before its batch of this round, and batches 6 and 7 are dropped
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, final

import torch
from torch.utils.data import DataLoader, IterableDataset

from leyden.data.loaders import copy_with
from leyden.seed import isolate_rng

#: Generators of a worker: torch's state; Python's version, words and gauss; NumPy's algorithm, words and the rest.
State = tuple[bytes, tuple[int, bytes, float | None], tuple[Any, ...] | None]

#: How deep a data set is searched for generators of its own, and among how many objects.
_DEPTH: Final = 4
_OBJECTS: Final = 1000
_GENERATOR_NAMES: Final = frozenset({"Generator", "Random", "SystemRandom", "RandomState", "BitGenerator"})

_last: list[State] = []  # in a worker: what its generators were after its last batch


class Report(NamedTuple):
    """What a worker sends: a batch, and what its generators were before and after it."""

    batch: Any
    before: State
    after: State


class _Reporting:
    """The user's ``collate_fn``, with a report."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Report:
        batch = self.collate(samples)
        before, after = _last[0], _state()
        _last[0] = after
        return Report(batch, before, after)


class _Starting:
    """The user's ``worker_init_fn``, for workers that may go on where others have been."""

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self.init = init
        self.states: Sequence[State | None] = ()

    def __call__(self, worker_id: int) -> None:
        if self.init is not None:
            self.init(worker_id)
        state = self.states[worker_id] if worker_id < len(self.states) else None
        if state is not None:
            _set_state(state)
        _last[:] = [_state()]


class _Skipping:
    """The user's sampler, without its first items or without any."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.count: int | None = 0

    def __iter__(self) -> Iterator[Any]:
        if self.count is None:
            return iter(())
        items = iter(self.sampler)
        return islice(items, self.count, None) if self.count else items

    def __len__(self) -> int:
        return len(self.sampler)


@final
class TrackedLoader:
    """A ``DataLoader`` with workers that knows what their generators are.

    Args:
        loader: see :func:`can_track`. The user's object stays as it is.

    Attributes:
        flattened: the user's loader, as :func:`leyden.data.loaders.parts_of` wants it.
        first: batches that the next iteration leaves out, without loading them.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.flattened = [loader]
        self.first = 0
        place = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self._indices = _Skipping(getattr(loader, place))
        self._starting = _Starting(loader.worker_init_fn)
        fields = {place: self._indices, "collate_fn": _Reporting(loader.collate_fn), "worker_init_fn": self._starting}
        self._loader = copy_with(loader, **fields)
        self._nobody: list[State | None] = [None] * loader.num_workers
        self._reports: dict[int, tuple[State, State]] = {}
        self._begin = self._nobody  # what is known of the workers before their first batch of the epoch
        self._end = self._nobody  # and after the epoch before, if it was not left early

    @property
    def has_started(self) -> bool:
        """Whether there are workers that stay for the next epoch."""
        return self._loader._iterator is not None

    @property
    def is_known(self) -> bool:
        """Whether the next iteration is told what the generators of all workers are."""
        return bool(self._starting.states) and None not in self._starting.states

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        first, self.first = self.first, 0
        resumed = any(self._starting.states)
        self._begin = list(self._starting.states) if resumed else self._end if self.has_started else self._nobody
        self._indices.count = first
        iterator = iter(self._loader)
        self._indices.count, self._starting.states = 0, ()
        return self._read(iterator, first)

    def _read(self, iterator: Iterator[Any], first: int) -> Iterator[Any]:
        workers = self._loader.num_workers
        self._reports, self._end = {}, self._nobody
        for number, (batch, *states) in enumerate(iterator, first):
            self._reports[number] = (states[0], states[1])
            self._reports.pop(number - 2 * workers, None)
            yield batch
        after = {number % workers: states[1] for number, states in sorted(self._reports.items())}
        if self.has_started:
            self._end = [after.get(worker, begin) for worker, begin in enumerate(self._begin)]

    def states_after(self, count: int | None) -> list[State | None]:
        """What the generators of the workers were at the beginning of a round.

        Args:
            count: batches of the running epoch that were used, which says the round; None for the end of the epoch.

        Returns:
            A state for each worker; None where it begins with its seed.
        """
        if count is None:
            return list(self._end)
        workers = self._loader.num_workers
        start = count // workers * workers
        states: list[State | None] = []
        for worker in range(workers):
            number = start + worker
            if number < count:
                states.append(self._reports[number][0])
            elif number - workers in self._reports:
                states.append(self._reports[number - workers][1])
            else:
                states.append(self._begin[worker])
        return states

    def resume(self, count: int, states: Sequence[State | None]) -> None:
        """Let the next iteration begin with the round in which ``count`` batches have been used."""
        workers = self._loader.num_workers
        if len(states) == workers:
            self._starting.states = list(states)
            self.first = count // workers * workers
        # with another number of workers all batches are loaded again, by workers that begin with their seeds

    def start(self) -> None:
        """Start workers that had started in an earlier epoch; later they draw no seed any more."""
        with isolate_rng():
            self._indices.count = None  # nothing to load yet
            iter(self._loader)
            self._indices.count = 0


def can_track(loader: Any) -> bool:
    """Whether a loader is a plain ``DataLoader`` with workers, over a map-style data set without own generators."""
    return (
        isinstance(loader, DataLoader)
        and loader.num_workers > 0
        and all(getattr(type(loader), name) is getattr(DataLoader, name) for name in ("__iter__", "_get_iterator"))
        and not isinstance(loader.dataset, IterableDataset)
        and getattr(loader, "in_order", True)
        and not hasattr(loader, "load_state_dict")
        and not hasattr(loader.dataset, "load_state_dict")
        and not _has_generators((loader.dataset, loader.collate_fn))
    )


def track(loader: Any) -> Any:
    """A loader that knows where its workers are, or the loader itself."""
    return TrackedLoader(loader) if can_track(loader) else loader


def _has_generators(value: Any) -> bool:
    """Whether there are random generators in an object, or too many objects to tell."""
    level, seen = [value], set[int]()
    for _ in range(_DEPTH):
        below: list[Any] = []
        for item in level:
            if id(item) in seen or isinstance(item, torch.Tensor | str | bytes | int | float | type):
                continue
            seen.add(id(item))
            if type(item).__name__ in _GENERATOR_NAMES:
                return True
            below += _inside(item)
            if len(seen) > _OBJECTS:
                return False
        level = below
    return False


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(islice(item.values(), _OBJECTS))
    if isinstance(item, list | tuple):
        return list(item[:_OBJECTS])
    return list(getattr(item, "__dict__", {}).values())


def _state() -> State:
    version, words, gauss = random.getstate()
    numpy: Any = None
    if "numpy.random" in sys.modules:
        name, key, *rest = sys.modules["numpy.random"].get_state()
        numpy = (name, key.tobytes(), *rest)
    return bytes(torch.get_rng_state().numpy()), (version, array("I", words).tobytes(), gauss), numpy


def _set_state(state: State) -> None:
    in_torch, (version, words, gauss), numpy = state
    torch.set_rng_state(torch.frombuffer(bytearray(in_torch), dtype=torch.uint8))
    random.setstate((version, tuple(array("I", words)), gauss))
    if numpy is not None and "numpy.random" in sys.modules:
        name, key, *rest = numpy
        sys.modules["numpy.random"].set_state((name, array("I", key), *rest))
