"""Where the workers of a loader are with their random numbers, so that a run can go on in the middle of an epoch.

With each batch comes what its worker's generators are after it, if they have changed. From that, and from the indices
that the sampler gives, the rest of an epoch is loaded without what was used before. N workers have N batches in each
round, one each; a run goes on at the beginning of a round, and drops fewer than N batches::

    batch        0 1 2 | 3 4 5 | 6 7 . .         3 workers, 8 batches used: the sampler skips 6, each worker begins as
    its worker   0 1 2 | 0 1 2 | 0 1 2           it was before its batch of this round, and batches 6 and 7 are dropped
"""

from __future__ import annotations

import ctypes
import pickle
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final, NamedTuple, final

import torch
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe, MapDataPipe, get_worker_info

from leyden.data.generators import generators_in, set_states, state_of
from leyden.data.loaders import TRACKED, copy_with, is_stateful
from leyden.errors import CheckpointError
from leyden.seed import isolate_rng

#: What is known of a worker: the pickled states of its generators; None if it has begun with its seed, and nothing if
#: they cannot be known, since a generator was made while it was loading.
State = bytes | None
_UNKNOWN: Final = b""
_END: Final[Any] = object()
_MT19937_BYTES: Final = 2500  # 624 words and the position


class Report(NamedTuple):
    """What a worker sends: a batch, and what its generators are now."""

    batch: Any
    worker: int
    state: State  # None: as after the batch before
    is_end: bool = False  # there is no batch, but the end of a stream


class _Seen:
    """A generator, and the last that was seen of it."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.glance: Any = None
        self.state: Any = None

    def has_changed(self) -> bool:
        glance = _glance(self.generator)
        if glance is not None and glance == self.glance:
            return False
        self.glance, self.state = glance, state_of(self.generator)
        if isinstance(self.state, Mapping) and self.state.get("has_gauss"):
            self.glance = None  # the next normal number is there already, and will be drawn unseen
        return True


def _glance(generator: Any) -> Any:
    """What changes whenever the state does, at less cost than that."""
    if generator is random:
        return random.getstate()
    is_numpy = generator is sys.modules.get("numpy.random") and hasattr(generator, "get_bit_generator")
    bits: Any = generator.get_bit_generator() if is_numpy else None
    if type(bits).__name__ == "MT19937":
        return ctypes.string_at(bits.ctypes.state_address, _MT19937_BYTES)
    return pickle.dumps(state_of(generator), protocol=5)


class _Worker:
    """In a worker: what it draws its random numbers from."""

    here: _Worker | None = None

    def __init__(self, number: int, sources: Sequence[Any], states: Sequence[Any] | None) -> None:
        self.number, self.sources = number, sources
        found = self._find()
        self._seen: list[_Seen] | None = list(map(_Seen, found))
        self._is_new = True
        if states is not None and not set_states(found, states):
            self._seen = None

    def _find(self) -> list[Any]:
        numpy = sys.modules.get("numpy.random")
        holders = [one for one in self.sources if is_stateful(one)]
        return [torch.default_generator, random, *([numpy] if numpy else []), *generators_in(self.sources), *holders]

    def report(self, batch: Any, *, is_end: bool = False) -> Report:
        """A batch, with the states if they have changed."""
        if self._is_new and self._seen is not None:
            self._is_new = False
            if len(self._find()) != len(self._seen):
                self._seen = None
        if self._seen is None:
            return Report(batch, self.number, _UNKNOWN, is_end)
        changed = [seen.has_changed() for seen in self._seen]  # of all of them
        state = pickle.dumps([seen.state for seen in self._seen], protocol=5) if any(changed) else None
        return Report(batch, self.number, state, is_end)


class _Reporting:
    """The user's ``collate_fn``, with a report."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Report:
        batch = self.collate(samples)
        assert _Worker.here is not None
        return _Worker.here.report(batch)


class _Starting:
    """The user's ``worker_init_fn``, for workers that may go on where others have been."""

    def __init__(self, loader: DataLoader[Any], states: Sequence[Any]) -> None:
        self.init, self.collate, self.states = loader.worker_init_fn, loader.collate_fn, states

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        assert info is not None
        if isinstance(info.dataset, _Stream):
            object.__setattr__(info, "dataset", info.dataset.dataset)  # the user's, for the user's function
        if self.init is not None:
            self.init(worker_id)
        states = self.states[worker_id] if worker_id < len(self.states) else None
        _Worker.here = _Worker(worker_id, [info.dataset, self.collate], states)


