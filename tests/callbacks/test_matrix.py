"""Every callback and every logger in every mode of optimization: fit, validate, test, predict, resume.

What only watches must not change a bit of the training, and prints nothing. What changes the training on purpose must
do so without breaking anything, and go on after a break as if there had been none.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import leyden.callbacks
import leyden.loggers
import modes
import resumption
from leyden import Callback, Trainer
from leyden.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    FailureRecorder,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from leyden.errors import MisconfigurationException
from leyden.loggers import CometLogger, CSVLogger, DummyLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from modes import DATA, MODES


class Entry(NamedTuple):
    """A callback of the matrix.

    Attributes:
        build: makes one, given a folder.
        watches: whether the training must be the same with it, bit for bit.
        prints: whether it writes to the terminal.
        refused: modes that it is refused in.
        resumes: whether it has something to go on with after a break, and can; else a break is nothing to it.
        exact: whether its ``state_dict`` is then the same; times are not.
    """

    build: Callable[[Path], Callback]
    watches: bool = True
    prints: bool = False
    refused: tuple[str, ...] = ()
    resumes: bool = False
    exact: bool = True


class Head(BaseFinetuning):
    """Trains the head first, and the backbone from epoch 1 on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1 and optimizer is pl_module.trainer.optimizers[0]:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.01)


class Writer(BasePredictionWriter):
    """Counts what it is given to write."""

    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.written: list[int] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, *_: Any) -> None:
        self.written.append(len(prediction))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.written.append(-len(predictions))


class Bar(ProgressBar):
    """A progress bar of one's own that shows nothing."""

    def disable(self) -> None:
        """Nothing is shown."""


def finder(optimizer: int | str) -> LearningRateFinder:
    return LearningRateFinder(max_lr=1e-3, num_training_steps=24, update_attr=False, optimizer=optimizer)


CALLBACKS: dict[str, Entry] = {
    "Callback": Entry(lambda folder: Callback()),
    "LambdaCallback": Entry(lambda folder: LambdaCallback(on_train_start=lambda trainer, pl_module: None)),
    "EarlyStopping": Entry(lambda folder: EarlyStopping("train_loss", patience=9), resumes=True),
    "LearningRateMonitor": Entry(lambda folder: LearningRateMonitor(log_momentum=True, log_weight_decay=True)),
    "Timer": Entry(lambda folder: Timer("00:01:00:00"), resumes=True, exact=False),
    "DeviceStatsMonitor": Entry(lambda folder: DeviceStatsMonitor(cpu_stats=True)),
    "ThroughputMonitor": Entry(lambda folder: ThroughputMonitor(lambda batch: len(batch[0]), window_size=3)),
    "ModelSummary": Entry(lambda folder: ModelSummary(), prints=True),
    "RichModelSummary": Entry(lambda folder: RichModelSummary(), prints=True),
    "ProgressBar": Entry(lambda folder: Bar(), prints=True),  # with a bar, the fit's last line is where time went
    "TQDMProgressBar": Entry(lambda folder: TQDMProgressBar(), prints=True),
    "RichProgressBar": Entry(lambda folder: RichProgressBar(), prints=True),
    "Checkpoint": Entry(lambda folder: Checkpoint()),
    "ModelCheckpoint": Entry(
        lambda folder: ModelCheckpoint(folder / "a", monitor="val_loss", save_last=True), resumes=True
    ),
    "FailureRecorder": Entry(lambda folder: FailureRecorder(folder)),
    "OnExceptionCheckpoint": Entry(lambda folder: OnExceptionCheckpoint(folder)),
    "BasePredictionWriter": Entry(lambda folder: Writer()),
    "LearningRateFinder": Entry(lambda folder: finder(0)),
    "BatchSizeFinder": Entry(
        lambda folder: BatchSizeFinder(init_val=2, max_trials=1, max_val=2, steps_per_trial=2), prints=True
    ),
    "WeightAveraging": Entry(lambda folder: WeightAveraging(), watches=False, resumes=True),
    "EMAWeightAveraging": Entry(lambda folder: EMAWeightAveraging(decay=0.5), watches=False, resumes=True),
    "StochasticWeightAveraging": Entry(
        lambda folder: StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1),
        watches=False,
        resumes=True,
    ),
    "BaseFinetuning": Entry(lambda folder: Head(), watches=False, resumes=True),
    "BackboneFinetuning": Entry(lambda folder: BackboneFinetuning(1, lambda epoch: 2.0), watches=False, resumes=True),
    "GradientAccumulationScheduler": Entry(
        lambda folder: GradientAccumulationScheduler({1: 2}),
        watches=False,
        refused=("accumulated", "manual"),
        resumes=True,
    ),
}


