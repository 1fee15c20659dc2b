"""The order of events: R40-R49, written down as lists, and the same as Lightning's, event by event."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
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
from leyden import Callback, LightningModule, MisconfigurationException, Trainer

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
    "an empty batch": {"methods": {"train_dataloader": lambda self: Unsized([*loader(2), None, *loader(1)])}},
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
    """R40-R44, R46-R48: every call of every method of module, callback and datamodule, arguments and all."""
    theirs, ours = Run(pytorch_lightning, CASES[name]), Run(leyden, CASES[name])
    assert ours.events == theirs.events
    assert len(ours.events) > 20


@pytest.mark.parametrize("name", CASES)
def test_the_state_at_every_event_is_lightnings(name: str) -> None:
    """R40, R44, R49: counters, modes, gradients and weights, bit for bit, that each of these calls can see."""
    theirs, ours = Run(pytorch_lightning, CASES[name]), Run(leyden, CASES[name])
    assert ours.states == theirs.states
