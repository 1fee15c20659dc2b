"""Where the loaders of a run come from: the call's argument, the datamodule, or the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from leyden.data.kinds import eval_loaders, train_loader
from leyden.data.loaders import length_of, num_batches, overfit, prepare_workers
from leyden.seed import workers_are_seeded


class DataLimits(NamedTuple):
    """How much of the data a run uses.

    Attributes:
        limit: batches of each loader: an int, or a float for a part of them.
        overfit_batches: batches, or their part, to which training and validation are restricted; 0 for no such run.
        name: the Trainer's argument, for error texts.
    """

    limit: int | float
    overfit_batches: int | float = 0
    name: str = "limit_train_batches"


def load_training(get: Callable[[], Any], limits: DataLimits) -> tuple[Any, int | float]:
    """The training loader and the number of its batches in an epoch (inf if unknown)."""
    loader = train_loader(get())
    limit, name = limits.limit, limits.name
    if limits.overfit_batches:
        loader = overfit(loader, limits.overfit_batches)
        limit, name = limits.overfit_batches, "overfit_batches"
    prepare_workers(loader, workers_are_seeded())
    return loader, num_batches(length_of(loader), limit, name=name)


def load_evaluation(get: Callable[[], Any], limits: DataLimits, *, name: str) -> tuple[list[Any], list[int | float]]:
    """The loaders of an evaluation and the number of batches of each; a loader without batches stays in its place."""
    loaders, counts = [], []
    for loader in eval_loaders(get(), name=name):
        prepare_workers(loader, workers_are_seeded())
        limit, argument = limits.limit, limits.name
        if limits.overfit_batches:
            loader = overfit(loader, limits.overfit_batches)
            limit, argument = limits.overfit_batches, "overfit_batches"
        loaders.append(loader)
        counts.append(num_batches(length_of(loader), limit, name=argument))
    return loaders, counts


def is_empty(counts: list[int | float]) -> bool:
    """Whether no loader has a batch."""
    return not any(counts)


def capped(counts: list[int | float], most: int | float) -> list[int | float]:
    """At most ``most`` batches of each loader; -1 for all."""
    return counts if most == -1 else [min(count, most) for count in counts]
