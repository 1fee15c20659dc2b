"""What the run does for optimizers that want more than a call of ``step``."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from leyden import Callback, Joint, LightningModule, Trainer
from leyden.optimization.contract import contract_of

DATA = [torch.full((2, 3), float(value)) for value in range(1, 4)]


class WithModes(torch.optim.SGD):
    """Keeps its weights shifted while training, as schedule-free optimizers keep them interpolated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mode = "eval"
        self.stepped_in: list[str] = []

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.stepped_in.append(self.mode)
        return super().step(closure)


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.optimizer: Any = WithModes(self.layer.parameters(), lr=0.1)
        self.validated_in: list[str] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated_in.append(getattr(self.optimizer, "mode", "none"))

    def configure_optimizers(self) -> Any:
        return self.optimizer


def fit(module: LightningModule, **arguments: Any) -> Trainer:
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_progress_bar=False, **arguments)
    trainer.fit(module, DATA, DATA[:1])
    return trainer


def test_optimizers_with_modes_are_switched() -> None:
    """Training steps happen in train mode; validation, its sanity check and the end of the fit in eval mode."""
    module = Model()
    fit(module)
    assert module.optimizer.stepped_in == ["train"] * 6
    assert module.validated_in == ["eval"] * 3
    assert module.optimizer.mode == "eval"


def test_modes_of_the_members_of_a_joint_are_switched() -> None:
    """A Joint hands the switch on to the members that have modes."""
    module = Model()
    with_modes = WithModes([module.layer.weight], lr=0.1)
    module.configure_optimizers = lambda: Joint([with_modes, torch.optim.Adam([module.layer.bias])])  # type: ignore[method-assign]
    fit(module)
    assert with_modes.stepped_in == ["train"] * 6
    assert with_modes.mode == "eval"


def test_modes_are_eval_after_an_exception() -> None:
    """Whoever catches an exception finds the weights to evaluate or save."""
    module = Model()

    class Fails(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fit(module, callbacks=Fails())
    assert module.optimizer.mode == "eval"


@pytest.mark.parametrize("how", ["instance", "instance under a scheduler", "class", "hook", "late"])
def test_whoever_watches_a_step_sees_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's wrappers are left out only where nobody looks: patches and hooks are called for every step."""
    module, seen = Model(), []
    module.optimizer = torch.optim.SGD(module.layer.parameters(), lr=0.1)
    step = module.optimizer.step

    def patched(*args: Any, **kwargs: Any) -> Any:
        seen.append("step")
        return step(*args, **kwargs)

    class Late(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].step = patched

    if how == "instance":
        module.optimizer.step = patched
    elif how == "instance under a scheduler":
        module.optimizer.step = types.MethodType(
            lambda self, *args, **kwargs: patched(*args, **kwargs), module.optimizer
        )
        torch.optim.lr_scheduler.StepLR(module.optimizer, 1)
    elif how == "class":
        original = torch.optim.SGD.step

        @functools.wraps(original)
        def tracked(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append("step")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.SGD, "step", tracked)
    elif how == "hook":
        module.optimizer.register_step_pre_hook(lambda *_: seen.append("step"))
    fit(module, callbacks=[Late()] if how == "late" else [])
    assert len(seen) == (3 if how == "late" else 6)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam, torch.optim.Muon])
def test_stock_optimizers_evaluate_once(optimizer_class: Any) -> None:
    """torch's own ``step`` is known, also where a subclass inherits it; one with its own is taken the careful way."""
    parameters = [torch.nn.Parameter(torch.ones(2, 2))]
    own = {"step": lambda self, closure=None: None}
    assert contract_of(optimizer_class(parameters, lr=0.1)).bare_step is not None
    assert contract_of(type("Inherits", (optimizer_class,), {})(parameters, lr=0.1)).bare_step is not None
    assert contract_of(type("Own", (optimizer_class,), own)(parameters, lr=0.1)).bare_step is None


def test_lbfgs_evaluates_as_often_as_it_likes() -> None:
    """Its closure runs inside of its step."""
    assert contract_of(torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))])).bare_step is None
