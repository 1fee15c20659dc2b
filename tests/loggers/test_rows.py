"""The rows that loggers get: Lightning 2.6.6 is the oracle, for the same module, keys, steps and values."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import leyden
from leyden import loggers
from leyden.loggers import CSVLogger, Logger, TensorBoardLogger

Row = dict[str, float]


def batches(number: int, seed: int = 0) -> DataLoader[Tensor]:
    return DataLoader(list(torch.randn(2 * number, 3, generator=torch.Generator().manual_seed(seed))), batch_size=2)


def read(log_dir: str) -> list[Row]:
    with open(Path(log_dir) / "metrics.csv", newline="") as file:
        return [{key: float(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def define(base: Any, *, manual: bool = False, rename_step: bool = False) -> Any:
    """A module that logs everywhere, on leyden's class or on Lightning's."""

    class Module(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            nn.init.constant_(self.layer.weight, 0.1)
            nn.init.zeros_(self.layer.bias)
            self.automatic_optimization = not manual

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.layer(batch).square().mean()
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.log("alone", 2 * loss)
            if rename_step:
                self.log("step", float(100 + batch_idx))
            if manual:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                    self.manual_backward(self.layer(batch).square().mean())
                    optimizer.step()
            return loss

        def on_train_epoch_end(self) -> None:
            self.log("end", 7.0)

        def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val", self.layer(batch).mean(), on_step=True, on_epoch=True)

        def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("test", self.layer(batch).mean(), on_step=True, on_epoch=True)

        def configure_optimizers(self) -> Any:
            halves = ([self.layer.weight], [self.layer.bias])
            if manual:
                return [torch.optim.SGD(half, lr=0.1) for half in halves]
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def run(framework: Any, logger: Any, *, loaders: int = 1, traits: Any = None, **arguments: Any) -> list[Row]:
    trainer = framework.Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, **arguments},
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = define(framework.LightningModule, **(traits or {}))
    val = [batches(2 + index, seed=index) for index in range(loaders)]
    trainer.fit(module, batches(6), val)
    for _ in range(2):
        trainer.validate(module, val, verbose=False)
    trainer.test(module, val, verbose=False)
    return read(logger.log_dir)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "every second row": {"log_every_n_steps": 2},
    "accumulation": {"accumulate_grad_batches": 2},
    "accumulation, every third row": {"accumulate_grad_batches": 2, "log_every_n_steps": 3},
    "validation in the epoch": {"val_check_interval": 2},
    "several loaders": {"loaders": 2},
    "manual, two optimizers": {"traits": {"manual": True}},
    "a key called step": {"traits": {"rename_step": True}},
    "max_steps": {"max_epochs": -1, "max_steps": 7},
}


@pytest.mark.parametrize("case", CASES)
def test_rows_as_in_lightning(case: str, tmp_path: Path) -> None:
    """R129, R130, R131: the same rows in the same order; means are added up in another order."""
    import pytorch_lightning
    from pytorch_lightning.loggers import CSVLogger as TheirLogger

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = run(pytorch_lightning, TheirLogger(tmp_path, "theirs"), **CASES[case])
    rows = run(leyden, CSVLogger(tmp_path, "ours"), **CASES[case])
    if case == "a key called step":  # Lightning leaves the epoch out of these rows
        rows = [{key: row[key] for key in row if key in there} for row, there in zip(rows, expected, strict=True)]
    assert expected == [pytest.approx(row, rel=1e-6) for row in rows]


class Rows(Logger):
    """Keeps everything."""

    name = version = None

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.calls: list[str] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append("log_hyperparams")

    def save(self) -> None:
        self.calls.append("save")

    def finalize(self, status: str) -> None:
        self.calls.append(status)


class Alternating(leyden.LightningModule):
    """Two optimizers that take turns on every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int, optimizer_idx: int) -> Tensor:
        loss = (self.first, self.second)[optimizer_idx](batch).square().mean()
        self.log(f"loss {optimizer_idx}", loss)
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.first, self.second)]


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [0, 1, 2, 3]), (2, [0, 1])])
def test_two_optimizers_make_one_row_for_a_batch(accumulate: int, steps: list[int]) -> None:
    """R129, R131: the x-axis counts batches on which a window closed, not the steps of all optimizers."""
    logger = Rows()
    trainer = leyden.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        enable_progress_bar=False,
    )
    trainer.fit(Alternating(), batches(4))
    assert steps == [step for step, _ in logger.rows]
    assert trainer.global_step == 2 * len(steps)
    assert {"epoch", "loss 0", "loss 1"} == set(logger.rows[0][1])


