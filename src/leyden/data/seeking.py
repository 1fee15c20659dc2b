"""An epoch of a loader from any of its batches on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from torch.utils.data import IterableDataset, _DatasetKind
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from leyden.data.combined import Joined
from leyden.data.generators import generators_of, restore
from leyden.data.tracking import tracked_of
from leyden.errors import CheckpointError, warn

#: The place of a loader of which is known only how many batches were used.
_BY_COUNT: Final = {"count": 0, "first": 0, "states": (), "was_started": False, "drawn": 0, "ready": ()}


def place_of(loader: Any, count: int) -> dict[str, Any]:
    """What an epoch of a loader needs to go on, in another process: plain data, but for indices of samplers.

    Args:
        loader: in the middle of its epoch.
        count: batches that were used.
    """
    if isinstance(loader, Joined):
        return {"parts": [_place_of_pass(one, count) for one in loader.passes]}
    tracked = tracked_of(loader)
    return {
        "num_workers": getattr(loader, "num_workers", 0),
        "generators": len(generators_of(loader)),
        "workers": None if tracked is None else tracked.place(count),
    }


def _place_of_pass(one: Any, rows: int) -> dict[str, Any]:
    count = max(min(rows - one.row, one.count), 0)
    generators = {"opened": one.opened, "first": one.first}
    where = {"row": one.row, "count": count, "has_ended": one.has_ended}
    return {**where, **generators, **place_of(one.loader, count)}


def seek(
    loader: Any,
    count: int,
    place: Mapping[str, Any],
    *,
    opened: Mapping[str, Any] | Callable[[], Any],
    first: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """An iteration of a loader without its first batches. Those of a map-style data set are not loaded.

    Args:
        loader: the loader.
        count: how many batches to leave out.
        place: what :func:`place_of` returned; empty if nobody knows.
        opened: what the generators were when the iteration began, or a function that restores it.
        first: and when its first batch was asked for, if something else has drawn numbers before that.

    Raises:
        CheckpointError: the loader has fewer batches (``resume-data``).
    """
    tracked = tracked_of(loader)
    known = place.get("workers")
    left_out = count
    if tracked is not None:  # before anything is restored, since workers may start
        left_out = tracked.seek(known or {**_BY_COUNT, "count": count})
    opened() if callable(opened) else restore(loader, opened)
    if isinstance(loader, Joined):
        return loader.reopened(count, place["parts"], seek) if "parts" in place else _without(iter(loader), count)
    _tell(loader, place)
    iterator = iter(loader if tracked is None else tracked)
    if first is not None:
        restore(loader, first)
    # generators that are not there yet are made while batches are loaded
    loads = place.get("generators", 0) > len(generators_of(loader))
    return _without(iterator, left_out, loads=loads)


def _without(iterator: Any, count: int, *, loads: bool = True) -> Iterator[Any]:
    """Leave out batches; those of a map-style data set in this process are not even fetched, unless they must be."""
    taken = islice(iterator, count)
    is_plain = type(iterator) is _SingleProcessDataLoaderIter and iterator._dataset_kind == _DatasetKind.Map
    if is_plain and not loads:
        taken = islice(iterator._sampler_iter, count)
    last = deque(enumerate(taken, 1), maxlen=1)
    if (last[0][0] if last else 0) < count:
        raise CheckpointError(
            f"the loader has fewer than the {count} batches that this epoch had when the checkpoint was written; give "
            "it the same data and batch size, or resume from the end of an epoch",
            code="resume-data",
        )
    return iterator  # type: ignore[no-any-return]


def _tell(loader: Any, place: Mapping[str, Any]) -> None:
    """Say what is not exact."""
    now = getattr(loader, "num_workers", 0)
    before = place.get("num_workers", now)
    if before != now:
        is_stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
        lost = "which samples come next depends on that" if is_stream else "the order of samples goes on"
        warn(
            f"the checkpoint was written with num_workers={before}, and there are {now} now: {lost}, and random "
            "numbers that the data set draws in workers are others",
            code="resume-workers",
        )
