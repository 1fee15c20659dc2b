"""Loss scaling for float16: rules R118-R122 and R124, departures V6, V7 and V8, with torch's own scaler on the CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from given import Given, Manual, fit, given, seeded
from leyden import Joint, LightningModule
from leyden.precision import MixedPrecision

SCALE = 1024.0
HUGE = 1e38  # finite in float32, but not when it is scaled
NON_FINITE = {"non-finite gradients": 1}


def half(**options: Any) -> MixedPrecision:
    """float16 on the CPU; by default the scale only changes by overflow."""
    scaler = torch.amp.GradScaler("cpu", **{"init_scale": SCALE, "growth_interval": 10_000, **options})
    return MixedPrecision("16-mixed", "cpu", scaler)


def fit_half(module: LightningModule, data: Any, scaler: dict[str, Any] | None = None, **arguments: Any) -> Any:
    return fit(module, data, plugins=half(**(scaler or {})), **arguments)


def scale_of(trainer: Any) -> float:
    return trainer.scaler.get_scale()  # type: ignore[no-any-return]


class Pair(LightningModule):
    """Two weights with two optimizers; a batch is the gradient of each."""

    by_hand = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = not self.by_hand
        self.pair = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
        self.scales: list[float] = []

    def loss(self, batch: Tensor, index: int) -> Tensor:
        return (self.pair[index] * batch[index]).sum()

    def configure_optimizers(self) -> Any:
        return [SGD([weight], lr=1.0) for weight in self.pair]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.scales.append(scale_of(self.trainer))

    @property
    def moved(self) -> list[float]:
        return [-weight.item() for weight in self.pair]


class Alternating(Pair):
    def training_step(self, batch: Tensor, batch_idx: int, optimizer_idx: int) -> Tensor:
        return self.loss(batch, optimizer_idx)


class Together(Pair):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.loss(batch, 0) + self.loss(batch, 1)

    def configure_optimizers(self) -> Any:
        return Joint([SGD([self.pair[0]], lr=1.0), Adam([self.pair[1]], lr=1.0)])


class TogetherByHand(Together):
    by_hand = True

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


class PairByHand(Pair):
    by_hand = True


# --------------------------------------------------------------------------------------------------- R118: one step


class Observed(Given):
    """Notes what every hook of an update sees."""

    def on_before_backward(self, loss: Tensor) -> None:
        self.events.append(("before backward", loss.item()))

    def on_after_backward(self) -> None:
        self.events.append(("after backward", self.gradient))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append(("before step", self.gradient))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.events.append(("clip", self.gradient))

    @property
    def gradient(self) -> float | None:
        return None if self.weight.grad is None else self.weight.grad.item()

    def loss(self, batch: Tensor) -> Any:
        return super().loss(batch) + 5


class ObservedByHand(Observed, Manual):
    pass


@pytest.mark.parametrize("module_class", [Observed, ObservedByHand], ids=["automatic", "manual"])
def test_the_order_of_a_scaled_update(module_class: Any) -> None:
    """R118: scale, backward with the scaled loss, unscale, hooks, clip (R109: not by hand), step, update."""
    module = module_class()
    trainer = fit_half(module, given(3.0), {"growth_interval": 1})
    clips = [("clip", 3.0)] if module_class is Observed else []
    before = [("before backward", 5 * SCALE), ("after backward", 3 * SCALE), ("before step", 3.0)]
    assert module.events == [*before, *clips]
    assert module.weight.item() == -3.0
    assert scale_of(trainer) == 2 * SCALE


class Net(LightningModule):
    """A network whose linear layers run in float16."""

    def __init__(self, make: Callable[..., Any] = Adam, by_hand: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not by_hand
        self.net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
        self.make = make
        self.factor = 1.0

    def loss(self, batch: Tensor) -> Tensor:
        return self.net(batch).square().mean() * self.factor

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if self.automatic_optimization:
            return self.loss(batch)

        def closure() -> Tensor:
            loss = self.loss(batch)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)
        return None

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=0.05)


def net_batches(count: int = 8) -> list[Tensor]:
    """Batches of two samples; the third one is too steep for float16."""
    batches = list(seeded(lambda: torch.randn(2 * count, 3), 2).split(2))
    batches[2:3] = [batch * 1e3 for batch in batches[2:3]]
    return batches


def fused(params: Any, lr: float) -> Adam:
    return Adam(params, lr=lr, fused=True)


@pytest.mark.parametrize(
    ("by_hand", "every", "clip"),  # by hand the Trainer neither clips nor accumulates (R83)
    [(False, 1, None), (False, 1, 0.1), (False, 3, None), (False, 3, 0.1), (True, 1, None)],
)
@pytest.mark.parametrize("make", [SGD, Adam, fused], ids=lambda make: make.__name__)
def test_a_run_has_the_bits_of_the_loop_that_torch_documents(
    by_hand: bool, every: int, make: Any, clip: float | None
) -> None:
    """R118, R121, R124, V8: weights, optimizer state, and the scaler's own state, through overflow and growth."""
    module, twin = Net(make, by_hand), Net(make)
    options = {"init_scale": 2.0**12, "growth_interval": 2}
    trainer = fit_half(
        module, net_batches(), options, max_epochs=2, gradient_clip_val=clip, accumulate_grad_batches=every
    )

    optimizer, scaler = twin.configure_optimizers(), torch.amp.GradScaler("cpu", **options)
    skipped = grown = 0
    batches = net_batches()
    for window in [batches[i : i + every] for i in range(0, len(batches), every)] * 2:
        optimizer.zero_grad()
        for batch in window:
            with torch.autocast("cpu", dtype=torch.float16):
                loss = twin.loss(batch)
            scaler.scale(loss / len(window)).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            clip_grad_norm_(twin.parameters(), clip)
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
        grown += scaler.get_scale() > before
    assert skipped > 0
    assert grown > 0
    assert scaler.state_dict() == trainer.scaler.state_dict()
    assert trainer.clocks.optimizers[0].skipped == {"non-finite gradients": skipped}
    assert_same(twin, optimizer, module)