class Whole:
    """Evaluations for the modes' modules, and loaders whose batch size is an attribute."""

    batch_size = 2

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), batch_size=2)  # type: ignore[attr-defined]

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch[0]))  # type: ignore[attr-defined, no-any-return]

    def train_dataloader(self) -> Any:
        inputs, targets = (torch.cat(parts) for parts in zip(*DATA, strict=True))
        return DataLoader(TensorDataset(inputs, targets), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(DATA[:2], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = predict_dataloader = val_dataloader


def build(name: str) -> Any:
    return type("Module", (Whole, type(modes.build(name))), {})()


def callback_for(key: str, name: str, folder: Path) -> Callback:
    """A callback of the table for a mode: the members of a Joint have learning rates of their own."""
    return finder("0.0") if (key, name) == ("LearningRateFinder", "joint") else CALLBACKS[key].build(folder)


def trainer_for(name: str, **arguments: Any) -> Trainer:
    given = {"max_epochs": 2, "log_every_n_steps": 1, "accelerator": "cpu", "logger": modes.Rows()}
    shown = any(isinstance(callback, ProgressBar) for callback in arguments.get("callbacks", ()))
    return Trainer(**{**given, **MODES[name][1], **arguments}, enable_progress_bar=shown)


@functools.cache
def alone(name: str) -> dict[str, Any]:
    """What a mode comes to without callbacks."""
    module, trainer = build(name), trainer_for(name)
    trainer.fit(module)
    return state_of(trainer, module)


def state_of(trainer: Trainer, module: Any) -> dict[str, Any]:
    return {
        "weights": {key: value.clone() for key, value in module.state_dict().items()},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "metrics": {key: trainer.callback_metrics[key] for key in ("train_loss", "val_loss")},
        "trainable": [parameter.requires_grad for parameter in module.parameters()],
        "modes": [part.training for part in module.modules()],
        "random": torch.get_rng_state(),
    }


def run_all(trainer: Trainer, module: Any) -> tuple[dict[str, Any], list[Any]]:
    """Fit, then evaluate in all ways; the state after the fit, and what came back."""
    trainer.fit(module)
    state = state_of(trainer, module)
    values = [trainer.validate(module, verbose=False), trainer.test(module, verbose=False), trainer.predict(module)]
    assert resumption.differences(state["weights"], module.state_dict()) == []
    assert state["modes"] == [part.training for part in module.modules()]
    assert torch.is_grad_enabled()
    return state, values


def test_no_callback_is_left_out() -> None:
    """A new callback needs a line in the table."""
    assert set(CALLBACKS) == set(leyden.callbacks.__all__)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_callbacks(callback: str, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing breaks; what only watches leaves every bit as it was, the others do not; nothing is printed unasked."""
    entry = CALLBACKS[callback]
    given = callback_for(callback, name, tmp_path)
    module, trainer = build(name), trainer_for(name, callbacks=[given])
    if name in entry.refused:
        with pytest.raises(MisconfigurationException, match="accumulat"):
            trainer.fit(module)
        return
    state, (validated, tested, predicted) = run_all(trainer, module)
    if entry.watches:
        assert resumption.differences(alone(name), state) == []
    else:
        assert resumption.differences(alone(name)["weights"], state["weights"])
    assert all(state["modes"])
    assert validated[0].keys() == {"val_loss"}
    assert tested[0].keys() == {"test_loss"}
    assert [len(prediction) for prediction in predicted] == [2, 2]
    printed = capfd.readouterr()
    assert entry.prints or (printed.out, printed.err) == ("", "")
    assert "\x1b" not in printed.out + printed.err  # it is no terminal
    if isinstance(given, Writer):
        assert given.written == [2, 2, -2]


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("callback", [key for key, entry in CALLBACKS.items() if entry.resumes])
def test_callbacks_after_a_break(callback: str, name: str, tmp_path: Path) -> None:
    """R161: saved at the end of an epoch and resumed by fresh objects, run and callback are as without a break."""
    entry = CALLBACKS[callback]
    if name in entry.refused:
        return
    path = tmp_path / "saved.ckpt"
    before, after = (callback_for(callback, name, tmp_path) for _ in range(2))
    whole = resumption.run(name, before, resumption.SaveAt(path, "on_train_epoch_end", 1, 5))
    again = resumption.run(name, after, seed=99, ckpt_path=path)
    assert resumption.differences(whole.state, again.state) == []
    if entry.exact:
        assert resumption.differences(before.state_dict(), after.state_dict()) == []


# -- loggers ----------------------------------------------------------------------------------------------------------


def comet(folder: Path) -> Any:
    options = {"log_env_details": False, "log_code": False, "offline_directory": str(folder)}
    return CometLogger(project="project", online=False, **options)


#: name -> builds one, the modes that it is tried in (those that start processes of their own once each)
LOGGERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "CSVLogger": (CSVLogger, tuple(MODES)),
    "TensorBoardLogger": (TensorBoardLogger, tuple(MODES)),
    "DummyLogger": (lambda folder: DummyLogger(), tuple(MODES)),
    "WandbLogger": (lambda folder: WandbLogger(save_dir=folder, offline=True), ("alternating",)),
    "MLFlowLogger": (lambda folder: MLFlowLogger(tracking_uri=f"sqlite:///{folder}/runs.db"), ("alternating",)),
    "CometLogger": (comet, ("alternating",)),
}
PACKAGES = {
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet_ml",
    "TensorBoardLogger": "tensorboard",
}


def test_no_logger_is_left_out() -> None:
    """A new logger needs a line in the table."""
    assert set(LOGGERS) == set(leyden.loggers.__all__) - {"Logger"}


@pytest.mark.parametrize(
    ("logger", "name"), [(logger, name) for logger, (_, names) in LOGGERS.items() for name in names]
)
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated", "ignore::UserWarning:mlflow")
def test_loggers(logger: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing breaks, and every bit of the training is as without it."""
    package = PACKAGES.get(logger)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    for variable, value in (
        ("WANDB_SILENT", "true"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("COMET_LOGGING_CONSOLE", "CRITICAL"),
    ):
        monkeypatch.setenv(variable, value)
    module, trainer = build(name), trainer_for(name, logger=LOGGERS[logger][0](tmp_path))
    state, _ = run_all(trainer, module)
    assert resumption.differences(alone(name), state) == []
    if logger == "CometLogger":
        trainer.logger.experiment.end()
    if logger == "WandbLogger":  # its run, and what it has read of the environment, stay for the next logger
        trainer.logger.experiment.finish()
        importlib.import_module("wandb").teardown()
    assert logger == "DummyLogger" or any(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", MODES)
def test_everything_that_watches_at_once(name: str, tmp_path: Path) -> None:
    """They do not get into each other's way."""
    singular = ("Callback", "TQDMProgressBar", "RichProgressBar", "ProgressBar", "RichModelSummary", "BatchSizeFinder")
    keys = [key for key, entry in CALLBACKS.items() if entry.watches and key not in singular]
    callbacks = [callback_for(key, name, tmp_path) for key in keys]
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path), modes.Rows()]
    module, trainer = build(name), trainer_for(name, callbacks=callbacks, logger=loggers)
    state, _ = run_all(trainer, module)
    assert resumption.differences(alone(name), state) == []
