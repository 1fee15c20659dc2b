"""Misuse of ``self.log``, monitors, loggers and callbacks, from the user's side: every error names the thing and says
what to do, what was trained so far is kept, and the Trainer can be used again."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

import modes
from given import Given, fit, given
from leyden import Callback, LightningDataModule, LightningModule, MisconfigurationException, Trainer
from leyden.callbacks import EarlyStopping, ModelCheckpoint
from leyden.errors import LeydenError, LeydenWarning
from leyden.loggers import CSVLogger, Logger, TensorBoardLogger
from modes import DATA, MODES

# -- what is logged, and where ----------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A call of ``self.log`` and the error that it ends in."""

    arguments: tuple[Any, ...]
    code: str
    text: str
    error: type[BaseException] = ValueError
    options: Mapping[str, Any] = {}


CASES = {
    "several elements": Case(("acc", torch.ones(3)), "log-shape", r"shape \(3,\): reduce it first.*\.mean\(\)"),
    "no element": Case(("acc", torch.ones(0)), "log-shape", r"shape \(0,\)"),
    "str": Case(("acc", "good"), "log-value", "a number, a tensor with one element or a torchmetrics.Metric; got str"),
    "None": Case(("acc", None), "log-value", "got NoneType"),
    "list": Case(("acc", [0.5]), "log-value", "got list"),
    "array": Case(("acc", numpy.ones(2)), "log-value", "got ndarray"),
    "complex": Case(("acc", torch.tensor(1j)), "log-value", "a tensor of dtype torch.complex64"),
    "module": Case(("acc", nn.Linear(1, 1)), "log-value", "got Linear"),
    "dict": Case(("acc", {"a": 1.0}), "log-dict", "got a dict; log several values with self.log_dict"),
    "number as name": Case((3, 1.0), "log-name", "self.log(3, ...): expected a str as the name, got int", TypeError),
    "reserved suffix": Case(
        ("acc/dataloader_idx_0", 1.0),
        "log-name",
        "leave it out, or pass add_dataloader_idx=False",
        MisconfigurationException,
    ),
    "unknown option": Case(
        ("acc", 1.0), "log-option", "has no option 'on_stp'; it has .*on_epoch, on_step", TypeError, {"on_stp": True}
    ),
    "wrong option": Case(
        ("acc", 1.0), "log-option", "on_step='yes'.: expected True, False or None", TypeError, {"on_step": "yes"}
    ),
    "nowhere": Case(
        ("acc", 1.0),
        "log-nowhere",
        "would log nothing; set on_epoch or on_step to True",
        MisconfigurationException,
        {"on_step": False, "on_epoch": False},
    ),
    "unknown reduction": Case(
        ("acc", 1.0),
        "log-reduce-fx",
        "reduce_fx='median'.*'mean', 'sum', 'min' or 'max'",
        MisconfigurationException,
        {"reduce_fx": "median"},
    ),
    "wrong batch size": Case(
        ("acc", 1.0),
        "log-batch-size",
        "batch_size='x'.: expected the number of samples",
        ValueError,
        {"batch_size": "x", "on_epoch": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_or_an_option_that_cannot_be(name: str) -> None:
    """R134, R135, R132, R133: refused at the first call, by the key, before anything was trained on it."""
    case = CASES[name]

    class Model(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log(*case.arguments, **case.options)
            return self.loss(batch)

    module = Model()
    text = case.text.replace("(3, ...)", r"\(3, \.\.\.\)")
    with pytest.raises(case.error, match=text) as caught:
        fit(module, given(1, 2))
    assert isinstance(caught.value, LeydenError)
    assert caught.value.code == case.code
    assert repr(case.arguments[0]) in str(caught.value) or name == "unknown reduction"
    assert module.weight.tolist() == [0.0]


def test_one_key_with_two_options() -> None:
    """R133: both options are in the text."""

    class Model(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0, on_epoch=True)
            self.log("x", 1.0)
            return self.loss(batch)

    with pytest.raises(MisconfigurationException, match="'x'.*on_epoch=True and now with on_epoch=False.*log-options"):
        fit(Model(), given(1))


@pytest.mark.parametrize("value", [[1.0], 3.0, None])
def test_log_dict_without_names(value: Any) -> None:
    """R125: a list of values has no names to log them by."""

    class Model(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict(value)

    with pytest.raises(
        TypeError, match=rf"takes values by name, such as a dict, got {type(value).__name__} \[log-dict\]"
    ):
        fit(Model(), given(1))


PLACES = {
    "prepare_data": "cannot be used outside of a hook",
    "setup": "cannot be used in setup",
    "configure_optimizers": "cannot be used in configure_optimizers",
    "on_fit_start": "in on_fit_start, where no step or epoch is running",
    "on_train_end": "in on_train_end, where no step or epoch is running",
    "on_fit_end": "in on_fit_end, where no step or epoch is running",
    "teardown": "in teardown, where no step or epoch is running",
    "predict_step": "cannot be used in predict_step",
    "on_predict_start": "cannot be used in on_predict_start",
    "on_validation_end": "in on_validation_end",
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_cannot_log(name: str) -> None:
    """R126, R136: the text says where it was called, and where to call it or what to use instead."""
    methods = {"validation_step": lambda self, batch, batch_idx: None, name: lambda self, *_, **__: self.log("x", 1.0)}
    module = type("Model", (Given,), methods)()
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(MisconfigurationException) as caught:
        if "predict" in name:
            trainer.predict(module, given(1))
        else:
            trainer.fit(module, given(1), given(1))
    assert PLACES[name] in str(caught.value)
    assert "call it in a hook such as training_step, or write to self.logger directly" in str(caught.value)
    assert caught.value.code == "log-hook"


def test_logging_before_and_after_a_run() -> None:
    """R136: without a Trainer a warning, so that a module can be tried out; after the run an error."""
    module = Given()
    with pytest.warns(LeydenWarning, match=r"'x'.*not attached to a Trainer \[log-no-trainer\]"):
        module.log("x", 1.0)
    fit(module, given(1))
    with pytest.raises(MisconfigurationException, match=r"cannot be used outside of a run.*\[log-hook\]"):
        module.log("x", 1.0)


# -- monitors ---------------------------------------------------------------------------------------------------------


class Watched(Given):
    """Logs two values."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", self.loss(batch).detach(), on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 1.0)


class Scheduled(Watched):
    """A scheduler that watches a value whose name is misspelt."""

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.5)
        return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer), "monitor": "valloss"}


@pytest.mark.parametrize(
    ("kind", "build", "owner"),
    [
        (Watched, lambda folder: EarlyStopping("valloss"), "EarlyStopping(monitor='valloss')"),
        (Watched, lambda folder: ModelCheckpoint(folder, monitor="valloss"), "ModelCheckpoint(monitor='valloss')"),
        (Scheduled, lambda folder: Callback(), "ReduceLROnPlateau wants the value 'valloss'"),
    ],
)
def test_a_monitor_that_is_misspelt(
    kind: type[Given], build: Callable[[Path], Callback], owner: str, tmp_path: Path
) -> None:
    """R34, R43: the text has what watches, what it watches, and what there is; the epoch that was trained stays."""
    module = kind()
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_progress_bar=False, callbacks=build(tmp_path))
    with pytest.raises(MisconfigurationException) as caught:
        trainer.fit(module, given(1, 2), given(1))
    text = str(caught.value)
    assert text.startswith(owner)
    assert "train_loss_step" in text
    assert "val_loss" in text
    assert module.weight.item() == (-3.0 if kind is Watched else -1.5)


def test_a_monitor_where_nothing_is_logged() -> None:
    """R43: then there is nothing that may be meant, so the text says how to log it."""
    with pytest.raises(
        MisconfigurationException, match=r"Logged were: nothing\. Log it with self\.log\('acc', \.\.\.\)"
    ):
        fit(Given(), given(1), callbacks=EarlyStopping("acc"))


# -- loggers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_takes_no_files(kind: type[Any], below: str, tmp_path: Path) -> None:
    """It is found before the data is prepared, and the text has logger, folder and reason."""
    (tmp_path / "file").touch()
    module = Watched()
    module.prepare_data = lambda: module.events.append("prepared")  # type: ignore[method-assign]
    logger = kind(tmp_path / "file" / below)
    with pytest.raises(
        ValueError, match=rf"{kind.__name__} cannot write to '.*file.*' \(Not a directory\); choose"
    ) as caught:
        fit(module, given(1), logger=logger)
    assert isinstance(caught.value, LeydenError)
    assert caught.value.code == "logger-directory"
    assert (module.events, module.weights) == ([], [])


class Fails(Logger):
    """Fails from some row on, or when it is closed."""

    name, version = "fails", 0

    def __init__(self, rows: int | None = None, at_end: bool = False) -> None:
        self.left, self.at_end = rows, at_end
        self.statuses: list[str] = []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Takes anything."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise OSError("no space left on device")

    def finalize(self, status: str) -> None:
        self.statuses.append(status)
        if self.at_end:
            raise OSError("cannot close")


def rows_in(logger: CSVLogger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("first", [True, False])
def test_a_logger_that_fails(first: bool, tmp_path: Path) -> None:
    """Its error ends the fit; the weights, and what other loggers have got, are there; all loggers are closed."""
    fails, works = Fails(rows=2), CSVLogger(tmp_path)
    module = Watched()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=[fails, works] if first else [works, fails],
        log_every_n_steps=1,
    )
    with pytest.raises(OSError, match="no space left"):
        trainer.fit(module, given(1, 2, 3, 4))
    assert module.weight.item() == -6.0
    assert fails.statuses == ["failed"]
    assert [row["train_loss_step"] for row in rows_in(works)] == ["0.0", "-2.0"] + ([] if first else ["-9.0"])
    fails.left = None
    trainer.fit(module, given(1, 2, 3, 4))
    assert trainer.current_epoch == 1
    assert fails.statuses == ["failed", "success"]


def test_a_logger_that_cannot_be_closed(tmp_path: Path) -> None:
    """After a good run it is the error, and the others are closed nevertheless."""
    loggers = [Fails(at_end=True), Fails(), CSVLogger(tmp_path)]
    with pytest.raises(OSError, match="cannot close"):
        fit(Watched(), given(1, 2), logger=loggers, log_every_n_steps=1)
    assert loggers[1].statuses == ["success"]  # type: ignore[attr-defined]
    assert len(rows_in(loggers[2])) == 3  # type: ignore[arg-type]


# -- exceptions -------------------------------------------------------------------------------------------------------


class Boom(Exception):
    """What a test raises on purpose."""


class Raises(Callback):
    """Raises in one hook, until it is disarmed."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self.armed = True

        def listen(*_: Any, **__: Any) -> None:
            if self.armed:
                raise error

        setattr(self, hook, listen)


#: Manual mode has no on_before_zero_grad.
FIT_HOOKS = [
    "setup", "on_fit_start", "on_sanity_check_start", "on_validation_start", "on_validation_batch_start",
    "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_sanity_check_end", "on_train_start",
    "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown",
]  # fmt: skip


def is_as_found(trainer: Trainer, module: Any, requires_grad: list[bool]) -> None:
    """Nothing of the run is left in the Trainer, the module or torch."""
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert [parameter.requires_grad for parameter in module.parameters()] == requires_grad
    assert [part.training for part in module.modules()] == [part is not module.head for part in module.modules()]
    assert not any((trainer.training, trainer.validating, trainer.sanity_checking, trainer.testing, trainer.predicting))
    assert (trainer._state.hook, trainer._state.results, trainer._optimization) == (None, None, None)


CELLS = [(hook, name) for hook in FIT_HOOKS for name in MODES if (hook, name) != ("on_before_zero_grad", "manual")]


@pytest.mark.parametrize(("hook", "name"), CELLS)
def test_a_callback_that_raises_in_a_fit(hook: str, name: str, tmp_path: Path) -> None:
    """Its own error comes out, everything else is as it was; what was trained stays, and a second fit ends well."""
    error = Boom("on purpose")
    raises = Raises(hook, error)
    module = modes.build(name)
    module.head.eval()  # somebody's choice, which a run must keep
    module.backbone[0].bias.requires_grad_(False)
    requires_grad = [parameter.requires_grad for parameter in module.parameters()]
    logger = CSVLogger(tmp_path)
    trainer = Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "logger": logger,
        },
        **MODES[name][1],
        callbacks=raises,
    )
    with pytest.raises(Boom) as caught:
        trainer.fit(module, DATA, DATA[:2])
    assert caught.value is error
    is_as_found(trainer, module, requires_grad)
    assert (Path(logger.log_dir) / "metrics.csv").exists() is (trainer.num_updates > 0)  # a validation has its row
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    raises.armed = False
    expected_before = trainer.global_step
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, DATA, DATA[:2])
    assert trainer.current_epoch == 3
    assert trainer.global_step > expected_before
    assert not all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    is_as_found(trainer, module, requires_grad)


@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step", "on_train_batch_end"])
def test_what_was_trained_is_kept(hook: str) -> None:
    """The updates before the one that failed are there, and no others."""

    class Third(Raises):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self.armed = batch_idx == 2

    module = Given()
    with pytest.raises(Boom):
        fit(module, given(1, 2, 3, 4), callbacks=Third(hook, Boom()))
    assert module.weight.item() == (-6.0 if hook == "on_train_batch_end" else -3.0)


@pytest.mark.parametrize(("stage", "name"), [("validate", "validation"), ("test", "test"), ("predict", "predict")])
@pytest.mark.parametrize("moment", ["start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end"])
def test_a_callback_that_raises_in_an_evaluation(stage: str, name: str, moment: str) -> None:
    """Likewise for validate, test and predict."""
    steps = {f"{name}_step": lambda self, batch, batch_idx: self.head(self.backbone(batch[0]))}
    module = type("Model", (type(modes.build("one")),), steps)()
    module.head.eval()
    raises = Raises(f"on_{name}_{moment}", Boom())
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False, callbacks=raises)
    with pytest.raises(Boom):
        getattr(trainer, stage)(module, DATA)
    is_as_found(trainer, module, [True] * 6)
    raises.armed = False
    getattr(trainer, stage)(module, DATA)
    is_as_found(trainer, module, [True] * 6)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("sanity", [0, 2])
def test_ctrl_c_in_a_validation(name: str, sanity: int) -> None:
    """It comes out, callbacks hear of it, modes come back, and the next fit goes on."""
    heard: list[BaseException] = []

    class Hears(Callback):
        def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
            heard.append(exception)

    module = modes.build(name)
    module.head.eval()
    presses = Raises("on_validation_batch_end", KeyboardInterrupt())
    trainer = Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": sanity},
        **MODES[name][1],
        callbacks=[presses, Hears()],
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(module, DATA, DATA[:2])
    assert heard == [caught.value]
    assert trainer.interrupted
    is_as_found(trainer, module, [True] * 6)
    presses.armed = False
    steps = trainer.global_step
    trainer.fit(module, DATA, DATA[:2])
    assert not trainer.interrupted
    assert trainer.current_epoch == 1
    assert (steps == 0) is (sanity == 2)


class Steps(Given):
    """Fails in its first step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise Boom("the first")


class Again(LightningDataModule):
    """Fails when it hears of a failure."""

    def train_dataloader(self) -> Any:
        return given(1)

    def on_exception(self, exception: BaseException) -> None:
        raise Boom("datamodule")


def test_the_first_error_is_what_is_seen() -> None:
    """Callbacks, datamodule and loggers that fail because the run has failed do not hide why, nor stop each other."""
    heard: list[str] = []

    class Hears(Callback):
        def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
            heard.append(str(exception))

    loggers = [Fails(at_end=True), Fails()]
    callbacks = [Raises("on_exception", Boom("callback")), Hears()]
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=loggers, callbacks=callbacks)
    with pytest.warns(LeydenWarning) as warned, pytest.raises(Boom, match="the first"):
        trainer.fit(Steps(), datamodule=Again())
    assert heard == ["the first"]
    assert loggers[1].statuses == ["failed"]
    texts = [str(one.message) for one in warned]
    ends = "after the run had failed: {}. Look at the first error first [failed-again]"
    assert texts == [
        "Boom in on_exception, " + ends.format("callback"),
        "Boom in Again.on_exception, " + ends.format("datamodule"),
        "OSError in Fails.finalize, " + ends.format("cannot close"),
    ]


def test_an_error_in_teardown() -> None:
    """After a good fit it is the error; what was trained is there. After a bad one teardown is not called."""
    module = Given()
    with pytest.raises(Boom, match="teardown"):
        fit(module, given(1, 2), callbacks=Raises("teardown", Boom("teardown")))
    assert module.weight.item() == -3.0
    with pytest.raises(Boom, match="the first"):
        fit(Steps(), given(1), callbacks=Raises("teardown", Boom("teardown")))


def test_a_metric_that_cannot_be_computed() -> None:
    """R128: what cannot be shown at the end of a failed run does not hide why it failed, and leaves nothing behind."""
    torchmetrics = pytest.importorskip("torchmetrics")

    class Never(torchmetrics.Metric):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.zeros(()))

        def update(self, value: torch.Tensor) -> None:
            self.total += value

        def compute(self) -> torch.Tensor:
            raise Boom("compute")

    class Model(Given):
        def __init__(self) -> None:
            super().__init__()
            self.metric = Never()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.metric.update(batch.sum())
            self.log("never", self.metric, on_step=False, on_epoch=True)
            if batch_idx == 1:
                raise Boom("the first")
            return self.loss(batch)

    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(Boom, match="the first"):
        trainer.fit(Model(), given(1, 2))
    assert not trainer.training
    assert trainer._state.results is None
    again = r"Boom in what was logged, after the run had failed: compute.*\[failed-again\]"
    with pytest.warns(LeydenWarning, match=again), pytest.raises(Boom, match="compute"):
        trainer.fit(Model(), given(1))
    assert not trainer.training
