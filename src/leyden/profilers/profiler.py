"""``Profiler``: the base of profilers, and the one that measures nothing."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from leyden.errors import InvalidValueError
from leyden.loggers.folders import make_folder
from leyden.rank import rank_zero_only


class Profiler(ABC):
    """Measures the actions of a run: give one as ``Trainer(profiler=...)``.

    An action has a name, as "run_training_batch", "[Strategy]SingleDeviceStrategy.training_step",
    "[LightningModule]MyModel.on_train_start" or "[Callback]EarlyStopping.on_validation_end"; users add their own::

        with self.trainer.profiler.profile("augmentation"):
            ...

    For a profiler of your own implement :meth:`start`, :meth:`stop` and, to report something, :meth:`summary`.

    Args:
        dirpath: folder for files; None takes the first logger's, or ``default_root_dir`` without one.
        filename: the report is appended to ``<stage>-<filename>.txt`` there, as "fit-perf.txt"; None prints it.

    >>> class Count(Profiler):
    ...     starts = 0
    ...     def start(self, action_name):
    ...         self.starts += 1
    ...     def stop(self, action_name):
    ...         pass
    >>> profiler = Count()
    >>> with profiler.profile("work"):
    ...     profiler.starts
    1
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self._writes_files = filename is not None
        self._lightning_module: Any = None  # that of the run; the Trainer sets it
        self._local_rank: int | None = None
        self._stage: str | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """Begin to measure an action."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """End the measurement of an action that was started."""

    def summary(self) -> str:
        """The report; "" if there is none."""
        return ""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure what is inside of the ``with``, also if it ends in an exception."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def describe(self) -> None:
        """Print the summary, or append it to the file; called at the end of a run."""
        text = self.summary()
        if not text:
            return
        if self.filename is not None:
            with open(self._path(".txt"), "a", encoding="utf-8") as file:
                file.write(text)
        elif rank_zero_only.rank == 0:
            print(text)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Get ready for a run; called before anything is measured in it.

        Args:
            stage: "fit", "validate", "test" or "predict".
            local_rank: rank on this machine where there are several processes, so that each has a file of its own.
            log_dir: the folder to take without ``dirpath``.

        Raises:
            InvalidValueError: files are to be written, and the folder takes none (``profiler-directory``).
        """
        self._stage = stage
        self._local_rank = local_rank
        self.dirpath = self.dirpath or log_dir or os.getcwd()
        if self._writes_files:
            make_folder(os.fspath(self.dirpath), self, code="profiler-directory")

    def teardown(self, stage: str | None) -> None:
        """Let go of what belongs to the run that ends, also after an exception."""
        self._lightning_module = None

    def _path(self, ending: str) -> str:
        """A file of this run: ``<folder>/<stage>-<filename>[-<rank>]<ending>``."""
        rank = None if self._local_rank is None else str(self._local_rank)
        return os.path.join(self.dirpath or "", "-".join(filter(None, (self._stage, self.filename, rank))) + ending)

    def _title(self) -> str:
        return f"{self._stage.upper()} Profiler Report\n\n" if self._stage else "Profiler Report\n\n"


class PassThroughProfiler(Profiler):
    """Measures nothing: what ``trainer.profiler`` is unless one is asked for.

    A run wraps nothing for it, so only the user's own ``profile(...)`` blocks are left, which do nothing.
    """

    def start(self, action_name: str) -> None:
        """Do nothing."""

    def stop(self, action_name: str) -> None:
        """Do nothing."""


def not_started(action_name: str) -> InvalidValueError:
    """What a profiler raises that is told to stop what does not run."""
    return InvalidValueError(
        f"stop({action_name!r}) was called on a profiler, but this action is not running; call start before, or use "
        f"`with profiler.profile({action_name!r}):`",
        code="profiler-not-started",
    )