def assert_same(twin: nn.Module, optimizer: Optimizer, module: LightningModule) -> None:
    for name, weight in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], weight), name
    ours = module.optimizers(use_pl_optimizer=False).state_dict()["state"]
    theirs = optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for index, state in theirs.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(ours[index][name])), (index, name)


@pytest.mark.parametrize("overflows", [False, True])
@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "manual"])
def test_what_a_step_returns(by_hand: bool, overflows: bool) -> None:
    """R118 (R69): the closure's value; None where the update was skipped."""
    returned = []

    class Model(Net):
        def training_step(self, batch, batch_idx):
            if not by_hand:
                return self.loss(batch)

            def closure():
                self.manual_backward(self.loss(batch))
                return 7.0

            returned.append(self.optimizers().step(closure))

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            returned.append(optimizer.step(closure=optimizer_closure))

    module = Model(by_hand=by_hand)
    module.factor = HUGE if overflows else 1.0
    fit_half(module, net_batches(1))
    assert len(returned) == 1
    assert (returned[0] is None) == overflows


# ----------------------------------------------------------------------------------------------- R119: no loss


@pytest.mark.parametrize("every", [1, 2])
def test_a_window_without_a_loss_skips_the_scaler_as_well(every: int) -> None:
    """R119: no unscaling, no step, no update; but the hooks run, and global_step counts."""

    class Model(Observed):
        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return Refusing(self.parameters())

    module = Model()
    with pytest.warns(UserWarning, match="training-step-none"):
        trainer = fit_half(module, given(*[1.0] * every), {"growth_interval": 1}, accumulate_grad_batches=every)
    assert module.events == [("before step", None), ("clip", None)]
    assert trainer.global_step == 1
    assert trainer.clocks.optimizers[0].skipped == {"no loss": 1}
    assert scale_of(trainer) == SCALE
    assert trainer.scaler.state_dict()["_growth_tracker"] == 0


