"""``TensorBoardLogger``: event files that TensorBoard shows."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from leyden.errors import warn
from leyden.loggers.base import prepare_row, rank_zero_experiment, require
from leyden.loggers.folders import FolderLogger, make_folder
from leyden.loggers.outbox import Outbox
from leyden.loggers.parameters import as_mapping, flatten, plain, write_yaml
from leyden.rank import rank_zero_only
from leyden.seed import isolate_rng
from leyden.tree import move_to_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(FolderLogger):
    """Writes event files and ``hparams.yaml`` to ``save_dir/name/version_<n>``; look at them with ``tensorboard``.

    A thread makes events of the rows, about once a second, so a row costs the run no more than handing it over. A fit
    that goes on from a checkpoint cuts the events that were written after it, except those of dicts of numbers.

    Args:
        save_dir: folder of all experiments.
        name: folder of the experiment in it; None or "" for none.
        version: number of the run, or the name of its folder. None takes the next free number.
        log_graph: whether to write the graph of a module that has an ``example_input_array``.
        default_hp_metric: whether hyper-parameters come with a metric "hp_metric" of -1, without which TensorBoard
            does not list them, unless ``log_hyperparams`` is given metrics.
        prefix: stands before every key, with a hyphen.
        sub_dir: folder in the run's folder, for several loggers of one run.
        kwargs: arguments of ``SummaryWriter``. Its defaults here: what was logged is in the file after 10 s
            (``flush_secs``), and 1,000 events may wait (``max_queue``).

    Raises:
        MissingExtraError: tensorboard is not installed.
        InvalidValueError: when a run starts and the folder cannot be written to.
    """

    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        require("tensorboard", extra="tensorboard")
        super().__init__(os.path.expanduser(os.path.expandvars(save_dir)), name, version, prefix)
        self.hparams: dict[Any, Any] = {}
        self._shown: dict[str, Any] | None = None
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._kwargs = {"flush_secs": 10, "max_queue": 1000, **kwargs}
        self._experiment: SummaryWriter | None = None
        self._next_step = 0
        self._earlier: dict[str, int] = {}  # event files that nobody writes to any more
        self._outbox = Outbox(self._write, interval=1.0)

    @property
    def sub_dir(self) -> str | None:
        """Folder in the run's folder."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """Folder of this run."""
        path = super().log_dir
        return path if self._sub_dir is None else os.path.join(path, self._sub_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The ``SummaryWriter``: ``logger.experiment.add_image(...)``."""
        if self._experiment is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = make_folder(self.log_dir, self)
            self._earlier = self._event_files()
            self._experiment = SummaryWriter(folder, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write one row, as one event. A dict of numbers becomes several lines in one chart."""
        if self._experiment is None:
            _ = self.experiment
        self._next_step = max(self._next_step, (step or 0) + 1)
        self._outbox.put((prepare_row(metrics, self._prefix), step, time.time()))

    def _write(self, rows: list[tuple[dict[str, Any], int | None, float]]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        writer = self.experiment
        for row, step, now in rows:
            values = []
            for key, value in row.items():
                if isinstance(value, Mapping):
                    writer.add_scalars(key, value, step, now)
                else:
                    values.append(Summary.Value(tag=key, simple_value=float(value)))
            writer._get_file_writer().add_summary(Summary(value=values), step, now)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write hyper-parameters for TensorBoard's table, and ``hparams.yaml``; calling again adds to the latter.

        Args:
            params: a dict, a Namespace or a dataclass; nested ones get names with slashes.
            metrics: numbers to compare runs by: a dict, or one number, which is called "hp_metric".
            step: place of these numbers on the x-axis.
        """
        from torch.utils.tensorboard import summary

        writer = self.experiment
        self.hparams.update(as_mapping(params))
        write_yaml(os.path.join(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)
        flat = {name: plain(value) for name, value in flatten(params).items()}
        shown = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in flat.items()}
        if metrics is None:
            if not self._default_hp_metric or shown == self._shown:
                return  # a test after a fit must not put -1 in the place of what was logged meanwhile
            metrics = -1
        self._shown = shown
        metrics = dict(metrics) if isinstance(metrics, Mapping) else {"hp_metric": metrics}
        self.log_metrics(metrics, step)
        for part in summary.hparams(shown, metrics):  # type: ignore[no-untyped-call]
            writer._get_file_writer().add_summary(part, step)

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Trace the module's ``forward`` and write its graph, if the logger was told to."""
        if not self._log_graph:
            return
        given = getattr(model, "example_input_array", None) if input_array is None else input_array
        if not isinstance(given, Tensor | tuple):
            warn(
                "TensorBoardLogger(log_graph=True) needs an input to trace the module with: set "
                "self.example_input_array in its __init__ to a tensor, or to a tuple with the arguments of forward; "
                f"got {type(given).__name__}",
                code="logger-graph",
            )
            return
        with isolate_rng():  # dropout draws numbers, and a logger must not change what is trained
            self.experiment.add_graph(model, move_to_device(given, model.device))
        self._log_graph = False  # once is enough, however many runs this logger serves

    @rank_zero_only
    def save(self) -> None:
        """Bring all events to the file."""
        self._outbox.flush()
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Bring all events to the file and close it; a later row opens another one in the same folder."""
        self._outbox.close()
        if self._experiment is not None:
            self._experiment.close()
            self._earlier = self._event_files()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: how much is in the event files, after all events so far are brought there."""
        self.save()
        more = {"files": self._event_files(), "next_step": self._next_step, "shown": self._shown}
        return {**super().state_dict(), **more}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the version of an earlier start of this run, which has its hyper-parameters already."""
        is_open = self.is_open
        super().load_state_dict(state)
        if is_open and not self.is_open:
            self._shown = state.get("shown")

    @rank_zero_only
    def rewind(self, state: Mapping[str, Any]) -> None:
        """Cut the events that were written after ``state``; a TensorBoard that shows them drops them too."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        writer, known = self.experiment, state["files"]
        if not known.keys() & self._earlier.keys():
            return  # those of another folder
        for name, size in self._earlier.items():
            path = os.path.join(self.log_dir, name)
            if name not in known:
                os.remove(path)
            elif known[name] < size:
                os.truncate(path, known[name])
        self._earlier, self._next_step = {}, state["next_step"]
        start = Event(session_log=SessionLog(status=SessionLog.START))
        writer._get_file_writer().add_event(start, self._next_step)

    def _event_files(self) -> dict[str, int]:
        """Sizes of the event files, by name."""
        with os.scandir(self.log_dir) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if ".tfevents." in entry.name}
