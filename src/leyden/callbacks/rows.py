"""Rows that callbacks give to the loggers beside those of ``self.log``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.trainer import Trainer


def is_row_due(trainer: Trainer) -> bool:
    """Whether the training batch in hand is one that the loggers get a row for (``log_every_n_steps``)."""
    return trainer.should_update_logs


def is_evaluation_row_due(trainer: Trainer, number: int) -> bool:
    """Whether the evaluation's batch of this number is one of every ``log_every_n_steps``; none is for 0."""
    every = trainer.log_every_n_steps
    return every > 0 and number % every == 0


def write_row(trainer: Trainer, values: Mapping[str, Any], step: int) -> None:
    """Give one row to every logger, unless it is empty."""
    if values:
        for logger in trainer.loggers:
            logger.log_metrics(metrics=dict(values), step=step)
