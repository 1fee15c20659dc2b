"""Defaults and switches of the Trainer, beside Lightning 2.6 where it has them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import leyden
from leyden import Callback, Trainer, resolve
from leyden.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)
from leyden.errors import InvalidValueError, LeydenWarning, MisconfigurationException
from leyden.loggers import CSVLogger, DummyLogger, TensorBoardLogger

SAMPLES = torch.arange(20.0).reshape(10, 2)
OFF: dict[str, Any] = {
    **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
}
QUIET: dict[str, Any] = {**OFF, "max_epochs": 1, "num_sanity_val_steps": 0, "accelerator": "cpu"}


def build(package: Any) -> Any:
    """One linear layer that remembers the batches it was given, and logs."""

    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.seen: list[tuple[str, list[float]]] = []

        def see(self, stage: str, batch: Any) -> Any:
            self.seen.append((stage, batch.flatten().tolist()))
            loss = self.layer(batch).sum()
            self.log(stage, 1.0, batch_size=2)
            self.log_dict({stage + "_a": 2.0, stage + "_b": 3.0}, batch_size=2)
            return loss

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.see("train", batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.see("val", batch)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.see("test", batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Module()


def loader(**arguments: Any) -> DataLoader[Any]:
    return DataLoader(SAMPLES, batch_size=2, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def _backends() -> Iterator[None]:
    """Torch's settings and the environment as they were."""
    before, benchmark = os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.backends.cudnn.benchmark
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if before is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = before


# -- defaults of a research run -----------------------------------------------------------------------------------


def files() -> list[str]:
    """Files below the current directory, without what names the process or the time."""
    names = (path.relative_to(".").as_posix() for path in Path(".").rglob("*") if path.is_file())
    return sorted(name.split("tfevents")[0] for name in names)


@pytest.mark.defaults
def test_defaults_of_a_research_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A logger, a summary, a checkpoint of the last epoch: the same files as Lightning's, and its callbacks' order."""
    seen = {}
    for package in (leyden, pytorch_lightning):
        Path(package.__name__).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(package.__name__)
            for _ in range(2):
                trainer = package.Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, log_every_n_steps=1)
                module = build(package)
                module.save_hyperparameters({"width": 2})
                trainer.fit(module, loader(), loader())
            kinds = [
                kind for kind in ("Progress", "Summary", "Checkpoint") for c in trainer.callbacks if kind in repr(c)
            ]
            folder = os.path.relpath(trainer.log_dir)
            seen[package.__name__] = files(), kinds, type(trainer.logger).__name__, folder
    assert seen["leyden"] == seen["pytorch_lightning"]
    assert "lightning_logs/version_1/checkpoints/epoch=1-step=10.ckpt" in seen["leyden"][0]
    assert "Linear" in capsys.readouterr().out


@pytest.mark.defaults
def test_a_csv_file_where_tensorboard_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default logger needs no extra; its folder is the Trainer's."""
    assert [type(logger) for logger in Trainer(max_epochs=1).loggers] == [TensorBoardLogger]
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path / "elsewhere")
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger]
    assert trainer.log_dir == str(tmp_path / "elsewhere" / "lightning_logs" / "version_0")


@pytest.mark.defaults
def test_what_is_given_takes_the_place_of_a_default() -> None:
    """Nothing comes twice; False switches off."""

    def kinds(**arguments: Any) -> list[str]:
        return [type(callback).__name__ for callback in Trainer(max_epochs=1, **arguments).callbacks]

    assert kinds() == ["TQDMProgressBar", "ModelSummary", "ModelCheckpoint"]
    assert kinds(callbacks=ModelCheckpoint()) == ["TQDMProgressBar", "ModelSummary", "ModelCheckpoint"]
    assert kinds(callbacks=[RichModelSummary()]) == ["RichModelSummary", "TQDMProgressBar", "ModelCheckpoint"]
    assert kinds(callbacks=[ModelSummary(2)], enable_model_summary=False) == [
        *("ModelSummary", "TQDMProgressBar", "ModelCheckpoint")
    ]
    assert kinds(callbacks=[Timer()], **OFF) == ["Timer"]
    assert Trainer(max_epochs=1, logger=False).loggers == []
    assert Trainer(max_epochs=1, callbacks=[ModelSummary(2)]).callbacks[0]._max_depth == 2  # type: ignore[attr-defined]
    assert Trainer(max_epochs=1).callbacks[1]._max_depth == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "callback"), [("enable_checkpointing", ModelCheckpoint()), ("enable_progress_bar", TQDMProgressBar())]
)
def test_contradictions_are_refused(name: str, callback: Callback) -> None:
    """R163: what is switched off and given as well is an error, as in Lightning."""
    with pytest.raises(MisconfigurationException, match=rf"{name}=False\) contradicts.*{type(callback).__name__}"):
        Trainer(max_epochs=1, callbacks=callback, **{name: False})
    Trainer(max_epochs=1, callbacks=callback)