class Refusing(SGD):
    """Must not be stepped."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1.0)

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        raise AssertionError("stepped")


def test_a_window_without_a_loss_is_not_blamed_on_the_overflow_before_it() -> None:
    """R119, R121: each update has a verdict of its own."""

    class Model(Given):
        def loss(self, batch):
            return None if batch.isnan().any() else super().loss(batch)

    module = Model()
    with pytest.warns(UserWarning, match="training-step-none"):
        trainer = fit_half(module, given(HUGE, math.nan, 3.0))
    assert trainer.clocks.optimizers[0].skipped == {**NON_FINITE, "no loss": 1}
    assert scale_of(trainer) == SCALE / 2
    assert module.gradients == [[3.0]]


# ----------------------------------------------------------------------------------------- R121: non-finite gradients


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, HUGE])
@pytest.mark.parametrize("module_class", [Given, Manual], ids=["automatic", "manual"])
def test_gradients_that_are_not_finite_skip_the_step(module_class: Any, bad: float) -> None:
    """R121: the step is skipped, its hooks ran, global_step counts it, the scale halves, and the run goes on."""
    hooks = []

    class Model(module_class):
        def on_before_optimizer_step(self, optimizer):
            hooks.append(self.weight.grad.isfinite().all().item())

    module = Model()
    trainer = fit_half(module, given(1.0, bad, 2.0))
    assert module.gradients == [[1.0], [2.0]]
    assert hooks == [True, False, True]
    assert trainer.global_step == 3
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, clock.skipped) == (3, 2, NON_FINITE)
    assert scale_of(trainer) == SCALE / 2


def test_an_overflow_by_a_scale_that_is_too_large() -> None:
    """R121: float16 overflows in backward; the scale halves until it fits, and nothing was applied before."""
    module, start = Net(), Net()
    trainer = fit_half(module, net_batches()[:2], {"init_scale": 2.0**40})
    assert trainer.clocks.optimizers[0].skipped == {"non-finite gradients": 2}
    assert scale_of(trainer) == 2.0**38
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), module.parameters(), strict=True))
    assert trainer.optimizers[0].state_dict()["state"] == {}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_overflow_spoils_its_window(place: int) -> None:
    """R121, V6: a window is applied as a whole or not at all."""
    module = Given()
    data = given(1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    data[place] = torch.tensor([HUGE])
    trainer = fit_half(module, data, accumulate_grad_batches=3)
    assert module.gradients == [[2.0]]
    assert scale_of(trainer) == SCALE / 2


def test_a_skipped_update_does_not_step_the_scheduler() -> None:
    """R121, V4: the scheduler of interval "step" advances with applied updates."""
    rates = []

    class Model(Given):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step"}]

        def on_train_batch_end(self, *args):
            rates.append(self.optimizers().param_groups[0]["lr"])

    fit_half(Model(), given(1.0, HUGE, 1.0))
    assert rates == [0.5, 0.5, 0.25]


def test_gradients_that_were_made_without_the_scaler_have_their_own_verdict() -> None:
    """R121: by hand, an overflow skips its own step and not one whose gradients the user has set himself."""

    class Model(Manual):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                super().training_step(batch, batch_idx)
            else:
                self.weight.grad = batch.clone()
                self.optimizers().step()

    module = Model()
    trainer = fit_half(module, given(HUGE, 3.0))
    assert module.gradients == [[3.0]]
    assert trainer.clocks.optimizers[0].skipped == NON_FINITE


def test_a_step_repeated_behind_an_overflow_is_skipped_as_well() -> None:
    """R121: the same gradients are still not finite."""

    class Model(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.optimizers().step()

    module = Model()
    trainer = fit_half(module, given(HUGE))
    assert module.weight.item() == 0.0
    assert trainer.clocks.optimizers[0].skipped == {"non-finite gradients": 2}
    assert scale_of(trainer) == SCALE / 2


# ------------------------------------------------------------------- R120, V6: several optimizers, automatic mode


BOTH = torch.tensor([3.0, 4.0])


def pairs(*rows: tuple[float, float]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


@pytest.mark.parametrize("every", [1, 2])
def test_the_scale_is_updated_once_per_window(every: int) -> None:
    """V6: both optimizers step with one scale, and it grows once for both, when their window is over."""
    module = Alternating()
    trainer = fit_half(module, pairs(*[(3.0, 4.0)] * 2 * every), {"growth_interval": 1}, accumulate_grad_batches=every)
    assert module.moved == [6.0, 8.0]
    assert module.scales == [SCALE] * every + [2 * SCALE] * every
    assert scale_of(trainer) == 4 * SCALE


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("bad", "applied"),
    [((HUGE, 4.0), [0, 0]), ((3.0, HUGE), [1, 0]), ((HUGE, HUGE), [0, 0])],
    ids=["the first overflows", "the second overflows", "both overflow"],
)
def test_one_verdict_for_all_optimizers_of_a_window(bad: Any, applied: list[int], every: int) -> None:
    """V6: an overflow holds for all that still come in its window, and halves the scale once."""
    module = Alternating()
    data = [*pairs(*[bad] * every), *pairs(*[(1.0, 1.0)] * every)]
    trainer = fit_half(module, data, accumulate_grad_batches=every)
    assert [clock.applied for clock in trainer.clocks.optimizers] == [1 + applied[0], 1 + applied[1]]
    assert [clock.skipped.get("non-finite gradients", 0) for clock in trainer.clocks.optimizers] == [
        1 - applied[0],
        1 - applied[1],
    ]
    assert module.moved == [1.0 + 3.0 * applied[0], 1.0]
    assert scale_of(trainer) == SCALE / 2
    assert trainer.global_step == 4


def test_an_optimizer_that_rests_keeps_its_gradients_right() -> None:
    """V6: with frequencies and accumulation, a gradient that waits for its step follows the scale."""

    class Model(Alternating):
        def configure_optimizers(self):
            first, second = super().configure_optimizers()
            return [{"optimizer": first, "frequency": 1}, {"optimizer": second, "frequency": 2}]

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 2:
                grad = self.pair[0].grad
                assert grad is not None
                self.before = grad.item()

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 3:
                return -1
            return None

        def on_train_epoch_end(self):
            self.after = self.pair[0].grad.item()

    module = Model()
    with pytest.warns(UserWarning, match="accumulation-frequency"):
        fit_half(module, pairs(*[(3.0, 4.0)] * 4), {"growth_interval": 1}, accumulate_grad_batches=3)
    assert (module.before, module.after) == (SCALE, 2 * SCALE)


# ------------------------------------------------------------------------------------ V6: a Joint, all or none


@pytest.mark.parametrize("module_class", [Together, TogetherByHand], ids=["automatic", "manual"])
@pytest.mark.parametrize("bad", [(HUGE, 4.0), (3.0, HUGE)], ids=["first member", "second member"])
def test_the_members_of_a_joint_step_all_or_none(bad: Any, module_class: Any) -> None:
    """V6: one member's overflow skips all members; their state is what it was; the scale halves once."""
    states = []

    class Model(module_class):
        def on_train_batch_end(self, *args):
            states.append(copy.deepcopy(self.optimizers().state_dict()))

    module = Model()
    trainer = fit_half(module, pairs((1.0, 1.0), bad, (2.0, 2.0)))
    assert module.moved[0] == 3.0
    assert states[0] == states[1] != states[2]
    assert states[2]["optimizers"][1]["state"][0]["step"] == 2
    clock = trainer.clocks.optimizers[0]
    assert (clock.applied, clock.skipped) == (2, NON_FINITE)
    assert scale_of(trainer) == SCALE / 2