class _Stream(IterableDataset[Any]):
    """The user's iterable data set, by batches, with a report at its end, where it may have drawn numbers as well."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset, self._collate = loader.dataset, _Reporting(loader.collate_fn)
        self._batch_size = None if loader.batch_sampler is None else loader.batch_size
        self._drops_last = loader.drop_last

    def __iter__(self) -> Iterator[Report]:
        samples, size = iter(self.dataset), self._batch_size
        while (batch := next(samples, _END) if size is None else list(islice(samples, size))) is not _END:
            if size is not None and (not batch or (self._drops_last and len(batch) < size)):
                break
            yield self._collate(batch)
            if size is not None and len(batch) < size:
                break
        assert _Worker.here is not None
        yield _Worker.here.report(None, is_end=True)


def _same(batch: Any) -> Any:
    return batch


class _Order:
    """The user's sampler, from any of its items on; keeps those that were drawn and may not be used yet."""

    def __init__(self, sampler: Any, keeps: int) -> None:
        self.sampler = sampler
        self.kept: deque[Any] = deque(maxlen=keeps)
        self.drawn = 0
        self.goes_on: tuple[int, Sequence[Any]] = (
            0,
            (),
        )  # how many items to leave out, and what comes before the others
        self.is_empty = False

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self.is_empty else self._items(iter(self.sampler))  # torch asks twice, and uses one

    def _items(self, items: Iterator[Any]) -> Iterator[Any]:
        (skipped, ready), self.goes_on = self.goes_on, (0, ())
        self.kept.clear()
        if sum(1 for _ in islice(items, skipped)) < skipped:
            raise CheckpointError(
                f"the sampler of the loader has fewer than the {skipped} items that it had when the checkpoint was "
                "written; give it the same data and batch size, or resume from the end of an epoch",
                code="resume-data",
            )
        for self.drawn, item in enumerate(chain(ready, items), skipped - len(ready) + 1):
            self.kept.append(item)
            yield item

    def from_the(self, first: int) -> list[Any]:
        """Items from the ``first`` on that were drawn; none if they are not kept."""
        count = self.drawn - first
        return list(self.kept)[len(self.kept) - count :] if 0 < count <= len(self.kept) else []


class _Start(NamedTuple):
    """Where an iteration begins: first batch, items of the sampler to leave out, items before the others, states."""

    first: int = 0
    drawn: int = 0
    ready: Sequence[Any] = ()
    states: Sequence[Any] = ()


def _nothing_but(states: Sequence[State]) -> list[deque[tuple[int, State]]]:
    """What is known of each worker: its last states, each with the number of the batch that it was reported with."""
    return [deque([(-1, state)], maxlen=3) for state in states]


