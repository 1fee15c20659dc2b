"""When validation is due, and when a fit is over."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from leyden.errors import InvalidValueError
from leyden.optimization.clocks import Clocks

_DURATION: Final = r"(\d+):(\d\d):(\d\d):(\d\d)"


def seconds_of(duration: Any, *, what: str) -> float:
    """Seconds of a timedelta, of a mapping of its arguments, or of "DD:HH:MM:SS".

    Raises:
        InvalidValueError: anything else; ``what`` says where it came from.
    """
    try:
        if isinstance(duration, str):
            days, hours, minutes, seconds = re.fullmatch(_DURATION, duration.strip()).groups()  # type: ignore[union-attr]
            duration = timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=int(seconds))
        elif isinstance(duration, Mapping):
            duration = timedelta(**duration)
        return float(duration.total_seconds())
    except (TypeError, ValueError, AttributeError):
        raise InvalidValueError(
            f"{what} was given {duration!r}; expected 'DD:HH:MM:SS', a timedelta, or a mapping of its arguments, "
            "such as {'hours': 2}",
            code="duration",
        ) from None


@dataclass(kw_only=True)
class Limits:
    """How long a fit runs.

    Attributes:
        max_epochs: epochs at most; -1 for no limit.
        min_epochs: epochs before ``should_stop`` is heeded.
        max_steps: optimizer steps at most (``global_step``, over all optimizers); -1 for no limit.
        min_steps: optimizer steps before ``should_stop`` is heeded.
        max_seconds: wall time at most; None for no limit.
        is_default: whether nobody gave a maximum.
    """

    max_epochs: int = -1
    min_epochs: int = 0
    max_steps: int = -1
    min_steps: int = 0
    max_seconds: float | None = None
    is_default: bool = False

    def steps_are_over(self, clocks: Clocks) -> bool:
        """Whether ``max_steps`` or ``max_seconds`` is reached; asked after every batch."""
        if self.max_steps != -1 and clocks.global_step >= self.max_steps:
            return True
        return self.max_seconds is not None and time.monotonic() - clocks.started >= self.max_seconds

    def epochs_are_over(self, clocks: Clocks) -> bool:
        """Whether ``max_epochs`` is reached."""
        return self.max_epochs != -1 and clocks.epoch >= self.max_epochs

    def may_stop(self, clocks: Clocks) -> bool:
        """Whether the minimum is met, so that ``should_stop`` may end the fit."""
        return clocks.epoch >= self.min_epochs and clocks.global_step >= self.min_steps


@dataclass(kw_only=True)
class ValidationCadence:
    """When a fit validates.

    Attributes:
        every_n_epochs: epochs between validations; None counts batches across epochs.
        every_n_batches: batches between validations; inf for the end of the epoch.
    """

    every_n_epochs: int | None = 1
    every_n_batches: float = math.inf

    def is_due(self, clocks: Clocks, *, is_last: bool, stops: bool = False) -> bool:
        """Whether the batch that just ended is followed by a validation; the last one of a fit that stops is."""
        if self.every_n_epochs is not None and (clocks.epoch + 1) % self.every_n_epochs != 0:
            return False
        if stops:
            return True
        if self.every_n_batches == math.inf:
            return is_last
        count = clocks.micro_batches if self.every_n_epochs is None else clocks.batch_idx + 1
        return count % int(self.every_n_batches) == 0
