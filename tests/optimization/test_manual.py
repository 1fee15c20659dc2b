"""Rules R79-R88 (J: manual mode) and V9, against loops written by hand.

``self.accumulate``, the accumulation helper of manual mode, has ``test_manual_accumulation.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import StepLR

from leyden import Callback, LightningModule, MisconfigurationException
from leyden.callbacks import GradientAccumulationScheduler
from leyden.precision import MixedPrecision
from seed_page import (
    BATCHES,
    EPOCHS,
    Regression,
    TwoPlayers,
    assert_same_weights,
    batches,
    create,
    fit,
    lbfgs,
    train_with_lbfgs,
)


class Manual(Regression):
    """zero_grad, manual_backward, step; subclasses change a part."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.events: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        optimizer.step()


def train_by_hand(twin: Any) -> None:
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()


# ------------------------------------------------------------------------------------------- R79: how to ask for it


class ByInit(Manual):
    pass


class ByAttribute(Manual):
    automatic_optimization = False

    def __init__(self) -> None:
        Regression.__init__(self)


class ByProperty(Manual):
    def __init__(self) -> None:
        Regression.__init__(self)

    @property
    def automatic_optimization(self) -> bool:  # type: ignore[override]
        return False


@pytest.mark.parametrize("kind", [ByInit, ByAttribute, ByProperty])
def test_manual_mode_is_asked_for_in_three_ways(kind: type[Any]) -> None:
    """R79: self.automatic_optimization = False in __init__, a class attribute, or an overriding property."""
    module, twin = create(kind)
    trainer = fit(module)
    train_by_hand(twin)
    assert_same_weights(module, twin)
    assert not trainer.plan.automatic


def test_the_mode_is_read_when_a_fit_starts() -> None:
    """R79: read at run time: one fit by hand, the next automatic, with the same module and trainer."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            if self.automatic_optimization:
                return self.compute_loss(batch)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

    module, twin = create(Module)
    trainer = fit(module, max_epochs=1)
    module.automatic_optimization = True
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(module, batches())
    train_by_hand(twin)
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * BATCHES


# -------------------------------------------------------------------------------------- R80: what is left alone


def test_nothing_but_training_step_trains() -> None:
    """R80: gradients are neither cleared nor made, no scheduler steps, nothing is toggled."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            assert all(parameter.requires_grad for parameter in self.parameters())
            loss = self.compute_loss(batch)
            loss.backward()
            return loss

        def configure_optimizers(self) -> Any:
            a, b = SGD(self.net[0].parameters(), lr=0.1), SGD(self.net[2].parameters(), lr=0.1)
            return [a, b], [StepLR(a, 1), {"scheduler": StepLR(b, 1), "interval": "step"}]

    module, twin = create(Module)
    trainer = fit(module)
    for _ in range(EPOCHS):
        for batch in batches():
            twin.compute_loss(batch).backward()
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs) and torch.equal(mine.grad, theirs.grad)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.1, 0.1]
    assert trainer.global_step == 0


def test_batch_and_epoch_hooks_validation_and_logging_go_on() -> None:
    """R80: what is not about updates runs as in automatic mode."""

    class Module(Manual):
        def on_train_epoch_start(self) -> None:
            self.events.append("epoch start")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.events.append("batch start")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.events.append("batch end")

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.events.append("validation")
            self.log("val", 1.0)

        def on_train_epoch_end(self) -> None:
            self.events.append("epoch end")

    module, _ = create(Module)
    module.val_dataloader = lambda: batches(1)
    trainer = fit(module, batches(2), max_epochs=1, num_sanity_val_steps=0)
    batch = ["batch start", "batch end"]
    assert module.events == ["epoch start", *batch, *batch, "validation", "epoch end"]
    assert trainer.callback_metrics["val"] == 1.0


# ------------------------------------------------------------------------------------------- R81: manual_backward


class Backwards(Manual):
    """Notes the hooks of a backward."""

    def on_before_backward(self, loss: Tensor) -> None:
        self.events.append(("before", loss.detach().clone()))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.events.append(("backward", loss.detach().clone()))
        super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        self.events.append(("after", None))


class Listener(Callback):
    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        module.events.append(("callback before", loss.detach().clone()))

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        module.events.append(("callback after", None))