@final
class Tracked:
    """One ``DataLoader`` with workers, whose places are known.

    Args:
        loader: see :func:`can_track`. The user's object stays as it is.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._given = weakref.ref(loader)  # which holds this: in a circle, workers would stay until it is collected
        self._workers, self._is_stream = loader.num_workers, isinstance(loader.dataset, IterableDataset)
        self._ahead = (loader.prefetch_factor or 2) * loader.num_workers
        self._build()
        self._number = 0
        self._next = _Start()
        self._was_started = False  # before the running epoch, so that it draws no seed for its workers
        self._begin: list[State] = []
        self._known = _nothing_but([None] * self._workers)
        self._running: Callable[[], Any] = lambda: None

    def _build(self, states: Sequence[Any] = (), *, is_empty: bool = False) -> None:
        """Make the loader that is iterated, with workers that begin with these states."""
        loader = self._given()
        assert loader is not None
        place = "batch_sampler" if loader.batch_sampler is not None and not self._is_stream else "sampler"
        self._order = _Order(getattr(loader, place), self._ahead + 3 * self._workers)
        self._order.is_empty = is_empty
        starting = _Starting(loader, states)
        fields: dict[str, Any] = {"collate_fn": _Reporting(loader.collate_fn), "worker_init_fn": starting}
        if self._is_stream:
            fields |= {"dataset": _Stream(loader), "collate_fn": _same, "batch_size": None, "batch_sampler": None}
            fields |= {"drop_last": False, "_IterableDataset_len_called": None}
        self._loader = copy_with(loader, **{**fields, place: self._order})

    def __reduce__(self) -> Any:
        return type(None), ()  # belongs to this process; the user's loader may go to others

    @property
    def has_started(self) -> bool:
        """Whether there are workers that stay for the next epoch."""
        return self._loader.persistent_workers and self._loader._iterator is not None

    def __iter__(self) -> Iterator[Any]:
        self._settle()
        start, self._next = self._next, _Start()
        self._was_started = self.has_started
        states = [known[-1][1] for known in self._known] if self.has_started else _packed(start.states)
        self._begin = states or [None] * self._workers
        self._known = _nothing_but(self._begin)
        if not self.has_started:
            self._build(start.states)
        self._order.goes_on = (start.drawn, start.ready)
        self._number = start.first  # known before the first batch is asked for: a save may come first
        batches = self._read(iter(self._loader))
        self._running = weakref.ref(batches)
        return batches

    def _read(self, iterator: Iterator[Report]) -> Iterator[Any]:
        for report in iterator:
            if self._note(report):
                yield report[0]

    def _note(self, report: Report) -> bool:
        """Note what came with a batch; returns whether there is one."""
        _, worker, state, is_end = report
        known = self._known[worker]
        known.append((self._number, known[-1][1] if state is None else state))
        self._number += not is_end
        return not is_end

    def _settle(self) -> None:
        """Wait for what persistent workers are loading ahead, in an epoch that was left; torch would drop it unseen."""
        iterator: Any = self._loader._iterator
        if not self.has_started:
            return
        iterator._sampler_iter = iter(())
        for _ in range(self._ahead + self._workers):
            try:
                self._note(next(iterator))
            except StopIteration:
                break
            except Exception:  # of a batch that nobody will use
                if not all(worker.is_alive() for worker in iterator._workers):
                    raise

    def states(self) -> list[Any] | None:
        """What the workers are between two epochs, or were before the running one; None if they do not stay."""
        if not self.has_started:
            return None
        running = self._running()
        if running is not None and running.gi_frame is not None:
            return _unpacked(self._begin) if self._was_started else None
        self._settle()
        return _unpacked([known[-1][1] for known in self._known])

    def place(self, count: int) -> dict[str, Any]:
        """What a loader needs to go on in the middle of the running epoch.

        Args:
            count: batches of it that were used.
        """
        count = min(count, self._number)
        first = count // self._workers * self._workers
        states = [
            next(state for number, state in reversed(known) if number < first + worker)
            for worker, known in enumerate(self._known)
        ]
        if self._is_stream or _UNKNOWN in states:
            first, states = 0, self._begin
        return {
            "count": count,
            "first": first,
            "states": _unpacked(states),
            "was_started": self._was_started,
            "drawn": self._order.drawn,
            "ready": [] if self._is_stream else self._order.from_the(first),
        }

    def seek(self, place: Mapping[str, Any]) -> int:
        """Let the next iteration go on from a place; returns how many batches of it are to be dropped.

        Args:
            place: what :meth:`place` returned, of a loader with any number of workers.
        """
        count, first, states, ready = place["count"], place["first"], place["states"], list(place["ready"])
        fits = len(states) == self._workers
        if place["was_started"]:
            self.start(states if fits else ())
        if not fits:
            first, ready = (0, []) if self._is_stream else (count, ready[count - first :])
        self._next = _Start(first, place["drawn"] if ready else first, ready, states if fits else ())
        return int(count - first)

    def start(self, states: Sequence[Any]) -> None:
        """Start workers that had started in an earlier epoch; later they draw no seed any more."""
        self._build(states, is_empty=True)
        with isolate_rng():
            iter(self._loader)
        self._order.is_empty = False
        self._known = _nothing_but(_packed(states) or [None] * self._workers)


def _unpacked(states: Sequence[State]) -> list[Any]:
    """As plain data, for a file: None for a worker's seed, and an empty list where the states cannot be known."""
    return [None if state is None else pickle.loads(state) if state else [] for state in states]


def _packed(states: Sequence[Any]) -> list[State]:
    return [None if state is None else pickle.dumps(state) if state else _UNKNOWN for state in states]


def tracked_of(loader: Any) -> Tracked | None:
    """What tracks a loader; None if nothing does."""
    known: Tracked | None = vars(loader).get(TRACKED) if isinstance(loader, DataLoader) else None
    return known


def track(loader: Any) -> None:
    """Track a loader from now on, if that is possible."""
    known = tracked_of(loader)
    if known is None or not known.has_started:
        vars(loader)[TRACKED] = Tracked(loader) if can_track(loader) else None


def can_track(loader: Any) -> bool:
    """Whether a loader iterates as a plain ``DataLoader`` does, and its workers are worth knowing.

    That is so over a map-style data set, or if they persist. torchdata's ``StatefulDataLoader`` keeps the place of a
    map-style data set, but not the random numbers of its workers, so that it is tracked too.
    """
    if not isinstance(loader, DataLoader) or not loader.num_workers or loader._iterator is not None:
        return False
    is_stream, kind = isinstance(loader.dataset, IterableDataset), type(loader)
    is_plain = kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator
    is_plain = is_plain and not is_stateful(loader)
    return (
        (is_plain or (is_torchdatas(loader) and not is_stream))
        and (loader.persistent_workers or not is_stream)
        and not isinstance(loader.dataset, IterDataPipe | MapDataPipe)
        and getattr(loader, "in_order", True)
    )


def is_torchdatas(loader: Any) -> bool:
    """Whether a loader is torchdata's ``StatefulDataLoader``."""
    return type(loader).__module__ == "torchdata.stateful_dataloader.stateful_dataloader"