def test_the_suite_is_calm() -> None:
    """Tests that do not ask for the defaults write nothing."""
    trainer = Trainer(max_epochs=1)
    assert trainer.loggers == []
    assert [type(callback) for callback in trainer.callbacks] == [TQDMProgressBar]


# -- fast_dev_run -------------------------------------------------------------------------------------------------


ATTRIBUTES = (
    *("max_epochs", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("overfit_batches", "num_sanity_val_steps", "check_val_every_n_epoch", "fast_dev_run", "log_dir"),
    *("num_training_batches", "num_val_batches", "num_sanity_val_batches", "val_check_batch", "current_epoch"),
    *("global_step", "received_sigterm", "barebones", "early_stopping_callback"),
)


def run(package: Any, arguments: dict[str, Any], data: Any = loader, stage: str = "fit") -> list[Any]:
    """What is to be seen of a run: batches, metrics, attributes."""
    torch.manual_seed(0)
    module = build(package)
    trainer = package.Trainer(**{"accelerator": "cpu", "max_epochs": 2, **OFF, **arguments})
    getattr(trainer, stage)(module, *([data(), data()] if stage == "fit" else [data()]))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return [module.seen, metrics, {name: getattr(trainer, name) for name in ATTRIBUTES}]


def run_both(arguments: dict[str, Any], stage: str = "fit") -> tuple[list[Any], list[Any]]:
    """The same for leyden and for Lightning."""
    return run(leyden, arguments, stage=stage), run(pytorch_lightning, arguments, stage=stage)


@pytest.mark.defaults
@pytest.mark.parametrize("batches", [True, 1, 3])
def test_fast_dev_run_is_lightnings(batches: Any) -> None:
    """One epoch of so many batches of everything, no sanity check, no files; the rest of the arguments is overruled."""
    arguments = {
        **{"fast_dev_run": batches, "max_epochs": 7, "max_steps": 50, "val_check_interval": 0.5},
        **{"num_sanity_val_steps": 3, "check_val_every_n_epoch": 2, "log_every_n_steps": 7, "limit_val_batches": 2},
        **{"logger": True, "enable_checkpointing": True},
    }
    ours, theirs = run_both(arguments)
    assert ours == theirs
    assert files() == []


@pytest.mark.defaults
def test_fast_dev_run_keeps_what_user_code_reaches_for() -> None:
    """Code that uses the logger or the checkpoint callback runs; neither writes. Callbacks stay."""
    reached: list[Any] = []

    class Reaches(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            trainer.logger.experiment.add_scalar("x", 1.0)
            pl_module.logger.log_metrics({"x": 1.0}, step=0)
            reached.append(trainer.checkpoint_callback.best_model_path)

    stopping = EarlyStopping("missing")
    logger = CSVLogger("csv")
    trainer = Trainer(fast_dev_run=True, logger=logger, callbacks=[Reaches(), stopping], enable_progress_bar=False)
    trainer.fit(build(leyden), loader(), loader())
    assert reached == [""]
    assert [type(one) for one in trainer.loggers] == [DummyLogger]
    assert stopping in trainer.callbacks
    assert files() == []
    assert Trainer(fast_dev_run=True, logger=False).loggers == []


def test_fast_dev_run_and_two_optimizers() -> None:
    """The batches end the run, not the steps, so each optimizer sees all of them (Lightning stops after two steps)."""

    class Two(leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.turns = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1), []

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            self.turns.append(optimizer_idx)
            return (self.b if optimizer_idx else self.a)(batch).sum()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.a, self.b)]

    module = Two()
    Trainer(fast_dev_run=2, **OFF).fit(module, loader())
    assert module.turns == [0, 1, 0, 1]


