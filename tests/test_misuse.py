"""Every misuse of the page's API ends in an error that names the thing and the remedy, before the first step where
the facts are known by then.

The table: what the user wrote, the class and the code of the error, a telling part of its text, and how often
``training_step`` had run by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from leyden import Joint, LightningModule, MisconfigurationException, Trainer
from leyden.errors import LeydenError
from leyden.precision import Precision

DATA = [(torch.ones(2, 3), torch.ones(2, 1)) for _ in range(4)]


class Model(LightningModule):
    """Two layers, a counter of training steps, and whatever a case plugs in."""

    def __init__(self, configure: Callable[[Any], Any] | None = None, **attributes: Any) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
        self.steps = 0
        self.configure = configure
        for name, value in attributes.items():
            setattr(self, name, value)

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.mse_loss(self.second(self.first(x)), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1) if self.configure is None else self.configure(self)


class Manual(Model):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1


class Returns(Model):
    """training_step returns what the case says."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return self.output(self.loss(batch))


class BackwardByHand(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.manual_backward(self.loss(batch))


class AccumulateByHand(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        with self.accumulate(self.optimizers(), 2):
            return self.loss(batch)


class ClipTooEarly(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.clip_gradients(self.optimizers(), gradient_clip_val=1.0)
        return self.loss(batch)


class ClosureDropped(Model):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        optimizer.optimizer.step()


class ClosureCalled(Model):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        optimizer.step(closure=optimizer_closure())


class TakesIndex(Manual):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        self.steps += 1


class AccumulateNone(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        with self.accumulate(self.optimizers(), 0):
            self.manual_backward(self.loss(batch))


class ManualReturnsList(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return [self.loss(batch)]


class LogsNothingUseful(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.log("accuracy", 1.0)
        return self.loss(batch)


class LogsBeforeTheRun(Model):
    def prepare_data(self) -> None:
        self.log("x", 1.0)


class LogsInConfigureOptimizers(Model):
    def configure_optimizers(self) -> Any:
        self.log("x", 1.0)


class NotAScheduler:
    """Has no state."""


class OwnScheduler:
    """Has state, but is not torch's."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def sgd(model: Any) -> SGD:
    return SGD(model.parameters(), lr=0.1)


def two(model: Any) -> tuple[SGD, Adam]:
    return SGD(model.first.parameters(), lr=0.1), Adam(model.second.parameters())


class SharpnessAware(SGD):
    """Cannot step without a closure."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)


def with_scheduler(**config: Any) -> Callable[[Any], Any]:
    def configure(model: Any) -> Any:
        optimizer = sgd(model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), **config}}

    return configure


class Case(NamedTuple):
    module: Callable[[], Model]
    error: type[BaseException]
    code: str
    text: str
    steps: int = 0
    arguments: dict[str, Any] = {}


CASES = {
    # what configure_optimizers may not return
    "string": Case(lambda: Model(lambda m: "adam"), MisconfigurationException, "plan-form", "str 'adam'"),
    "empty list": Case(lambda: Model(lambda m: []), MisconfigurationException, "plan-form", "empty list"),
    "optimizer and scheduler": Case(
        lambda: Model(lambda m: (o := sgd(m), StepLR(o, 1))), MisconfigurationException, "plan-form", "StepLR"
    ),
    "tuple of optimizers first": Case(
        lambda: Model(lambda m: ((o := sgd(m),), [StepLR(o, 1)])), MisconfigurationException, "plan-form", "tuple"
    ),
    "None for schedulers": Case(
        lambda: Model(lambda m: ([sgd(m)], None)), MisconfigurationException, "plan-form", "None in place"
    ),
    "dict without optimizer": Case(
        lambda: Model(lambda m: {"lr_scheduler": None}), KeyError, "plan-no-optimizer-key", "no key 'optimizer'"
    ),
    "list as lr_scheduler": Case(
        lambda: Model(lambda m: {"optimizer": (o := sgd(m)), "lr_scheduler": [StepLR(o, 1)]}),
        MisconfigurationException,
        "plan-form",
        "takes one scheduler",
    ),
    "frequency for one of two": Case(
        lambda: Model(lambda m: [{"optimizer": o, "frequency": f} for o, f in zip(two(m), (1, None), strict=True)]),
        ValueError,
        "plan-frequency",
        "1 of the 2 dicts",
    ),
    "frequency of zero": Case(
        lambda: Model(lambda m: [{"optimizer": o, "frequency": 0} for o in two(m)]),
        MisconfigurationException,
        "plan-frequency",
        "int >= 1",
    ),
    "the same optimizer twice": Case(
        lambda: Model(lambda m: [o := sgd(m), o]), ValueError, "plan-optimizer-twice", "return it once"
    ),
    "alone and in a Joint": Case(
        lambda: Manual(lambda m: [(o := two(m))[0], Joint(o)]),
        MisconfigurationException,
        "plan-optimizer-twice",
        "optimizer 0 and as optimizer 1, member 0 of a Joint",
    ),
    # schedulers
    "unknown interval": Case(
        lambda: Model(with_scheduler(interval="batch")), MisconfigurationException, "plan-interval", "'batch'"
    ),
    "scheduler frequency of zero": Case(
        lambda: Model(with_scheduler(frequency=0)), MisconfigurationException, "plan-frequency", "StepLR"
    ),
    "dict without scheduler": Case(
        lambda: Model(with_scheduler(scheduler=None)), MisconfigurationException, "plan-no-scheduler-key", "scheduler"
    ),
    "plateau without monitor": Case(
        lambda: Model(lambda m: ([o := sgd(m)], [ReduceLROnPlateau(o)])),
        MisconfigurationException,
        "plan-monitor",
        "which value to watch",
    ),
    "foreign scheduler": Case(
        lambda: Model(lambda m: ([sgd(m)], [StepLR(sgd(m), 1)])),
        MisconfigurationException,
        "plan-foreign-scheduler",
        "did not return",
    ),
    "no scheduler at all": Case(
        lambda: Model(lambda m: ([sgd(m)], [NotAScheduler()])), TypeError, "plan-scheduler-class", "NotAScheduler"
    ),
    "a scheduler of one's own": Case(
        lambda: Model(lambda m: ([o := sgd(m)], [OwnScheduler(o)])),
        MisconfigurationException,
        "plan-scheduler-class",
        "override lr_scheduler_step",
    ),
    "wrong opt_idx": Case(
        lambda: Model(with_scheduler(opt_idx=1)), MisconfigurationException, "plan-opt-idx", "opt_idx 1"
    ),
    "missing monitor": Case(
        lambda: LogsNothingUseful(
            lambda m: {"optimizer": (o := sgd(m)), "lr_scheduler": ReduceLROnPlateau(o), "monitor": "loss"}
        ),
        MisconfigurationException,
        "scheduler-monitor",
        "available: 'accuracy'",
        steps=len(DATA),
    ),
    # several optimizers
    "several that nobody takes": Case(lambda: Model(two), MisconfigurationException, "optimizer-idx-missing", "Joint"),
    "several that nobody takes, 1.x": Case(lambda: Model(two), ValueError, "optimizer-idx-missing", "optimizer_idx"),
    "several that nobody takes, 2.x": Case(
        lambda: Model(two), RuntimeError, "optimizer-idx-missing", "automatic_optimization = False"
    ),
    "optimizer_idx in manual mode": Case(lambda: TakesIndex(two), RuntimeError, "optimizer-idx-manual", "manual"),
    "empty Joint": Case(lambda: Model(lambda m: Joint([])), ValueError, "joint-empty", "no members"),
    "Joint with LBFGS": Case(
        lambda: Model(lambda m: Joint([LBFGS(m.first.parameters()), SGD(m.second.parameters(), lr=0.1)])),
        MisconfigurationException,
        "joint-lbfgs",
        "take turns",
    ),
    "Joint with SAM": Case(
        lambda: Model(lambda m: Joint([SharpnessAware(m.first.parameters()), SGD(m.second.parameters())])),
        MisconfigurationException,
        "joint-closure",
        "let it take turns",
    ),
    "Joint that shares a parameter": Case(
        lambda: Model(lambda m: Joint([sgd(m), sgd(m)])), MisconfigurationException, "joint-shared-parameter", "two"
    ),
    # manual and automatic mixed up
    "manual_backward in automatic mode": Case(
        BackwardByHand, MisconfigurationException, "manual-in-automatic", "automatic_optimization = False", steps=1
    ),
    "accumulate in automatic mode": Case(
        AccumulateByHand, MisconfigurationException, "manual-in-automatic", "accumulate", steps=1
    ),
    "clip flag in manual mode": Case(
        Manual, MisconfigurationException, "manual-clip", "clip_gradients", arguments={"gradient_clip_val": 1.0}
    ),
    "accumulate flag in manual mode": Case(
        Manual,
        MisconfigurationException,
        "manual-accumulation",
        "self.accumulate",
        arguments={"accumulate_grad_batches": 2},
    ),
    "accumulation schedule in manual mode": Case(
        Manual,
        MisconfigurationException,
        "manual-accumulation",
        "self.accumulate",
        arguments={"accumulate_grad_batches": {0: 1, 2: 4}},
    ),
    "accumulate no batches": Case(AccumulateNone, ValueError, "accumulate-batches", "int >= 1", steps=1),
    "list from a manual training_step": Case(
        ManualReturnsList, MisconfigurationException, "training-step-output", "list", steps=1
    ),
    # the closure, the clip and the value of training_step
    "closure never called": Case(ClosureDropped, MisconfigurationException, "closure-not-called", "optimizer_closure"),
    "closure called instead of passed": Case(
        ClosureCalled, MisconfigurationException, "closure-not-callable", "pass the function", steps=1
    ),
    "clip in training_step": Case(
        ClipTooEarly, MisconfigurationException, "clip-too-early", "configure_gradient_clipping", steps=1
    ),
    "list from training_step": Case(
        lambda: Returns(output=lambda loss: [loss]), MisconfigurationException, "training-step-output", "list", steps=1
    ),
    "number from training_step": Case(
        lambda: Returns(output=lambda loss: 1.0), MisconfigurationException, "training-step-output", "float", steps=1
    ),
    "dict without loss": Case(
        lambda: Returns(output=lambda loss: {"los": loss}),
        MisconfigurationException,
        "training-step-output",
        "los",
        steps=1,
    ),
    "dict with loss None": Case(
        lambda: Returns(output=lambda loss: {"loss": None}),
        MisconfigurationException,
        "training-step-output",
        "None",
        steps=1,
    ),
    "negative weight": Case(
        lambda: Returns(output=lambda loss: {"loss": loss, "weight": -1}), ValueError, "window-weight", "-1", steps=1
    ),
    "weight that is no number": Case(
        lambda: Returns(output=lambda loss: {"loss": loss, "weight": float("nan")}),
        ValueError,
        "window-weight",
        "'weight' is nan; it must be a finite number >= 0",
        steps=1,
    ),
    "infinite weight": Case(
        lambda: Returns(output=lambda loss: {"loss": loss, "weight": numpy.float32("inf")}),
        ValueError,
        "window-weight",
        "inf",
        steps=1,
    ),
    # self.log where nothing collects
    "log outside of a hook": Case(LogsBeforeTheRun, RuntimeError, "log-hook", "cannot be used outside of a hook"),
    "log in configure_optimizers": Case(LogsInConfigureOptimizers, RuntimeError, "log-hook", "in configure_optimizers"),
}


@pytest.mark.parametrize("name", CASES)
def test_misuse(name: str) -> None:
    """The error has its class and its code, says what is wrong, and comes as early as the facts are known."""
    case = CASES[name]
    module = case.module()
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, **case.arguments)
    with pytest.raises(case.error) as caught:
        trainer.fit(module, DATA)
    assert isinstance(caught.value, LeydenError)
    assert caught.value.code == case.code
    assert case.text in str(caught.value)
    assert str(caught.value).endswith(f"[{case.code}]")
    assert module.steps == case.steps


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        ({"gradient_clip_val": "1"}, TypeError, "clip-value"),
        ({"gradient_clip_val": True}, TypeError, "clip-value"),
        ({"gradient_clip_algorithm": "norms"}, MisconfigurationException, "clip-algorithm"),
        ({"accumulate_grad_batches": 0}, MisconfigurationException, "trainer-accumulation"),
        ({"accumulate_grad_batches": 1.5}, MisconfigurationException, "trainer-accumulation"),
        ({"accumulate_grad_batches": {}}, TypeError, "accumulation-schedule"),
        ({"precision": "8"}, ValueError, "precision"),
        ({"max_epochs": 1.5}, ValueError, "trainer-limit"),
        ({"max_steps": -2}, ValueError, "trainer-limit"),
        ({"max_time": "one hour"}, ValueError, "duration"),
        ({"limit_train_batches": 1.5}, MisconfigurationException, "trainer-batch-limit"),
        ({"limit_val_batches": -1}, MisconfigurationException, "trainer-batch-limit"),
        ({"devices": 2}, MisconfigurationException, "distribution-not-yet"),
        ({"devices": 2, "strategy": "ddp"}, MisconfigurationException, "distribution-not-yet"),
        ({"accelerator": "tpu"}, ValueError, "accelerator"),
        ({"callbacks": [object()]}, TypeError, "trainer-callback"),
        ({"logger": object()}, TypeError, "trainer-logger"),
        ({"profiler": "simpel"}, ValueError, "trainer-profiler"),
        ({"profiler": object()}, TypeError, "trainer-profiler"),
        ({"deterministic": "yes"}, ValueError, "deterministic"),
        ({"benchmark": "x"}, ValueError, "benchmark"),
        ({"check_val_every_n_epoch": 0}, ValueError, "trainer-argument"),
        ({"check_val_every_n_epoch": -1}, ValueError, "trainer-argument"),
        ({"check_val_every_n_epoch": 1.5}, ValueError, "trainer-argument"),
        ({"num_sanity_val_steps": "a"}, ValueError, "trainer-argument"),
        ({"num_sanity_val_steps": -2}, ValueError, "trainer-argument"),
        ({"log_every_n_steps": -1}, ValueError, "trainer-argument"),
        ({"log_every_n_steps": 0.5}, ValueError, "trainer-argument"),
        ({"reload_dataloaders_every_n_epochs": -1}, ValueError, "trainer-argument"),
        ({"reload_dataloaders_every_n_epochs": 1.0}, ValueError, "trainer-argument"),
        ({"fast_dev_run": "x"}, ValueError, "trainer-argument"),
        ({"fast_dev_run": 2.5}, ValueError, "trainer-argument"),
        ({"fast_dev_run": -1}, ValueError, "trainer-argument"),
        ({"track_grad_norm": "abc"}, ValueError, "trainer-argument"),
        ({"track_grad_norm": 0}, ValueError, "trainer-argument"),
        ({"track_grad_norm": True}, ValueError, "trainer-argument"),
        ({"val_check_interval": 0}, ValueError, "val-check-interval"),
        ({"val_check_interval": -0.5}, ValueError, "val-check-interval"),
        ({"val_check_interval": "1"}, ValueError, "duration"),
        ({"val_check_interval": 1.5}, ValueError, "val-check-interval"),
        ({"val_check_interval": 0.5, "check_val_every_n_epoch": None}, ValueError, "val-check-interval"),
        ({"plugins": [Precision(), Precision()]}, ValueError, "precision-twice"),
    ],
)
def test_bad_trainer_arguments(arguments: dict[str, Any], error: type[BaseException], code: str) -> None:
    """A wrong argument is refused when the Trainer is made, by name."""
    with pytest.raises(error) as caught:
        Trainer(**{"max_epochs": 1, **arguments})
    assert isinstance(caught.value, LeydenError)
    assert caught.value.code == code
    assert next(iter(arguments))[:7].lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("arguments", "attribute", "value"),
    [
        ({"max_steps": None}, "max_steps", -1),
        ({"log_every_n_steps": None}, "log_every_n_steps", 50),
        ({"log_every_n_steps": 0}, "log_every_n_steps", 0),
        ({"num_sanity_val_steps": None}, "num_sanity_val_steps", 2),
        ({"num_sanity_val_steps": -1}, "num_sanity_val_steps", -1),
        ({"fast_dev_run": True}, "fast_dev_run", 1),
        ({"track_grad_norm": "inf"}, "track_grad_norm", float("inf")),
        ({"track_grad_norm": -1}, "track_grad_norm", None),
    ],
)
def test_what_values_of_trainer_arguments_mean(arguments: dict[str, Any], attribute: str, value: Any) -> None:
    """None is a default, and -1, 0 and "inf" are values of their own."""
    assert getattr(Trainer(**{"max_epochs": 1, **arguments}), attribute) == value