@pytest.mark.parametrize("module_class", [Together, TogetherByHand], ids=["automatic", "manual"])
def test_a_joint_updates_the_scale_once(module_class: Any) -> None:
    """V6: whatever the number of members."""
    trainer = fit_half(module_class(), pairs((1.0, 1.0)), {"growth_interval": 1})
    assert scale_of(trainer) == 2 * SCALE


# ------------------------------------------------------------------------------------------- R120: manual mode


@pytest.mark.parametrize("scaler", [{"growth_interval": 1}, {"growth_interval": 1, "growth_factor": 3.0}], ids=str)
def test_steps_that_follow_each_other_share_one_scale(scaler: dict[str, Any]) -> None:
    """R120: all backwards first, steps later: the update waits, so the second is unscaled by its own scale."""

    class Model(PairByHand):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for index, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch, index))
            for optimizer in optimizers:
                optimizer.step()
                assert scale_of(self.trainer) == self.scales[-1]

    module = Model()
    trainer = fit_half(module, pairs((3.0, 4.0), (3.0, 4.0)), scaler)
    assert module.moved == [6.0, 8.0]
    assert scale_of(trainer) == SCALE * scaler.get("growth_factor", 2.0) ** 2


def test_an_overflow_of_one_optimizer_leaves_the_other_alone_by_hand() -> None:
    """R120: in manual mode each step has its own verdict, and the scale halves once."""

    class Model(PairByHand):
        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for index, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch, index))
            for optimizer in optimizers:
                optimizer.step()

    module = Model()
    trainer = fit_half(module, pairs((HUGE, 4.0), (3.0, HUGE), (HUGE, HUGE)))
    assert module.moved == [3.0, 4.0]
    assert [clock.applied for clock in trainer.clocks.optimizers] == [1, 1]
    assert scale_of(trainer) == SCALE / 8


