"""``MLFlowLogger``: runs in an MLflow tracking store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from leyden.errors import warn
from leyden.loggers.base import Logger, prepare_row, rank_zero_experiment, require
from leyden.loggers.folders import make_folder
from leyden.loggers.outbox import Outbox
from leyden.loggers.parameters import flatten, plain
from leyden.loggers.uploads import CheckpointUploads
from leyden.rank import rank_zero_only

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Characters that a metric's name may not have.
_FORBIDDEN = re.compile(r"[^\w/. :-]", re.ASCII)
_METRICS_OF_A_CALL = 1000  # the back end's limits
_PARAMETERS_OF_A_CALL = 100
_LENGTH_OF_A_PARAMETER = 500
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class MLFlowLogger(Logger):
    """Writes rows to an MLflow store, in a thread that gathers them, and that the end of a run waits for.

    Args:
        experiment_name: the experiment, made if there is none of this name.
        run_name: shown name of the run; None lets the back end invent one.
        tracking_uri: where the store is; default the variable ``MLFLOW_TRACKING_URI``, else the file ``mlflow.db``
            in ``save_dir``.
        tags: tags of the run.
        save_dir: folder of the store where no ``tracking_uri`` is given.
        log_model: whether checkpoints are stored as artifacts: True at the end, "all" each at once.
        prefix: stands before every key, with a hyphen.
        artifact_location: where a new experiment stores artifacts; None lets the back end decide.
        run_id: a run to continue; None starts one.
        synchronous: True writes each row before training goes on.

    Raises:
        MissingExtraError: mlflow is not installed.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: bool | str = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        require("mlflow", extra="mlflow")
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._save_dir = None if self._tracking_uri or save_dir is None else os.path.abspath(save_dir)
        self.tags = tags
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._experiment_id: str | None = None
        self._run_id = run_id
        self._synchronous = bool(synchronous)
        self._experiment: MlflowClient | None = None
        self._outbox = Outbox(self._write, interval=1.0)
        self._renamed: set[str] = set()
        self._uploads = CheckpointUploads(log_model, self._upload)

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The client, with a run: ``logger.experiment.log_artifact(logger.run_id, path)``."""
        if self._experiment is None:
            from mlflow.tracking import MlflowClient

            if self._save_dir is not None:
                self._tracking_uri = f"sqlite:///{os.path.join(self._save_dir, 'mlflow.db')}"
                if self._artifact_location is None:
                    self._artifact_location = f"file://{os.path.join(self._save_dir, 'artifacts')}"
            folder = _local_folder(self._tracking_uri)
            if folder is not None:
                make_folder(folder, self)
            client = MlflowClient(self._tracking_uri)
            if self._run_id is not None:
                self._experiment_id = client.get_run(self._run_id).info.experiment_id
            else:
                self._start_run(client)
            self._experiment = client
        return self._experiment

    def _start_run(self, client: MlflowClient) -> None:
        from mlflow.tracking.context.registry import resolve_tags

        found = client.get_experiment_by_name(self._experiment_name)
        if found is not None and found.lifecycle_stage != "deleted":
            self._experiment_id = found.experiment_id
        else:
            self._experiment_id = client.create_experiment(self._experiment_name, self._artifact_location)
        tags = resolve_tags(self.tags)
        run = client.create_run(self._experiment_id, tags=tags, run_name=self._run_name)
        self._run_id = run.info.run_id

    @property
    def run_id(self) -> str | None:
        """Id of the run, which is started if there is none."""
        _ = self.experiment
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment, which is made if there is none."""
        _ = self.experiment
        return self._experiment_id

    @property
    def name(self) -> str | None:
        """Id of the experiment."""
        return self.experiment_id

    @property
    def version(self) -> str | None:
        """Id of the run."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """Folder of the store, if it is one on this machine."""
        uri = self._tracking_uri or ""
        return self._save_dir or (uri.removeprefix("file:") if uri.startswith("file:") else None)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand over one row; values that are no numbers are left out."""
        from mlflow.entities import Metric

        if self._experiment is None:
            _ = self.experiment
        now = int(time.time() * 1000)
        values = [
            Metric(self._allowed(key), float(value), now, step or 0)
            for key, value in prepare_row(metrics, self._prefix).items()
            if isinstance(value, bool | int | float)
        ]
        self._outbox.put(values)
        if self._synchronous:
            self._outbox.flush()

    def _write(self, rows: list[list[Any]]) -> None:
        values = [value for row in rows for value in row]
        for start in range(0, len(values), _METRICS_OF_A_CALL):
            some = values[start : start + _METRICS_OF_A_CALL]
            self.experiment.log_batch(self._run_id, metrics=some, synchronous=True)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Store hyper-parameters as texts; nested ones get names with slashes."""
        from mlflow.entities import Param

        texts = ((name, str(plain(value))[:_LENGTH_OF_A_PARAMETER]) for name, value in flatten(params).items())
        while some := [Param(name, text) for name, text in islice(texts, _PARAMETERS_OF_A_CALL)]:
            self.experiment.log_batch(self.run_id, params=some)

    @rank_zero_only
    def save(self) -> None:
        """Wait until all rows are written."""
        _ = self.experiment
        self._outbox.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait for all rows and close the run; another run of the Trainer adds to it all the same."""
        if self._experiment is None:
            return
        self._outbox.close()
        if status == "success":
            self._uploads.at_end()
        assert self._run_id is not None
        self._experiment.set_terminated(self._run_id, _STATUS.get(status, status))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Store the checkpoint, if and when ``log_model`` says so."""
        self._uploads.after_save(checkpoint_callback)

    def _upload(self, path: str, score: float | None, aliases: list[str]) -> None:
        place = os.path.splitext(os.path.basename(path))[0]
        store = self.experiment.log_artifacts if os.path.isdir(path) else self.experiment.log_artifact
        store(self.run_id, path, place)
        about = {"score": score, "original_filename": os.path.basename(path), "aliases": aliases}
        self.experiment.log_dict(self.run_id, about, f"{place}/metadata.yaml")

    def _allowed(self, key: str) -> str:
        allowed = _FORBIDDEN.sub("", key)
        if allowed != key and key not in self._renamed:
            self._renamed.add(key)
            warn(f"MLflow takes no metric of the name {key!r}; it is called {allowed!r} there", code="logger-key")
        return allowed


def _local_folder(uri: str | None) -> str | None:
    """The folder that a store on this machine lies in; None for any other store."""
    scheme, _, path = (uri or "").partition(":")
    if scheme == "sqlite" and path.startswith("///"):
        return os.path.dirname(path[3:]) or "."
    return re.sub("^//", "", path) if scheme == "file" else None
