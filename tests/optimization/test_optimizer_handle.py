"""Rules R68-R73 (H: the wrapper, here called the handle)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from leyden import Callback, LightningModule, MisconfigurationException, Trainer
from leyden.optimization.joint import Joint
from leyden.optimization.optimizer import LightningOptimizer
from seed_page import BATCHES, EPOCHS, Regression, TwoPlayers, assert_same_weights, batches, create, fit


class Automatic(Regression):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.compute_loss(batch)


class Manual(Regression):
    """One optimizer, driven by hand; notes the hooks before a step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.events: list[str] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        self.step(optimizer)

    def step(self, optimizer: Any) -> None:
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append("before")


def in_manual_mode(step: Any = None, optimizer: Any = None) -> type[Manual]:
    """A manual module that steps, or is optimized, in another way."""
    members: dict[str, Any] = {}
    if step is not None:
        members["step"] = step
    if optimizer is not None:
        members["configure_optimizers"] = lambda self: optimizer(self.parameters())
    return type("Module", (Manual,), members)


def in_automatic_mode(optimizer: Any) -> type[Automatic]:
    return type("Module", (Automatic,), {"configure_optimizers": lambda self: optimizer(self.parameters())})


@pytest.fixture
def raw() -> SGD:
    return SGD([nn.Parameter(torch.ones(2))], lr=0.5, momentum=0.9)


# ------------------------------------------------------------------------------------------ R68: what it is


def test_a_handle_is_an_instance_of_the_optimizer_s_class(raw: SGD) -> None:
    """R68: isinstance holds for the raw class, Optimizer and LightningOptimizer; the name is "Lightning" + its."""
    handle = LightningOptimizer(raw)
    assert isinstance(handle, SGD) and isinstance(handle, Optimizer) and isinstance(handle, LightningOptimizer)
    assert not isinstance(handle, Adam)
    assert handle.__class__.__name__ == "LightningSGD"
    assert raw is handle.optimizer


def test_reads_go_to_the_optimizer_live(raw: SGD) -> None:
    """R68: attributes are read from the raw optimizer at that moment, also after load_state_dict or reassignment."""
    handle = LightningOptimizer(raw)
    state = raw.state_dict()
    state["param_groups"][0]["lr"] = 0.25
    raw.load_state_dict(state)
    assert raw.param_groups is handle.param_groups and handle.param_groups[0]["lr"] == 0.25
    assert raw.state is handle.state and raw.defaults is handle.defaults
    raw.note = "new"  # type: ignore[attr-defined]
    assert handle.note == "new"
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'nothing'"):
        _ = handle.nothing


def test_writes_stay_on_the_handle_and_mutations_reach_the_optimizer(raw: SGD) -> None:
    """R68: handle.x = ... leaves the raw optimizer alone; param_groups[i]["lr"] = ... does not."""
    handle = LightningOptimizer(raw)
    handle.note = "mine"
    assert handle.note == "mine" and not hasattr(raw, "note")
    handle.param_groups[0]["lr"] = 0.125
    assert raw.param_groups[0]["lr"] == 0.125


def test_a_handle_keeps_nothing_of_the_optimizer_in_its_dict(raw: SGD) -> None:
    """R68: __dict__ holds the handle's own fields only, as in 2.x."""
    assert not {"param_groups", "state", "defaults"} & vars(LightningOptimizer(raw)).keys()


def test_methods_work_through_the_handle(raw: SGD) -> None:
    """R68: repr, state_dict, add_param_group and zero_grad."""
    handle = LightningOptimizer(raw)
    assert repr(handle) == "Lightning" + repr(raw)
    assert raw.state_dict() == handle.state_dict()
    handle.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert len(raw.param_groups) == 2
    raw.param_groups[0]["params"][0].grad = torch.ones(2)
    handle.zero_grad()
    assert raw.param_groups[0]["params"][0].grad is None


def test_a_handle_of_a_handle_holds_the_optimizer(raw: SGD) -> None:
    """R68: wrapping twice changes nothing."""
    assert raw is LightningOptimizer(LightningOptimizer(raw)).optimizer