def test_manual_backward_calls_the_hooks_around_backward() -> None:
    """R81: callbacks' and module's on_before_backward, backward, on_after_backward; the loss as it is."""

    class Module(Backwards):
        def compute_loss(self, batch: list[Tensor]) -> Tensor:
            self.loss = super().compute_loss(batch)
            return self.loss

    module, twin = create(Module)
    fit(module, callbacks=Listener())
    order = ["callback before", "before", "backward", "callback after", "after"]
    assert [name for name, _ in module.events] == order * (EPOCHS * BATCHES)
    assert all(torch.equal(seen, module.loss) for _, seen in module.events[-5:-2])
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_manual_backward_scales_the_loss_under_float16() -> None:
    """R81: scaling comes first, so the hooks see the scaled loss and the scaled gradients."""

    class Module(Backwards):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.compute_loss(batch)
            self.manual_backward(loss)
            self.ratio = (self.events[0][1] / loss.detach()).item()
            self.scaled = self.net[2].bias.grad.clone()
            optimizer.step()
            self.unscaled = self.net[2].bias.grad.clone()

    module, _ = create(Module)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(module, batches(1), max_epochs=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert module.ratio == 1024.0
    assert torch.equal(module.scaled, module.unscaled * 1024.0)


def test_manual_backward_forwards_its_arguments() -> None:
    """R81: positional and keyword arguments go to loss.backward, overridden backward or not."""
    for base in (Manual, Backwards):

        class Module(base):  # type: ignore[misc, valid-type]
            def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                loss = self.compute_loss(batch)
                self.manual_backward(loss, retain_graph=True)
                self.manual_backward(loss, torch.tensor(2.0))
                optimizer.step()

        module, twin = create(Module)
        fit(module)
        opt = twin.configure_optimizers()
        for _ in range(EPOCHS):
            for batch in batches():
                opt.zero_grad()
                loss = twin.compute_loss(batch)
                loss.backward(retain_graph=True)
                loss.backward(torch.tensor(2.0))
                opt.step()
        assert_same_weights(module, twin)


def test_an_overridden_backward_of_the_first_era_gets_none() -> None:
    """R81 (table of A): in manual mode backward(loss, optimizer, optimizer_idx) gets None and None."""

    class Module(Manual):
        def backward(self, loss: Tensor, optimizer: Any, optimizer_idx: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
            self.events.append((optimizer, optimizer_idx, args, kwargs))
            loss.backward(*args, **kwargs)

    module, twin = create(Module)
    fit(module)
    assert module.events == [(None, None, (), {})] * (EPOCHS * BATCHES)
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_manual_backward_is_refused_in_automatic_mode() -> None:
    """R81: there leyden runs backward."""

    class Module(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(self.compute_loss(batch))

    module, _ = create(Module)
    with pytest.raises(MisconfigurationException, match="set self.automatic_optimization = False") as error:
        fit(module)
    assert error.value.code == "manual-in-automatic"


# ---------------------------------------------------------------------------------------------- R82: step()


class Hooked(Manual):
    """Notes every hook that automatic optimization would call."""

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.events.append("on_before_zero_grad")

    def optimizer_zero_grad(self, *args: Any) -> None:
        self.events.append("optimizer_zero_grad")

    def optimizer_step(self, *args: Any) -> None:
        self.events.append("optimizer_step")

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("configure_gradient_clipping")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert type(optimizer) is SGD
        self.events.append("on_before_optimizer_step")


def test_step_calls_only_the_hook_before_it() -> None:
    """R82: on_before_optimizer_step with the raw optimizer, then the update; no zero_grad, clipping or step hooks."""
    module, twin = create(Hooked)
    trainer = fit(module)
    assert module.events == ["on_before_optimizer_step"] * (EPOCHS * BATCHES)
    assert trainer.global_step == EPOCHS * BATCHES
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_step_runs_the_closure_before_the_hook() -> None:
    """R82: closure, hook, update; global_step rises after it."""

    class Module(Hooked):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                self.events.append(self.trainer.global_step)
                optimizer.zero_grad()
                loss = self.compute_loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)
            self.events.append(self.trainer.global_step)

    module, twin = create(Module)
    fit(module)
    assert module.events[:6] == [0, "on_before_optimizer_step", 1, 1, "on_before_optimizer_step", 2]
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_the_hook_sees_unscaled_gradients_and_the_scale_follows() -> None:
    """R82: under float16: closure, unscale, hook, step, scaler update."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            before = self.net[2].bias.grad.clone()
            optimizer.step()
            self.events.append((before, self.seen))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen = self.net[2].bias.grad.clone()

    module, _ = create(Module)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    fit(module, batches(4), max_epochs=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    for (before, seen), scale in zip(module.events, (256.0, 256.0, 512.0, 512.0), strict=True):
        assert torch.equal(before / scale, seen)
    assert scaler.get_scale() == 1024.0


# --------------------------------------------------------------------------- R83: what the Trainer cannot do there


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"gradient_clip_val": 0.5}, "gradient_clip_val=0.5.*call self.clip_gradients"),
        ({"accumulate_grad_batches": 2}, r"accumulate_grad_batches=2.*self.accumulate\(optimizer, n\)"),
        ({"accumulate_grad_batches": {0: 2}}, "accumulate_grad_batches"),
        ({"accumulate_grad_batches": {0: 1, 3: 2}}, "accumulate_grad_batches"),
    ],
    ids=str,
)
def test_clipping_and_accumulation_by_the_trainer_are_refused(arguments: dict[str, Any], text: str) -> None:
    """R83: at fit start, with the remedy; a schedule with any factor above 1 too."""
    module, _ = create(Hooked)
    with pytest.raises(MisconfigurationException, match=text):
        fit(module, **arguments)
    assert module.events == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_clip_val": 0},
        {"gradient_clip_val": 0.0},
        {"gradient_clip_val": -1.0},
        {"gradient_clip_val": None},
        {"gradient_clip_algorithm": "norm"},
        {"gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 1},
        {"accumulate_grad_batches": None},
    ],
    ids=str,
)
def test_what_asks_for_nothing_passes(arguments: dict[str, Any]) -> None:
    """R83: only a clip value above 0 and a factor other than 1 are refused."""
    module, twin = create(Manual)
    fit(module, **arguments)
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_a_schedule_among_the_callbacks_is_refused_when_training_starts() -> None:
    """R83: GradientAccumulationScheduler as a callback: RuntimeError in on_train_start."""
    module, _ = create(Manual)
    with pytest.raises(RuntimeError, match="needs automatic optimization") as error:
        fit(module, callbacks=GradientAccumulationScheduler({0: 2}))
    assert isinstance(error.value, MisconfigurationException)


# -------------------------------------------------------------------------------- R84 and R85: what may be returned


class Outputs(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs)


def returning(make: Any) -> type[Manual]:
    """A manual module whose training_step returns what ``make`` makes of the loss."""

    def training_step(self: Any, batch: list[Tensor], batch_idx: int) -> Any:
        return make(self.compute_loss(batch))

    return type("Module", (Manual,), {"training_step": training_step})


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda loss: None, []),
        (lambda loss: loss, ["loss"]),
        (lambda loss: {"loss": loss, "extra": 1}, ["loss", "extra"]),
        (lambda loss: {"extra": loss}, ["extra"]),
        (lambda loss: {}, []),
    ],
    ids=["None", "tensor", "dict", "without loss", "empty"],
)
def test_training_step_may_return_nothing_a_tensor_or_a_mapping(make: Any, keys: list[str]) -> None:
    """R84: it reaches on_train_batch_end and training_epoch_end, the loss detached; nothing trains from it."""

    class Module(returning(make)):  # type: ignore[misc]
        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.epoch = outputs

    outputs = Outputs()
    module, twin = create(Module)
    trainer = fit(module, batches(2), max_epochs=1, callbacks=outputs)
    assert [list(seen) for seen in outputs.seen] == [keys, keys]
    assert [list(seen) for seen in module.epoch] == ([keys, keys] if keys else [])
    assert all(not seen["loss"].requires_grad for seen in outputs.seen if "loss" in keys)
    assert trainer.global_step == 0
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda loss: [loss], lambda loss: 0.5, lambda loss: (loss,), lambda loss: "loss"])
def test_training_step_may_return_nothing_else(make: Any) -> None:
    """R84: a list, a float, ... are refused by name."""
    module, _ = create(returning(make))
    with pytest.raises(MisconfigurationException, match="training_step returned (list|float|tuple|str)") as error:
        fit(module)
    assert error.value.code == "training-step-output"


def test_stop_iteration_ends_just_that_step() -> None:
    """R85: the rest of the step is left out; hooks, other batches and epochs are not."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            if batch_idx == 1:
                raise StopIteration
            return super().training_step(batch, batch_idx)

    outputs = Outputs()
    module, twin = create(Module)
    trainer = fit(module, callbacks=outputs)
    assert len(outputs.seen) == EPOCHS * BATCHES and outputs.seen[1] == {}
    assert trainer.global_step == EPOCHS * (BATCHES - 1)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches()):
            if batch_idx != 1:
                opt.zero_grad()
                twin.compute_loss(batch).backward()
                opt.step()
    assert_same_weights(module, twin)


# --------------------------------------------------------------------------------------- R86, R87, R88


def test_lbfgs_runs_the_hook_once_per_evaluation() -> None:
    """R86: opt.step(closure) with LBFGS; one global step per call."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                self.events.append("closure")
                loss = self.compute_loss(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.events.append("before")

        def configure_optimizers(self) -> LBFGS:
            return lbfgs(self)

    module, twin = create(Module)
    trainer = fit(module)
    calls = train_with_lbfgs(twin)
    assert module.events == ["closure", "before"] * calls
    assert trainer.global_step == EPOCHS * BATCHES
    assert_same_weights(module, twin)


def test_logging_is_not_suppressed_by_accumulation() -> None:
    """R87: rows are written on every batch, whether or not the user steps on it."""

    class Rows:
        def __init__(self) -> None:
            self.rows: list[tuple[int, float]] = []

        def log_metrics(self, metrics: Any, step: int) -> None:
            self.rows.append((step, metrics["batch"]))

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("batch", float(batch_idx))
            with self.accumulate(self.optimizers(), 4) as window:
                self.manual_backward(self.compute_loss(batch))
            if window.closes:
                self.optimizers().step()

    rows = Rows()
    module, _ = create(Module)
    trainer = fit(module, batches(4), max_epochs=1, logger=rows, log_every_n_steps=1)
    assert rows.rows == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert trainer.global_step == 1


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clip_gradients_between_backward_and_step(algorithm: str) -> None:
    """R88: the user clips one optimizer's gradients by hand."""

    class Module(TwoPlayers):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            a, b = self.optimizers()
            for index, optimizer in enumerate((a, b)):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch, index))
                if optimizer is a:
                    self.clip_gradients(a, gradient_clip_val=0.05, gradient_clip_algorithm=algorithm)
                optimizer.step()

    module, twin = create(Module)
    fit(module)
    clip = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[algorithm]
    a, b = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            for index, opt in enumerate((a, b)):
                opt.zero_grad()
                twin.loss(batch, index).backward()
                if opt is a:
                    clip(twin.A.parameters(), 0.05)
                opt.step()
    assert_same_weights(module, twin)