def test_the_update_is_made_with_the_next_backward() -> None:
    """R120: zero_grad, backward, step, twice in one training_step: two verdicts, two updates, as in Lightning."""

    class Model(PairByHand):
        def training_step(self, batch, batch_idx):
            for index, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch, index))
                self.scales.append(scale_of(self.trainer))
                optimizer.step()

    module = Model()
    trainer = fit_half(module, pairs((3.0, 4.0)), {"growth_interval": 1})
    assert module.scales == [SCALE, SCALE, 2 * SCALE]
    assert scale_of(trainer) == 4 * SCALE
    assert module.moved == [3.0, 4.0]


@pytest.mark.parametrize("with_overflow", [False, True])
def test_gradients_made_under_an_old_scale_are_rescaled(with_overflow: bool) -> None:
    """R120: one optimizer accumulates over three batches while the other one steps and changes the scale."""

    class Model(PairByHand):
        def training_step(self, batch, batch_idx):
            slow, quick = self.optimizers()
            quick.zero_grad()
            self.manual_backward(self.loss(batch, 0) + self.loss(batch, 1))
            quick.step()
            if batch_idx == 2:
                slow.step()

    module = Model()
    second = HUGE if with_overflow else 4.0
    trainer = fit_half(module, pairs((1.0, 4.0), (2.0, second), (4.0, 4.0)), {"growth_interval": 1})
    assert module.moved == [7.0, 8.0 if with_overflow else 12.0]
    assert trainer.clocks.optimizers[0].skipped == {}


def test_rescaling_keeps_an_overflow_an_overflow() -> None:
    """R120: a gradient that has overflowed while it accumulated is not made finite by a smaller scale."""

    class Model(PairByHand):
        def training_step(self, batch, batch_idx):
            slow, quick = self.optimizers()
            quick.zero_grad()
            self.manual_backward(self.loss(batch, 0) + self.loss(batch, 1))
            quick.step()
            if batch_idx == 1:
                slow.step()

    module = Model()
    trainer = fit_half(module, pairs((HUGE, 4.0), (1.0, 4.0)))
    assert module.moved == [0.0, 8.0]
    assert trainer.clocks.optimizers[0].skipped == NON_FINITE


