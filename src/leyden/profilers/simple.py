"""``SimpleProfiler``: how often each action ran and how long it took."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from array import array
from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter

from leyden.profilers.profiler import Profiler, not_started


class SimpleProfiler(Profiler):
    """Adds up the durations of every action: ``Trainer(profiler="simple")``.

    Actions lie inside of others, so the percentages, of the time from the first action to the end of the run, add up
    to more than 100. On a GPU a duration is that of the Python call: what it launches may still run. Several runs of
    one profiler are summed up.

    Args:
        dirpath: folder for the report; None takes the first logger's, or ``default_root_dir`` without one.
        filename: the report is appended to ``<stage>-<filename>.txt`` there; None prints it.
        extended: whether calls and percentages are reported, slowest in total first; otherwise only mean and total,
            slowest on average first.

    Attributes:
        recorded_durations: seconds of every call, by action; an action inside of itself counts as one call.

    >>> profiler = SimpleProfiler()
    >>> for _ in range(3):
    ...     with profiler.profile("step"):
    ...         pass
    >>> len(profiler.recorded_durations["step"])
    3
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        extended: bool = True,
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        # Doubles without an object each: a long fit records millions.
        self.recorded_durations: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self._running: dict[str, list[float]] = {}
        self._seconds = 0.0  # of the runs that are over
        self._began: float | None = None

    def start(self, action_name: str) -> None:
        """Begin to measure an action."""
        starts = self._running.setdefault(action_name, [])
        now = perf_counter()
        starts.append(now)
        if self._began is None:
            self._began = now

    def stop(self, action_name: str) -> None:
        """Record how long an action took.

        Raises:
            InvalidValueError: it was not started (``profiler-not-started``).
        """
        now = perf_counter()
        starts = self._running.get(action_name)
        if not starts:
            raise not_started(action_name)
        started = starts.pop()
        if not starts:
            self.recorded_durations[action_name].append(now - started)

    def summary(self) -> str:
        """A table of the actions; one that is printed is no wider than the terminal, long names are folded."""
        if not self.recorded_durations:
            return ""
        seconds = self._seconds + (0.0 if self._began is None else perf_counter() - self._began)
        sums = [(name, sum(values), len(values)) for name, values in self.recorded_durations.items()]
        sums.sort(key=lambda entry: entry[1] if self.extended else entry[1] / entry[2], reverse=True)
        rows: list[tuple[str, ...]] = [
            ("Action", "Mean\n(ms)", "Calls", "Total\n(s)", "%"),
            ("Total", "", str(sum(count for *_, count in sums)), f"{seconds:.3f}", "100.0"),
        ]
        for name, total, count in sums:
            mean, part = 1e3 * total / count, 100 * total / seconds
            rows.append((name, f"{mean:.3f}", str(count), f"{total:.3f}", f"{part:.1f}"))
        if not self.extended:
            rows = [(name, mean, total) for name, mean, _, total, _ in rows]
        width = shutil.get_terminal_size(fallback=(80, 24)).columns if self.filename is None else None
        return f"{self._title()}{_table(rows, width)}\n"

    def teardown(self, stage: str | None) -> None:
        """Stop the clock until the next run."""
        super().teardown(stage)
        if self._began is not None:
            self._seconds += perf_counter() - self._began
            self._began = None


def _table(rows: Sequence[tuple[str, ...]], width: int | None) -> str:
    """The rows, headers first, with names folded so that they are no wider than ``width``; None folds nothing."""
    from tabulate import tabulate  # only here, so that importing leyden stays light

    def draw(rows: Sequence[tuple[str, ...]]) -> str:
        sides = ("left", *["right"] * (len(rows[0]) - 1))
        return tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True)

    if width is not None:
        widest = max(width - len(draw([("", *values) for _, *values in rows]).splitlines()[0]), 20)
        shorter = [re.sub(r"\{.*\}", "{...}", name) for name, *_ in rows]  # what tells callbacks of one class apart
        names = [
            _fold(short if shorter.count(short) == 1 else name, widest) if len(name) > widest else name
            for short, (name, *_) in zip(shorter, rows, strict=True)
        ]
        rows = [(name, *values) for name, (_, *values) in zip(names, rows, strict=True)]
    return draw(rows)


def _fold(name: str, width: int) -> str:
    """A name on several lines, broken before its last part if that is enough."""
    if len(name) <= width:
        return name
    owner, dot, method = name.rpartition(".")
    if owner and max(len(owner), len(method) + 3) <= width:
        return f"{owner}\n  {dot}{method}"
    return "\n".join(textwrap.wrap(name, width, subsequent_indent="  "))
