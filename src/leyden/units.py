"""Lengths on any clock of a run: "500 updates", "2 epochs", "30 min", "1e6 samples".

A ``Duration`` is such a length; an ``Every`` says when something that recurs is due. The units:

===============  ==============================================================================
epochs           complete epochs
updates          windows closed
steps            ``trainer.global_step``: optimizer steps, over all optimizers
batches          micro-batches
samples          the sizes of the batches, summed up
s, min, h, d     time of the fit, validations included
===============  ==============================================================================
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from leyden.errors import InvalidTypeError, InvalidValueError
from leyden.tree import first_batch_size

if TYPE_CHECKING:
    from leyden.optimization.clocks import Clocks

#: How each clock is read. The window and the epoch in hand count as soon as they are complete, for the hooks at their
#: end too, where ``updates`` and ``epoch`` themselves have not been raised yet.
_READ: Final[Mapping[str, Callable[[Clocks], float]]] = {
    "epochs": lambda clocks: clocks.epoch + clocks.epoch_ends,
    "updates": lambda clocks: clocks.updates + clocks.window_closes,
    "steps": lambda clocks: clocks.steps,
    "batches": lambda clocks: clocks.micro_batches,
    "samples": lambda clocks: clocks.samples,
    "seconds": lambda clocks: clocks.seconds,
}
#: Seconds of each unit of time, the longest first.
_TIMES: Final = {"d": 86400, "h": 3600, "min": 60, "s": 1}
#: What users write, in the singular, beside the names of the clocks.
_WORDS: Final = {
    **{"epoch": "epochs", "update": "updates", "step": "steps", "batch": "batches", "sample": "samples"},
    **{"day": "d", "hour": "h", "minute": "min", "mins": "min", "second": "s", "sec": "s", "secs": "s"},
    **{"days": "d", "hours": "h", "minutes": "min", "seconds": "s"},
}
_NUMBER_AND_UNIT: Final = r"([\d_.]+(?:e\+?\d+)?)\s*([a-z]+)"
_DAYS_TO_SECONDS: Final = r"(\d+):(\d\d):(\d\d):(\d\d)"


class Duration(NamedTuple):
    """So much of a clock.

    Attributes:
        amount: how much, >= 0; seconds may be a fraction, everything else is whole.
        clock: "epochs", "updates", "steps", "batches", "samples" or "seconds".

    >>> str(Duration(1800, "seconds")), str(Duration(1, "epochs")), str(Duration(1000000, "samples"))
    ('30 min', '1 epoch', '1,000,000 samples')
    """

    amount: float
    clock: str

    def __str__(self) -> str:
        if self.clock == "seconds":
            unit, size = next(((u, n) for u, n in _TIMES.items() if self.amount % n == 0 and self.amount), ("s", 1))
            return f"{self.amount / size:g} {unit}"
        unit = self.clock if self.amount != 1 else next(word for word, clock in _WORDS.items() if clock == self.clock)
        return f"{self.amount:,} {unit}"

    def now(self, clocks: Clocks) -> float:
        """Where the duration's clock stands."""
        return _READ[self.clock](clocks)


def parse_duration(value: Any, *, what: str) -> Duration:
    """The length that a user wrote.

    Args:
        value: a number and a unit; "DD:HH:MM:SS"; a timedelta, or a mapping of its arguments.
        what: where it came from, as "Trainer(max_steps=...)", for the error text.

    Raises:
        InvalidValueError: anything else (``duration``).

    >>> parse_duration("1e6 samples", what="example"), parse_duration("1.5 h", what="example")
    (Duration(amount=1000000, clock='samples'), Duration(amount=5400.0, clock='seconds'))
    """
    try:
        if isinstance(value, str):
            amount, clock = _parse_text(value.strip().lower())
        else:
            amount, clock = (timedelta(**value) if isinstance(value, Mapping) else value).total_seconds(), "seconds"
    except (TypeError, ValueError, AttributeError):
        raise _bad(value, what) from None
    if not 0 <= amount < math.inf or (clock != "seconds" and amount != int(amount)):
        raise _bad(value, what)
    return Duration(amount if clock == "seconds" else int(amount), clock)


def _parse_text(text: str) -> tuple[float, str]:
    if time := re.fullmatch(_DAYS_TO_SECONDS, text):
        return sum(int(part) * size for part, size in zip(time.groups(), _TIMES.values(), strict=True)), "seconds"
    if (match := re.fullmatch(_NUMBER_AND_UNIT, text)) is None:
        raise ValueError(text)
    unit = _WORDS.get(match[2], match[2])
    if unit not in _TIMES and (unit not in _READ or unit == "seconds"):
        raise ValueError(unit)
    return (float(match[1]) * _TIMES[unit], "seconds") if unit in _TIMES else (float(match[1]), unit)