@pytest.mark.parametrize("every", [2, 3])
def test_the_window_of_manual_mode_is_scaled(every: int) -> None:
    """R120, V2: self.accumulate under a scaler; another optimizer changes the scale in the middle of the window."""

    class Model(PairByHand):
        def training_step(self, batch, batch_idx):
            slow, quick = self.optimizers()
            with self.accumulate(slow, every) as window:
                self.manual_backward(self.loss(batch, 0))
            if window.closes:
                slow.step()
            quick.zero_grad()
            self.manual_backward(self.loss(batch, 1))
            quick.step()

    module = Model()
    fit_half(module, pairs(*[(6.0, 4.0)] * 4), {"growth_interval": 1})
    assert module.moved == pytest.approx([12.0, 16.0])


def test_a_step_outside_of_training_step_is_scaled_as_well() -> None:
    """R120: the user may step in a hook; the update then waits for the next backward."""

    class Model(Manual):
        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(batch))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.optimizers().step()
            super().on_train_batch_end(outputs, batch, batch_idx)

    module = Model()
    trainer = fit_half(module, given(1.0, HUGE, 2.0), {"growth_interval": 1})
    assert module.gradients == [[1.0], [2.0]]
    assert scale_of(trainer) == 2 * SCALE


# ------------------------------------------------------------------------------------- R122, V7: closure optimizers


class Parabola(Given):
    """The square of the distance to the batch."""

    make: Callable[..., Any] = staticmethod(lambda params: LBFGS(params, lr=0.5))

    def loss(self, batch: Tensor) -> Any:
        return (self.weight - batch).square().sum()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class ParabolaByHand(Parabola):
    def __init__(self, size: int = 1) -> None:
        super().__init__(size)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        def closure() -> Any:
            loss = self.loss(batch)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


modes = pytest.mark.parametrize("module_class", [Parabola, ParabolaByHand], ids=["automatic", "manual"])


class SAM(Optimizer):
    """Two phases: up the hill, then a step with the gradient from there."""

    def __init__(self, params: Any, lr: float = 0.05, rho: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = SGD(self.param_groups, lr=lr, momentum=0.9)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad * (self.defaults["rho"] / norm))
        closure()
        for p in parameters:
            p.copy_(self.state[p]["before"])
        self.base.step()
        return loss


def lbfgs(params: Any, lr: float) -> LBFGS:
    return LBFGS(params, lr=lr, max_iter=4, history_size=3, line_search_fn="strong_wolfe")


@modes
def test_lbfgs_runs_under_float16(module_class: Any) -> None:
    """R122, V7: not refused, and it finds the optimum: its gradients are unscaled inside of the closure."""
    module = module_class()
    trainer = fit_half(module, given(3.0), max_epochs=3)
    assert module.weight.item() == pytest.approx(3.0, abs=1e-3)
    assert trainer.global_step == trainer.clocks.optimizers[0].applied == 3


@pytest.mark.parametrize("make", [lbfgs, SAM], ids=lambda make: make.__name__)
@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_closure_optimizers_have_the_bits_of_a_loop_by_hand(precision: str, by_hand: bool, make: Any) -> None:
    """V7: every evaluation sees unscaled gradients of weights as they are at that moment."""
    module, twin = Net(make, by_hand), Net(make)
    data = [batch for place, batch in enumerate(net_batches()) if place != 2]
    plugin = half() if precision == "16-mixed" else MixedPrecision(precision, "cpu")
    trainer = fit(module, data, plugins=plugin)
    optimizer, dtype = twin.configure_optimizers(), torch.float16 if precision == "16-mixed" else torch.bfloat16
    scale = SCALE if precision == "16-mixed" else 1.0
    for batch in data:

        def closure(batch: Tensor = batch) -> Tensor:
            with torch.enable_grad():
                with torch.autocast("cpu", dtype=dtype):
                    loss = twin.loss(batch)
                optimizer.zero_grad()
                (loss * scale).backward()
            for p in twin.parameters():
                assert p.grad is not None
                p.grad.mul_(1 / scale)
            return loss.detach()

        optimizer.step(closure)
    assert trainer.clocks.optimizers[0].applied == len(data)
    for name, weight in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], weight), name


