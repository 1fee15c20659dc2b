"""The order of events: R40-R49, written down as lists, and the same as Lightning's, event by event."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import leyden
from given import Given, Unsized, fit, given
from leyden import Callback, Joint, LightningModule, Trainer
from leyden.precision import MixedPrecision

# -- recording --------------------------------------------------------------------------------------------------------


def public(owner: type) -> set[str]:
    """The public methods of a class."""
    return {name for name, _ in inspect.getmembers(owner, inspect.isfunction) if not name.startswith("_")}


#: What a module calls, as opposed to what is called on it.
SERVICES = {"all_gather", "log", "log_dict", "lr_schedulers", "optimizers", "print", "save_hyperparameters"}
#: Everything that Lightning may call: what it overrides in its own tests of the order of hooks.
OF_TORCH = public(nn.Module) - {"forward", "train", "zero_grad"}
MODULE = public(pytorch_lightning.LightningModule) - OF_TORCH - SERVICES - {"configure_sharded_model"}
CALLBACK = public(pytorch_lightning.Callback)
DATAMODULE = public(pytorch_lightning.LightningDataModule) - {"save_hyperparameters"}


def shown(value: Any) -> str:
    """An argument as text that is the same in both libraries; of objects only the class, of a handle the handle's."""
    if isinstance(value, str):
        return f"{getattr(value, 'value', value)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, nn.Module):
        return "module"
    if callable(value) and not isinstance(value, Optimizer):
        return "closure"
    return str(value.__class__.__name__).replace("_MockOptimizer", "NoOptimizer")


def recording(base: type, names: set[str], note: Callable[..., None]) -> type:
    """A class that notes every call of these methods and then does what ``base`` does."""

    def override(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            note(name, *args, **kwargs)
            return getattr(super(made, self), name)(*args, **kwargs)

        return method

    made = type("Recording", (base,), {name: override(name) for name in names})
    return made


def loader(count: int) -> DataLoader[Tensor]:
    return DataLoader(torch.arange(1.0, count + 1).reshape(-1, 1), batch_size=None)


def build_module(library: Any, methods: dict[str, Any]) -> type:
    """A module with all kinds of steps and data, in this library; ``methods`` replaces some of it."""

    class Module(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: Any) -> Any:
            return (self.weight * batch).sum()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self(batch), "extra": batch_idx}

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("x", self(batch))
            return self(batch)

        test_step = validation_step

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.5)
            by_step = {"scheduler": StepLR(optimizer, 1), "interval": "step"}
            return [optimizer], [by_step, StepLR(optimizer, 1)]

        def train_dataloader(self) -> Any:
            return loader(3)

        def val_dataloader(self) -> Any:
            return loader(2)

        test_dataloader = predict_dataloader = val_dataloader

    return type("Module", (Module,), methods)