def test_a_handle_steps_without_a_run(raw: SGD) -> None:
    """R68, R69: outside of a run step() is the raw optimizer's, with and without closure."""
    handle = LightningOptimizer(raw)
    parameter = raw.param_groups[0]["params"][0]
    parameter.grad = torch.ones(2)
    assert handle.step() is None
    assert torch.equal(torch.full((2,), 0.5), parameter)
    assert handle.step(closure=lambda: 3.0) == 3.0


@pytest.mark.parametrize("base", [Automatic, Manual])
def test_the_same_handle_comes_with_every_call(base: type[Any]) -> None:
    """R68: self.optimizers() and the optimizer_step hook hand out one object, in both modes."""

    class Module(base):  # type: ignore[misc]
        seen: list[Any]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.seen = [*getattr(self, "seen", []), self.optimizers(), self.optimizers()]

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert optimizer is self.optimizers().optimizer

    class WithStep(Module):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.seen.append(optimizer)
            optimizer.step(closure=optimizer_closure)

    module, _ = create(WithStep)
    fit(module, batches(2))
    assert len({id(handle) for handle in module.seen}) == 1
    assert type(module.seen[0]) is LightningOptimizer


# ---------------------------------------------------------------------------------------------- R69: step()


@pytest.mark.parametrize("closure", ["loss", 1.5, torch.ones(())])
def test_a_closure_must_be_callable(raw: SGD, closure: Any) -> None:
    """R69: anything else is refused."""
    with pytest.raises(MisconfigurationException, match=r"takes a callable, got \w+: pass the function") as error:
        LightningOptimizer(raw).step(closure=closure)
    assert error.value.code == "closure-not-callable"


class WithArguments(SGD):
    """Its step takes more than a closure and returns what it got."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)

    def step(self, closure: Any = None, *, factor: float = 1.0, note: str = "") -> Any:  # type: ignore[override]
        value = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad *= factor
        super().step()
        return value, factor, note


def test_arguments_reach_the_optimizer_and_its_value_comes_back() -> None:
    """R69: extra keywords go to raw.step, and its return value is returned, in manual mode."""
    returned = []

    def step(self: Any, optimizer: Any) -> None:
        returned.append(optimizer.step(factor=0.5, note="n"))

    module, twin = create(in_manual_mode(step, WithArguments))
    fit(module)
    assert returned == [(None, 0.5, "n")] * (EPOCHS * BATCHES)

    opt = WithArguments(twin.parameters())
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step(factor=0.5)
    assert_same_weights(module, twin)


def test_arguments_reach_the_optimizer_in_automatic_mode() -> None:
    """R69: the same through an overridden optimizer_step."""
    returned = []

    class Module(Automatic):
        def configure_optimizers(self) -> Any:
            return WithArguments(self.parameters())

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            returned.append(optimizer.step(closure=optimizer_closure, note="n"))

    module, _ = create(Module)
    fit(module, batches(1), max_epochs=1)
    ((value, factor, note),) = returned
    assert isinstance(value, Tensor) and (factor, note) == (1.0, "n")


def test_step_returns_the_closure_s_value_or_none() -> None:
    """R69: torch's optimizers return what the closure returned, or None without one."""
    returned: list[Any] = []

    def step(self: Any, optimizer: Any) -> None:
        returned.append(optimizer.step())
        returned.append(optimizer.step(closure=lambda: 2.5))

    module, _ = create(in_manual_mode(step))
    fit(module, batches(2), max_epochs=1)
    assert returned == [None, 2.5, None, 2.5]


# ----------------------------------------------------------------- R70: optimizers that do as they like with closures


class WithoutClosure(SGD):
    """Its step takes no closure."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)

    def step(self) -> None:  # type: ignore[override]
        super().step()


class Deaf(SGD):
    """Its step takes a closure and ignores it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()