def test_an_optimizer_that_was_not_returned_can_be_clipped_and_stepped() -> None:
    """R88: one's own optimizer is outside of the run, and clip_gradients still takes it."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.__dict__.setdefault("own", SGD(self.parameters(), lr=0.1, momentum=0.9))
            optimizer.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.05)
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    module, twin = create(Module)
    trainer = fit(module)
    assert trainer.global_step == 0
    opt = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
            opt.step()
    assert_same_weights(module, twin)


# ------------------------------------------------------------------ V9: the optimizer's arithmetic and autocast


class Watching(SGD):
    """Notes whether autocast is on while it updates."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.seen: list[bool] = []

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        value = closure() if closure is not None else None
        self.seen.append(torch.is_autocast_enabled("cpu"))
        super().step()
        return value


@pytest.mark.parametrize("kind", [Watching, SGD])
@pytest.mark.parametrize("with_closure", [False, True])
def test_updates_and_backward_run_outside_of_autocast(with_closure: bool, kind: Any) -> None:
    """V9: training_step autocasts, backward, hooks and update do not; a closure's forward does again."""

    class Module(Manual):
        def compute_loss(self, batch: list[Tensor]) -> Tensor:
            self.events.append(("forward", torch.is_autocast_enabled("cpu")))
            x, y = batch
            out = self.net(x)
            assert out.dtype is torch.bfloat16
            return nn.functional.mse_loss(out.float(), y)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> None:
                optimizer.zero_grad()
                self.manual_backward(self.compute_loss(batch))

            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            self.events.append(("after step", torch.is_autocast_enabled("cpu")))

        def on_after_backward(self) -> None:
            self.events.append(("backward", torch.is_autocast_enabled("cpu")))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.events.append(("hook", torch.is_autocast_enabled("cpu")))

        def configure_optimizers(self) -> Any:
            return kind(self.parameters()) if kind is Watching else SGD(self.parameters(), lr=0.1, momentum=0.9)

    module, twin = create(Module)
    trainer = fit(module, precision="bf16-mixed")
    batch = [("forward", True), ("backward", False), ("hook", False), ("after step", True)]
    assert module.events == batch * (EPOCHS * BATCHES)
    if kind is Watching:
        assert trainer.optimizers[0].seen == [False] * (EPOCHS * BATCHES)

    opt = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = twin.compute_loss(batch)
            loss.backward()
            opt.step()
    assert_same_weights(module, twin)


