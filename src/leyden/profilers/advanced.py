"""``AdvancedProfiler``: which functions the time of each action went to, by Python's own profiler."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import re
from typing import Final

from leyden.profilers.profiler import Profiler, not_started

#: What an action's name may hold and a file's may not.
_NOT_IN_FILES: Final = re.compile(r'[<>:"/\\|?*]')


class AdvancedProfiler(Profiler):
    """Runs ``cProfile`` in every action: ``Trainer(profiler="advanced")``.

    Only one ``cProfile`` can run at a time: an action's statistics leave out the actions inside of it, which have their
    own. It slows Python down; compare functions of one report, not a report with a run without it.

    Args:
        dirpath: folder for files; None takes the first logger's, or ``default_root_dir`` without one.
        filename: the report is appended to ``<stage>-<filename>.txt`` there; None prints it.
        line_count_restriction: functions shown of each action: an int is their number, a float the part of them.
        dump_stats: whether each action's statistics are also written to ``<stage>-<filename>-<action>.prof``, for
            viewers as snakeviz.

    Attributes:
        profiled_actions: the ``cProfile.Profile`` of each action of the current run.

    >>> profiler = AdvancedProfiler(line_count_restriction=5)
    >>> with profiler.profile("sort"):
    ...     _ = sorted(range(10))
    >>> "built-in method builtins.sorted" in profiler.summary()
    True
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self._writes_files |= dump_stats
        self._running: list[str] = []  # the innermost, which alone is measured, is the last

    def start(self, action_name: str) -> None:
        """Begin to measure an action; the one around it rests."""
        if self._running:
            self.profiled_actions[self._running[-1]].disable()
        self._running.append(action_name)
        if action_name not in self.profiled_actions:
            self.profiled_actions[action_name] = cProfile.Profile()
        self.profiled_actions[action_name].enable()

    def stop(self, action_name: str) -> None:
        """End the measurement of an action; the one around it goes on.

        Raises:
            InvalidValueError: it was not started (``profiler-not-started``).
        """
        if action_name not in self._running:
            raise not_started(action_name)
        self.profiled_actions[self._running[-1]].disable()
        self._running.reverse()
        self._running.remove(action_name)  # the innermost of this name
        self._running.reverse()
        if self._running:
            self.profiled_actions[self._running[-1]].enable()

    def summary(self) -> str:
        """The functions of each action, by the time spent in them and in what they call."""
        reports = []
        for name, profile in self.profiled_actions.items():
            text = io.StringIO()
            statistics = pstats.Stats(profile, stream=text).strip_dirs().sort_stats("cumulative")
            statistics.print_stats(self.line_count_restriction)
            reports.append(f"Profile stats for: {name}\n{text.getvalue().rstrip()}\n\n")
        return self._title() + "".join(reports) if reports else ""

    def teardown(self, stage: str | None) -> None:
        """Write the statistics, if that was asked for, and forget them."""
        super().teardown(stage)
        if self._running:
            self.profiled_actions[self._running[-1]].disable()
            self._running.clear()
        if self.dump_stats:
            for name, profile in self.profiled_actions.items():
                profile.dump_stats(self._path(f"-{_NOT_IN_FILES.sub('_', name)}.prof"))
        self.profiled_actions.clear()