def test_the_evaluations_of_one_update_change_the_scale_once() -> None:
    """V6, V7: the window has one verdict, however often its closure is evaluated."""
    module = Parabola()
    trainer = fit_half(module, given(1.0, 4.0, 2.0), {"growth_interval": 1}, accumulate_grad_batches=2)
    assert scale_of(trainer) == 4 * SCALE


def test_lbfgs_under_float16_replays_its_window() -> None:
    """V5, V7: accumulation, scaling and several evaluations at once: the optimum of 1 and 4 is 2.5."""
    module = Parabola()
    fit_half(module, given(1.0, 4.0), max_epochs=3, accumulate_grad_batches=2)
    assert module.weight.item() == pytest.approx(2.5, abs=1e-3)


class Falling(Parabola):
    """The evaluation of the closure with this number, counted over the whole run, has an infinite gradient."""

    bad = -1

    def __init__(self, size: int = 1) -> None:
        super().__init__(size)
        self.evaluations = 0

    def loss(self, batch: Tensor) -> Any:
        self.evaluations += 1
        loss = super().loss(batch)
        return loss * math.inf if self.evaluations == self.bad else loss


class FallingByHand(Falling, ParabolaByHand):
    pass


def small_lbfgs(params: Any) -> LBFGS:
    return LBFGS(params, lr=0.1, max_iter=3)


def state_of(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict()["state"])


@pytest.mark.parametrize("make", [small_lbfgs, SAM], ids=lambda make: make.__name__)
@pytest.mark.parametrize("bad", [1, 2], ids=["first evaluation", "second evaluation"])
@pytest.mark.parametrize("module_class", [Falling, FallingByHand], ids=["automatic", "manual"])
@pytest.mark.parametrize("later", [False, True], ids=["first update", "later update"])
def test_an_evaluation_that_is_not_finite_undoes_the_update(
    module_class: Any, bad: int, later: bool, make: Any
) -> None:
    """V7: parameters and state are what they were before the update; the verdict says so; the next one works."""
    module = module_class()
    module.make = make
    seen: list[Any] = []
    rejected = 1 if later else 0

    def on_train_batch_start(batch: Any, batch_idx: int) -> None:
        if batch_idx == rejected:
            module.bad = module.evaluations + bad
        seen.append((module.weight.item(), state_of(trainer_of(module).optimizers[0])))

    module.on_train_batch_start = on_train_batch_start
    trainer = fit_half(module, given(3.0, 3.0, 3.0))
    (before, state), (after, state_after) = seen[rejected : rejected + 2]
    assert before == after
    assert_equal_states(state, state_after)
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, clock.skipped) == (3, 2, NON_FINITE)
    assert trainer.global_step == 3
    assert scale_of(trainer) == SCALE / 2
    assert abs(3.0 - module.weight.item()) < abs(3.0 - after)
    assert module.weight.requires_grad


def trainer_of(module: LightningModule) -> Any:
    return module.trainer