def train_by_hand(twin: Any) -> None:
    opt = SGD(twin.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()


def test_an_optimizer_without_closure_in_automatic_mode() -> None:
    """R70: the closure runs first, then step() bare; hooks and clipping in between."""
    module, twin = create(in_automatic_mode(WithoutClosure))
    fit(module)
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_an_optimizer_without_closure_in_manual_mode() -> None:
    """R70: likewise, and the hooks run between the closure and the step."""

    class Module(in_manual_mode(optimizer=WithoutClosure)):  # type: ignore[misc]
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> None:
                self.events.append("closure")
                optimizer.zero_grad()
                self.manual_backward(self.compute_loss(batch))

            optimizer.step(closure)

    module, twin = create(Module)
    trainer = fit(module)
    assert module.events == ["closure", "before"] * (EPOCHS * BATCHES)
    assert trainer.global_step == EPOCHS * BATCHES
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_hooks_run_in_manual_mode_though_the_optimizer_ignores_its_closure() -> None:
    """R70: on_before_optimizer_step runs all the same; in automatic mode R55 refuses such an optimizer."""
    called = []

    def step(self: Any, optimizer: Any) -> None:
        optimizer.step(closure=lambda: called.append("closure"))

    module, twin = create(in_manual_mode(step, Deaf))
    trainer = fit(module)
    assert called == []
    assert module.events == ["before"] * (EPOCHS * BATCHES)
    assert trainer.global_step == EPOCHS * BATCHES
    train_by_hand(twin)
    assert_same_weights(module, twin)


# --------------------------------------------------------------------------------- R71: the optimizer itself


def test_a_raw_step_in_manual_mode_bypasses_hooks_and_counters() -> None:
    """R71: optimizer.optimizer.step() updates, and neither hooks nor global_step know of it."""
    module, twin = create(in_manual_mode(lambda self, optimizer: optimizer.optimizer.step()))
    trainer = fit(module)
    assert (trainer.global_step, module.events) == (0, [])

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_a_raw_step_in_optimizer_step_counts_and_skips_hooks_and_clipping() -> None:
    """R71: optimizer.optimizer.step(closure=...) in automatic mode runs the closure and counts for global_step."""

    class Module(Automatic):
        def __init__(self) -> None:
            super().__init__()
            self.events: list[str] = []

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer.optimizer.step(closure=optimizer_closure)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.events.append("before")

    module, twin = create(Module)
    trainer = fit(module, gradient_clip_val=1e-3)
    assert (trainer.global_step, module.events) == (EPOCHS * BATCHES, [])

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
    assert_same_weights(module, twin)


# ------------------------------------------------------------------------------------- R72: self.optimizers()


@pytest.mark.parametrize("automatic", [True, False])
def test_a_single_optimizer_comes_as_itself(automatic: bool) -> None:
    """R72: one object if there is one; raw with use_pl_optimizer=False; in both modes, and still after fit."""
    module, _ = create(Automatic if automatic else Manual)
    trainer = fit(module, max_epochs=1)
    assert type(module.optimizers()) is LightningOptimizer
    assert type(module.optimizers(use_pl_optimizer=False)) is SGD
    assert [module.optimizers().optimizer] == trainer.optimizers


@pytest.mark.parametrize("automatic", [True, False])
def test_several_optimizers_come_as_a_list_in_configured_order(automatic: bool) -> None:
    """R72: a list of handles or of the optimizers themselves."""

    class Module(TwoPlayers):
        automatic_optimization = automatic

        def training_step(self, batch: Any, batch_idx: int, *index: int) -> Any:
            assert len(self.optimizers()) == 2
            return super().training_step(batch, batch_idx, *index) if index else None

    module, _ = create(Module)
    trainer = fit(module, max_epochs=1)
    assert [Adam, SGD] == [type(optimizer) for optimizer in module.optimizers(use_pl_optimizer=False)]
    assert trainer.optimizers == [handle.optimizer for handle in module.optimizers()]
    assert isinstance(module.optimizers(), list)


def test_the_list_may_be_changed_without_changing_the_run() -> None:
    """R72: what is returned is the caller's own list."""
    module, _ = create(TwoPlayers)
    fit(module, max_epochs=1)
    module.optimizers().clear()
    assert len(module.optimizers()) == 2


# --------------------------------------------------------------------------- R73: when handles are made and dropped


def test_a_second_fit_makes_new_handles() -> None:
    """R73: fit called again hands out new objects, around the new optimizers."""
    module, _ = create(Manual)
    trainer = fit(module, max_epochs=1)
    first = module.optimizers()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches())
    assert first is not module.optimizers() and first.optimizer is not module.optimizers().optimizer
    assert trainer.global_step == 2 * BATCHES