def test_fast_dev_run_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """One line of the log; 0 and False run in earnest."""
    caplog.set_level("INFO", logger="leyden")
    assert not Trainer(fast_dev_run=False, max_epochs=1).fast_dev_run
    assert not Trainer(fast_dev_run=0, max_epochs=1).fast_dev_run
    assert caplog.messages == []
    Trainer(fast_dev_run=3)
    assert caplog.messages == ["fast_dev_run: one epoch of 3 batches at most, without checkpoints and loggers"]


# -- overfit_batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [2, 0.5, 50, 1.0])
@pytest.mark.parametrize("sanity", [0, 1])
def test_overfitting_is_lightnings(amount: float, sanity: int) -> None:
    """The same batches of training and validation data, in the sanity check too; R163's other limits give way."""
    ours, theirs = run_both({"overfit_batches": amount, "limit_val_batches": 3, "num_sanity_val_steps": sanity})
    assert ours == theirs


def test_overfitting_shuffled_data() -> None:
    """Both loaders go through their samples in order, with a warning for each, as in Lightning."""
    arguments, shuffled = {"overfit_batches": 2, "num_sanity_val_steps": 1}, functools.partial(loader, shuffle=True)
    with pytest.warns(LeydenWarning, match="RandomSampler.*overfit-shuffle") as caught:
        ours = run(leyden, arguments, shuffled)
    assert len(caught) == 2
    assert ours == run(pytorch_lightning, arguments, shuffled)
    assert ours[0][:2] == [("val", [0.0, 1.0, 2.0, 3.0]), ("train", [0.0, 1.0, 2.0, 3.0])]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_overfitting_and_evaluations(stage: str) -> None:
    """``validate`` is limited, ``test`` is not."""
    ours, theirs = run_both({"overfit_batches": 2}, stage=stage)
    assert ours[:2] == theirs[:2]
    assert len(ours[0]) == {"validate": 2, "test": 5}[stage]


@pytest.mark.parametrize("amount", [-1, 1.5, "2", 0.05])
def test_overfitting_nothing(amount: Any) -> None:
    """What is no number of batches, or less than one, is refused."""
    with pytest.raises(MisconfigurationException, match="overfit_batches"):
        Trainer(overfit_batches=amount, **QUIET).fit(build(leyden), loader(), loader())


# -- barebones ----------------------------------------------------------------------------------------------------


BARE: dict[str, Any] = {"barebones": True, **dict.fromkeys(OFF)}


@pytest.mark.filterwarnings(r"ignore:.*\[barebones-log\]")
def test_barebones_is_lightnings() -> None:
    """No bar, summary, logger, checkpoint or sanity check, and nothing is logged."""
    ours, theirs = run_both(BARE)
    assert ours == theirs
    assert ours[1] == {}
    trainer = Trainer(max_epochs=1, barebones=True)
    assert (trainer.callbacks, trainer.loggers, trainer.log_every_n_steps, trainer.num_sanity_val_steps) == (
        [],
        [],
        0,
        0,
    )


@pytest.mark.defaults
def test_barebones_says_once_that_nothing_is_logged() -> None:
    """One warning for a run, at the line that logs (Lightning: one for each call); evaluations return nothing."""
    trainer = Trainer(max_epochs=2, barebones=True, accelerator="cpu")
    module = build(leyden)
    with pytest.warns(LeydenWarning, match=r"self\.log has no effect \[barebones-log\]") as caught:
        trainer.fit(module, loader(), loader())
        assert trainer.validate(module, loader()) == [{}]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert files() == []


def test_barebones_names_every_contradiction() -> None:
    """All arguments that ask for what it switches off, in one error, which is a ValueError as in Lightning."""
    asked: dict[str, Any] = {
        **{"enable_checkpointing": True, "logger": True, "enable_progress_bar": True, "enable_model_summary": True},
        **{"log_every_n_steps": 5, "num_sanity_val_steps": 2, "fast_dev_run": True, "detect_anomaly": True},
        **{"profiler": "simple", "track_grad_norm": 2},
    }
    with pytest.raises(ValueError, match=r"\[barebones\]") as caught:
        Trainer(barebones=True, callbacks=[ModelCheckpoint(), EarlyStopping("x"), TQDMProgressBar()], **asked)
    for name in asked:
        assert f"{name}=" in str(caught.value)
    assert "callbacks=[ModelCheckpoint, TQDMProgressBar]" in str(caught.value)
    Trainer(barebones=True, max_epochs=1, logger=False, log_every_n_steps=0, num_sanity_val_steps=0, track_grad_norm=-1)
    Trainer(barebones=True, max_epochs=1, callbacks=EarlyStopping("x"))


