"""Several loaders as one: ``CombinedLoader``, and what of it training and evaluation use."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any, Final, Literal, final

from leyden.data.generators import mark
from leyden.data.kinds import Loader, check_validity, is_collection, kind_of
from leyden.data.loaders import begin, length_of
from leyden.errors import InvalidTypeError, InvalidValueError, OrderError
from leyden.tree import map_children

Seek = Callable[..., Iterator[Any]]
Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]

_END: Final[Any] = object()  # what next() gives at the end of a loader; a batch may well be None


@final
class CombinedLoader(Iterable[Any]):
    """Iterates several loaders, together or one after the other, and gives ``(batch, batch_idx, dataloader_idx)``.

    Args:
        iterables: a loader, or a collection of them: dicts, lists and tuples, nested at will. A list without a loader
            inside is one loader, its items are the batches.
        mode: together, so that a batch is a collection like ``iterables`` with a batch in place of each loader,

            - ``"min_size"`` (default): until the shortest loader ends;
            - ``"max_size_cycle"``: until the longest ends; shorter ones begin again;
            - ``"max_size"``: until the longest ends; the place of one that has ended holds None;

            or ``"sequential"``: one loader after the other, each batch as it is.

    Attributes:
        iterables: see above.
        mode: see above.

    Raises:
        InvalidValueError: no such mode (code ``combined-mode``).
        InvalidTypeError: nothing that can be iterated in place of a loader (``not-a-loader``).

    >>> loader = CombinedLoader({"a": range(3), "b": [range(10, 12)]}, "max_size_cycle")
    >>> len(loader), *loader
    (3, ({'a': 0, 'b': [10]}, 0, 0), ({'a': 1, 'b': [11]}, 1, 0), ({'a': 2, 'b': [10]}, 2, 0))
    >>> [batch for batch, _, _ in CombinedLoader([range(2), range(10, 12)], "sequential")]
    [0, 1, 10, 11]
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in _LENGTHS:
            raise InvalidValueError(f"CombinedLoader(mode={mode!r}): use one of {[*_LENGTHS]}", code="combined-mode")
        self.iterables = iterables
        self.mode = mode
        self._flattened, self._tree = flatten(iterables, name="CombinedLoader")
        self._limits: list[int | float] | None = None

    @property
    def flattened(self) -> list[Any]:
        """The loaders, in order; assigning as many others replaces them."""
        return self._flattened

    @flattened.setter
    def flattened(self, loaders: Sequence[Any]) -> None:
        self._check_count(loaders, "flattened")
        self._flattened = list(loaders)
        self.iterables = self._in_place(self._flattened)

    @property
    def limits(self) -> list[int | float] | None:
        """Batches to count of each loader at most; None for all. One number is for each of them.

        They limit the length: the least or greatest of these counts, their sum if ``mode`` is "sequential".
        """
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | Sequence[int | float] | None) -> None:
        if isinstance(limits, (int, float)):
            limits = [limits] * len(self._flattened)
        if limits is not None:
            self._check_count(limits, "limits")
        self._limits = None if limits is None else list(limits)

    @property
    def batch_size(self) -> Any:
        """The ``batch_size`` of each loader, in a collection like ``iterables``; None where there is none."""
        return self._each("batch_size")

    @property
    def sampler(self) -> Any:
        """The ``sampler`` of each loader, likewise."""
        return self._each("sampler")

    @property
    def batch_sampler(self) -> Any:
        """The ``batch_sampler`` of each loader, likewise."""
        return self._each("batch_sampler")

    def __len__(self) -> int:
        """Number of batches.

        Raises:
            InvalidTypeError: it depends on a loader whose length is not known (code ``combined-length``); a TypeError,
                as ``len`` of such a ``DataLoader``.
        """
        length = self._length()
        if length == math.inf:
            raise InvalidTypeError("the loaders combined here do not all have a length", code="combined-length")
        return int(length)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        if self.mode == "sequential":
            for index, (loader, size) in enumerate(zip(self._flattened, self._sizes(), strict=True)):
                for batch_idx, batch in enumerate(islice(loader, None if size == math.inf else int(size))):
                    yield batch, batch_idx, index
        else:
            loaders = self._flattened
            batches = self.batches([iter(loader) for loader in loaders], lambda index: iter(loaders[index]))
            for batch_idx, batch in enumerate(self.cut(batches)):
                yield batch, batch_idx, 0

    def batches(
        self, iterators: Sequence[Iterator[Any]], restart: Callable[[int], Iterator[Any]], ended: Container[int] = ()
    ) -> Iterator[Any]:
        """The combined batches alone, of all loaders to their end; not for the mode "sequential".

        Args:
            iterators: of the loaders.
            restart: begins a loader once more, by its index, in the middle of the epoch.
            ended: indices of loaders that have ended before.
        """
        rows = _ROWS.get(self.mode)
        for row in rows(*iterators) if rows is not None else _cycle([*iterators], restart, ended):
            yield self._in_place(row)

    def cut(self, batches: Iterator[Any], used: int = 0) -> Iterator[Any]:
        """As many batches as there are, but for those that were used."""
        length = self._length()
        return islice(batches, None if length == math.inf else max(int(length) - used, 0))

    def _sizes(self) -> list[int | float]:
        limits = self._limits or [math.inf] * len(self._flattened)
        lengths = [length_of(loader) for loader in self._flattened]
        return [limit if size is None else min(size, limit) for size, limit in zip(lengths, limits, strict=True)]

    def _length(self) -> int | float:
        sizes = self._sizes()
        return _LENGTHS[self.mode](sizes) if sizes else 0

    def _each(self, attribute: str) -> Any:
        return self._in_place([getattr(loader, attribute, None) for loader in self._flattened])

    def _in_place(self, values: Sequence[Any]) -> Any:
        return _fill(self._tree, values)

    def _check_count(self, values: Sequence[Any], name: str) -> None:
        if len(values) != len(self._flattened):
            raise InvalidValueError(
                f"CombinedLoader.{name}: expected a value for each of the {len(self._flattened)} loaders, got "
                f"{len(values)}",
                code="combined-count",
            )