def test_a_second_forward_of_the_same_step_sees_the_updated_weights() -> None:
    """V9: autocast's cached casts of the weights do not outlive an update within one training_step."""

    class Module(Manual):
        def compute_loss(self, batch: list[Tensor]) -> Tensor:
            x, y = batch
            return nn.functional.mse_loss(self.net(x).float(), y)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for _ in range(2):
                super().training_step(batch, batch_idx)

    module, twin = create(Module)
    fit(module, precision="bf16-mixed")
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            for _ in range(2):
                opt.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = twin.compute_loss(batch)
                loss.backward()
                opt.step()
    assert_same_weights(module, twin)


def test_lbfgs_evaluates_under_autocast_and_updates_without() -> None:
    """V9: every evaluation of the closure casts, the optimizer's own arithmetic never does."""

    class Module(Manual):
        def compute_loss(self, batch: list[Tensor]) -> Tensor:
            x, y = batch
            return nn.functional.mse_loss(self.net(x).float(), y)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self.compute_loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)

        def configure_optimizers(self) -> LBFGS:
            return lbfgs(self)

    module, twin = create(Module)
    fit(module, precision="bf16-mixed")
    opt = lbfgs(twin)
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                opt.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = twin.compute_loss(batch)
                loss.backward()
                return loss

            opt.step(closure)
    assert_same_weights(module, twin)