# -- anomalies ----------------------------------------------------------------------------------------------------


class Nan(leyden.LightningModule):
    """The backward of its loss makes a nan."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.sqrt(self.weight * 0 - 1).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:Error detected in SqrtBackward0")
def test_detect_anomaly() -> None:
    """Autograd names the operation, as under Lightning, and is left as it was."""
    Trainer(**QUIET).fit(Nan(), loader())
    with pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan values"):
        Trainer(detect_anomaly=True, **QUIET).fit(Nan(), loader())
    assert not torch.is_anomaly_enabled()


# -- determinism --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_backends")
@pytest.mark.parametrize("before", [{"deterministic": False}, {"deterministic": True}])
@pytest.mark.parametrize("benchmark_before", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"deterministic": True},
        {"deterministic": "warn"},
        {"deterministic": False},
        {"benchmark": True},
        {"benchmark": False},
        {"deterministic": "warn", "benchmark": False},
        {"deterministic": False, "benchmark": True},
    ],
)
def test_torchs_settings_are_lightnings(
    arguments: dict[str, Any], before: dict[str, bool], benchmark_before: bool
) -> None:
    """None leaves a setting alone; determinism switches cuDNN's search off unless it is asked for."""
    found = []
    for package in (leyden, pytorch_lightning):
        torch.use_deterministic_algorithms(before["deterministic"])
        torch.backends.cudnn.benchmark = benchmark_before
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        package.Trainer(max_epochs=1, accelerator="cpu", **OFF, **arguments)
        found.append(
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.backends.cudnn.benchmark,
                os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            )
        )
    assert found[0] == found[1]


@pytest.mark.usefixtures("_backends")
@pytest.mark.parametrize("deterministic", [True, "warn"])
def test_determinism_and_benchmark(deterministic: Any) -> None:
    """Both together are granted, with a warning, as in Lightning; the user's workspace setting stays."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    with pytest.warns(LeydenWarning, match=r"benchmark=True.*\[deterministic-benchmark\]"):
        Trainer(max_epochs=1, deterministic=deterministic, benchmark=True)
    assert torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


# -- accepted, or refused -----------------------------------------------------------------------------------------


def test_accepted_where_there_is_one_process() -> None:
    """R163: arguments about several processes do nothing in one."""
    ours, theirs = run_both({"sync_batchnorm": True, "use_distributed_sampler": False, "model_registry": None})
    assert ours == theirs
    with pytest.raises(MisconfigurationException, match=r"model_registry='mine'.*\[not-yet\]"):
        Trainer(max_epochs=1, model_registry="mine")


@pytest.mark.parametrize("autolog", [True, False])
def test_enable_autolog_hparams(autolog: bool) -> None:
    """R163: hyperparameters go to the loggers at the start, unless it is switched off."""
    told: list[Any] = []

    class Logger(DummyLogger):
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            told.append(dict(params))

    module = build(leyden)
    module.save_hyperparameters({"width": 3})
    Trainer(**{**QUIET, "logger": Logger()}, enable_autolog_hparams=autolog).fit(module, loader())
    assert told == ([{"width": 3}] if autolog else [])


@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode(inference: bool) -> None:
    """R163: ``validate`` runs in inference mode, or without gradients only; within a fit it is always the latter."""
    modes: list[tuple[bool, bool]] = []

    class Looks(Callback):
        def on_validation_batch_start(self, *args: Any) -> None:
            modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    trainer = Trainer(**QUIET, inference_mode=inference, callbacks=Looks(), limit_val_batches=1)
    trainer.validate(build(leyden), loader(), verbose=False)
    assert modes == [(inference, False)]


@pytest.mark.parametrize("callback", [DeviceStatsMonitor(cpu_stats=True), ThroughputMonitor(batch_size_fn=len)])
def test_no_rows_at_all(callback: Callback) -> None:
    """``log_every_n_steps=0``, which ``barebones`` sets, gives callbacks no rows either, in training and validation."""
    rows: list[Any] = []

    class Logger(DummyLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            rows.extend(key for key in metrics if "/" in key)

    trainer = Trainer(**{**QUIET, "logger": Logger()}, callbacks=callback, log_every_n_steps=0)
    trainer.fit(build(leyden), loader(), loader())
    assert rows == []


# -- properties ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{}, {"val_check_interval": 3}, {"val_check_interval": 0.4}, {"limit_val_batches": 0}]
)
def test_properties_of_a_fit(arguments: dict[str, Any]) -> None:
    """Numbers of batches and intervals read as in Lightning, during the fit and after it."""
    found: list[Any] = []
    names = (
        "enable_validation",
        "val_check_batch",
        "num_sanity_val_batches",
        "num_val_batches",
        "estimated_stepping_batches",
    )
    for package in (leyden, pytorch_lightning):

        class Looks(package.Callback):  # type: ignore[misc, name-defined]
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                found.append({name: getattr(trainer, name) for name in names})

        trainer = package.Trainer(accelerator="cpu", max_epochs=1, callbacks=[Looks()], **OFF, **arguments)
        trainer.fit(build(package), loader(), loader())
        assert trainer.received_sigterm is False
    assert found[:5] == found[5:]
    assert len(found) == 10


def test_before_a_fit_there_is_no_interval() -> None:
    """Nothing is known of loaders that nobody has seen."""
    trainer = Trainer(max_epochs=1)
    assert trainer.val_check_batch is None
    assert trainer.num_sanity_val_batches == []


# -- what raises --------------------------------------------------------------------------------------------------


def notes_of(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


class Faulty(Callback):
    """Raises in one hook, from a helper of its own."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)  # an attribute of the object counts as an override
        self.hook = hook

    def fail(self, *args: Any) -> None:
        raise KeyError("mine")


