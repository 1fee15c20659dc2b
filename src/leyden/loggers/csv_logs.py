"""``CSVLogger``: rows in a CSV file that only ever grows, hyper-parameters beside it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import time
import zlib
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

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: where the file is and what is in it; all rows so far are written to it."""
        return {**super().state_dict(), **self.experiment.state_dict()}

    @rank_zero_only
    def rewind(self, state: Mapping[str, Any]) -> None:
        """Cut the rows that were written after ``state``: the run goes on from there, and writes them again."""
        self.experiment.rewind(state)


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
        self.metrics_keys, kept = _continue_file(self.metrics_file_path)
        self._count, self._checksum = len(kept), _checksum(_format(kept))
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

    def state_dict(self) -> dict[str, Any]:
        """Columns, number of rows, and a checksum that tells these rows from others."""
        self.save()
        return {"columns": list(self.metrics_keys), "rows": self._count, "checksum": self._checksum}

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Cut rows and columns that came after ``state``; a file that does not begin with its rows is left alone."""
        columns, count, checksum = state["columns"], state["rows"], state["checksum"]
        keys, kept = _read(self.metrics_file_path)
        data = _format(row[: len(columns)] for row in kept[:count])
        if (keys, len(kept)) == (columns, count) or (keys[: len(columns)], _checksum(data)) != (columns, checksum):
            return
        _replace(self.metrics_file_path, _format([columns] if columns else []) + data)
        self.metrics_keys, self._count, self._checksum = list(columns), count, checksum

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
        data = _format([row.get(key, "") for key in self.metrics_keys] for row in self.metrics)
        _append(self.metrics_file_path, data)
        self._count, self._checksum = self._count + len(self.metrics), _checksum(data, self._checksum)


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


def _checksum(data: bytes, start: int = 0) -> int:
    """A checksum of rows that is the same when they were written anew under more columns."""
    return zlib.crc32(re.sub(rb",*\n", b"\n", data), start)


def _widen(path: str, keys: list[str]) -> None:
    """Write the file anew under a header of more columns."""
    _, rows = _read(path)
    _replace(path, _format([keys, *([*row, *[""] * (len(keys) - len(row))] for row in rows)]))


def _replace(path: str, data: bytes) -> None:
    """Write a file anew, beside the old one, and put it in its place; what a kill leaves beside it is used again."""
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def _read(path: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a file; nothing of one that is not there."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except FileNotFoundError:
        lines = []
    return (lines[0], lines[1:]) if lines else ([], [])


def _continue_file(path: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a file that an earlier run has left; a torn last line (a power cut) is dropped."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
    return _read(path)
