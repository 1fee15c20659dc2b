"""The place in the data of an epoch: remembered when its iterator is made, found again when a run goes on.

::

    before = mark(loader)                      the epoch's iterator is about to be made
    for batch in loader: ...                   a checkpoint keeps `before`, the number of batches, and mark(loader)
    rest = reopen(loader, before, 17)          in another process: an iterator like the first one, 17 batches on
    restore(loader, now)                       all generators as they were in the checkpoint
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

import torch
from torch.utils.data import IterableDataset

from leyden.data import generators
from leyden.data.generators import generators_of, set_states, state_of
from leyden.data.loaders import is_stateful, length_of, parts_of, set_epoch
from leyden.data.seeking import place_of, seek
from leyden.data.tracking import is_torchdatas, tracked_of
from leyden.errors import warn
from leyden.seed import isolate_rng, set_rng_state

Mark = dict[str, Any]
_NOTHING: Final[Mapping[str, Any]] = {}


def mark(loader: Any) -> Mark:
    """States of the global generators and of those that a loader holds, and of persistent workers."""
    return {**generators.mark(loader), **_workers_of(loader)}


def restore(loader: Any, state: Mark) -> None:
    """Set all generators to what :func:`mark` returned; a loader with other generators keeps its own."""
    restore_own(loader, state)
    set_rng_state(state["global"])


def own_of(loader: Any) -> Mark:
    """States of the generators that a loader holds, and of persistent workers."""
    return {"own": list(map(state_of, generators_of(loader))), **_workers_of(loader)}


def _workers_of(loader: Any) -> Mark:
    """For each part of a loader the states of workers that stay for its next epoch; None where there are none."""
    return {"workers": [_staying(part) for part in parts_of(loader)]}


def _staying(part: Any) -> list[Any] | None:
    tracked = tracked_of(part)
    if tracked is not None:
        return tracked.states()
    return [] if getattr(part, "_iterator", None) is not None else None


def restore_own(loader: Any, state: Mark) -> None:
    """Restore what :func:`own_of` returned.

    Persistent workers draw their seed when they start, in the first epoch only. So those that had started are started
    before any generator is restored.
    """
    for part, states in zip(parts_of(loader), state.get("workers", ()), strict=False):
        if states is not None and getattr(part, "persistent_workers", False):
            _start_workers(part, states)
    if not set_states(generators_of(loader), state["own"]):
        warn(
            "the loader and its data set have other random generators than in the checkpoint: they go on as they are. "
            "A data set that makes its generator when it is created, not when it first loads, can go on exactly",
            code="resume-generators",
        )


def _start_workers(part: Any, states: Sequence[Any]) -> None:
    tracked = tracked_of(part)
    if tracked.has_started if tracked is not None else part._iterator is not None:
        return
    is_exact = tracked is not None and len(states) == part.num_workers and [] not in states
    if tracked is not None:
        tracked.start(states if is_exact else ())
    else:
        with isolate_rng():
            iter(part)
    if not is_exact:
        warn(
            "what the persistent workers of a DataLoader are is not in the checkpoint, or they are others now: the "
            "order of samples goes on, but random numbers that its data set draws in them begin anew. Without "
            "persistent_workers they go on too",
            code="resume-workers",
        )


def state_of_data(loader: Any, count: int, *, is_data: Callable[[Any], bool], ahead: Sequence[Any]) -> dict[str, Any]:
    """What is kept of a loader beside its generators: its place and its own state, or that of its data set.

    Args:
        loader: the loader, in the middle of an epoch or at its end.
        count: batches of it that were used.
        is_data: whether a value can be kept in a file.
        ahead: a batch that was drawn ahead of its use. It may hold random numbers of this process, so it is kept too.
    """
    in_process = not getattr(loader, "num_workers", 0)
    keeps = bool(ahead) and (in_process or is_stateful(loader)) and is_data(list(ahead))
    place = place_of(loader, count + keeps)
    state: dict[str, Any] = {"ahead": list(ahead) if keeps else [], "is_ahead": bool(ahead)}
    state |= _packed_place(place, is_data)
    dataset: Any = getattr(loader, "dataset", None)
    if ahead and not keeps:  # the states are beyond a batch that is lost, so the epoch is replayed
        return state
    if is_stateful(loader) and tracked_of(loader) is None:
        state["loader"] = loader.state_dict()
    if in_process and is_stateful(dataset):
        state["dataset"] = dataset.state_dict()
    return state


def _packed_place(place: Mark, is_data: Callable[[Any], bool]) -> Mark:
    """A place as plain data; indices that are none are drawn once more."""
    if "parts" in place:
        return {"parts": [_packed_place(part, is_data) for part in place["parts"]]}
    marks = {key: pack(place[key]) for key in ("opened", "first") if place.get(key) is not None}
    workers = place["workers"]
    if workers is not None and not is_data(workers["ready"]):
        workers = {**workers, "ready": []}
    return {**place, **marks, "workers": workers}


def _unpacked_place(place: Mapping[str, Any]) -> Mark:
    if "parts" in place:
        return {"parts": [_unpacked_place(part) for part in place["parts"]]}
    return {**place, **{key: unpack(place[key]) for key in ("opened", "first") if place.get(key) is not None}}


def restore_states(loader: Any, kept: Mapping[str, Any]) -> None:
    """Restore what :func:`state_of_data` returned, between two epochs."""
    holders: dict[str, Any] = {"loader": loader, "dataset": getattr(loader, "dataset", None)}
    for name, holder in holders.items():
        if is_torchdatas(holder):
            continue  # from the end of an epoch it would begin two iterations, and draw twice; a new one needs nothing
        if name in kept and is_stateful(holder):
            holder.load_state_dict(kept[name])


class Rest:
    """What is left of an epoch of a loader; iterable once.

    Args:
        loader: the loader.
        handed_out: batches that are left out.
        kept: what :func:`state_of_data` returned.
        opened: restores what the generators were when the epoch's iteration began.

    Raises:
        CheckpointError: the loader has fewer batches than that (``resume-data``).
    """

    def __init__(self, loader: Any, handed_out: int, kept: Mapping[str, Any], opened: Callable[[], None]) -> None:
        length, ahead = length_of(loader), kept.get("ahead", ())
        self._left = None if length is None else max(length - handed_out, 0)
        skipped = handed_out + len(ahead)
        dataset: Any = getattr(loader, "dataset", None)
        has_own = "loader" in kept and is_stateful(loader)
        is_stream = not has_own and "dataset" in kept and is_stateful(dataset) and isinstance(dataset, IterableDataset)

        def restored() -> None:
            opened()
            if has_own or is_stream:
                (loader if has_own else dataset).load_state_dict(kept["loader" if has_own else "dataset"])

        iterator = seek(loader, 0 if has_own or is_stream else skipped, _unpacked_place(kept), opened=restored)
        if kept.get("is_ahead", length is None) and not ahead:  # so that it is where it was in the checkpoint
            ahead = list(islice(iterator, 1))
        if "dataset" in kept and not (has_own or is_stream) and is_stateful(dataset):  # by index; nothing was fetched
            dataset.load_state_dict(kept["dataset"])
        self._iterator = chain(ahead, iterator)

    def __len__(self) -> int:
        if self._left is None:
            raise TypeError("the loader has no length")
        return self._left

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def finish(self) -> None:
        """Run to its end a loader of which nothing is left: it may draw random numbers there, or count its epochs."""
        if self._left == 0:
            deque(self._iterator, maxlen=0)


def reopen(
    loader: Any, before: Mark | None, handed_out: int, kept: Mapping[str, Any] = _NOTHING, *, epoch: int = 0
) -> Rest:
    """What is left of the epoch that began where ``before`` was taken, after ``handed_out`` batches.

    Args:
        loader: the loader.
        before: what :func:`mark` returned then; None where nobody knows, so that shuffled data comes in a new order.
        handed_out: batches that were used.
        kept: what :func:`state_of_data` returned.
        epoch: tells samplers which epoch it is; workers that had started before have a data set that was not told.
    """

    def opened() -> None:
        set_epoch(loader, epoch)
        if before is not None:
            generators.restore(loader, before)

    return Rest(loader, handed_out, kept, opened)


# -- states of generators as plain data, for a file that is read with weights_only=True ---------------------------


def pack(state: Mark) -> Mark:
    """A mark as plain data and tensors."""
    version, words, gauss = state["global"]["python"]
    packed = {**state["global"], "python": [version, torch.tensor(words, dtype=torch.int64), gauss]}
    numpy = packed.pop("numpy", None)
    if isinstance(numpy, tuple):  # another shape belongs to a bit generator that the user has put in place
        name, key, *rest = numpy
        packed["numpy"] = [name, torch.tensor(list(map(int, key)), dtype=torch.int64), *rest]
    return {**state, "global": packed, "own": list(state["own"])}


def unpack(packed: Mark) -> Mark:
    """The mark that :func:`pack` was given."""
    version, words, gauss = packed["global"]["python"]
    state = {**packed["global"], "python": (version, tuple(words.tolist()), gauss)}
    numpy = state.pop("numpy", None)
    if numpy is not None and importlib.util.find_spec("numpy") is not None:
        importlib.import_module("numpy.random")  # this process may not have drawn from it yet
        name, key, *rest = numpy
        state["numpy"] = (name, key.tolist(), *rest)
    if "cuda" in state and not (torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"])):
        del state["cuda"]
    return {**packed, "global": state}