def assert_equal_states(left: Any, right: Any) -> None:
    """Nested containers of tensors, numbers and None, equal in every bit."""
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_states(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal_states(one, other)
    else:
        assert left == right


@modes
def test_an_update_is_undone_also_behind_one_that_evaluated_once(module_class: Any) -> None:
    """V7: LBFGS stops after one evaluation where the gradient is 0, and evaluates several times on the next batch."""

    class Model(Falling if module_class is Parabola else FallingByHand):  # type: ignore[misc]
        bad = 3
        make = staticmethod(small_lbfgs)

    module = Model()
    trainer = fit_half(module, given(0.0, 3.0))
    assert module.evaluations == 3
    assert trainer.clocks.optimizers[0].skipped == NON_FINITE
    assert module.weight.item() == 0.0


@modes
def test_an_undone_update_keeps_the_optimizers_own_objects(module_class: Any) -> None:
    """V7: groups and state are restored in place: whoever holds a group still changes the optimizer's rate."""
    module = module_class()
    module.make = small_lbfgs
    groups = []

    class Grouped(type(module)):  # type: ignore[misc]
        def on_train_start(self):
            groups.extend(self.optimizers().param_groups)

    module.__class__ = Grouped
    trainer = fit_half(module, given(math.inf))
    assert trainer.clocks.optimizers[0].skipped == NON_FINITE
    assert trainer.optimizers[0].param_groups[0] is groups[0]


@pytest.mark.parametrize("module_class", [Falling, FallingByHand], ids=["automatic", "manual"])
def test_what_an_optimizer_keeps_survives_an_undone_update(module_class: Any) -> None:
    """V7: state in float64 comes back in float64, with all its bits; what it has noted in its group as well."""

    class Keeping(SGD):
        def step(self, closure=None):
            (parameter,) = self.param_groups[0]["params"]
            self.state[parameter].setdefault("average", torch.tensor([1 / 3], dtype=torch.float64))
            closure()
            self.state[parameter]["average"].mul_(0.5)
            self.param_groups[0]["evaluations"] = self.param_groups[0].get("evaluations", 0) + 1
            closure()
            return super().step()

    module = module_class()
    module.make = lambda params: Keeping(params, lr=0.1)
    module.bad = 4  # the second one of the second update
    optimizer = fit_half(module, given(1.0, 1.0)).optimizers[0]
    assert torch.equal(torch.tensor([1 / 3], dtype=torch.float64) / 2, optimizer.state[module.weight]["average"])
    assert optimizer.param_groups[0]["evaluations"] == 1


# -------------------------------------------------------------------------------------------------- V8: fused


@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "manual"])
def test_a_fused_optimizer_is_unscaled_once(by_hand: bool) -> None:
    """V8: it could unscale by itself; it is not told a scale, because its gradients are unscaled already."""
    module = Net(fused, by_hand)
    trainer = fit_half(module, net_batches(), {"init_scale": 2.0**12})
    optimizer = trainer.optimizers[0]
    assert getattr(optimizer, "grad_scale", None) is None
    assert trainer.clocks.optimizers[0].skipped["non-finite gradients"] > 0
    steps = {state["step"].item() for state in optimizer.state.values()}
    assert steps == {trainer.clocks.optimizers[0].applied}


# ---------------------------------------------------------------------------------------------- R124: its state


def test_the_scalers_state_is_torchs_own() -> None:
    """R124: what a checkpoint keeps is GradScaler.state_dict(), and a scaler that loads it goes on alike."""
    plugin = half(init_scale=2.0**12, growth_interval=3)
    trainer = fit(Net(), net_batches(), plugins=plugin)
    assert trainer.scaler is plugin.scaler
    state = trainer.scaler.state_dict()
    assert state["scale"] == 2.0**12  # halved once, doubled once
    assert state["_growth_tracker"] == 2

    again = half()
    again.scaler.load_state_dict(state)
    first, second = Net(), Net()
    ends = [fit(module, net_batches(), plugins=p).scaler for module, p in ((first, plugin), (second, again))]
    assert ends[0].state_dict() == ends[1].state_dict()
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_disabled_scaler_scales_nothing() -> None:
    """R118: GradScaler(enabled=False) is torch's way to switch scaling off."""
    module = Observed()
    trainer = fit_half(module, given(3.0), {"enabled": False})
    assert module.events[0] == ("before backward", 5.0)
    assert module.weight.item() == -3.0
    assert trainer.clocks.optimizers[0].applied == 1


def test_a_fit_after_a_broken_one_starts_clean() -> None:
    """R120: gradients that a failed fit left behind have no say in the next one."""

    class Model(Given):
        def training_step(self, batch, batch_idx):
            if batch.isnan().any():
                raise RuntimeError("broken batch")
            return self.loss(batch)

    plugin = half(growth_interval=1)
    with pytest.raises(RuntimeError, match="broken batch"):
        fit(Model(), given(HUGE, math.nan), plugins=plugin, accumulate_grad_batches=2)
    module = Model()
    trainer = fit(module, given(1.0, 2.0), plugins=plugin)
    assert module.gradients == [[1.0], [2.0]]
    assert trainer.clocks.optimizers[0].skipped == {}
    assert scale_of(trainer) == 4 * SCALE
