"""What the callbacks that watch a logged value have in common."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.errors import MisconfigurationException
from leyden.rank import rank_zero_warn

if TYPE_CHECKING:
    from leyden.trainer import Trainer


def validation_ends_epochs(trainer: Trainer) -> bool:
    """Whether validations come at the end of every epoch and at no other time, so that an epoch's end has seen all."""
    interval = trainer.val_check_interval
    is_whole = interval is None or (isinstance(interval, float) and interval == 1.0)
    return is_whole and trainer.check_val_every_n_epoch == 1


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch in hand is followed by a validation."""
    loop, clocks = trainer.fit_loop, trainer.clocks
    stops = trainer.should_stop and loop.limits.may_stop(clocks)
    cadence = copy.deepcopy(loop.cadence)  # which is not to know that it was asked
    return trainer.enable_validation and cadence.is_due(clocks, is_last=loop.data.is_last_batch, stops=stops)


def logged(trainer: Trainer) -> dict[str, Tensor]:
    """What was logged, and "epoch" and "step", unless something was logged under these names."""
    metrics = dict(trainer.callback_metrics)
    for name, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
        metrics[name] = metrics[name].int() if name in metrics else torch.tensor(count)
    return metrics


def describe_missing(owner: Any, monitor: str, metrics: Mapping[str, Any]) -> str:
    """In words: ``owner`` watches a value that was not logged, what was, and which of it may be meant."""
    known = ", ".join(sorted(metrics)) or "nothing"
    meant = f" Did you mean {close!r}?" if (close := closest(monitor, metrics)) else ""
    meant = meant or f" Log it with self.log({monitor!r}, ...)"
    return f"{type(owner).__name__}(monitor={monitor!r}): no such value was logged. Logged were: {known}.{meant}"


def closest(monitor: str, metrics: Mapping[str, Any], *, likeness: float = 0.6) -> str | None:
    """The logged value that a name may be a misspelling of; "val_loss" and "train_loss" are alike to 0.67."""
    return next(iter(difflib.get_close_matches(monitor, metrics, n=1, cutoff=likeness)), None)


def tell_missing(owner: Any, monitor: str, trainer: Trainer, *, has_validated: bool, is_first: bool) -> None:
    """Say that a value is missing by which files are to be judged.

    A run without a validation goes on, as it may be meant not to have one, unless the name is misspelt.

    Raises:
        MisconfigurationException: nobody will log it (``checkpoint-monitor``).
    """
    metrics = trainer.callback_metrics
    text = describe_missing(owner, monitor, metrics)
    if has_validated or (not trainer.enable_validation and closest(monitor, metrics, likeness=0.85)):
        raise MisconfigurationException(text, code="checkpoint-monitor")
    if is_first and not trainer.enable_validation:
        rank_zero_warn(f'{text} Until then only "last" is saved, if it is asked for', code="checkpoint-monitor")


def tell_waited(owner: Any, monitor: str, trainer: Trainer) -> None:
    """Say that the value has not come before the fit was over."""
    rank_zero_warn(
        f"{describe_missing(owner, monitor, trainer.callback_metrics)} A checkpoint that was due was "
        "not saved, because the fit ended before a validation",
        code="checkpoint-monitor",
    )