def test_an_interval_of_more_batches_than_there_are() -> None:
    """It is refused when the number of batches is known, before the first step."""
    module = Model()
    with pytest.raises(ValueError, match="val_check_interval=9.* at most the 4 training batches") as caught:
        Trainer(max_epochs=1, enable_progress_bar=False, val_check_interval=9).fit(module, DATA)
    assert isinstance(caught.value, LeydenError)
    assert (caught.value.code, module.steps) == ("val-check-interval", 0)


def test_batches_across_epochs_without_an_interval() -> None:
    """check_val_every_n_epoch=None alone validates at the end of each epoch, as in Lightning."""
    validations: list[int] = []

    class Validates(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            validations.append(self.steps)

    arguments: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_progress_bar": False}
    Trainer(max_epochs=2, check_val_every_n_epoch=None, **arguments).fit(Validates(), DATA, DATA[:1])
    assert validations == [4, 8]


def test_no_data() -> None:
    """Without a loader, the error says where it may come from."""
    with pytest.raises(MisconfigurationException, match=r"train_dataloader\(\).*\[no-data\]"):
        Trainer(max_epochs=1, enable_progress_bar=False).fit(Model())


def test_no_module() -> None:
    """What is no LightningModule is refused by its class."""
    with pytest.raises(TypeError, match="takes a LightningModule, got Linear"):
        Trainer(max_epochs=1, enable_progress_bar=False).fit(torch.nn.Linear(1, 1), DATA)  # type: ignore[arg-type]


def test_errors_of_users_and_of_torch_pass_through() -> None:
    """A loss without a graph is torch's error, in torch's words."""
    module = Returns(output=lambda loss: loss.detach())
    with pytest.raises(RuntimeError, match="does not require grad"):
        Trainer(max_epochs=1, enable_progress_bar=False).fit(module, DATA)


def test_spellings_of_1x() -> None:
    """R163: the loaders' names of 1.5, and the arguments that only 1.x had and that mean something here."""
    module = Model()
    module.validation_step = module.test_step = lambda batch, batch_idx: module.log("x", 1.0)  # type: ignore[method-assign]
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        accumulate_grad_batches={0: 2},
        track_grad_norm=2,
        precision=32,
    )
    trainer.fit(module, train_dataloader=DATA)
    assert trainer.global_step == len(DATA) // 2
    assert "grad_2.0_norm_total" in trainer.callback_metrics
    assert trainer.validate(module, val_dataloaders=DATA, verbose=False) == [{"x": 1.0}]
    assert trainer.test(module, test_dataloaders=DATA, verbose=False) == [{"x": 1.0}]
