"""Rules R74-R78 (I: overriding optimizer_step), against loops written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam

from leyden import LightningModule, MisconfigurationException
from leyden.callbacks import GradientAccumulationScheduler
from leyden.optimization.optimizer import LightningOptimizer
from seed_page import BATCHES, EPOCHS, Regression, TwoPlayers, assert_same_weights, batches, create, fit, lbfgs


class Stepping(Regression):
    """Notes the arguments of its 2.x optimizer_step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.compute_loss(batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> Any:
        self.calls.append((epoch, batch_idx, optimizer))
        return optimizer.step(closure=optimizer_closure)


class FirstEra(Regression):
    """Notes what a 1.x optimizer_step gets by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.compute_loss(batch)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_idx: int,
        optimizer_closure: Any,
        on_tpu: Any = "default",
        using_native_amp: Any = "default",
        using_lbfgs: Any = "default",
    ) -> None:
        self.calls.append((optimizer_idx, on_tpu, using_native_amp, using_lbfgs))
        optimizer.step(closure=optimizer_closure)


def train_by_hand(twin: Any, optimizer: Any = None) -> None:
    opt = optimizer or twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()


# ----------------------------------------------------------------------------------- R74: when, and with what


def test_called_once_per_batch_with_epoch_and_index() -> None:
    """R74: epoch is trainer.current_epoch, batch_idx the index in it, the optimizer a handle."""
    module, twin = create(Stepping)
    fit(module)
    places = [(epoch, batch_idx) for epoch in range(EPOCHS) for batch_idx in range(BATCHES)]
    assert places == [call[:2] for call in module.calls]
    assert {id(module.optimizers())} == {id(call[2]) for call in module.calls}
    assert type(module.calls[0][2]) is LightningOptimizer
    train_by_hand(twin)
    assert_same_weights(module, twin)


@pytest.mark.filterwarnings(r"ignore:.*\[accumulation-override\]")
def test_never_called_while_accumulating() -> None:
    """R74: with windows of two it is called on the closing batches and on the epoch's last."""
    module, _ = create(Stepping)
    fit(module, max_epochs=1, accumulate_grad_batches=2)
    assert [call[1] for call in module.calls] == [1, 3, 4]


def test_called_once_per_optimizer() -> None:
    """R74: two optimizers: once for each, with its own index."""

    class Module(TwoPlayers):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int, optimizer_closure: Any
        ) -> None:
            self.calls = [*getattr(self, "calls", []), (batch_idx, optimizer_idx, type(optimizer.optimizer))]
            optimizer.step(closure=optimizer_closure)

    module, _ = create(Module)
    fit(module, batches(2), max_epochs=1)
    assert [(0, 0, Adam), (0, 1, SGD), (1, 0, Adam), (1, 1, SGD)] == module.calls


def test_never_called_in_manual_mode() -> None:
    """R74: in manual mode steps are the user's."""

    class Module(Stepping):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            optimizer.step()

    module, twin = create(Module)
    fit(module)
    assert module.calls == []
    train_by_hand(twin)
    assert_same_weights(module, twin)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_flags_of_the_first_era(precision: str) -> None:
    """R74: on_tpu False, using_native_amp whether mixed precision is active, using_lbfgs whether it is LBFGS."""
    module, _ = create(FirstEra)
    fit(module, batches(1), max_epochs=1, precision=precision)
    assert [(0, False, precision == "bf16-mixed", False)] == module.calls


def test_flag_for_lbfgs() -> None:
    """R74: using_lbfgs is True for LBFGS and what derives from it."""

    class Mine(LBFGS):
        pass

    class Module(FirstEra):
        def configure_optimizers(self) -> LBFGS:
            return Mine(self.parameters(), max_iter=2)

    module, _ = create(Module)
    fit(module, batches(1), max_epochs=1)
    assert module.calls == [(0, False, False, True)]


# -------------------------------------------------------------------------------------- R75: what it may do


@pytest.mark.parametrize("returned", [None, -1, "text", torch.ones(3)], ids=str)
def test_the_return_value_is_ignored(returned: Any) -> None:
    """R75: whatever it returns, the run goes on."""

    class Module(Stepping):
        def optimizer_step(self, *args: Any) -> Any:
            super().optimizer_step(*args)
            return returned

    module, twin = create(Module)
    fit(module)
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_it_may_step_several_times() -> None:
    """R75: two steps of the handle are two updates and one step of global_step."""

    class Module(Stepping):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer.step(closure=optimizer_closure)
            optimizer.step(closure=optimizer_closure)

    module, twin = create(Module)
    trainer = fit(module)
    assert trainer.global_step == EPOCHS * BATCHES

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            for _ in range(2):
                opt.zero_grad()
                twin.compute_loss(batch).backward()
                opt.step()
    assert_same_weights(module, twin)


