"""When validation is due, and when a fit is over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from leyden.optimization.clocks import Clocks
from leyden.units import Duration, Every

#: The clocks of the limits that are plain numbers.
_OWN_CLOCK: Final = {"max_epochs": "epochs", "max_steps": "steps", "min_epochs": "epochs", "min_steps": "steps"}


@dataclass(kw_only=True)
class Limits:
    """How long a fit runs.

    Attributes:
        max_epochs: epochs at most; -1 for no limit.
        min_epochs: epochs before ``should_stop`` is heeded.
        max_steps: optimizer steps at most (``global_step``, over all optimizers); -1 for no limit.
        min_steps: optimizer steps before ``should_stop`` is heeded.
        most: maxima on other clocks, by the argument that gave them; without them the integer of that name counts.
        least: minima, likewise.
        is_default: whether nobody gave a maximum.
    """

    max_epochs: int = -1
    min_epochs: int = 0
    max_steps: int = -1
    min_steps: int = 0
    most: dict[str, Duration] = field(default_factory=dict)
    least: dict[str, Duration] = field(default_factory=dict)
    is_default: bool = False

    def steps_are_over(self, clocks: Clocks) -> bool:
        """Whether a limit is reached that may lie within an epoch; asked after every batch."""
        if self.max_steps != -1 and clocks.steps >= self.max_steps:
            return True
        return any(limit.now(clocks) >= limit.amount for limit in self.most.values())

    def epochs_are_over(self, clocks: Clocks) -> bool:
        """Whether ``max_epochs`` is reached."""
        return self.max_epochs != -1 and clocks.epoch >= self.max_epochs

    def may_stop(self, clocks: Clocks) -> bool:
        """Whether the minima are met, so that ``should_stop`` may end the fit."""
        return (
            clocks.epoch >= self.min_epochs
            and clocks.steps >= self.min_steps
            and all(limit.now(clocks) >= limit.amount for limit in self.least.values())
        )

    def set_most(self, name: str, value: int | Duration) -> None:
        """Set a maximum: a number on the clock of that name, -1 for none, or a length on any clock."""
        self._set(self.most, name, value, none=-1)

    def set_least(self, name: str, value: int | Duration) -> None:
        """Set a minimum, likewise."""
        self._set(self.least, name, value, none=0)

    def _set(self, others: dict[str, Duration], name: str, value: int | Duration, *, none: int) -> None:
        others.pop(name, None)
        own = _OWN_CLOCK.get(name)
        if isinstance(value, Duration) and value.clock != own:
            others[name] = value
            value = none
        if own is not None:
            setattr(self, name, int(value.amount) if isinstance(value, Duration) else value)

    def maxima(self) -> dict[str, Duration]:
        """All maxima, by the argument that gave them."""
        own = {"max_epochs": Duration(self.max_epochs, "epochs"), "max_steps": Duration(self.max_steps, "steps")}
        return {name: limit for name, limit in {**own, **self.most}.items() if limit.amount != -1}

    def all_reached(self, clocks: Clocks) -> str | None:
        """Why a fit has nothing left to do, in words that name the argument that continues; None if it has."""
        for name, limit in self.maxima().items():
            now = limit.now(clocks)
            if now >= limit.amount:
                value = limit if name in self.most else limit.amount
                done = f"{Duration(round(now), limit.clock)} {'is' if round(now) == 1 else 'are'} done"
                return f"{done} and {name} is {value}; raise trainer.fit_loop.{name} to go on"
        return None


@dataclass(kw_only=True)
class ValidationCadence:
    """When a fit validates.

    Attributes:
        every_n_epochs: epochs between validations; None counts batches across epochs.
        every_n_batches: batches between validations; inf for the end of the epoch.
        every: an interval on another clock, instead of batches; it goes on across epochs.
    """

    every_n_epochs: int | None = 1
    every_n_batches: float = math.inf
    every: Every | None = None

    def is_due(self, clocks: Clocks, *, is_last: bool, stops: bool = False) -> bool:
        """Whether the batch that just ended is followed by a validation; the last one of a fit that stops is."""
        if self.every_n_epochs is not None and (clocks.epoch + 1) % self.every_n_epochs != 0:
            return False
        if stops:
            return True
        if self.every is not None:
            return self.every.is_due(clocks)
        if self.every_n_batches == math.inf:
            return is_last
        count = clocks.micro_batches if self.every_n_epochs is None else clocks.batch_idx + 1
        return count % int(self.every_n_batches) == 0