def fit(module: Any, *loggers: Any, **arguments: Any) -> leyden.Trainer:
    trainer = leyden.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": list(loggers), "enable_progress_bar": False, **arguments}
    )
    trainer.fit(module, batches(3))
    return trainer


def test_several_loggers_get_the_same_rows(tmp_path: Path) -> None:
    rows, files = Rows(), CSVLogger(tmp_path)
    trainer = fit(Alternating(), rows, files, log_every_n_steps=1)
    assert [{**row, "step": step} for step, row in rows.rows] == read(files.log_dir)
    assert trainer.logger is rows and trainer.loggers == [rows, files]


def test_a_logger_is_told_how_the_run_ends() -> None:
    """Saved before the first batch; finalized once, whatever happens."""
    well, badly = Rows(), Rows()
    fit(Alternating(), well)
    assert well.calls == ["save", "success"]

    class Raising(Alternating):
        def on_train_end(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(Raising(), badly)
    assert badly.calls == ["save", "failed"]


class Configured(Alternating):
    def __init__(self, width: int, logger: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="logger", logger=logger)


def test_hyperparameters_go_to_loggers_unless_they_should_not() -> None:
    def calls(module: Any, **arguments: Any) -> list[str]:
        logger = Rows()
        fit(module, logger, **arguments)
        return logger.calls

    assert calls(Configured(3)) == ["log_hyperparams", "save", "success"]
    assert calls(Configured(3, logger=False)) == ["save", "success"]
    assert calls(Configured(3), enable_autolog_hparams=False) == ["save", "success"]


def test_module_and_datamodule_must_agree_about_hyperparameters(tmp_path: Path) -> None:
    class Data(leyden.LightningDataModule):
        def __init__(self, width: int, folder: str) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return batches(1)

    def run(width: int) -> str:
        logger = CSVLogger(tmp_path)
        trainer = leyden.Trainer(max_epochs=1, accelerator="cpu", logger=logger, enable_progress_bar=False)
        trainer.fit(Configured(3), datamodule=Data(width, "data"))
        return (Path(logger.log_dir) / "hparams.yaml").read_text()

    assert run(3) == 'width: 3\nfolder: "data"\n'
    with pytest.raises(leyden.MisconfigurationException, match=r"\['width'\].*hparams-conflict"):
        run(4)


def test_log_dir_is_the_first_loggers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs", "runs", "mine")
    assert fit(Alternating(), logger, Rows()).log_dir == str(tmp_path / "logs" / "runs" / "mine")
    assert fit(Alternating(), Rows()).log_dir is None
    assert fit(Alternating(), logger=None, default_root_dir=tmp_path).log_dir == str(tmp_path)


FOLDERS: dict[str, Callable[[Path], Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": lambda folder: loggers.WandbLogger(save_dir=folder, offline=True),
    "mlflow": lambda folder: loggers.MLFlowLogger(save_dir=folder),
    "mlflow's store": lambda folder: loggers.MLFlowLogger(tracking_uri=f"sqlite:///{folder / 'runs.db'}"),
    "comet_ml": lambda folder: loggers.CometLogger(online=False, offline_directory=str(folder)),
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow", "ignore::UserWarning:comet_ml")
def test_a_folder_that_takes_no_files_is_named_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in ("csv", "tensorboard"):
        pytest.importorskip(name.removesuffix("'s store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").write_text("not a folder")

    class Downloading(Alternating):
        def prepare_data(self) -> None:
            raise AssertionError("too late")

    logger = FOLDERS[name](tmp_path / "file")
    expected = rf"{type(logger).__name__} cannot write to '.*file.*' \(.*logger-directory"
    with pytest.raises(leyden.MisconfigurationException, match=expected):
        fit(Downloading(), logger)
