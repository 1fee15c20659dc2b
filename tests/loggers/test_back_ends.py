"""The loggers on others' packages, read back by the package's own reader; nothing leaves the machine."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import leyden
from leyden.errors import LeydenWarning, MissingExtraError
from leyden.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from leyden.resolve import resolve_loggers


class Module(leyden.LightningModule):
    def __init__(self, lr: float = 0.1, sizes: tuple[int, ...] = (3, 1), activation: Any = nn.Tanh) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(*sizes), activation(), nn.Dropout(0.5))
        self.example_input_array = torch.ones(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("number", float(batch_idx + 1) / 4, on_step=True, on_epoch=True)
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def fit(*loggers: Any, **arguments: Any) -> Module:
    torch.manual_seed(0)
    module = Module()
    trainer = leyden.Trainer(
        **{"max_epochs": 1, "log_every_n_steps": 1, **arguments},
        accelerator="cpu",
        logger=list(loggers),
        enable_progress_bar=False,
    )
    trainer.fit(module, [torch.ones(2, 3)] * 4)
    return module


STEPS = [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0)]


def read_events(log_dir: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(log_dir)
    events.Reload()
    return events


def scalars(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard(tmp_path: Path) -> None:
    """Rows, hyper-parameters, images and a graph; a second run goes on in the same folder."""
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    fit(logger)
    logger.experiment.add_image("image", torch.zeros(3, 2, 2), 7)
    logger.log_metrics({"several": {"a": 1.0, "b": 2.0}, "number_step": torch.tensor(2.0)}, 4)
    logger.finalize("success")
    events = read_events(logger.log_dir)
    assert sorted(scalars(events, "number_step")) == [*STEPS, (4, 2.0)]  # files of one second are read by their number
    assert scalars(events, "number_epoch") == [(3, 0.625)]
    assert scalars(events, "epoch") == [(step, 0.0) for step in (0, 1, 2, 3, 3)]
    assert scalars(events, "hp_metric") == [(0, -1.0)]
    assert [image.step for image in events.Images("image")] == [7]
    assert "Module/Sequential[net]/Linear[0]" in str(events.Graph())
    shown = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"activation" in shown and b"torch.nn.modules.activation.Tanh" in shown
    hparams = (Path(logger.log_dir) / "hparams.yaml").read_text()
    assert hparams == 'lr: 0.1\nsizes: [3, 1]\nactivation: "torch.nn.modules.activation.Tanh"\n'


def test_a_graph_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    """Tracing draws numbers for the dropout, which training then draws all the same."""
    traced, plain = fit(TensorBoardLogger(tmp_path, log_graph=True)), fit()
    assert all(torch.equal(a, b) for a, b in zip(traced.parameters(), plain.parameters(), strict=True))


def test_a_graph_needs_an_input(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    with pytest.warns(LeydenWarning, match=r"example_input_array.*got NoneType.*logger-graph"):
        logger.log_graph(nn.Linear(3, 1))


def test_tensorboard_metrics_of_hyperparameters(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False, sub_dir="part", prefix="p")
    logger.log_hyperparams({"a": None})
    logger.log_hyperparams({"b": {"c": [1, 2]}}, metrics=0.5, step=3)
    logger.finalize("success")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0" / "part")
    assert scalars(read_events(logger.log_dir), "p-hp_metric") == [(3, 0.5)]


def test_a_later_run_keeps_the_metric_of_hyperparameters(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"hp_metric": 0.5}, 3)
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    assert scalars(read_events(logger.log_dir), "hp_metric") == [(0, -1.0), (3, 0.5)]


def test_the_default_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """True is TensorBoard's if that is there, else a CSV file; None and False are none."""
    monkeypatch.chdir(tmp_path)

    def logger(value: Any) -> Any:
        return leyden.Trainer(logger=value, accelerator="cpu", default_root_dir=tmp_path).logger

    assert logger(None) is None
    assert logger(False) is None
    found = logger(True)
    assert isinstance(found, TensorBoardLogger)
    assert Path(found.log_dir).resolve() == (tmp_path / "lightning_logs" / "version_0").resolve()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert isinstance(logger(True), CSVLogger)
    assert resolve_loggers(True, default_root_dir="elsewhere")[0].save_dir == "elsewhere"


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("tensorboard", lambda: TensorBoardLogger(".")),
        ("wandb", WandbLogger),
        ("mlflow", MLFlowLogger),
        ("comet_ml", CometLogger),
    ],
)
def test_a_missing_package_names_the_remedy(package: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leyden\[" + package.removesuffix("_ml")):
        make()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("COMET_LOGGING_CONSOLE", "CRITICAL")
    yield


def read_wandb(log_dir: str) -> list[Any]:
    """Records of an offline run. Its file is a LevelDB log: pieces of records in blocks of 32 KiB, 7 bytes before each.

    wandb's own reader is no longer written in Python; the records are parsed by its own classes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = Path(log_dir).parent.glob("*.wandb")
    content, place, payload, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for a piece: the block is filled up
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        payload += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record's only piece, or its last one
            records.append(Record.FromString(payload))
            payload = b""
    return records


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_wandb(tmp_path: Path) -> None:
    """Rows with their x-axis, hyper-parameters, images, and a checkpoint, in a file that wandb reads."""
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger("name", tmp_path, project="project", log_model="all", prefix="p")
    assert (logger.name, logger.version, logger.save_dir) == ("project", None, str(tmp_path))
    fit(logger, CSVLogger(tmp_path))
    logger.log_image("image", [torch.zeros(3, 4, 4)], step=4, caption=["black"])
    with pytest.raises(ValueError, match=r"1 items.*\{'caption': 2\}.*logger-media"):
        logger.log_image("image", [torch.zeros(3, 4, 4)], caption=["a", "b"])
    logger.after_save_checkpoint(Saved(tmp_path))
    assert logger.version == logger.experiment.id
    folder = logger.experiment.dir
    logger.experiment.finish()
    wandb.teardown()  # its process goes on writing until it is told to end
    records = read_wandb(folder)

    def text(items: Any) -> dict[str, Any]:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    rows = [text(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    points = [(row["trainer/global_step"], row["p-number_step"]) for row in rows if "p-number_step" in row]
    assert points == STEPS
    assert [row["trainer/global_step"] for row in rows if any("p-image" in key for key in row)] == [4]
    config: dict[str, Any] = {}
    for record in records:
        config.update(text(record.config.update) or text(record.run.config.update))
    assert config["lr"] == 0.1 and config["sizes"] == [3, 1]
    artifacts = [r.request.log_artifact.artifact for r in records if r.request.WhichOneof("request_type")]
    artifacts += [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    assert [sorted(a.aliases) for a in artifacts if a.type == "model"] == [["best", "latest"]]
    assert wandb.run is None


def test_wandb_sends_no_checkpoints_offline() -> None:
    with pytest.raises(leyden.MisconfigurationException, match="log_model=True, offline=True.*logger-log-model"):
        WandbLogger(offline=True, log_model=True)


class Saved:
    """What loggers ask of a callback that has written a checkpoint."""

    save_top_k = 1

    def __init__(self, folder: Path) -> None:
        path = folder / "best.ckpt"
        path.write_bytes(b"weights")
        self.last_model_path, self.current_score = "", None
        self.best_model_path, self.best_model_score = str(path), torch.tensor(0.5)
        self.best_k_models = {str(path): torch.tensor(0.5)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated", "ignore::UserWarning:mlflow")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, hyper-parameters, a checkpoint and the end of the run, in a local store that MLflow reads."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger = MLFlowLogger("experiment", "run", save_dir=tmp_path / "store", tags={"a": "b"}, log_model=True)
    fit(logger)
    logger.after_save_checkpoint(Saved(tmp_path))
    with pytest.warns(LeydenWarning, match=r"'odd!'.*'odd'.*logger-key"):
        logger.log_metrics({"odd!": 1.0, "text": "left out"}, 9)
    logger.finalize("success")

    client = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    run = client.get_run(logger.version)
    assert (run.info.status, run.info.run_name, run.data.tags["a"]) == ("FINISHED", "run", "b")
    assert run.info.experiment_id == logger.name
    assert run.data.params == {"lr": "0.1", "sizes": "[3, 1]", "activation": "torch.nn.modules.activation.Tanh"}
    history = client.get_metric_history(logger.version, "number_step")
    assert sorted((metric.step, metric.value) for metric in history) == STEPS
    assert run.data.metrics["odd"] == 1.0
    files = sorted(file.path for file in client.list_artifacts(logger.version, "best"))
    assert files == ["best/best.ckpt", "best/metadata.yaml"]
    again = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}", run_id=logger.version)
    again.finalize("success")  # nothing was written: there is nothing to do
    assert again.name == logger.name


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_comet(tmp_path: Path) -> None:
    """Rows and hyper-parameters, in the archive that Comet uploads."""
    pytest.importorskip("comet_ml")
    logger = CometLogger(
        project="project",
        online=False,
        prefix="p",
        offline_directory=str(tmp_path),
        log_env_details=False,
        log_code=False,
    )
    fit(logger)
    assert logger.version == logger.experiment.get_key()
    logger.experiment.end()
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        messages = [json.loads(line)["payload"] for line in archive.read("messages.json").splitlines()]
    found = [m["metric"] for m in messages if m.get("metric", {}).get("metricName") == "p_number_step"]
    assert [(metric["step"], metric["metricValue"]) for metric in found] == STEPS
    parameters = {m["param"]["paramName"]: m["param"]["paramValue"] for m in messages if m.get("param")}
    assert parameters["lr"] == 0.1
