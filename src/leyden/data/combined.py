"""Several loaders as one: ``CombinedLoader``, and what of it training and evaluation use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any, Final, Literal, final

from leyden.data.kinds import Loader, check_validity, is_collection, kind_of
from leyden.data.loaders import length_of
from leyden.errors import InvalidTypeError, InvalidValueError, OrderError
from leyden.seed import rng_state, set_rng_state
from leyden.tree import map_children

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
            for batch_idx, batch in enumerate(self.batches()):
                yield batch, batch_idx, 0

    def batches(self, before_restart: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """The combined batches alone; not for the mode "sequential".

        Args:
            before_restart: called before a loader begins again in the middle of the epoch.
        """
        cycles = self.mode == "max_size_cycle"
        rows = _cycle(self._flattened, before_restart) if cycles else _ROWS[self.mode](*self._flattened)
        length = self._length()
        for row in islice(rows, None if length == math.inf else int(length)):
            yield self._in_place(row)

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


@final
class Joined:
    """A ``CombinedLoader`` as one loader: its batches come without indices.

    Args:
        combined: in any mode but "sequential".

    Attributes:
        combined: see above.
        restarts: states of the global random generators when, in this epoch, a loader began again and shuffled anew.
        replayed: such states of an epoch that is iterated once more, to go on from its middle; used up by that.
    """

    def __init__(self, combined: CombinedLoader) -> None:
        self.combined = combined
        self.restarts: list[Any] = []
        self.replayed: list[Any] = []

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
        replayed, self.replayed, self.restarts = iter(self.replayed), [], []

        def before_restart() -> None:
            state = next(replayed, None)
            if state is not None:
                set_rng_state(state)
            self.restarts.append(rng_state())

        return self.combined.batches(before_restart)


def train_loader(value: Any, *, name: str = "train_dataloaders") -> Loader:
    """The one loader to train on: ``value``, or the loaders in it joined.

    Args:
        value: what the user passed or what ``train_dataloader()`` returned. Of a collection the longest loader sets the
            length, shorter ones begin again.
        name: how the user calls the place it came from, for error texts.

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
        return Joined(CombinedLoader(value, "max_size_cycle"))
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


def _cycle(loaders: Sequence[Any], before_restart: Callable[[], None]) -> Iterator[list[Any]]:
    """Rows of batches until every loader has ended once; until then those that end begin again."""
    iterators = [iter(loader) for loader in loaders]
    running = set(range(len(loaders)))
    while running:
        row = []
        for index, loader in enumerate(loaders):
            batch = next(iterators[index], _END)
            if batch is _END:
                running.discard(index)
                if not running:
                    return
                before_restart()
                iterators[index] = iter(loader)
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
