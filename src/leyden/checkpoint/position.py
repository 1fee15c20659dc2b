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
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import _DatasetKind
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from leyden.data.loaders import generators_of, length_of
from leyden.errors import CheckpointError
from leyden.seed import rng_state, set_rng_state

Mark = dict[str, Any]


def mark(loader: Any) -> Mark:
    """States of the global generators and of those that a loader and its samplers hold."""
    return {"global": rng_state(), "own": [generator.get_state() for generator in generators_of(loader)]}


def restore(loader: Any, state: Mark) -> None:
    """Set all generators to what :func:`mark` returned; a loader with other generators keeps its own."""
    set_rng_state(state["global"])
    generators = generators_of(loader)
    if len(generators) == len(state["own"]):
        for generator, own in zip(generators, state["own"], strict=True):
            generator.set_state(own)


class Rest:
    """What is left of an epoch of a loader; iterable once.

    Args:
        loader: the loader.
        handed_out: batches that are left out.

    Raises:
        CheckpointError: the loader has fewer batches than that (``resume-data``).
    """

    def __init__(self, loader: Any, handed_out: int) -> None:
        length = length_of(loader)
        self._left = None if length is None else max(length - handed_out, 0)
        iterator = iter(loader)
        try:
            _skip(iterator, handed_out)
        except StopIteration:
            raise CheckpointError(
                f"the training loader has fewer than the {handed_out} batches that this epoch had when the checkpoint "
                "was written; give it the same data and batch size, or resume from the end of an epoch",
                code="resume-data",
            ) from None
        # A loader without a length is asked one batch ahead, so that is where it was in the checkpoint.
        self._iterator = chain(islice(list(islice(iterator, 1)), 1), iterator) if length is None else iterator

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


def reopen(loader: Any, before: Mark | None, handed_out: int) -> Rest:
    """What is left of the epoch that began where ``before`` was taken, after ``handed_out`` batches.

    Args:
        loader: the loader.
        before: what :func:`mark` returned then; None where nobody knows, so that shuffled data comes in a new order.
        handed_out: batches that were used.
    """
    if before is not None:
        restore(loader, before)
    return Rest(loader, handed_out)


def _skip(iterator: Any, count: int) -> None:
    """Leave out batches; those of a map-style data set in this process are not even fetched."""
    if type(iterator) is _SingleProcessDataLoaderIter and iterator._dataset_kind == _DatasetKind.Map:
        for _ in range(count):
            iterator._next_index()  # type: ignore[no-untyped-call]
        return
    taken = enumerate(islice(iterator, count), 1)
    last = deque(taken, maxlen=1)
    if (last[0][0] if last else 0) < count:
        raise StopIteration


# -- states of generators as plain data, for a file that is read with weights_only=True ---------------------------


def pack(state: Mark) -> Mark:
    """A mark as plain data and tensors."""
    version, words, gauss = state["global"]["python"]
    packed = {**state["global"], "python": [version, torch.tensor(words, dtype=torch.int64), gauss]}
    numpy = packed.pop("numpy", None)
    if isinstance(numpy, tuple):  # another shape belongs to a bit generator that the user has put in place
        name, key, *rest = numpy
        packed["numpy"] = [name, torch.tensor(list(map(int, key)), dtype=torch.int64), *rest]
    return {"global": packed, "own": list(state["own"])}


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
    return {"global": state, "own": packed["own"]}