def test_assigning_trainer_optimizers_makes_new_handles() -> None:
    """R73: trainer.optimizers = [...] in on_fit_start: handles are rebuilt around what was assigned."""
    module, twin = create(Automatic)

    class Replace(Callback):
        def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
            self.before = module.optimizers()
            trainer.optimizers = [SGD(module.parameters(), lr=0.01)]

    replace = Replace()
    trainer = fit(module, callbacks=replace)
    assert replace.before is not module.optimizers()
    assert trainer.optimizers == [module.optimizers().optimizer]

    opt = SGD(twin.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_optimizers_may_be_assigned_between_epochs() -> None:
    """R73: from then on the new optimizer is driven, windows, counters and hooks included."""

    class Module(Automatic):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers = [SGD(self.parameters(), lr=0.01)]

    module, twin = create(Module)
    trainer = fit(module, accumulate_grad_batches=2)
    assert trainer.global_step == EPOCHS * 3

    opt = twin.configure_optimizers()
    for epoch in range(EPOCHS):
        if epoch == 1:
            opt = SGD(twin.parameters(), lr=0.01)
        every = list(batches())
        for start in range(0, BATCHES, 2):
            window = every[start : start + 2]
            opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / len(window)).backward()
            opt.step()
    assert_same_weights(module, twin)


def test_a_pickled_handle_leaves_the_run_behind() -> None:
    """R73: what comes out of a pickle or a deep copy is a handle on a copy, bound to no run."""
    module, _ = create(Manual)
    trainer = fit(module, max_epochs=1)
    handle = module.optimizers()
    for copied in (pickle.loads(pickle.dumps(handle)), copy.deepcopy(handle)):
        assert type(copied) is LightningOptimizer and copied.optimizer is not handle.optimizer
        assert handle.param_groups[0]["lr"] == copied.param_groups[0]["lr"]
        copied.step()
    assert trainer.global_step == BATCHES


def test_a_module_that_keeps_a_handle_can_be_copied() -> None:
    """R73: the trainer does not come along."""
    module, _ = create(Manual)
    fit(module, max_epochs=1)
    module.mine = module.optimizers()
    copied = copy.deepcopy(module)
    assert copied._trainer is None
    assert copied.mine.optimizer is not module.mine.optimizer


def test_a_returned_handle_is_taken_for_its_optimizer() -> None:
    """R68, R72: configure_optimizers may return a handle, with a scheduler that was built on it."""

    class Module(Automatic):
        def configure_optimizers(self) -> Any:
            handle = LightningOptimizer(super().configure_optimizers())
            return [handle], [StepLR(handle, 1, gamma=0.5)]  # type: ignore[arg-type]

    module, twin = create(Module)
    trainer = fit(module)
    assert type(trainer.optimizers[0]) is SGD
    (opt,), (scheduler,) = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
        scheduler.step()
    assert_same_weights(module, twin)


def test_a_handle_on_a_joint() -> None:
    """R68: the handle of a Joint is a Joint, with its members to be read."""
    members = [SGD([nn.Parameter(torch.ones(1))], lr=lr) for lr in (0.1, 0.2)]
    handle = LightningOptimizer(Joint(members))
    assert isinstance(handle, Joint)
    assert tuple(members) == handle.optimizers
    assert [group["lr"] for group in handle.param_groups] == [0.1, 0.2]
