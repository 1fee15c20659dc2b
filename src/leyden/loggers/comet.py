"""``CometLogger``: experiments in Comet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from leyden.loggers.base import Logger, prepare_row, rank_zero_experiment, require
from leyden.loggers.folders import make_folder
from leyden.loggers.parameters import flatten, plain
from leyden.rank import rank_zero_only


class CometLogger(Logger):
    """Sends rows to Comet; a thread of the back end does the sending.

    The experiment stays open at the end of ``fit``, so that ``test`` adds to it; it closes with the process or by
    ``logger.experiment.end()``.

    Args:
        api_key: default the back end's own configuration.
        workspace: default the account's.
        project: name of the project; None for the back end's "uncategorized".
        experiment_key: id of an experiment to continue, or to be given to a new one.
        mode: "get_or_create" (the back end's default), "get" or "create".
        online: False writes to ``offline_directory`` only; ``comet upload`` sends it later.
        prefix: stands before every key, with an underscore.
        kwargs: arguments of ``comet_ml.ExperimentConfig``, such as ``name``, ``tags``, ``offline_directory``.

    Raises:
        MissingExtraError: comet_ml is not installed.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: str | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        require("comet_ml", extra="comet")
        self._start: dict[str, Any] = {
            "api_key": api_key,
            "workspace": workspace,
            "project": project,
            "experiment_key": experiment_key,
            "mode": mode,
            "online": online,
        }
        self._prefix = prefix
        self._config = kwargs
        self._experiment: Any = None

    @property
    def name(self) -> str | None:
        """Name of the project."""
        return self._start["project"]  # type: ignore[no-any-return]

    @property
    def version(self) -> str | None:
        """Id of the experiment; None as long as there is none."""
        return self._start["experiment_key"]  # type: ignore[no-any-return]

    @property
    def save_dir(self) -> str | None:
        """Folder of an offline experiment."""
        return self._config.get("offline_directory")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The experiment: ``logger.experiment.log_image(...)``."""
        if self._experiment is None:
            # Comet otherwise patches torch to log by itself, and complains that torch was imported before.
            os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
            import comet_ml

            if self.save_dir is not None:
                make_folder(self.save_dir, self)
            config = comet_ml.ExperimentConfig(**self._config)
            self._experiment = comet_ml.start(**self._start, experiment_config=config)
            self._start["experiment_key"] = self._experiment.get_key()
            self._experiment.log_other("Created from", "leyden")
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send one row; the epoch, which Comet knows as an axis, goes beside the values."""
        row = prepare_row(metrics, "")
        epoch = row.pop("epoch", None)
        self.experiment.log_metrics(row, prefix=self._prefix, step=step, epoch=epoch)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Send hyper-parameters; nested ones get names with slashes."""
        self.experiment.log_parameters({name: plain(value) for name, value in flatten(params).items()})

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Send the module's text, which Comet shows as its graph."""
        self.experiment.set_model_graph(str(model))

    @rank_zero_only
    def save(self) -> None:
        """Start the experiment if there is none; what was logged is on its way by itself."""
        _ = self.experiment

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait until everything was sent."""
        if self._experiment is not None:
            self._experiment.flush()