QUIET: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "num_sanity_val_steps": 0} | {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


class Run:
    """One run of a case in one library: its events, and where module and Trainer are at each of them."""

    def __init__(self, library: Any, case: dict[str, Any]) -> None:
        self.events: list[str] = []
        self.states: list[tuple[Any, ...]] = []
        self.module = recording(build_module(library, case.get("methods", {})), MODULE, self._note_of(""))()
        callback = recording(library.Callback, CALLBACK, self._note_of("cb."))()
        self.trainer = library.Trainer(callbacks=[callback], **{**QUIET, **case.get("trainer", {})})
        data: dict[str, Any] = {}
        if case.get("datamodule"):
            loaders = {f"{name}_dataloader": lambda self: loader(2) for name in ("train", "val")}
            base = type("Data", (library.LightningDataModule,), loaders)
            data["datamodule"] = recording(base, DATAMODULE, self._note_of("dm."))()
        stage = case.get("stage", "fit")
        if stage in ("validate", "test"):
            data["verbose"] = False
        self.events.clear()  # of the construction
        self.states.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                getattr(self.trainer, stage)(self.module, **data)
            except ZeroDivisionError:
                self.events.append("raised")

    def _note_of(self, prefix: str) -> Callable[..., None]:
        def note(name: str, *args: Any, **kwargs: Any) -> None:
            values = [shown(value) for value in args] + [f"{key}={shown(value)}" for key, value in kwargs.items()]
            self.events.append(f"{prefix}{name}({', '.join(values)})")
            self.states.append((prefix + name, *self._state()))

        return note

    def _state(self) -> tuple[Any, ...]:
        module, trainer = getattr(self, "module", None), getattr(self, "trainer", None)
        if module is None or trainer is None:
            return ()
        gradient = module.weight.grad
        return (
            trainer.global_step,
            trainer.current_epoch,
            trainer.is_last_batch,
            trainer.sanity_checking,
            module.training,
            None if gradient is None else gradient.tolist(),
            module.weight.tolist(),
        )


def train_by_hand(self: Any, batch: Any, batch_idx: int) -> None:
    optimizer = self.optimizers()
    optimizer.zero_grad()
    self.manual_backward(self(batch))
    optimizer.step()


def train_by_hand_with_a_closure(self: Any, batch: Any, batch_idx: int) -> None:
    optimizer = self.optimizers()

    def closure() -> Any:
        loss = self(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        return loss

    optimizer.step(closure=closure)


def start_that_leaves(self: Any, batch: Any, batch_idx: int) -> int | None:
    return -1 if batch_idx == 1 else None


def end_that_stops(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
    self.trainer.should_stop = batch_idx == 1


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two epochs": {"trainer": {"max_epochs": 2}},
    "sanity check": {"trainer": {"num_sanity_val_steps": 1}},
    "no validation": {"trainer": {"limit_val_batches": 0}},
    "validation after every batch": {"trainer": {"val_check_interval": 1}},
    "validation every second epoch": {"trainer": {"check_val_every_n_epoch": 2, "max_epochs": 3}},
    "several validation loaders": {"methods": {"val_dataloader": lambda self: [loader(2), loader(1)]}},
    "accumulation": {"trainer": {"accumulate_grad_batches": 2}, "methods": {"train_dataloader": lambda s: loader(4)}},
    "accumulation, validation in the window": {
        "trainer": {"accumulate_grad_batches": 2, "val_check_interval": 1},
        "methods": {"train_dataloader": lambda self: loader(4)},
    },
    "limits": {"trainer": {"limit_train_batches": 2, "limit_val_batches": 1}},
    "max_steps": {"trainer": {"max_steps": 2}},
    "fast_dev_run": {"trainer": {"fast_dev_run": 2}},
    "clipping": {"trainer": {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}},
    "bf16-mixed": {"trainer": {"precision": "bf16-mixed"}},
    "LBFGS": {"methods": {"configure_optimizers": lambda self: LBFGS(self.parameters(), max_iter=3)}},
    "no optimizer": {"methods": {"configure_optimizers": lambda self: None}},
    "no loader's length": {"methods": {"train_dataloader": lambda self: Unsized(loader(3))}},
    "a step returns None": {
        "methods": {
            "training_step": lambda self, batch, batch_idx: self(batch) if batch_idx != 1 else None,
            "configure_optimizers": lambda self: SGD(self.parameters(), lr=0.5),  # V4: schedulers rest then
        }
    },
    "an epoch is left": {"methods": {"on_train_batch_start": start_that_leaves}, "trainer": {"max_epochs": 2}},
    "should_stop": {"methods": {"on_train_batch_end": end_that_stops}, "trainer": {"max_epochs": 3}},
    "an exception": {"methods": {"training_step": lambda self, batch, batch_idx: 1 / 0}},
    "datamodule": {"datamodule": True},
    "manual": {"methods": {"automatic_optimization": False, "training_step": train_by_hand}},
    "manual, closure": {"methods": {"automatic_optimization": False, "training_step": train_by_hand_with_a_closure}},
    "validate": {"stage": "validate"},
    "validate, several loaders": {
        "stage": "validate",
        "methods": {"val_dataloader": lambda self: [loader(2), loader(1)]},
    },
    "test": {"stage": "test"},
    "predict": {"stage": "predict"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_order_is_lightnings(name: str) -> None:
    """R40-R44, R46, R48: every call of every method of module, callback and datamodule, arguments and all."""
    theirs, ours = Run(pytorch_lightning, CASES[name]), Run(leyden, CASES[name])
    assert ours.events == theirs.events
    assert len(ours.events) > 20


@pytest.mark.parametrize("name", CASES)
def test_the_state_at_every_event_is_lightnings(name: str) -> None:
    """R32, R40, R44, R49: counters, modes, gradients and weights, bit for bit, that each of these calls can see."""
    theirs, ours = Run(pytorch_lightning, CASES[name]), Run(leyden, CASES[name])
    assert ours.states == theirs.states


def test_no_method_that_lightning_does_not_have() -> None:
    """R45: the base classes have no public method that a run calls and Lightning's lack; these only users call."""
    own = public(LightningModule) - public(pytorch_lightning.LightningModule)
    assert own == {"accumulate", "toggle_model"}
    assert public(leyden.Callback) <= CALLBACK
    assert public(leyden.LightningDataModule) <= public(pytorch_lightning.LightningDataModule)


# -- written down: one batch ------------------------------------------------------------------------------------------


def names(events: list[str]) -> list[str]:
    """Events without their arguments."""
    return [event.partition("(")[0] for event in events]


def batch(run: Run, number: int) -> list[str]:
    """The events of one training batch, from its transfer to its end, as names."""
    found = names(run.events)
    for _ in range(number):
        found = found[found.index("on_train_batch_end") + 1 :]
    return found[found.index("on_before_batch_transfer") : found.index("on_train_batch_end") + 1]


def leyden_run(name: str = "plain", **methods: Any) -> Run:
    """A case run by leyden alone; without the validation and with other methods, if there are any."""
    case = CASES[name]
    return Run(leyden, {**case, "methods": {**case.get("methods", {}), **methods}})


TRANSFER = "on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer"
START = "cb.on_train_batch_start on_train_batch_start"
FORWARD = "training_step forward"
ZERO_GRAD = "cb.on_before_zero_grad on_before_zero_grad optimizer_zero_grad"
BACKWARD = "cb.on_before_backward on_before_backward backward cb.on_after_backward on_after_backward"
READY = "cb.on_before_optimizer_step on_before_optimizer_step"
CLIP = "configure_gradient_clipping clip_gradients"
END = "cb.on_train_batch_end on_train_batch_end"


def words(*parts: str) -> list[str]:
    return " ".join(parts).split()


def test_one_batch() -> None:
    """R40: training_step, zero_grad, backward inside of optimizer_step; then hooks, clipping, schedulers, end."""
    assert batch(leyden_run(), 0) == words(
        TRANSFER, START, "optimizer_step", FORWARD, ZERO_GRAD, BACKWARD, READY, CLIP, "lr_scheduler_step", END
    )
    assert batch(leyden_run(), 2) == words(
        *(TRANSFER, START, "optimizer_step", FORWARD, ZERO_GRAD, BACKWARD, READY, CLIP),
        *("lr_scheduler_step lr_scheduler_step", END),
    )


def test_a_window_of_two_batches() -> None:
    """R41: the first batch clears and accumulates, without optimizer_step, clipping, schedulers; the second steps."""
    run = leyden_run("accumulation")
    assert batch(run, 0) == words(TRANSFER, START, FORWARD, ZERO_GRAD, BACKWARD, END)
    assert batch(run, 1) == words(
        TRANSFER, START, "optimizer_step", FORWARD, BACKWARD, READY, CLIP, "lr_scheduler_step", END
    )


def train_alternating(self: Any, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
    return self(batch) * (optimizer_idx + 1)


def test_two_optimizers() -> None:
    """R42: the whole block for the first, then for the second, each in its own pair of toggles."""
    run = leyden_run(
        training_step=train_alternating,
        configure_optimizers=lambda self: [SGD(self.parameters(), lr=0.5), SGD(self.parameters(), lr=0.5)],
    )
    turn = words("toggle_optimizer optimizer_step", FORWARD, ZERO_GRAD, BACKWARD, READY, CLIP, "untoggle_optimizer")
    assert batch(run, 0) == [*words(TRANSFER, START), *turn, *turn, *words(END)]
    steps = [event for event in run.events if event.startswith("training_step")][:4]
    assert steps == [f"training_step(Tensor, {batch_idx}, {i})" for batch_idx in (0, 1) for i in (0, 1)]


def test_two_optimizers_and_a_window() -> None:
    """R41, R42: on a batch that only accumulates, each still has its turn."""
    run = leyden_run(
        "accumulation",
        training_step=train_alternating,
        configure_optimizers=lambda self: [SGD(self.parameters(), lr=0.5), SGD(self.parameters(), lr=0.5)],
    )
    turn = words("toggle_optimizer", FORWARD, ZERO_GRAD, BACKWARD, "untoggle_optimizer")
    assert batch(run, 0) == [*words(TRANSFER, START), *turn, *turn, *words(END)]
    turn = words("toggle_optimizer optimizer_step", FORWARD, BACKWARD, READY, CLIP, "untoggle_optimizer")
    assert batch(run, 1) == [*words(TRANSFER, START), *turn, *turn, *words(END)]


def test_a_joint() -> None:
    """R42, V1: one optimizer_step, one backward; every member is clipped by itself; nothing is toggled."""

    def configure(self: Any) -> Any:
        self.other = nn.Parameter(torch.zeros(1))
        return Joint([SGD([self.weight], lr=0.5), SGD([self.other], lr=0.5)])

    assert batch(leyden_run(configure_optimizers=configure), 0) == words(
        TRANSFER, START, "optimizer_step", FORWARD, ZERO_GRAD, BACKWARD, READY, CLIP, CLIP, END
    )


def test_a_batch_without_a_loss() -> None:
    """R40: backward and its hooks are left out, zero_grad and the rest are not."""
    run = leyden_run("a step returns None")
    assert batch(run, 1) == words(TRANSFER, START, "optimizer_step training_step", ZERO_GRAD, READY, CLIP, END)


def test_a_batch_in_manual_mode() -> None:
    """R40: only what the user's training_step calls."""
    assert batch(leyden_run("manual"), 0) == words(TRANSFER, START, FORWARD, "manual_backward", BACKWARD, READY, END)


def test_gradients_are_there_at_the_end_of_a_batch() -> None:
    """R40: nothing clears them after the step."""

    class Module(Given):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.events.append(self.weight.grad.tolist())  # type: ignore[union-attr]

    module = Module()
    fit(module, given(1, 2))
    assert module.events == [[1.0], [2.0]]


# -- written down: a whole fit ----------------------------------------------------------------------------------------

VALIDATION = """
    on_validation_model_eval train
    cb.on_validation_start on_validation_start cb.on_validation_epoch_start on_validation_epoch_start
    on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer
    cb.on_validation_batch_start on_validation_batch_start
    validation_step forward forward
    cb.on_validation_batch_end on_validation_batch_end
    cb.on_validation_epoch_end on_validation_epoch_end cb.on_validation_end on_validation_end
    on_validation_model_train train
"""


def test_a_whole_fit() -> None:
    """R44: from configure_callbacks to teardown; validation comes before on_train_epoch_end."""
    run = leyden_run("sanity check", train_dataloader=lambda self: loader(1), val_dataloader=lambda self: loader(1))
    assert names(run.events) == words(
        "configure_callbacks prepare_data cb.setup setup configure_model configure_optimizers",
        "cb.on_fit_start on_fit_start zero_grad",
        "cb.on_sanity_check_start val_dataloader",
        VALIDATION,
        "cb.on_sanity_check_end",
        "train_dataloader",
        "cb.on_train_start on_train_start",
        "cb.on_train_epoch_start on_train_epoch_start",
        *(TRANSFER, START, "optimizer_step", FORWARD, ZERO_GRAD, BACKWARD, READY, CLIP),
        *("lr_scheduler_step lr_scheduler_step", END),
        "on_validation_model_zero_grad zero_grad",
        VALIDATION,
        "cb.on_train_epoch_end on_train_epoch_end",
        "cb.on_train_end on_train_end cb.on_fit_end on_fit_end cb.teardown teardown",
    )


def test_no_clearing_inside_of_a_window() -> None:
    """R44: a validation that falls into an open window leaves its gradients alone."""
    run = leyden_run("accumulation, validation in the window")
    found = [name for name in names(run.events) if name in ("on_validation_model_zero_grad", "on_validation_start")]
    assert found == words("on_validation_start on_validation_model_zero_grad on_validation_start") * 2


def test_gradients_of_before_the_fit_are_cleared() -> None:
    """R44: a run begins with module.zero_grad(), so that nothing is added to what somebody left there."""

    class Module(Given):
        def configure_optimizers(self) -> None:
            return None

    module = Module()
    module.weight.grad = torch.tensor([100.0])
    with pytest.warns(UserWarning, match="plan-no-optimizer"):
        fit(module, given(1, 2))
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [3.0]


def test_loaders_are_asked_for_when_they_are_needed() -> None:
    """R44: the validation loader in the sanity check, before the first epoch that validates, or not at all."""

    def asked(**arguments: Any) -> list[str]:
        run = Run(leyden, {"trainer": {"max_epochs": 2, **arguments}})
        kept = ("val_dataloader", "cb.on_sanity_check_start", "on_train_start", "on_train_epoch_start")
        return [name for name in names(run.events) if name in kept]

    start, epoch = "on_train_start", "on_train_epoch_start"
    assert asked(num_sanity_val_steps=1) == ["cb.on_sanity_check_start", "val_dataloader", start, epoch, epoch]
    assert asked() == ["val_dataloader", start, epoch, epoch]
    assert asked(check_val_every_n_epoch=2) == [start, epoch, epoch, "val_dataloader"]
    assert asked(limit_val_batches=0) == [start, epoch, epoch]


class Monitor(Callback):
    """Watches a value, as early stopping does."""

    is_monitor = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.events.append(("monitor", trainer.callback_metrics["x"].item()))


class Other(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.events.append(("other", "x" in trainer.callback_metrics))


def test_the_end_of_an_epoch() -> None:
    """R43: training_epoch_end, other callbacks, the module, then monitors, which see what the module logs there."""

    class Module(Given):
        def training_epoch_end(self, outputs: Any) -> None:
            self.events.append(("training_epoch_end", len(outputs)))

        def on_train_epoch_end(self) -> None:
            self.log("x", 3.0)
            self.events.append("module")

    module = Module()
    fit(module, given(1, 2), callbacks=[Monitor(), Other()])
    assert module.events == [("training_epoch_end", 2), ("other", False), "module", ("monitor", 3.0)]


# -- hooks of 1.x -----------------------------------------------------------------------------------------------------

FIRST_ERA_SHARED = words(
    "on_pretrain_routine_start on_pretrain_routine_end on_epoch_start on_epoch_end on_batch_start on_batch_end"
)
FIRST_ERA_MODULE = words(
    "on_train_dataloader on_val_dataloader on_test_dataloader on_predict_dataloader",
    "training_epoch_end validation_epoch_end test_epoch_end training_step_end validation_step_end test_step_end",
)
FIRST_ERA_CALLBACK = ["on_init_start", "on_init_end", "on_keyboard_interrupt"]


@pytest.mark.parametrize("name", [*FIRST_ERA_SHARED, *FIRST_ERA_MODULE, *FIRST_ERA_CALLBACK])
def test_base_classes_do_not_define_hooks_of_1x(name: str) -> None:
    """R45: they are looked up on the user's class."""
    for base in (LightningModule, Callback, leyden.LightningDataModule):
        assert not hasattr(base, name)


def noting(events: list[str], prefix: str, hooks: list[str], passes_on: tuple[str, ...] = ()) -> dict[str, Any]:
    """Methods that note that they were called, and return their argument if they pass it on."""

    def build(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any) -> Any:
            events.append(prefix + name)
            return args[0] if name in passes_on else None

        return method

    return {name: build(name) for name in hooks}


def old_fit(stage: str = "fit") -> list[str]:
    """The events of a module and a callback that define what 1.5 had, and some of what there still is."""
    events: list[str] = []
    both = "on_fit_start on_train_start on_train_epoch_start on_train_batch_start on_train_batch_end on_train_epoch_end"
    both += " on_validation_start on_validation_epoch_start on_validation_epoch_end on_validation_end"
    steps = ["validation_step", "test_step", "predict_step", "train_dataloader"]
    ends = ("training_step_end", "validation_step_end", "test_step_end")
    shared = [*FIRST_ERA_SHARED, *both.split()]
    methods = noting(events, "", [*shared, *FIRST_ERA_MODULE, *steps], ends)
    run = {name: methods[name] for name in steps[:3]}

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        events.append("training_step")
        return self.loss(batch)

    def asked(name: str) -> Callable[[Any], Any]:
        def method(self: Any) -> Any:
            events.append(name)
            return given(1)

        return method

    loaders = {name: asked(name) for name in (f"{s}_dataloader" for s in ("train", "val", "test", "predict"))}
    module = type("Module", (Given,), {**methods, **run, **loaders, "training_step": training_step})()
    callback = type("Old", (Callback,), noting(events, "cb.", ["on_sanity_check_start", *shared]))()
    arguments: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
    getattr(Trainer(callbacks=[callback], **arguments), stage)(module)
    return events


def both(*hooks: str) -> str:
    """Each hook of the callback, then of the module."""
    return " ".join(f"cb.{hook} {hook}" for hook in hooks)


OLD_VALIDATION = (
    both("on_validation_start", "on_epoch_start", "on_validation_epoch_start"),
    "validation_step validation_step_end validation_epoch_end",
    both("on_validation_epoch_end", "on_epoch_end", "on_validation_end"),
)


def test_hooks_of_1x_in_a_fit() -> None:
    """R45: the pretrain routine before the sanity check, epoch hooks around both kinds of epochs."""
    expected = words(
        both("on_fit_start", "on_pretrain_routine_start", "on_pretrain_routine_end"),
        "cb.on_sanity_check_start on_val_dataloader val_dataloader",
        *OLD_VALIDATION,
        "on_train_dataloader train_dataloader",
        both("on_train_start", "on_epoch_start", "on_train_epoch_start", "on_batch_start", "on_train_batch_start"),
        "training_step training_step_end",
        both("on_train_batch_end", "on_batch_end"),
        *OLD_VALIDATION,
        "training_epoch_end",
        both("on_train_epoch_end", "on_epoch_end"),
    )
    assert old_fit() == expected


def test_hooks_of_1x_in_test_and_predict() -> None:
    """R45: on_test_dataloader, test_step_end, test_epoch_end, on_predict_dataloader, and the epoch hooks."""
    assert old_fit("test") == words(
        "on_test_dataloader test_dataloader",
        both("on_epoch_start"),
        "test_step test_step_end test_epoch_end",
        both("on_epoch_end"),
    )
    assert old_fit("predict") == words("on_predict_dataloader predict_dataloader predict_step")


def test_step_end_replaces_the_output() -> None:
    """R45: ``*_step_end`` gets what the step returned; its result counts."""

    class Module(Given):
        def training_step_end(self, output: Any) -> Any:
            return 2 * output

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return batch.item()

        def validation_step_end(self, output: Any) -> Any:
            return 3 * output

        def validation_epoch_end(self, outputs: Any) -> None:
            self.events.append(outputs)

    module = Module()
    fit(module, given(1, 2))
    assert module.gradients == [[2.0], [4.0]]
    Trainer(accelerator="cpu", enable_progress_bar=False).validate(module, given(5))
    assert module.events == [[15.0]]


def test_callback_hooks_of_1x_around_the_trainer() -> None:
    """R45: on_init_start and on_init_end when a Trainer is made."""
    events: list[Any] = []

    class Old(Callback):
        def on_init_start(self, trainer: Any) -> None:
            events.append(("on_init_start", type(trainer)))

        def on_init_end(self, trainer: Any) -> None:
            events.append(("on_init_end", trainer.max_epochs))

    Trainer(callbacks=[Old()], max_epochs=3, enable_progress_bar=False)
    assert events == [("on_init_start", Trainer), ("on_init_end", 3)]


def test_keyboard_interrupt() -> None:
    """R45: callbacks that have on_keyboard_interrupt are told, before on_exception."""
    events: list[str] = []
    hooks = noting(events, "", ["on_keyboard_interrupt", "on_exception"])

    class Module(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Module(), given(1), callbacks=[type("Old", (Callback,), hooks)()])
    assert events == ["on_keyboard_interrupt", "on_exception"]


# -- leaving an epoch, empty batches ----------------------------------------------------------------------------------


class Leaves(Given):
    """Leaves the epoch at its second batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.events.append((self.current_epoch, batch_idx))
        return -1 if batch_idx == 1 else None

    def on_train_epoch_end(self) -> None:
        self.events.append("on_train_epoch_end")


def test_leaving_an_epoch() -> None:
    """R46: the rest of the epoch is skipped, its end hooks run, and the next epoch begins."""
    module = Leaves()
    fit(module, given(1, 2, 3), max_epochs=2)
    assert module.events == [(0, 0), (0, 1), "on_train_epoch_end", (1, 0), (1, 1), "on_train_epoch_end"]
    assert module.gradients == [[1.0], [1.0]]


def test_what_callbacks_return_counts_for_nothing() -> None:
    """R46: only the module may leave an epoch."""

    class Returns(Callback):
        def on_train_batch_start(self, *_: Any) -> int:
            return -1

    module = Given()
    fit(module, given(1, 2), callbacks=[Returns()])
    assert module.gradients == [[1.0], [2.0]]


def test_an_empty_batch() -> None:
    """R47: a warning, no optimisation, but on_train_batch_end; the events are Lightning's."""
    case = {"methods": {"train_dataloader": lambda self: Unsized([*loader(2), None, *loader(1)])}}
    theirs, ours = Run(pytorch_lightning, case), Run(leyden, case)
    assert names(ours.events) == names(theirs.events)
    assert batch(ours, 2) == words(TRANSFER, "lr_scheduler_step", END)
    assert "on_train_batch_end({}, None, 2)" in ours.events
    with pytest.warns(UserWarning, match=r"the loader yielded None: this batch is skipped .*\[batch-none\]"):
        fit(Given(), Unsized([torch.ones(1), None]))


# -- what hooks are given ---------------------------------------------------------------------------------------------


def test_which_hooks_get_the_handle() -> None:
    """R48: optimizer_step alone; all others get the optimizer itself."""
    run = leyden_run()
    with_optimizer = {event for event in run.events if "SGD" in event}
    assert {event for event in with_optimizer if "LightningSGD" in event} == {
        f"optimizer_step(0, {i}, LightningSGD, closure)" for i in range(3)
    }
    assert {event.partition("(")[0] for event in with_optimizer if "LightningSGD" not in event} == {
        *("cb.on_before_zero_grad", "on_before_zero_grad", "optimizer_zero_grad"),
        *("cb.on_before_optimizer_step", "on_before_optimizer_step"),
        *("configure_gradient_clipping", "clip_gradients"),
    }


def test_the_handle_leads_to_the_optimizer() -> None:
    """R48: ``optimizer.optimizer`` in optimizer_step is what the other hooks get."""

    class Module(Given):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:  # type: ignore[override]
            self.events.append(optimizer.optimizer)
            optimizer.step(closure=optimizer_closure)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.events.append(optimizer)

    module = Module()
    trainer = fit(module, given(1))
    assert module.events == [trainer.optimizers[0], trainer.optimizers[0]]


class Seen(Given):
    """Notes the gradient where optimizer hooks see it."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append(("before", self.weight.grad.item()))  # type: ignore[union-attr]

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.events.append(("clipped", self.weight.grad.item()))  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_gradients_that_hooks_see(precision: str) -> None:
    """R49: accumulated, unscaled and unclipped before the step; clipped after configure_gradient_clipping."""
    scaled = {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))}
    module = Seen()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    fit(module, given(1, 3), **options, **(scaled if precision == "16-mixed" else {}))
    assert module.events == [("before", 2.0), ("clipped", 0.5)]
    assert module.gradients == [[0.5]]


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_list_of_batches_is_a_loader() -> None:
    """V13: of tensors, tuples or dicts; a list of loaders is a list of loaders."""

    class Sums(Given):
        def loss(self, batch: Any) -> Any:
            parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else [batch]
            return sum(super(Sums, self).loss(part) for part in parts)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.events.append((dataloader_idx, batch.item()))

    one = torch.ones(1)
    for data in ([one, one], [(one, one)], [{"x": one, "y": one}]):
        module = Sums()
        fit(module, data)
        assert module.weight.item() == -2.0
    module = Sums()
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    trainer.validate(module, given(1, 2))
    assert module.events == [(0, 1.0), (0, 2.0)]
    trainer.validate(module, [loader(1), loader(1)])
    assert module.events[2:] == [(0, 1.0), (1, 1.0)]


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_the_mode_hooks_may_log(stage: str) -> None:
    """R126: on_validation_model_eval and its like are hooks of the epoch, so self.log works inside of them."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        """Nothing to compute."""

    def switch(self: Any) -> None:
        self.log("mode", 1.0)
        self.eval()

    module = type("Logs", (Module,), {f"{stage}_step": step, f"on_{stage}_model_eval": switch})()
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    run = trainer.validate if stage == "validation" else trainer.test
    assert run(module, [torch.ones(1)], verbose=False) == [{"mode": 1.0}]