class _Pass(Iterator[Any]):
    """One pass over a loader among several, and what its order comes from.

    Args:
        loader: the loader.
        row: of the epoch's rows, that it begins with.
        place: where it was in another process; None begins one.
        seek: goes on from there: :func:`leyden.data.seeking.seek`.

    Attributes:
        opened: what the generators were when it began.
        first: and when its first batch was asked for; None before.
        count: batches that it has given.
        has_ended: whether it has no more.
    """

    def __init__(self, loader: Any, row: int, place: Mapping[str, Any] | None = None, seek: Seek | None = None) -> None:
        self.loader, self.row, self.count, self.first = loader, row, 0, None
        self.has_ended = False
        if place is None or seek is None:
            self.opened = mark(loader)
            self._batches = begin(loader)
        else:
            self.opened, self.first, self.count = place["opened"], place["first"], place["count"]
            self._batches = seek(loader, self.count, place, opened=self.opened, first=self.first)
            if place["has_ended"]:  # a sampler may draw at its end: now, not when it is asked once more
                next(self, None)

    def __next__(self) -> Any:
        if self.first is None:
            self.first = mark(self.loader)
        try:
            batch = next(self._batches)
        except StopIteration:
            self.has_ended = True
            raise
        self.count += 1
        return batch


@final
class Joined:
    """A ``CombinedLoader`` as one loader: its batches come without indices.

    Args:
        combined: in any mode but "sequential".

    Attributes:
        combined: see above.
        passes: the running one over each loader.
    """

    def __init__(self, combined: CombinedLoader) -> None:
        self.combined = combined
        self.passes: list[_Pass] = []
        self._row = 0

    @property
    def flattened(self) -> list[Any]:
        """The loaders that it draws from."""
        return self.combined.flattened

    def replaced(self, loaders: Sequence[Any]) -> Joined:
        """The same with other loaders; the user's own object stays as it is."""
        combined = CombinedLoader(self.combined.iterables, self.combined.mode)
        combined.limits = self.combined.limits
        combined.flattened = list(loaders)
        return Joined(combined)

    def __len__(self) -> int:
        if any(length_of(loader) is None for loader in self.flattened):
            raise TypeError("a loader without a length may end first")
        return len(self.combined)

    def __iter__(self) -> Iterator[Any]:
        self._row = 0
        self.passes = [_Pass(loader, 0) for loader in self.flattened]
        return self._batches()

    def reopened(self, row: int, places: Sequence[Mapping[str, Any]], seek: Seek) -> Iterator[Any]:
        """The rest of an epoch.

        Args:
            row: how many batches of it were used.
            places: of the running pass over each loader: its row, generators and count of batches.
            seek: :func:`leyden.data.seeking.seek`.
        """
        self._row = row
        pairs = zip(self.flattened, places, strict=True)
        self.passes = [_Pass(loader, place["row"], place, seek) for loader, place in pairs]
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        def restart(index: int) -> Iterator[Any]:
            self.passes[index] = _Pass(self.flattened[index], self._row)
            return self.passes[index]

        ended = [index for index, one in enumerate(self.passes) if one.row]
        batches = self.combined.batches(self.passes, restart, ended)
        for batch in self.combined.cut(batches, self._row):
            self._row += 1
            yield batch