class Deep(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            self.helper()

    def helper(self) -> None:
        raise KeyError("mine")


class Saves(Callback):
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        raise KeyError("mine")


class Asks(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint("never.ckpt")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from Python 3.11 on")
@pytest.mark.parametrize(
    ("callbacks", "note"),
    [
        ([Deep()], "raised in Deep.on_train_batch_end, epoch 1, batch 2"),
        ([Faulty("on_validation_start")], "raised in on_validation_start (validate), epoch 0, batch 4"),
        ([Faulty("on_fit_start")], "raised in on_fit_start, epoch 0"),
        ([Asks(), Saves()], "raised in Saves.on_save_checkpoint, epoch 0, batch 4"),
    ],
)
def test_a_callback_that_raises_is_named(callbacks: list[Callback], note: str) -> None:
    """The exception goes on unchanged, with a note: callback, hook, epoch, batch."""
    with pytest.raises(KeyError, match="mine") as caught:
        Trainer(**{**QUIET, "max_epochs": 3}, callbacks=callbacks).fit(build(leyden), loader(), loader())
    assert notes_of(caught.value) == [note]
    assert caught.value.args == ("mine",)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from Python 3.11 on")
def test_a_module_that_raises_is_named() -> None:
    """The innermost hook counts: the step, not the forward or the helper that it calls."""

    class Wrong(leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)  # the batches have two columns

        def forward(self, x: Any) -> Any:
            return self.layer(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        Trainer(**QUIET).fit(Wrong(), loader())
    assert notes_of(caught.value) == ["raised in Wrong.training_step, epoch 0, batch 0"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from Python 3.11 on")
def test_a_run_in_a_run_notes_once() -> None:
    """A validation that a hook starts does not note the same thing twice."""

    class Validates(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            Trainer(**QUIET, callbacks=[Faulty("on_validation_start")]).validate(pl_module, loader(), verbose=False)

    with pytest.raises(KeyError) as caught:
        Trainer(**QUIET, callbacks=[Validates()]).fit(build(leyden), loader())
    assert len(notes_of(caught.value)) == len(set(notes_of(caught.value)))
    assert "raised in on_validation_start (validate), epoch 0" in notes_of(caught.value)


def test_a_mistake_outside_of_hooks_is_left_alone() -> None:
    """Our own errors say themselves what is wrong."""
    with pytest.raises(InvalidValueError) as caught:
        Trainer(max_epochs=1, val_check_interval=50, **OFF).fit(build(leyden), loader(), loader())
    assert notes_of(caught.value) == []
