"""Where the loaders of a run come from: the call's argument, the datamodule, or the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from leyden import data as lazily
from leyden.data.combined import Joined, Mode, eval_loaders, train_loader
from leyden.data.loaders import length_of, num_batches, overfit, parts_of, with_all_samples
from leyden.errors import InvalidValueError
from leyden.seed import workers_are_seeded


class DataLimits(NamedTuple):
    """How much of the data a run uses.

    Attributes:
        limit: batches of each loader: an int, or a float for a part of them.
        overfit_batches: batches, or their part, to which training and validation are restricted; 0 for no such run.
        name: the Trainer's argument, for error texts.
        mode: how training combines a collection of loaders, as ``CombinedLoader`` calls it.
    """

    limit: int | float
    overfit_batches: int | float = 0
    name: str = "limit_train_batches"
    mode: Mode = "max_size_cycle"


def load_training(get: Callable[[], Any], limits: DataLimits) -> tuple[Any, int | float]:
    """The training loader and the number of its batches in an epoch (inf if unknown)."""
    return _prepare(train_loader(get(), mode=limits.mode), limits)


def load_evaluation(value: Any, limits: DataLimits, *, name: str) -> tuple[list[Any], list[int | float]]:
    """The loaders of an evaluation and the number of batches of each; a loader without batches stays in its place.

    Args:
        value: what the user gave.
        limits: how much of it to use.
        name: how the user calls it. "predict_dataloaders" leaves out no sample: no short last batch is dropped.

    Raises:
        InvalidValueError: a prediction from combined batches (code ``combined-mode``): each belongs to one loader.
    """
    loaders = eval_loaders(value, name=name)
    if name == "predict_dataloaders":
        if any(isinstance(loader, Joined) for loader in loaders):
            raise InvalidValueError(
                f"trainer.predict takes a CombinedLoader in mode 'sequential' only, got {value.mode!r}",
                code="combined-mode",
            )
        loaders = [with_all_samples(loader) for loader in loaders]
    prepared = [_prepare(loader, limits) for loader in loaders]
    return [loader for loader, _ in prepared], [count for _, count in prepared]


def _prepare(loader: Any, limits: DataLimits) -> tuple[Any, int | float]:
    limit, name = limits.limit, limits.name
    if limits.overfit_batches:
        limit, name = limits.overfit_batches, "overfit_batches"
        parts = [overfit(part, limit) for part in parts_of(loader)]
        loader = loader.replaced(parts) if isinstance(loader, Joined) else parts[0]
    lazily.prepare_workers(loader, workers_are_seeded())
    return loader, num_batches(length_of(loader), limit, name=name)


def is_empty(counts: list[int | float]) -> bool:
    """Whether no loader has a batch."""
    return not any(counts)


def capped(counts: list[int | float], most: int | float) -> list[int | float]:
    """At most ``most`` batches of each loader; -1 for all."""
    return counts if most == -1 else [min(count, most) for count in counts]