def train_loader(value: Any, *, name: str = "train_dataloaders", mode: Mode = "max_size_cycle") -> Loader:
    """The one loader to train on: ``value``, or the loaders in it joined.

    Args:
        value: what the user passed or what ``train_dataloader()`` returned.
        name: how the user calls the place it came from, for error texts.
        mode: of a collection. By default the longest loader sets the length, shorter ones begin again.

    Raises:
        MisconfigurationException: a list that could mean one loader as well as several (code ``ambiguous-loaders``).
        InvalidValueError: a ``CombinedLoader`` that does not combine batches (``combined-mode``).
        InvalidTypeError: nothing that can be iterated (``not-a-loader``).

    >>> import torch
    >>> batches = [(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2))]
    >>> train_loader(batches) is batches
    True
    """
    if isinstance(value, CombinedLoader):
        if value.mode == "sequential":
            raise InvalidValueError(
                f"{name} is a CombinedLoader in mode 'sequential', which yields the batches of one loader after the "
                f"other: to train on one after the other, join the datasets with torch.utils.data.ConcatDataset; to "
                f"train on combined batches, choose one of {[*_LENGTHS][:3]}",
                code="combined-mode",
            )
        return Joined(value)
    if is_collection(value, name=name):
        return Joined(CombinedLoader(value, mode))
    check_validity(value, name=name)
    return value  # type: ignore[no-any-return]  # just checked


def eval_loaders(value: Any, *, name: str = "val_dataloaders") -> list[Loader]:
    """The loaders that ``value`` holds, in order: the position of each is its ``dataloader_idx`` in hooks.

    Args:
        value: one loader, a collection of loaders (keys are not used), a ``CombinedLoader``, or None for none at all.
        name: how the user calls the place it came from, for error texts.

    Raises:
        MisconfigurationException: a list that could mean one loader as well as several
            (``ambiguous-loaders``).
        InvalidTypeError: nothing that can be iterated (``not-a-loader``).

    >>> import torch
    >>> len(eval_loaders([torch.zeros(2, 3), torch.zeros(2, 3)])), len(eval_loaders([range(3), range(4)]))
    (1, 2)
    """
    if value is None:
        return []
    if isinstance(value, CombinedLoader):
        return list(value.flattened) if value.mode == "sequential" else [Joined(value)]
    if is_collection(value, name=name):
        return flatten(value, name=name)[0]
    check_validity(value, name=name)
    return [value]


def given_by_user(data: Any) -> Any:
    """What ``trainer.train_dataloader`` and its like show: loaders in the collection in which they came."""
    if isinstance(data, Joined):
        data = data.combined
    return data.iterables if isinstance(data, CombinedLoader) else data


def flatten(value: Any, *, name: str) -> tuple[list[Any], Any]:
    """The loaders of a collection in order, and the collection with the position of each in its place.

    >>> flatten({"a": range(3), "b": [range(4)]}, name="data")
    ([range(0, 3), range(0, 4)], {'a': 0, 'b': [1]})
    """
    loaders: list[Any] = []

    def number(item: Any, *, outermost: bool = False) -> Any:
        listed = isinstance(item, (list, tuple)) and (outermost or kind_of(item) == "nested")
        if listed or isinstance(item, Mapping):
            return map_children(number, item)
        check_validity(item, name=f"{name}[{len(loaders)}]")
        loaders.append(item)
        return len(loaders) - 1

    tree = number(value, outermost=True)
    return loaders, tree


def _fill(tree: Any, values: Sequence[Any]) -> Any:
    return values[tree] if isinstance(tree, int) else map_children(lambda child: _fill(child, values), tree)


def _cycle(
    iterators: list[Iterator[Any]], restart: Callable[[int], Iterator[Any]], ended: Container[int]
) -> Iterator[list[Any]]:
    """Rows of batches until every loader has ended once; until then those that end begin again."""
    running = {index for index in range(len(iterators)) if index not in ended}
    while running:
        row = []
        for index in range(len(iterators)):
            batch = next(iterators[index], _END)
            if batch is _END:
                running.discard(index)
                if not running:
                    return
                iterators[index] = restart(index)
                batch = next(iterators[index], _END)
            if batch is _END:
                raise OrderError(
                    f"loader {index} of those combined is to begin again and yields nothing. An iterator or a "
                    "generator can be used only once: pass an object whose __iter__ starts anew, as a DataLoader",
                    code="no-batches",
                )
            row.append(batch)
        yield row


_ROWS: Final[dict[str, Callable[..., Iterable[Sequence[Any]]]]] = {"min_size": zip, "max_size": zip_longest}
_LENGTHS: Final[dict[str, Callable[[list[int | float]], int | float]]] = {
    "min_size": min,
    "max_size_cycle": max,
    "max_size": max,
    "sequential": sum,
}