def test_automatic_mode_updates_outside_of_autocast_too() -> None:
    """V9: there only training_step casts."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            assert torch.is_autocast_enabled("cpu")
            return self.layer(batch[0]).float().square().mean()

        def configure_optimizers(self) -> Any:
            return [{"optimizer": Watching(self.parameters())}]

    module = Module()
    trainer = fit(module, batches(2), max_epochs=1, precision="bf16-mixed")
    assert trainer.optimizers[0].seen == [False, False]


def test_two_optimizers_step_by_hand_in_any_order() -> None:
    """R82, R80: several optimizers in manual mode: no turns, no toggles, the order is the user's."""

    class Module(TwoPlayers):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            a, b = self.optimizers()
            b.zero_grad()
            self.manual_backward(self.loss(batch, 1), inputs=list(self.B.parameters()))
            a.zero_grad()
            self.manual_backward(self.loss(batch, 0), inputs=list(self.A.parameters()))
            a.step()
            if batch_idx % 2 == 0:
                b.step()

        def configure_optimizers(self) -> Any:
            return Adam(self.A.parameters(), lr=0.02), SGD(self.B.parameters(), lr=0.1)

    module, twin = create(Module)
    trainer = fit(module)
    assert [clock.attempted for clock in trainer.clocks.optimizers] == [EPOCHS * 5, EPOCHS * 3]
    a, b = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches()):
            b.zero_grad()
            twin.loss(batch, 1).backward(inputs=list(twin.B.parameters()))
            a.zero_grad()
            twin.loss(batch, 0).backward(inputs=list(twin.A.parameters()))
            a.step()
            if batch_idx % 2 == 0:
                b.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True))