def _bad(value: Any, what: str) -> InvalidValueError:
    match = re.fullmatch(r"([\d_.e+]*?)\s*([a-z]+)", value.strip().lower()) if isinstance(value, str) else None
    known = (*_READ, *_TIMES, *_WORDS)
    close = difflib.get_close_matches(match[2], known, n=1) if match and match[2] not in known else ()
    hint = f" Did you mean '{match[1] or 500} {_WORDS.get(close[0], close[0])}'?" if match and close else ""
    return InvalidValueError(
        f"{what} was given {value!r}; expected a whole number and a unit, such as '500 updates', '2 epochs', "
        "'1e6 samples', or a time, such as '30 min'. Units: epochs, updates (windows closed), steps "
        "(trainer.global_step), batches (micro-batches), samples; s, min, h, d. A time may also be 'DD:HH:MM:SS', a "
        f"timedelta, or a mapping of its arguments, such as {{'hours': 2}}.{hint}",
        code="duration",
    )


def seconds_of(duration: Any, *, what: str) -> float:
    """Seconds of a time in any of the forms that ``parse_duration`` knows.

    Raises:
        InvalidValueError: anything else, also a length on another clock (``duration``).

    >>> seconds_of("00:00:01:30", what="example"), seconds_of("2 min", what="example")
    (90, 120.0)
    """
    try:
        amount, clock = parse_duration(duration, what=what)
    except InvalidValueError:
        amount, clock = 0, ""
    if clock != "seconds":
        raise InvalidValueError(
            f"{what} was given {duration!r}; expected 'DD:HH:MM:SS', a time such as '30 min' (units: s, min, h, d), a "
            "timedelta, or a mapping of its arguments, such as {'hours': 2}",
            code="duration",
        )
    return amount


@final
class Every:
    """When something that recurs is due, on a clock that may jump: one batch may bring many samples, or two steps.

    It is due when a multiple of the duration was reached or passed since the last time, once however many were passed.
    A time has no multiples: it counts from when the last one was over.

    An ``Every`` that a callback keeps as an attribute is found by the Trainer, which then counts what it needs.

    Args:
        duration: how far apart, > 0.
        what: where it came from, for the error text.

    Attributes:
        last: where the clock stood when it was due last; all there is to keep in a checkpoint, and to set again.

    >>> from leyden.optimization.clocks import Clocks
    >>> every, clocks, due = Every("10 samples"), Clocks(), []
    >>> for clocks.samples in (8, 16, 24, 48, 48):
    ...     due.append(every.is_due(clocks))
    >>> due, every.last
    ([False, True, True, True, False], 48)
    """

    __slots__ = ("duration", "last")

    def __init__(self, duration: Duration | str | timedelta | Mapping[str, float], *, what: str = "a schedule") -> None:
        self.duration = duration if isinstance(duration, Duration) else parse_duration(duration, what=what)
        if not self.duration.amount:
            raise InvalidValueError(f"{what} was given {str(duration)!r}; it must be more than 0", code="duration")
        self.last: float = 0

    def __str__(self) -> str:
        return f"every {self.duration}"

    def start(self, clocks: Clocks) -> None:
        """Count from here, unless it has been due before, in this run or in the one that is resumed."""
        now = self.duration.now(clocks)
        if not 0 < self.last <= now:
            self.last = now

    def is_passed(self, clocks: Clocks) -> bool:
        """Whether ``is_due`` would say yes; leaves ``last`` as it is."""
        amount, clock = self.duration
        now = self.duration.now(clocks)
        last = self.last if self.last <= now else 0  # of another run, whose clocks have begun anew
        return now - last >= amount if clock == "seconds" else now // amount > last // amount

    def is_due(self, clocks: Clocks) -> bool:
        """Whether it is time; if so, the next time is a duration from here."""
        is_passed = self.is_passed(clocks)
        if is_passed:
            self.last = self.duration.now(clocks)
        return is_passed

    def done(self, clocks: Clocks) -> None:
        """Say that what was due is over, where it takes long: a time counts from its end and does not recur at once."""
        if self.duration.clock == "seconds":
            self.last = self.duration.now(clocks)


def build_counter(clocks: Clocks, used: Iterable[str]) -> Callable[[Any, bool, bool], None] | None:
    """What counts the clocks that are counted only where something names them; None if nothing does.

    Args:
        clocks: are told.
        used: the clocks that durations of this run name.

    Returns:
        ``(batch, window_closes, epoch_ends)``, to be called as soon as the three are known.
    """
    used = set(used)
    if used.isdisjoint(("samples", "updates", "epochs")):
        return None

    def count(batch: Any, window_closes: bool, epoch_ends: bool) -> None:
        clocks.window_closes, clocks.epoch_ends = window_closes, epoch_ends
        if "samples" in used and batch is not None:
            clocks.samples += _size_of(batch)

    return count


def _size_of(batch: Any) -> int:
    size = first_batch_size(batch)
    if size is None:
        raise InvalidTypeError(
            f"a limit or an interval in samples needs the size of each batch, and this one, of type "
            f"{type(batch).__name__}, holds no tensor; count updates or batches instead",
            code="samples-unknown",
        )
    return size


def clocks_of(*values: Any) -> set[str]:
    """The clocks of those among some values that are durations or schedules."""
    durations = [value.duration if isinstance(value, Every) else value for value in values]
    return {duration.clock for duration in durations if isinstance(duration, Duration)}
