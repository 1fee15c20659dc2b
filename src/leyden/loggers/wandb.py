"""``WandbLogger``: runs in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leyden.errors import InvalidTypeError, InvalidValueError, MisconfigurationException, warn
from leyden.loggers.base import Logger, prepare_row, rank_zero_experiment, require
from leyden.loggers.folders import make_folder
from leyden.loggers.outbox import Outbox
from leyden.loggers.parameters import as_mapping, plain
from leyden.loggers.uploads import CheckpointUploads
from leyden.rank import rank_zero_only

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

#: Key of the x-axis of all charts.
STEP = "trainer/global_step"


class WandbLogger(Logger):
    """Sends rows to Weights & Biases; a thread hands them to the back end's process, which does the sending.

    The run stays open at the end of ``fit``, so that ``test`` adds to it; it closes with the process or by
    ``wandb.finish()``.

    Args:
        name: shown name of the run; None lets the back end invent one.
        save_dir: folder for the back end's files.
        version: id of a run to continue; None starts one.
        offline: write to ``save_dir`` only; ``wandb sync`` sends it later. The variable ``WANDB_MODE`` does the same.
        dir: other name of ``save_dir``.
        id: other name of ``version``.
        anonymous: whether to send without an account; for back ends that still know it.
        project: name of the project; default the variable ``WANDB_PROJECT``, else "lightning_logs".
        log_model: whether checkpoints are sent: True at the end, "all" each at once.
        experiment: a run that is open already.
        prefix: stands before every key, with a hyphen.
        checkpoint_name: name of the checkpoints' artifact; default "model-" and the run's id.
        add_file_policy: "mutable" copies a checkpoint before it is sent, "immutable" does not.
        kwargs: arguments of ``wandb.init``, such as ``entity``, ``group``, ``tags``.

    Raises:
        MissingExtraError: wandb is not installed.
        MisconfigurationException: checkpoints are to be sent, but offline.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] | None = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: bool | str = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: str = "mutable",
        **kwargs: Any,
    ) -> None:
        require("wandb", extra="wandb")
        if offline and log_model:
            raise MisconfigurationException(
                f"WandbLogger(log_model={log_model!r}, offline=True) cannot send checkpoints; leave one out",
                code="logger-log-model",
            )
        folder = save_dir if save_dir is not None else dir
        self._init: dict[str, Any] = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": None if folder is None else os.fspath(folder),
            "id": version or id,
            "resume": "allow",
            **({"mode": "offline"} if offline else {}),
            **({"anonymous": "allow"} if anonymous else {}),
            **kwargs,
        }
        self._prefix = prefix
        self._experiment: Run | None = experiment
        self._checkpoint_name = checkpoint_name
        self._add_file_policy = add_file_policy
        self._uploads = CheckpointUploads(log_model, self._upload)
        self._outbox = Outbox(self._write, interval=None)

    @property
    def name(self) -> str | None:
        """Name of the project; the run's is ``logger.experiment.name``."""
        return self._init["project"]  # type: ignore[no-any-return]

    @property
    def version(self) -> str | None:
        """Id of the run; None as long as there is none."""
        return self._init["id"] if self._experiment is None else self._experiment.id

    @property
    def save_dir(self) -> str | None:
        """Folder of the back end's files."""
        return self._init["dir"]  # type: ignore[no-any-return]

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The run: ``logger.experiment.log({"sample": wandb.Image(...)})``."""
        if self._experiment is None:
            import wandb

            if wandb.run is not None:
                warn(
                    f"the wandb run {wandb.run.id!r} is open and this WandbLogger adds to it; call wandb.finish() "
                    "before building the logger to start another one",
                    code="logger-run-open",
                )
                self._experiment = wandb.run
            else:
                if self.save_dir is not None:
                    make_folder(self.save_dir, self)
                self._experiment = wandb.init(**self._init)
                if not self._init.get("sync_tensorboard"):
                    self._experiment.define_metric(STEP)
                    self._experiment.define_metric("*", step_metric=STEP, step_sync=True)
            self._init["id"] = self._experiment.id  # so that a copy in another process continues this run
        self._outbox.flush()  # what the user logs by it has its place behind all rows
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send one row; its place on the x-axis is its value "trainer/global_step"."""
        row = prepare_row(metrics, self._prefix)
        if step is not None and not self._init.get("sync_tensorboard"):
            row[STEP] = step
        if self._experiment is None:
            _ = self.experiment
        self._outbox.put(row)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        assert self._experiment is not None
        for row in rows:
            self._experiment.log(row)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the run's configuration."""
        self.experiment.config.update(plain(as_mapping(params)), allow_val_change=True)

    def watch(self, model: Any, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True) -> None:
        """Send histograms of gradients or parameters every ``log_freq`` batches, and the graph."""
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        """Send a table: columns and rows, or a data frame."""
        import wandb

        self.log_metrics({key: wandb.Table(columns=columns, data=data, dataframe=dataframe)}, step)

    def log_text(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Send texts as a table; arguments as of ``log_table``."""
        self.log_table(key, *args, **kwargs)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Send images: tensors, arrays, PIL images or paths; ``caption=[...]`` and others have one value for each."""
        self._log_media("Image", key, images, step, kwargs)

    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Send sounds: arrays or paths; ``sample_rate=[...]`` and others have one value for each."""
        self._log_media("Audio", key, audios, step, kwargs)

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Send videos: tensors, arrays or paths; ``fps=[...]`` and others have one value for each."""
        self._log_media("Video", key, videos, step, kwargs)

    @rank_zero_only
    def _log_media(self, kind: str, key: str, items: Any, step: int | None, options: dict[str, list[Any]]) -> None:
        import wandb

        if not isinstance(items, list | tuple):
            raise InvalidTypeError(f"{key!r} must be a list, got {type(items).__name__}", code="logger-media")
        lengths = {name: len(values) for name, values in options.items()}
        if set(lengths.values()) - {len(items)}:
            raise InvalidValueError(
                f"{key!r} has {len(items)} items, the options have {lengths} values; give one for each",
                code="logger-media",
            )
        made = [
            getattr(wandb, kind)(item, **{name: values[index] for name, values in options.items()})
            for index, item in enumerate(items)
        ]
        self.log_metrics({key: made}, step)

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Tell the back end that this run uses an artifact."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @staticmethod
    @rank_zero_only
    def download_artifact(
        artifact: str, save_dir: Any = None, artifact_type: str | None = None, use_artifact: bool = True
    ) -> str:
        """Download an artifact (a checkpoint, say) and return its folder."""
        import wandb

        use = wandb.run.use_artifact if wandb.run is not None and use_artifact else wandb.Api().artifact
        return str(use(artifact, type=artifact_type).download(root=save_dir))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Send the checkpoint, if and when ``log_model`` says so."""
        self._uploads.after_save(checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send all rows, and what ``log_model=True`` has left for the end of a run that went well."""
        self._outbox.close()
        if status == "success":
            self._uploads.at_end()

    def _upload(self, path: str, score: float | None, aliases: list[str]) -> None:
        import wandb

        name = self._checkpoint_name or f"model-{self.experiment.id}"
        metadata = {"score": score, "original_filename": os.path.basename(path)}
        artifact = wandb.Artifact(name=name, type="model", metadata=metadata)
        add: Any = artifact.add_dir if os.path.isdir(path) else artifact.add_file
        add(path, policy=self._add_file_policy)
        self.experiment.log_artifact(artifact, aliases=aliases)
