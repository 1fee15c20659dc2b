"""Rules R50-R58 (F: the closure and the value of training_step), V3 and V5, against loops written by hand."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections import UserDict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from leyden import Callback, LightningModule, MisconfigurationException
from seed_page import BATCHES, EPOCHS, Regression, assert_same_weights, batches, create, fit, lbfgs


class Watched(Regression):
    """Notes every hook of an update, under the name of the hook."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.events.append("training_step")
        return self.compute_loss(batch)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.events.append("on_before_zero_grad")

    def on_before_backward(self, loss: Tensor) -> None:
        self.events.append("on_before_backward")

    def on_after_backward(self) -> None:
        self.events.append("on_after_backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append("on_before_optimizer_step")

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        self.events.append("configure_gradient_clipping")


EVALUATION = ["training_step", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
READY = ["on_before_optimizer_step", "configure_gradient_clipping"]


class Thrice(Optimizer):
    """Calls its closure three times in one step, without grad mode, and descends after each."""

    def __init__(self, parameters: Any, lr: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr})
        self.values: list[Any] = []

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        for _ in range(3):
            self.values.append(closure())
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter -= group["lr"] * parameter.grad
        return self.values[-1]


class Outputs(Callback):
    """Keeps what ``on_train_batch_end`` gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs)


def train_by_hand(twin: Any) -> None:
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()


# ------------------------------------------------------------------------------------------------ R50: the closure


@pytest.mark.parametrize("accumulate", [1, 2])
def test_closure_returns_a_detached_clone_of_the_divided_loss(accumulate: int) -> None:
    """R50: the closure's value is a detached clone of the loss divided by accumulate_grad_batches."""

    class Module(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[Tensor] = []
            self.values: list[Tensor] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.losses.append(self.compute_loss(batch))
            return self.losses[-1]

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.values.append(optimizer_closure())
            optimizer.step()

    module, _ = create(Module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*\[accumulation-override\]")
        fit(module, batches(4), max_epochs=1, accumulate_grad_batches=accumulate)
    closing = module.losses[accumulate - 1 :: accumulate]
    assert len(module.values) == 4 // accumulate
    for loss, value in zip(closing, module.values, strict=True):
        assert torch.equal(loss / accumulate, value)
        assert not value.requires_grad
        assert value.data_ptr() != loss.data_ptr()


def test_closure_value_survives_the_update() -> None:
    """R50: it is a clone, so a loss that is a view of a parameter keeps its value when the parameter moves."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0]))
            self.kept: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.weight[0]

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.kept.append(optimizer.step(closure=optimizer_closure))

        def configure_optimizers(self) -> SGD:
            return SGD(self.parameters(), lr=0.25)

    outputs = Outputs()
    module = Module()
    fit(module, batches(3), max_epochs=1, callbacks=outputs)
    assert [value.item() for value in module.kept] == [1.0, 0.75, 0.5]
    assert [seen["loss"].item() for seen in outputs.seen] == [1.0, 0.75, 0.5]


def test_closure_takes_no_arguments_that_matter() -> None:
    """R50: positional arguments that an override passes to the closure are ignored."""

    class Module(Watched):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer_closure(epoch, None)
            optimizer.step()

    module, twin = create(Module)
    fit(module)
    train_by_hand(twin)
    assert_same_weights(module, twin)


def test_closure_returns_none_for_a_skipped_batch() -> None:
    """R50: the closure's value is None when training_step returned None."""

    class Module(Watched):
        values: list[Any] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            return None if batch_idx == 1 else self.compute_loss(batch)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.values.append(optimizer.step(closure=optimizer_closure))

    module, _ = create(Module)
    with pytest.warns(UserWarning, match="training_step returned None"):
        fit(module, batches(3), max_epochs=1)
    assert [value is None for value in module.values] == [False, True, False]


def test_closure_may_be_called_any_number_of_times_without_grad_mode() -> None:
    """R50: it restores grad mode by itself and may be called three times within one step."""

    class Module(Watched):
        def configure_optimizers(self) -> Thrice:
            self.thrice = Thrice(self.parameters())
            return self.thrice

    module, twin = create(Module)
    trainer = fit(module)

    opt = Thrice(twin.parameters())
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                with torch.enable_grad():
                    opt.zero_grad()
                    loss = twin.compute_loss(batch)
                    loss.backward()
                return loss.detach()

            opt.step(closure)
    assert_same_weights(module, twin)
    assert opt.values == module.thrice.values
    assert trainer.global_step == EPOCHS * BATCHES
    assert module.events[:18] == 3 * (EVALUATION + READY)


class Batch:
    """A batch whose end can be seen."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts


class Fleeting:
    """A loader that keeps nothing."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(parts) for parts in batches(6))


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize(
    ("kind", "every"), [("one", 1), ("one", 2), ("two", 1), ("two", 2), ("LBFGS", 1), ("LBFGS", 2), ("manual", 1)]
)
def test_closures_keep_no_batch_alive(kind: str, every: int, listens: bool) -> None:
    """R50: batch, loss and graph are gone when the next batch comes, without Python's garbage collector."""

    class Module(Regression):
        automatic_optimization = kind != "manual"

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []
            self.alive: list[int] = []
            if listens:
                self.on_train_batch_end = lambda *_: None

        def training_step(self, batch: Batch, batch_idx: int, *optimizer_idx: int) -> Any:
            loss = self.compute_loss(batch.parts)
            self.seen += [weakref.ref(batch), weakref.ref(loss)]
            if self.automatic_optimization:
                return loss

            def closure() -> None:
                self.optimizers().zero_grad()
                self.manual_backward(loss)

            self.optimizers().step(closure)
            return None

        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
            self.alive.append(len({id(ref()) for ref in self.seen if ref() is not None}))

        def configure_optimizers(self) -> Any:
            if kind == "two":
                return [SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]
            return lbfgs(self) if kind == "LBFGS" else SGD(self.parameters(), lr=0.1)

    module, _ = create(Module)
    gc.collect()
    gc.disable()
    try:
        fit(module, Fleeting(), max_epochs=1, accumulate_grad_batches=every)
    finally:
        gc.enable()
    waiting = 1 if kind == "LBFGS" and every == 2 else 0  # its windows wait for a replay
    assert module.alive == [0, waiting] * 3


# -------------------------------------------------------------------------------------- V5: closures and windows


@pytest.mark.parametrize("count", [4, 5])
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_replays_the_whole_window(line_search: str | None, count: int) -> None:
    """V5: every evaluation stands for the whole window, so LBFGS with accumulation sees the big batch's loss."""

    class Module(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.compute_loss(batch)

        def configure_optimizers(self) -> LBFGS:
            return LBFGS(self.parameters(), lr=0.5, max_iter=4, history_size=3, line_search_fn=line_search)

    module, twin = create(Module)
    trainer = fit(module, batches(count), accumulate_grad_batches=2)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(batches(count))
        for start in range(0, count, 2):
            window = every[start : start + 2]  # the last one has one micro-batch if there are five

            def closure(window: list[Any] = window) -> Tensor:
                opt.zero_grad()
                total = torch.tensor(0.0)
                for batch in window:
                    loss = twin.compute_loss(batch) / len(window)
                    loss.backward()
                    total = total + loss.detach()
                return total

            opt.step(closure)
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * -(-count // 2)


def test_lbfgs_with_accumulation_equals_lbfgs_on_the_big_batch() -> None:
    """V5: two accumulated batches of two samples find what one batch of four finds, to rounding."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            x, y = batch
            return nn.functional.mse_loss(self.layer(x), y) + 0.1 * self.layer.weight.square().sum()

        def configure_optimizers(self) -> LBFGS:
            return LBFGS(self.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    module, twin = create(Module)
    fit(module, batches(2), max_epochs=1, accumulate_grad_batches=2)
    whole = [torch.cat(parts) for parts in zip(*batches(2), strict=True)]
    fit(twin, [whole], max_epochs=1)
    torch.testing.assert_close(dict(twin.named_parameters()), dict(module.named_parameters()), rtol=1e-4, atol=1e-5)


def test_an_evaluation_by_an_overridden_optimizer_step_replays_the_window() -> None:
    """V5: a second call of the closure in optimizer_step replays the window from its first batch, as SAM needs."""

    class Module(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[int] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.batches.append(batch_idx)
            return self.compute_loss(batch)

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer_closure()
            perturb(self, +1.0)
            optimizer_closure()
            perturb(self, -1.0)
            optimizer.step()

    def perturb(net: nn.Module, sign: float) -> None:
        """The ascent of SAM; the gradients of the first evaluation are kept aside."""
        for parameter in net.parameters():
            if sign > 0:
                parameter.ascent = 0.05 * parameter.grad  # type: ignore[attr-defined]
            with torch.no_grad():
                parameter += sign * parameter.ascent  # type: ignore[attr-defined]

    module, twin = create(Module)
    with pytest.warns(UserWarning, match="optimizer_step is overridden"):
        fit(module, batches(4), accumulate_grad_batches=2)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(batches(4))
        for window in (every[:2], every[2:]):
            for sign in (1.0, -1.0):
                opt.zero_grad()
                for batch in window:
                    (twin.compute_loss(batch) / 2).backward()
                perturb(twin, sign)
            opt.step()
    assert_same_weights(module, twin)
    assert module.batches[:8] == [0, 1, 0, 1, 2, 3, 2, 3]


# ------------------------------------------------------------------------ R51: what training_step may return


class Returns(Regression):
    """Returns what ``output`` makes of the loss."""

    output: Any = None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return type(self).output(self.compute_loss(batch))


def returning(make: Any) -> type[Returns]:
    return type("Module", (Returns,), {"output": staticmethod(make)})


@pytest.mark.parametrize(
    "make",
    [
        lambda loss: loss,
        lambda loss: loss.reshape(1),
        lambda loss: loss.reshape(1, 1),
        lambda loss: {"loss": loss},
        lambda loss: {"loss": loss, "extra": 1},
        lambda loss: MappingProxyType({"loss": loss}),
        lambda loss: UserDict(loss=loss, extra=[loss]),
    ],
    ids=["scalar", "(1,)", "(1, 1)", "dict", "extras", "mapping", "UserDict"],
)
def test_training_step_may_return_a_tensor_or_a_mapping(make: Any) -> None:
    """R51: a one-element tensor or any mapping with a "loss"."""
    module, twin = create(returning(make))
    fit(module)
    train_by_hand(twin)
    assert_same_weights(module, twin)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda loss: {"log": loss}, r"under the key 'loss'.*its keys are \['log'\]"),
        (lambda loss: {}, "under the key 'loss'"),
        (lambda loss: {"loss": None}, "its value there is None"),
        (lambda loss: {"loss": 0.5}, "its value there is 0.5"),
        (lambda loss: 0.5, "training_step returned float"),
        (lambda loss: [loss], "training_step returned list"),
        (lambda loss: (loss, loss), "training_step returned tuple"),
        (lambda loss: "loss", "training_step returned str"),
    ],
)
def test_training_step_may_return_nothing_else(make: Any, text: str) -> None:
    """R51: a mapping without a loss, a float, a list, ... are refused by name."""
    module, _ = create(returning(make))
    with pytest.raises(MisconfigurationException, match=text) as error:
        fit(module)
    assert error.value.code == "training-step-output"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda loss: loss.detach(), "does not require grad"),
        (lambda loss: loss.expand(3), "can be implicitly created only for scalar outputs"),
    ],
)
def test_errors_of_torch_pass_untouched(make: Any, text: str) -> None:
    """R51: a loss without a graph or with several elements raises torch's own error."""
    module, _ = create(returning(make))
    with pytest.raises(RuntimeError, match=text) as error:
        fit(module)
    assert not isinstance(error.value, MisconfigurationException)


# -------------------------------------------------------------------------------- R52 and V3: skipped batches


class Skipping(Watched):
    """Returns None on the batches named by ``skipped``."""

    skipped: tuple[int, ...] = (1,)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.events.append("training_step")
        return None if batch_idx in self.skipped else self.compute_loss(batch)


def skipping(*indices: int) -> type[Skipping]:
    return type("Module", (Skipping,), {"skipped": indices})


def fit_skipping(module: Any, *arguments: Any, **keywords: Any) -> Any:
    """Fit, without the warning that a batch is skipped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*\[training-step-none\]")
        return fit(module, *arguments, **keywords)


def test_none_skips_backward_but_not_the_step() -> None:
    """R52: zero_grad, on_before_optimizer_step, clipping and the step still run; backward and its hooks do not."""
    module, twin = create(skipping(1))
    trainer = fit_skipping(module)
    full = EVALUATION + READY
    none = ["training_step", "on_before_zero_grad", *READY]
    assert full + none + full == module.events[: 2 * len(full) + len(none)]
    assert trainer.global_step == EPOCHS * BATCHES

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches()):
            opt.zero_grad()
            if batch_idx != 1:
                twin.compute_loss(batch).backward()
            opt.step()  # without gradients it leaves parameters and momentum alone
    assert_same_weights(module, twin)


def test_none_is_told_once() -> None:
    """R52: one warning per process, however many batches are skipped."""
    module, _ = create(skipping(0, 1, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fit(module)
    assert len([warning for warning in caught if "[training-step-none]" in str(warning.message)]) == 1


def test_a_skipped_update_counts_as_attempted_and_not_as_applied() -> None:
    """R52, V3: global_step counts it; the optimizer's clock says why nothing moved."""
    module, _ = create(skipping(1, 2))
    trainer = fit_skipping(module, max_epochs=1)
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, clock.skipped) == (BATCHES, BATCHES - 2, {"no loss": 2})
    assert trainer.global_step == BATCHES


@pytest.mark.parametrize("skipped", [(0,), (1,), (2, 3), (0, 3, 6)], ids=str)
def test_none_does_not_dilute_its_window(skipped: tuple[int, ...]) -> None:
    """V3: the gradient of a window is the mean over the micro-batches that had a loss."""
    module, twin = create(skipping(*skipped))
    fit_skipping(module, batches(8), accumulate_grad_batches=4)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(enumerate(batches(8)))
        for window in (every[:4], every[4:]):
            opt.zero_grad()
            used = [batch for batch_idx, batch in window if batch_idx not in skipped]
            for batch in used:
                (twin.compute_loss(batch) / 4).backward()
            if len(used) < 4:
                for parameter in twin.parameters():
                    parameter.grad *= 4 / len(used)
            opt.step()
    assert_same_weights(module, twin)


def test_half_a_window_of_none_equals_a_window_of_half_the_size() -> None:
    """V3: two losses and two Nones under accumulation over four are, to the bit, two losses over two."""
    module, twin = create(skipping(1, 2, 4, 7))
    fit_skipping(module, batches(8), accumulate_grad_batches=4)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(batches(8))
        for pair in ((0, 3), (5, 6)):
            opt.zero_grad()
            for batch_idx in pair:
                (twin.compute_loss(every[batch_idx]) / 2).backward()
            opt.step()
    assert_same_weights(module, twin)


@pytest.mark.parametrize("skipped", [(0,), (1,), (4,), (0, 5), (1, 3)], ids=str)
def test_a_replayed_window_leaves_out_none_too(skipped: tuple[int, ...]) -> None:
    """V3, V5: LBFGS sees the mean loss, and its gradient, over the micro-batches that have one."""

    class Module(skipping(*skipped)):  # type: ignore[misc]
        def configure_optimizers(self) -> LBFGS:
            return LBFGS(self.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    module, twin = create(Module)
    fit_skipping(module, batches(6), accumulate_grad_batches=2)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(enumerate(batches(6)))
        for start in range(0, 6, 2):
            used = [batch for batch_idx, batch in every[start : start + 2] if batch_idx not in skipped]

            def closure(used: list[Any] = used) -> Tensor:
                opt.zero_grad()
                total = torch.tensor(0.0)
                for batch in used:
                    loss = twin.compute_loss(batch) / len(used)
                    loss.backward()
                    total = total + loss.detach()
                return total

            opt.step(closure)
    assert_same_weights(module, twin)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_window_without_any_loss_is_skipped_by_lbfgs(accumulate: int) -> None:
    """V3: there is nothing to search for; the update counts as skipped and the optimizer's state is as it was."""

    class Module(skipping(2, 3)):  # type: ignore[misc]
        def configure_optimizers(self) -> LBFGS:
            return lbfgs(self)

    module, twin = create(Module)
    trainer = fit_skipping(module, batches(6), accumulate_grad_batches=accumulate)
    assert trainer.clocks.optimizers[0].skipped == {"no loss": EPOCHS * 2 // accumulate}

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(batches(6))
        for start in range(0, 6, accumulate):
            window = every[start : start + accumulate]
            if start in (2, 3):
                continue

            def closure(window: list[Any] = window) -> Tensor:
                opt.zero_grad()
                total = torch.tensor(0.0)
                for batch in window:
                    loss = twin.compute_loss(batch) / len(window)
                    loss.backward()
                    total = total + loss.detach()
                return total

            opt.step(closure)
    assert_same_weights(module, twin)


def test_a_window_without_any_loss_is_skipped_with_all_hooks() -> None:
    """V3: both micro-batches None: the update counts as skipped, hooks and the raw step run, nothing moves."""
    module, twin = create(skipping(2, 3))
    trainer = fit_skipping(module, batches(6), max_epochs=1, accumulate_grad_batches=2)
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, clock.skipped) == (3, 2, {"no loss": 1})
    first = [*EVALUATION, "training_step", "on_before_backward", "on_after_backward", *READY]
    assert [*first, "training_step", "on_before_zero_grad", "training_step", *READY, *first] == module.events

    opt = twin.configure_optimizers()
    every = list(batches(6))
    for window in (every[:2], every[4:]):
        opt.zero_grad()
        for batch in window:
            (twin.compute_loss(batch) / 2).backward()
        opt.step()
    assert_same_weights(module, twin)


def test_an_optimizer_that_wants_no_loss_is_stepped_all_the_same() -> None:
    """R52, V3: 1.x code with a soft update as its second "optimizer" returns None for it and relies on the step."""

    class SoftUpdate(Optimizer):
        def __init__(self, target: nn.Module, online: nn.Module) -> None:
            super().__init__(target.parameters(), {})
            self.online = list(online.parameters())

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            closure()
            for target, online in zip(self.param_groups[0]["params"], self.online, strict=True):
                target.lerp_(online, 0.1)

    class Module(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.target = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor | None:
            return self.compute_loss(batch) if optimizer_idx == 0 else None

        def configure_optimizers(self) -> Any:
            return SGD(self.net.parameters(), lr=0.1), SoftUpdate(self.target, self.net)

    module, twin = create(Module)
    trainer = fit_skipping(module)

    online, soft = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            online.zero_grad()
            twin.compute_loss(batch).backward()
            online.step()
            soft.step(lambda: None)
    assert_same_weights(module, twin)
    assert trainer.global_step == 2 * EPOCHS * BATCHES


# ------------------------------------------------------------------------------------ R53 and R54: extras, outputs


def test_extras_are_kept_as_they_are() -> None:
    """R53: extras reach on_train_batch_end, "hiddens" is an ordinary one, and a graph stays attached."""
    outputs = Outputs()
    module, _ = create(returning(lambda loss: {"loss": loss, "hiddens": (1, 2), "graph": loss * 2, "text": "a"}))
    fit(module, max_epochs=1, callbacks=outputs)
    for seen in outputs.seen:
        assert list(seen) == ["loss", "hiddens", "graph", "text"]
        assert (seen["hiddens"], seen["text"]) == ((1, 2), "a")
        assert seen["graph"].requires_grad and not seen["loss"].requires_grad


def test_extras_reach_training_epoch_end() -> None:
    """R53: extras are kept for training_epoch_end as well."""

    class Module(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return {"loss": self.compute_loss(batch), "index": batch_idx}

        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.indices = [output["index"] for output in outputs]

    module, _ = create(Module)
    fit(module, max_epochs=1)
    assert list(range(BATCHES)) == module.indices


@pytest.mark.parametrize("accumulate", [1, 2])
def test_outputs_hold_the_detached_divided_loss(accumulate: int) -> None:
    """R54: one optimizer: {"loss": detached, divided by accumulation}; of the short last window by its true size."""

    class Module(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[Tensor] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.losses.append(self.compute_loss(batch))
            return self.losses[-1]

    outputs = Outputs()
    module, _ = create(Module)
    fit(module, max_epochs=1, callbacks=outputs, accumulate_grad_batches=accumulate)
    sizes = [accumulate] * (BATCHES - 1) + [1]
    for seen, loss, size in zip(outputs.seen, module.losses, sizes, strict=True):
        assert list(seen) == ["loss"]
        assert torch.equal(loss / size, seen["loss"]) and not seen["loss"].requires_grad


def test_outputs_of_a_skipped_batch_are_an_empty_dict() -> None:
    """R54: training_step returned None: on_train_batch_end gets {}."""
    outputs = Outputs()
    module, _ = create(skipping(1))
    fit_skipping(module, max_epochs=1, callbacks=outputs)
    assert outputs.seen[1] == {}
    assert [bool(seen) for seen in outputs.seen] == [True, False, True, True, True]


# ----------------------------------------------------------------------- R55 and R56: closures called by hand


def test_an_override_that_ignores_the_closure_is_refused() -> None:
    """R55: optimizer_step that never calls the closure raises after it returned, with the remedy."""

    class Module(Watched):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.events.append("returns")

    module, _ = create(Module)
    with pytest.raises(MisconfigurationException, match=r"optimizer.step\(closure=optimizer_closure\)") as error:
        fit(module)
    assert error.value.code == "closure-not-called"
    assert module.events == ["returns"]


def test_an_optimizer_that_ignores_the_closure_is_refused() -> None:
    """R55: an optimizer of one's own that takes a closure and never calls it."""

    class Deaf(SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()

    class Module(Watched):
        def configure_optimizers(self) -> SGD:
            return Deaf(self.parameters(), lr=0.1)

    module, _ = create(Module)
    with pytest.raises(MisconfigurationException, match="Deaf.*without calling the closure") as error:
        fit(module)
    assert error.value.code == "closure-not-called"
    assert module.events == []


def test_calling_the_closure_alone_runs_backward_without_an_update() -> None:
    """R55: the closure without a step is legal: forward, zero_grad, backward; the hook still counts as a step."""

    class Module(Watched):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            if batch_idx % 2:
                optimizer_closure()
            else:
                optimizer.step(closure=optimizer_closure)

    module, twin = create(Module)
    trainer = fit(module)
    assert [*EVALUATION, *READY, *EVALUATION, *EVALUATION, *READY] == module.events[:16]
    assert trainer.global_step == EPOCHS * BATCHES
    clock = trainer.clocks.optimizers[0]
    assert (clock.applied, clock.skipped) == (EPOCHS * 3, {"not stepped by its handle": EPOCHS * 2})

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches()):
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            if batch_idx % 2 == 0:
                opt.step()
    assert_same_weights(module, twin)


def test_closure_first_and_step_afterwards() -> None:
    """R56: optimizer_closure(), then optimizer.step(): hooks and clipping run inside of step()."""

    class Module(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.events: list[str] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.compute_loss(batch)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.events.append("hook")

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.events.append("before closure")
            optimizer_closure()
            self.events.append("before step")
            optimizer.step()
            self.events.append("after step")

    module, twin = create(Module)
    fit(module, gradient_clip_val=0.05)
    assert module.events[:4] == ["before closure", "before step", "hook", "after step"]

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
            opt.step()
    assert_same_weights(module, twin)


# ---------------------------------------------------------------------------------- R57 and R58: LBFGS


class WithLBFGS(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.steps = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.events.append("training_step")
        self.losses.append(self.compute_loss(batch).detach())
        self.log("loss", self.losses[-1], on_step=False, on_epoch=True)
        return self.compute_loss(batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        self.steps += 1
        optimizer.step(closure=optimizer_closure)

    def configure_optimizers(self) -> LBFGS:
        return lbfgs(self)


def test_lbfgs_runs_every_hook_once_per_evaluation() -> None:
    """R57: optimizer_step once; training_step, zero_grad, backward and the hooks before a step per evaluation."""
    module, _ = create(WithLBFGS)
    trainer = fit(module, batches(2), max_epochs=1)
    evaluations = len(module.losses)
    assert evaluations > 4
    assert evaluations * (EVALUATION + READY) == module.events
    assert (module.steps, trainer.global_step) == (2, 2)


def test_metrics_accumulate_once_per_evaluation() -> None:
    """R57: the epoch mean of a value logged in training_step goes over all evaluations."""
    module, _ = create(WithLBFGS)
    trainer = fit(module, batches(2), max_epochs=1)
    torch.testing.assert_close(trainer.callback_metrics["loss"], torch.stack(module.losses).mean())


def test_lbfgs_is_clipped_in_every_evaluation() -> None:
    """R57: gradients are clipped once per closure evaluation, bit for bit as by hand."""

    class Module(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.compute_loss(batch)

        def configure_optimizers(self) -> LBFGS:
            return lbfgs(self)

    module, twin = create(Module)
    fit(module, gradient_clip_val=0.05)

    opt = lbfgs(twin)
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                loss = twin.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
                return loss

            opt.step(closure)
    assert_same_weights(module, twin)


def test_outputs_are_those_of_the_last_evaluation() -> None:
    """R58: the loss in the outputs is that of the last closure call."""
    outputs = Outputs()
    module, _ = create(WithLBFGS)
    fit(module, batches(1), max_epochs=1, callbacks=outputs)
    assert torch.equal(module.losses[-1], outputs.seen[0]["loss"])
    assert not torch.equal(module.losses[0], outputs.seen[0]["loss"])
