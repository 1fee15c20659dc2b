"""Where the time of a fit went."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from torch.utils.data import DataLoader

from leyden.data.loaders import parts_of

#: Below these there is nothing to win: seconds of a fit, and the part of it that waits for data.
_SHORT: Final = 5.0
_SMALL: Final = 0.2

_WORDS: Final = {
    "compute": "computing",
    "data": "waiting for data",
    "copy": "copying to the device",
    "validation": "validating",
    "logging": "logging",
    "saving": "saving",
    "callbacks": "in callbacks and between",
}


@dataclass(slots=True)
class Ledger:
    """Seconds of wall time that a fit has spent, by what for; no second is in two of them.

    Each is what the main process has spent. A GPU works beside it: what it was not waited for is nobody's time here.

    Attributes:
        data: waiting for the training loader.
        start: the part of ``data`` before the first batch of each epoch, where worker processes start.
        copy: bringing batches to the device, with the hooks around it.
        compute: ``training_step``, backward, updates, schedulers, and the hooks within.
        validation: validations inside of the fit.
        logging: writing rows to loggers.
        saving: writing checkpoints.
        total: from the start of the first epoch to the end of the last.

    >>> ledger = Ledger(data=1.0, compute=2.5, validation=0.25, total=4.0)
    >>> ledger.callbacks
    0.25
    >>> ledger.summary()
    'The fit took 4.0 s: 62% computing, 25% waiting for data, 6% validating, 6% in callbacks and between.'
    """

    data: float = 0.0
    start: float = 0.0
    copy: float = 0.0
    compute: float = 0.0
    validation: float = 0.0
    logging: float = 0.0
    saving: float = 0.0
    total: float = 0.0

    @property
    def callbacks(self) -> float:
        """The rest: hooks around batches and epochs, and the loop itself."""
        return max(self.total - self.data - self.copy - self.compute - self.aside, 0.0)

    @property
    def aside(self) -> float:
        """Seconds that have entries of their own wherever they are spent: inside of hooks, of a validation."""
        return self.validation + self.logging + self.saving

    def summary(self, loader: Any = None) -> str:
        """One line: how long the fit took and what it did; and what to do about a loader that kept it waiting.

        Args:
            loader: the training loader, for advice.
        """
        seconds = {name: getattr(self, name) for name in _WORDS}
        parts = sorted(((spent / self.total, name) for name, spent in seconds.items() if self.total), reverse=True)
        text = ", ".join(f"{share:.0%} {_WORDS[name]}" for share, name in parts if share >= 0.005)
        line = f"The fit took {_duration(self.total)}" + (f": {text}." if text else ".")
        is_slow = self.total >= _SHORT and self.data >= _SMALL * self.total
        return f"{line} {self._advice(loader)}" if is_slow else line

    def _advice(self, loader: Any) -> str:
        loader = min(parts_of(loader), key=lambda part: getattr(part, "num_workers", 0))
        if not isinstance(loader, DataLoader):
            return "It waits for its data: a DataLoader with num_workers > 0 would load beside the computation."
        if loader.num_workers == 0:
            return "It waits for its data: try DataLoader(num_workers=2 or more), which loads beside the computation."
        if self.start > 0.5 * self.data and not loader.persistent_workers:
            return "It waits for workers to start in every epoch: try DataLoader(persistent_workers=True)."
        return f"Its workers ({loader.num_workers}) do not keep up: try more of them, or a cheaper dataset."


class Aside:
    """Books the time of a ``with`` block under one entry, less what the block has booked aside by itself.

    >>> ledger = Ledger()
    >>> with Aside(ledger, "validation"):
    ...     with Aside(ledger, "saving"):
    ...         _ = sum(range(1000))
    >>> ledger.saving > 0 and ledger.validation >= 0
    True
    """

    __slots__ = ("_aside", "_entry", "_ledger", "_started")

    def __init__(self, ledger: Ledger, entry: str) -> None:
        self._ledger = ledger
        self._entry = entry

    def __enter__(self) -> None:
        self._aside = self._ledger.aside
        self._started = perf_counter()

    def __exit__(self, *exception: object) -> None:
        ledger = self._ledger
        spent = perf_counter() - self._started - (ledger.aside - self._aside)
        setattr(ledger, self._entry, getattr(ledger, self._entry) + spent)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
