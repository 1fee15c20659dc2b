"""Loaders: their length, limits on it, their shuffling and workers, and one epoch of batches from them."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence, Sized
from typing import Any, Final, Protocol

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from leyden import errors
from leyden.data.kinds import Loader
from leyden.hooks.dispatch import Watch
from leyden.rank import rank_zero_warn

_END: Any = object()  # what next() gives at the end of a loader; a batch may well be None

#: Attribute of a ``DataLoader`` with workers that knows where they are; see :mod:`leyden.data.tracking`.
TRACKED: Final = "_leyden_tracked"


def length_of(loader: Any) -> int | None:
    """Number of batches in one epoch of ``loader``, or None if it does not say so or cannot be believed.

    A ``DataLoader`` over an ``IterableDataset`` counts as unsized even where ``len()`` works: that number is
    computed from the dataset's claim, and with several workers a dataset that is not split among them yields
    a multiple of it.

    >>> length_of([1, 2, 3]), length_of(iter([1, 2, 3]))
    (3, None)
    """
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        return None
    if not isinstance(loader, Sized):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # torch's way to say: the sampler or the dataset has no length
        return None


def num_batches(length: int | None, limit: int | float | None, *, name: str) -> int | float:
    """How many batches of a loader to use: at most, as ``math.inf`` means "until it ends".

    Args:
        length: batches that the loader has; None if it does not say.
        limit: an int is a number of batches at most; a float in [0, 1] a fraction of them, rounded down; None
            is 1.0, all of them. So ``1`` is one batch and ``1.0`` is everything.
        name: the Trainer's argument, as ``limit_train_batches``, for error texts.

    Raises:
        InvalidValueError: a limit out of range (code ``batch-limit``).
        MisconfigurationException: a fraction of an unknown length (``fraction-of-unsized``), or one so small
            that nothing is left of a loader that has batches (``fraction-too-small``).

    >>> num_batches(10, 0.25, name="limit_val_batches"), num_batches(None, 7, name="limit_val_batches")
    (2, 7)
    """
    limit = 1.0 if limit is None else limit
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not _in_range(limit):
        raise errors.InvalidValueError(
            f"expected {name} to be an int >= 0 (a number of batches) or a float from 0.0 to 1.0 (a fraction)"
            f", got {limit!r}: 1 is one batch, 1.0 is all",
            code="batch-limit",
        )
    if isinstance(limit, int):
        return limit if length is None else min(length, limit)
    if limit == 0.0 or length == 0:
        return 0
    if length is None:
        if limit == 1.0:
            return math.inf
        raise errors.MisconfigurationException(
            f"expected {name} to be 1.0 or an int for a loader whose length is not known, got {limit}: an "
            "int says how many batches to use",
            code="fraction-of-unsized",
        )
    count = int(length * limit)
    if count == 0:
        raise errors.MisconfigurationException(
            f"{name}={limit} of a loader with {length} batches is less than one batch: use {name}=1 for one "
            f"batch, or a fraction of at least {1 / length:.2g}",
            code="fraction-too-small",
        )
    return count


def _in_range(limit: int | float) -> bool:
    return limit >= 0 if isinstance(limit, int) else 0.0 <= limit <= 1.0


def overfit(loader: Loader, amount: int | float) -> Loader:
    """The loader to use under ``overfit_batches``: the same few batches in every epoch, so no shuffling.

    A ``DataLoader`` that shuffles is replaced by a copy that goes through its samples in order; the user's
    own object stays as it is. A fixed list of indices, a loader over an ``IterableDataset`` and other
    iterables are returned unchanged.

    Args:
        loader: the training or validation loader.
        amount: the Trainer's ``overfit_batches``; 0 means that nothing is asked for.
    """
    if not amount or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batch_sampler = loader.batch_sampler
    if batch_sampler is not None and not hasattr(batch_sampler, "sampler"):
        rank_zero_warn(
            f"overfit_batches needs the same batches in every epoch, and {type(batch_sampler).__name__} has "
            "no sampler that could be replaced by a sequential one: if it shuffles, pass a loader that does "
            "not",
            code="overfit-shuffle",
        )
        return loader
    sampler = loader.sampler if batch_sampler is None else batch_sampler.sampler
    if isinstance(sampler, SequentialSampler) or not isinstance(sampler, Sampler):
        return loader
    rank_zero_warn(
        f"overfit_batches needs the same batches in every epoch: {type(sampler).__name__} is replaced by "
        "sequential order for this run. Pass shuffle=False to silence this",
        code="overfit-shuffle",
    )
    return _with_sampler(loader, _in_order(sampler, loader.dataset))


def _in_order(sampler: Sampler[Any], dataset: Any) -> Any:
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)  # the same samples: the others may belong to the validation set
    return SequentialSampler(dataset)


def _with_sampler(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    """A copy of ``loader`` that draws from ``sampler``."""
    if loader.batch_sampler is None:
        return copy_with(loader, sampler=sampler)
    batch_sampler = copy.copy(loader.batch_sampler)
    batch_sampler.sampler = sampler  # type: ignore[attr-defined]  # the caller has seen that there is one
    return copy_with(loader, sampler=sampler, batch_sampler=batch_sampler)


def copy_with(loader: DataLoader[Any], **fields: Any) -> DataLoader[Any]:
    """A copy of ``loader`` with other fields.

    Calling the class again would need the arguments of a user's own ``__init__``. DataLoader refuses to
    assign these attributes after construction because its length and its iterator depend on them; the copy
    has no iterator yet.
    """
    result = copy.copy(loader)
    vars(result).update({**fields, "_iterator": None, TRACKED: None})
    return result


def begin(loader: Any) -> Iterator[Any]:
    """An iteration of a loader; of a ``DataLoader`` that is tracked one whose place is known."""
    tracked = vars(loader).get(TRACKED) if isinstance(loader, DataLoader) else None
    return iter(loader if tracked is None else tracked)


def is_stateful(value: Any) -> bool:
    """Whether a loader, or a data set, keeps its place itself, as torchdata's ``StatefulDataLoader`` does."""
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell everything in ``loader`` that shuffles by epoch which epoch begins.

    Calls ``set_epoch(epoch)``, once per object, on the sampler, the batch sampler, its inner sampler, the
    loader and the dataset, where they have it; of a combined loader on those of every part.
    """
    for holder in _holders(loader):
        if callable(getattr(type(holder), "set_epoch", None)):
            holder.set_epoch(epoch)


def _holders(loader: Any) -> list[Any]:
    """What may decide on the order of a loader's samples, each once."""
    found: list[Any] = []
    for part in parts_of(loader):
        batch_sampler = getattr(part, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        found += [getattr(part, "sampler", None), batch_sampler, inner, part, getattr(part, "dataset", None)]
    return list({id(holder): holder for holder in found}.values())


def parts_of(loader: Any) -> Sequence[Any]:
    """The loaders that a combined one draws from; of any other the loader itself."""
    return getattr(loader, "flattened", (loader,))


def may_run_ahead(loader: Any) -> bool:
    """Whether a batch may be drawn before it is needed: worker processes load it, or it is there already.

    Anything else may draw random numbers in this process while it loads, whose order would change; a loader that keeps
    its place itself would be beyond the batch in use.
    """
    return not is_stateful(loader) and all(
        part.num_workers > 0 if isinstance(part, DataLoader) else isinstance(part, (list, tuple))
        for part in parts_of(loader)
    )


def with_all_samples(loader: Any) -> Any:
    """The loader to predict with: a copy of a ``DataLoader`` that would drop its last, shorter batch; else itself."""
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    drops = type(batch_sampler) is BatchSampler and batch_sampler.drop_last
    if not isinstance(loader, DataLoader) or not (drops or loader.drop_last):
        return loader
    if drops:
        batch_sampler = BatchSampler(batch_sampler.sampler, batch_sampler.batch_size, drop_last=False)
    return copy_with(loader, batch_sampler=batch_sampler, drop_last=False)


class RecordedLoader:
    """A ``DataLoader`` that tells which samples its batches are made of, for one iteration.

    Args:
        loader: over a map-style dataset; see :meth:`can_record`. The user's object stays as it is.

    Attributes:
        flattened: the copy that is iterated, as :func:`parts_of` wants it.

    >>> loader = RecordedLoader(DataLoader(range(3), batch_size=2))
    >>> [(batch.tolist(), loader.next_indices()) for batch in loader]
    [([0, 1], [0, 1]), ([2], [2])]
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._drawn: deque[Any] = deque()
        # DataLoader fetches what its batch sampler gives, or its sampler where it makes no batches
        place = "sampler" if loader.batch_sampler is None else "batch_sampler"
        recorder = _Recorder(getattr(loader, place), self._drawn)
        self.flattened = [copy_with(loader, **{place: recorder})]

    @staticmethod
    def can_record(loader: Any) -> bool:
        """Whether the indices of a loader's batches can be known: no stream, and batches come in their order."""
        is_map_style = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        return is_map_style and getattr(loader, "in_order", True)

    def __len__(self) -> int:
        return len(self.flattened[0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.flattened[0])

    def next_indices(self) -> list[int]:
        """The indices of the samples in the oldest batch that was not asked for: call it once for each."""
        indices = self._drawn.popleft()
        return list(indices) if isinstance(indices, Sequence) else [indices]


class _Recorder:
    """A sampler that notes what another one draws; workers ask for batches ahead of time, so notes queue up."""

    def __init__(self, sampler: Any, drawn: deque[Any]) -> None:
        self._sampler = sampler
        self._drawn = drawn

    def __iter__(self) -> Iterator[Any]:
        for indices in self._sampler:
            self._drawn.append(indices)
            yield indices

    def __len__(self) -> int:
        return len(self._sampler)


class Copier(Protocol):
    """Copies batches to a device beside the computation: :class:`leyden.data.prefetch.Copier`."""

    def send(self, batch: Any) -> Any:
        """Begin to copy; what it returns is for ``receive``."""

    def receive(self, sent: Any) -> Any:
        """The batch on the device, for the computation that comes next."""


class Batches:
    """One epoch of a loader, up to a limit, knowing which batch is the last.

    Iterate it, and read :attr:`is_last` while a batch is in hand::

        batches = Batches(loader, limit=100)
        for batch in batches:
            train_on(batch, closes_window=batches.is_last)

    A loader with a length is never asked for a batch ahead of time, so loading and training draw random
    numbers in the order of a hand-written ``for batch in loader``. A loader without one is asked for one
    batch ahead, the only way to know the last; so is, for a ``copier``, one that draws no random numbers in
    this process. No loader is asked for a batch beyond ``limit``. Below the limit it is run to its end, as a
    ``for`` loop does: some draw from a shared generator there, or count their epochs.

    Args:
        loader: what is iterated; its iterator is made when the iteration begins.
        limit: number of batches at most; ``math.inf`` for all.
        copier: brings batches to the device one ahead, where that changes nothing; None copies nothing.
        watch: hands the loader's iterator on, perhaps profiled; ``iter`` hands on the iterator itself.

    Attributes:
        is_last: whether the batch in hand is the last.
        ahead: the batch that a loader without a length was asked for ahead of time, or nothing.

    Warns:
        LeydenWarning: the loader ended before its length (code ``loader-shorter-than-its-length``), in which
            case ``is_last`` stays False after the epoch, or went on after it
            (``loader-longer-than-its-length``).

    >>> batches = Batches(["a", "b", "c"], limit=2)
    >>> [(batch, batches.is_last) for batch in batches]
    [('a', False), ('b', True)]
    """

    __slots__ = ("_running", "ahead", "copier", "is_last", "limit", "loader", "watch")

    def __init__(
        self,
        loader: Loader,
        limit: int | float = math.inf,
        *,
        copier: Copier | None = None,
        watch: Watch = iter,
    ) -> None:
        self.loader = loader
        self.limit = limit
        self.copier = copier
        self.watch = watch
        self.is_last = False
        self.ahead: list[Any] = []
        self._running: Generator[Any, None, None] | None = None

    def __iter__(self) -> Iterator[Any]:
        self.is_last = False
        if self.limit <= 0:
            return iter(())  # not even the loader's iterator is made: that would draw a seed
        length = length_of(self.loader)
        batches = self._ahead() if length is None else self._counted(length)
        if self.copier is not None and may_run_ahead(self.loader):
            batches = self._copied(batches, self.copier)
        self._running = batches
        return batches

    def close(self) -> None:
        """Let go of an iteration that was left early: its workers end now, whoever still holds a traceback to it."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _copied(self, batches: Iterator[Any], copier: Copier) -> Generator[Any, None, None]:
        """Each batch on the device; the copy of the next begins before a batch is handed out."""

        def draw() -> tuple[Any, bool]:
            batch = next(batches, _END)
            return (_END if batch is _END else copier.send(batch)), self.is_last

        upcoming, is_last = draw()
        while upcoming is not _END:
            batch, was_last = copier.receive(upcoming), is_last
            upcoming, is_last = draw()
            self.is_last = was_last
            yield batch

    def _counted(self, length: int) -> Generator[Any, None, None]:
        limited = self.limit < length
        total = int(self.limit) if limited else length
        last = total - 1
        index = -1
        iterator = begin(self.loader)
        # range comes first: at the limit, zip stops there and does not ask the loader again
        for index, batch in zip(range(total), self.watch(iterator), strict=False):
            if index == last:
                self.is_last = True
            yield batch
        if index < last:
            rank_zero_warn(
                f"the loader has a length of {length} but ended after {index + 1} batches: correct its "
                "__len__, or remove it so that leyden looks one batch ahead. The last batch was not "
                "recognised as the last",
                code="loader-shorter-than-its-length",
            )
        elif not limited and _ends_by_itself(self.loader) and next(iterator, _END) is not _END:
            rank_zero_warn(
                f"the loader has a length of {length} but yields more batches, which are not used: correct "
                f"its __len__, or set the limit of batches to {length}",
                code="loader-longer-than-its-length",
            )

    def _ahead(self) -> Generator[Any, None, None]:
        limit = self.limit
        iterator = self.watch(begin(self.loader))
        upcoming = next(iterator, _END)
        handed_out = 0
        while upcoming is not _END:
            batch = upcoming
            handed_out += 1
            upcoming = next(iterator, _END) if handed_out < limit else _END
            self.is_last, self.ahead = upcoming is _END, [] if upcoming is _END else [upcoming]
            yield batch


def _ends_by_itself(loader: Any) -> bool:
    """False for what can only be indexed: asked for ``loader[length]``, it may raise anything."""
    return hasattr(type(loader), "__iter__")