def test_it_may_change_learning_rates() -> None:
    """R75, R76: warm-up by global_step, as on the page: it is 0 on the first step, and rises after the hook."""

    class Module(Stepping):
        seen: list[int] = []

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = min(1.0, (self.trainer.global_step + 1) / 8) * 0.1
            self.seen.append(self.trainer.global_step)
            optimizer.step(closure=optimizer_closure)
            self.seen.append(self.trainer.global_step)

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen.append(self.trainer.global_step)

    module, twin = create(Module)
    fit(module)
    assert module.seen[:9] == [0, 0, 1, 1, 1, 2, 2, 2, 3]

    opt = twin.configure_optimizers()
    for step in range(EPOCHS * BATCHES):
        opt.param_groups[0]["lr"] = min(1.0, (step + 1) / 8) * 0.1
        opt.zero_grad()
        twin.compute_loss(list(batches())[step % BATCHES]).backward()
        opt.step()
    assert_same_weights(module, twin)


def test_it_may_call_the_base_class() -> None:
    """R75: super().optimizer_step does the default in either era."""

    class Second(Stepping):
        def optimizer_step(self, *args: Any) -> Any:
            return LightningModule.optimizer_step(self, *args)

    class First(FirstEra):
        def optimizer_step(  # type: ignore[override]
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int, optimizer_closure: Any, **flags: Any
        ) -> None:
            assert {"on_tpu", "using_native_amp", "using_lbfgs"} == flags.keys()
            LightningModule.optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure, **flags)

    for kind in (Second, First):
        module, twin = create(kind)
        fit(module)
        train_by_hand(twin)
        assert_same_weights(module, twin)


def test_it_may_not_step_at_all() -> None:
    """R75, R55: without calling the closure it is refused."""

    class Module(Stepping):
        def optimizer_step(self, *_: Any) -> None:
            pass

    module, _ = create(Module)
    with pytest.raises(MisconfigurationException, match="without calling the closure"):
        fit(module)


def test_it_may_drive_lbfgs() -> None:
    """R75, R74: the closure of a reevaluating optimizer goes through the override, once per batch."""

    class Module(Stepping):
        def configure_optimizers(self) -> LBFGS:
            return lbfgs(self)

    module, twin = create(Module)
    fit(module)
    assert len(module.calls) == EPOCHS * BATCHES

    opt = lbfgs(twin)
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                opt.zero_grad()
                loss = twin.compute_loss(batch)
                loss.backward()
                return loss

            opt.step(closure)
    assert_same_weights(module, twin)


# -------------------------------------------------------------------------------------- R76: global_step


def test_global_step_rises_between_the_turns() -> None:
    """R76: with two optimizers the second one's hook already sees the first one's step."""

    class Module(TwoPlayers):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int, optimizer_closure: Any
        ) -> None:
            self.seen = [*getattr(self, "seen", []), self.trainer.global_step]
            optimizer.step(closure=optimizer_closure)
            assert self.seen[-1] == self.trainer.global_step

    module, _ = create(Module)
    fit(module, batches(2), max_epochs=1)
    assert module.seen == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------ R77: accumulation


class ZeroGrad(Regression):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.compute_loss(batch)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad()


@pytest.mark.parametrize("arguments", [{"accumulate_grad_batches": 2}, {"accumulate_grad_batches": {1: 2}}], ids=str)
@pytest.mark.parametrize(("kind", "name"), [(Stepping, "optimizer_step"), (ZeroGrad, "optimizer_zero_grad")])
def test_overriding_and_accumulating_warns(kind: type[Any], name: str, arguments: Any) -> None:
    """R77: an override of optimizer_step or optimizer_zero_grad together with accumulation: told at fit start."""
    module, _ = create(kind)
    with pytest.warns(UserWarning, match=f"{name} is overridden and gradients are accumulated"):
        fit(module, **arguments)


@pytest.mark.parametrize("kind", [Stepping, ZeroGrad])
def test_overriding_and_a_schedule_as_callback_warns(kind: type[Any]) -> None:
    """R77: a GradientAccumulationScheduler among the callbacks accumulates as well."""
    module, _ = create(kind)
    with pytest.warns(UserWarning, match="is overridden and gradients are accumulated"):
        fit(module, callbacks=GradientAccumulationScheduler({1: 2}))


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": {0: 1}}], ids=str)
@pytest.mark.parametrize("kind", [Stepping, ZeroGrad])
def test_overriding_without_accumulation_does_not_warn(kind: type[Any], arguments: Any) -> None:
    """R77: no accumulation, no warning."""
    module, _ = create(kind)
    fit(module, batches(1), max_epochs=1, **arguments)


# ------------------------------------------------------------------------------------------------ R78: logging


def test_logging_works_and_goes_by_step() -> None:
    """R78: self.log in optimizer_step, on_step by default."""

    class Rows:
        def __init__(self) -> None:
            self.rows: list[tuple[int, Any]] = []

        def log_metrics(self, metrics: Any, step: int) -> None:
            self.rows.append((step, metrics["lr"]))

    class Module(Stepping):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer.step(closure=optimizer_closure)
            self.log("lr", float(self.trainer.global_step))

    rows = Rows()
    module, _ = create(Module)
    trainer = fit(module, batches(3), max_epochs=1, logger=rows, log_every_n_steps=1)
    assert rows.rows == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert list(trainer.callback_metrics) == ["lr"]
