"""Loaders: their length, limits on it, their shuffling and workers, and one epoch of batches from them."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from leyden import errors
from leyden.data.kinds import Loader
from leyden.rank import rank_zero_only, rank_zero_warn
from leyden.seed import worker_init

_END: Any = object()  # what next() gives at the end of a loader; a batch may well be None


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
            stacklevel=3,
        )
        return loader
    sampler = loader.sampler if batch_sampler is None else batch_sampler.sampler
    if isinstance(sampler, SequentialSampler) or not isinstance(sampler, Sampler):
        return loader
    rank_zero_warn(
        f"overfit_batches needs the same batches in every epoch: {type(sampler).__name__} is replaced by "
        "sequential order for this run. Pass shuffle=False to silence this",
        code="overfit-shuffle",
        stacklevel=3,
    )
    return _with_sampler(loader, _in_order(sampler, loader.dataset))


def _in_order(sampler: Sampler[Any], dataset: Any) -> Any:
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)  # the same samples: the others may belong to the validation set
    return SequentialSampler(dataset)


def _with_sampler(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    """A copy of ``loader`` that draws from ``sampler``.

    Calling the class again would need the arguments of a user's own ``__init__``. DataLoader refuses to
    assign these attributes after construction because its length and its iterator depend on them; the copy
    has no iterator yet.
    """
    result = copy.copy(loader)
    fields = vars(result)
    if loader.batch_sampler is not None:
        batch_sampler = copy.copy(loader.batch_sampler)
        batch_sampler.sampler = sampler  # type: ignore[attr-defined]  # the caller has seen that there is one
        fields["batch_sampler"] = batch_sampler
    fields["sampler"] = sampler
    fields["_iterator"] = None
    return result


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell everything in ``loader`` that shuffles by epoch which epoch begins.

    Calls ``set_epoch(epoch)``, once per object, on the sampler, the batch sampler, its inner sampler, the
    loader and the dataset, where they have it.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    dataset = getattr(loader, "dataset", None)
    told: list[Any] = []
    part: Any
    for part in (
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        loader,
        dataset,
    ):
        if callable(getattr(type(part), "set_epoch", None)) and not any(part is other for other in told):
            part.set_epoch(epoch)
            told.append(part)


def prepare_workers(loader: Any, seed_workers: bool) -> None:
    """Give every worker of a ``DataLoader`` seeds of its own, if ``seed_workers``.

    Args:
        loader: changed in place; one with a ``worker_init_fn``, and anything but a DataLoader, is left alone.
        seed_workers: whether ``seed_everything(workers=True)`` was called:
            :func:`leyden.seed.workers_are_seeded`.
    """
    if seed_workers and isinstance(loader, DataLoader) and loader.worker_init_fn is None:
        loader.worker_init_fn = functools.partial(worker_init, rank=rank_zero_only.rank)


class Batches:
    """One epoch of a loader, up to a limit, knowing which batch is the last.

    Iterate it, and read :attr:`is_last` while a batch is in hand::

        batches = Batches(loader, limit=100)
        for batch in batches:
            train_on(batch, closes_window=batches.is_last)

    A loader with a length is never asked for a batch ahead of time, so loading and training draw random
    numbers in the order of a hand-written ``for batch in loader``. A loader without one is asked for one
    batch ahead, the only way to know the last. No loader is asked for a batch beyond ``limit``. Below the
    limit it is run to its end, as a ``for`` loop does: some draw from a shared generator there, or count
    their epochs.

    Args:
        loader: what is iterated; its iterator is made when the iteration begins.
        limit: number of batches at most; ``math.inf`` for all.

    Warns:
        LeydenWarning: the loader ended before its length (code ``loader-shorter-than-its-length``), in which
            case ``is_last`` stays False after the epoch, or went on after it
            (``loader-longer-than-its-length``).

    >>> batches = Batches(["a", "b", "c"], limit=2)
    >>> [(batch, batches.is_last) for batch in batches]
    [('a', False), ('b', True)]
    """

    __slots__ = ("is_last", "limit", "loader")

    def __init__(self, loader: Loader, limit: int | float = math.inf) -> None:
        self.loader = loader
        self.limit = limit
        self.is_last = False

    def __iter__(self) -> Iterator[Any]:
        self.is_last = False
        if self.limit <= 0:
            return iter(())  # not even the loader's iterator is made: that would draw a seed
        length = length_of(self.loader)
        return self._ahead() if length is None else self._counted(length)

    def _counted(self, length: int) -> Iterator[Any]:
        limited = self.limit < length
        total = int(self.limit) if limited else length
        last = total - 1
        index = -1
        iterator = iter(self.loader)
        # range comes first: at the limit, zip stops there and does not ask the loader again
        for index, batch in zip(range(total), iterator, strict=False):
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

    def _ahead(self) -> Iterator[Any]:
        limit = self.limit
        iterator = iter(self.loader)
        upcoming = next(iterator, _END)
        handed_out = 0
        while upcoming is not _END:
            batch = upcoming
            handed_out += 1
            upcoming = next(iterator, _END) if handed_out < limit else _END
            if upcoming is _END:
                self.is_last = True
            yield batch


def _ends_by_itself(loader: Any) -> bool:
    """False for what can only be indexed: asked for ``loader[length]``, it may raise anything."""
    return hasattr(type(loader), "__iter__")
