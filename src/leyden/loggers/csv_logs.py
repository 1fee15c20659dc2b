"""``CSVLogger``: rows in a CSV file that only ever grows, hyper-parameters beside it."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from leyden.errors import warn
from leyden.loggers.base import prepare_row, rank_zero_experiment
from leyden.loggers.folders import FolderLogger, make_folder
from leyden.loggers.parameters import as_mapping, write_yaml
from leyden.rank import rank_zero_only

#: Seconds that a row waits in memory at most, if another one follows.
PATIENCE = 10.0


class CSVLogger(FolderLogger):
    """Writes ``metrics.csv`` and ``hparams.yaml`` to ``save_dir/name/version_<n>``; needs no other package.

    Rows wait in memory and are appended to the file a few at a time, whole lines only, so that the file can be read at
    any time and holds after a kill what was flushed before. A key that comes up later becomes a new column at the
    right; only then is the file written anew, beside the old one, which it then replaces. A version that exists is
    continued.

    Args:
        save_dir: folder of all experiments.
        name: folder of the experiment in it; None or "" for none.
        version: number of the run, or the name of its folder. None takes the next free number.
        prefix: stands before every key, with a hyphen.
        flush_logs_every_n_steps: steps between two writes to the file; after 10 s a row flushes in any case, and so
            does the end of a run.

    Raises:
        InvalidValueError: when a run starts and the folder cannot be written to.

    >>> logger = CSVLogger("logs", name="gan", version=3)
    >>> logger.log_dir.replace(os.sep, "/")
    'logs/gan/version_3'
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._every = flush_logs_every_n_steps
        self._experiment: ExperimentWriter | None = None
        self._flushed_step = -1
        self._flushed_at = time.monotonic()

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the two files."""
        if self._experiment is None:
            self._experiment = ExperimentWriter(make_folder(self.log_dir, self))
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one row; without a step it gets the next one."""
        writer = self.experiment
        step = writer.log_metrics(prepare_row(metrics, self._prefix), step)
        now = time.monotonic()
        if abs(step - self._flushed_step) >= self._every or now - self._flushed_at >= PATIENCE:
            self._flushed_step, self._flushed_at = step, now
            writer.save()

    @rank_zero_only
    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Write ``hparams.yaml``; calling again adds."""
        self.experiment.log_hparams(params)

    @rank_zero_only
    def save(self) -> None:
        """Write all rows to the file."""
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write all rows to the file, if there is one."""
        if self._experiment is not None:
            self._experiment.save()


class ExperimentWriter:
    """The files of one run.

    Args:
        log_dir: their folder, which exists.

    Attributes:
        metrics: rows that are not in the file yet.
        metrics_keys: columns of the file.
        hparams: hyper-parameters by name.
    """

    NAME_METRICS_FILE = "metrics.csv"
    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.metrics_file_path = os.path.join(log_dir, self.NAME_METRICS_FILE)
        self.metrics: list[dict[str, Any]] = []
        self.hparams: dict[Any, Any] = {}
        self.metrics_keys: list[str] = _continue_file(self.metrics_file_path)
        self._next_step = 0
        self._told = False

    def log_hparams(self, params: Any) -> None:
        """Add hyper-parameters and write the file."""
        self.hparams.update(as_mapping(params))
        write_yaml(os.path.join(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int | None = None) -> int:
        """Keep a row for the next ``save``; returns its step."""
        step = self._next_step if step is None else step
        self._next_step = step + 1
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics_dict.items()}
        self.metrics.append({**row, "step": step})
        return step

    def save(self) -> None:
        """Append the rows to the file. If that fails, they wait for the next time: a full disk ends no training."""
        if not self.metrics:
            return
        try:
            self._write()
        except OSError as error:
            if not self._told:
                self._told = True
                warn(
                    f"cannot write to {self.metrics_file_path!r} ({error.strerror or error}); rows wait in memory and "
                    "are written as soon as that works again",
                    code="logger-write",
                )
        else:
            self.metrics = []
            self._told = False

    def _write(self) -> None:
        known = set(self.metrics_keys)
        fresh = [key for key in dict.fromkeys(key for row in self.metrics for key in row) if key not in known]
        if fresh:
            keys = [*self.metrics_keys, *fresh]
            if self.metrics_keys:
                _widen(self.metrics_file_path, keys)
            else:
                _append(self.metrics_file_path, _format([keys]))
            self.metrics_keys = keys
        rows = ([row.get(key, "") for key in self.metrics_keys] for row in self.metrics)
        _append(self.metrics_file_path, _format(rows))


def _format(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _append(path: str, data: bytes) -> None:
    """Append whole lines in one call, which a kill cannot tear; where only a part fits, take it back."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        try:
            written = os.write(file, data)
            while written < len(data):
                written += os.write(file, data[written:])
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _widen(path: str, keys: list[str]) -> None:
    """Write the file anew under a header of more columns, beside the old one, and put it in its place."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(path, newline="", encoding="utf-8") as old, open(temporary, "w", newline="", encoding="utf-8") as new:
        writer = csv.writer(new, lineterminator="\n")
        writer.writerow(keys)
        rows = csv.reader(old)
        next(rows)
        writer.writerows([*row, *[""] * (len(keys) - len(row))] for row in rows)
    os.replace(temporary, path)


def _continue_file(path: str) -> list[str]:
    """Columns of a file that an earlier run has left; a torn last line (a power cut) is dropped."""
    try:
        with open(path, "rb+") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
        with open(path, newline="", encoding="utf-8") as text:
            return next(csv.reader(text), [])
    except FileNotFoundError:
        return []
