"""Gradient clipping: rules R99-R110 and departure V14, of one optimizer, several, and the members of a Joint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, SGD, Adam

from given import Given, Manual, fit, given
from leyden import Joint, LightningModule, MisconfigurationException, Trainer
from leyden.precision import MixedPrecision

STEEP = [3.0, 4.0]  # a gradient whose norm is 5


def clipped(gradient: list[float], value: float, how: Callable[..., Any] = clip_grad_norm_) -> list[float]:
    """What torch's own function makes of one gradient."""
    weight = nn.Parameter(torch.zeros(len(gradient)))
    weight.grad = torch.tensor(gradient)
    how([weight], value)
    return weight.grad.tolist()  # type: ignore[no-any-return]


def half_precision(scale: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


class Pair(LightningModule):
    """Two weights with two optimizers, and a gradient given for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(2))
        self.second = nn.Parameter(torch.zeros(2))
        self.seen: list[Any] = []

    def both(self, batch: Tensor) -> Tensor:
        return (self.first * batch[0]).sum() + (self.second * batch[1]).sum()

    def optimizer_pair(self) -> list[Any]:
        return [SGD([self.first], lr=1.0), SGD([self.second], lr=1.0)]

    def moved(self) -> list[list[float]]:
        return [(-self.first.detach()).tolist(), (-self.second.detach()).tolist()]


class Alternating(Pair):
    def training_step(self, batch: Tensor, batch_idx: int, optimizer_idx: int) -> Tensor:
        return (self.first, self.second)[optimizer_idx].mul(batch[optimizer_idx]).sum()

    def configure_optimizers(self) -> Any:
        return self.optimizer_pair()


class Together(Pair):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.both(batch)

    def configure_optimizers(self) -> Any:
        return Joint(self.optimizer_pair())


class TogetherByHand(Together):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.both(batch))
        self.before_step(optimizer)
        optimizer.step()

    def before_step(self, optimizer: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=1.0)


TWO = given([STEEP, [6.0, 8.0]])  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------------ R99: arguments


@pytest.mark.parametrize("value", ["1.0", True, [1.0], torch.tensor(1.0)], ids=str)
def test_a_clip_value_that_is_no_number_is_refused_at_construction(value: Any) -> None:
    """R99: a non-number is a TypeError."""
    with pytest.raises(TypeError, match="gradient_clip_val must be an int or a float"):
        Trainer(gradient_clip_val=value, max_epochs=1)


def test_a_clip_value_that_is_no_number_is_refused_in_clip_gradients() -> None:
    """R99: and so it is in clip_gradients."""

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val="1.0")

    with pytest.raises(TypeError, match="gradient_clip_val must be an int or a float"):
        fit(Model(), given(1.0))


@pytest.mark.parametrize("where", ["trainer", "module"])
def test_an_unknown_algorithm_is_refused(where: str) -> None:
    """R99: an unknown algorithm is a MisconfigurationException that names those that exist."""

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="length")

    with pytest.raises(MisconfigurationException, match="'length' is not known; allowed are 'norm' and 'value'"):
        if where == "trainer":
            Trainer(gradient_clip_algorithm="length", max_epochs=1)
        else:
            fit(Model(), given(1.0))


@pytest.mark.parametrize("value", [None, 0, 0.0, -1.0])
@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_nothing_is_clipped_without_a_positive_value(value: float | None, algorithm: str | None) -> None:
    """R99: no value, or one <= 0, clips nothing, whoever gives it."""

    class Calling(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, value, algorithm)

    trainers, modules = Given(2), Calling(2)
    fit(trainers, given(STEEP), gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    fit(modules, given(STEEP))
    assert trainers.gradients == modules.gradients == [STEEP]


# ------------------------------------------------------------------------------------- R100, R101: what is clipped


@pytest.mark.parametrize("algorithm", [None, "norm", "NORM"])
@pytest.mark.parametrize("value", [1, 2.5])
def test_the_norm_is_clipped(value: float, algorithm: str | None) -> None:
    """R100, R101: by the norm if nothing is said, spelled in any case; bit for bit as torch does it."""
    module = Given(2)
    fit(module, given(STEEP, [0.3, 0.4]), gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    twin = SGD([weight := nn.Parameter(torch.zeros(2))], lr=1.0)
    for gradient in (STEEP, [0.3, 0.4]):
        weight.grad = torch.tensor(gradient)
        clip_grad_norm_([weight], value)
        twin.step()
    assert torch.equal(weight, module.weight)


def test_values_are_clipped() -> None:
    """R101: "value" clamps every number by itself."""
    module = Given(3)
    fit(module, given([3.0, -4.0, 0.5]), gradient_clip_val=1.0, gradient_clip_algorithm="value")
    assert module.gradients == [[1.0, -1.0, 0.5]]


def test_each_optimizer_is_clipped_by_its_own_norm() -> None:
    """R100, R101: the total norm is over the parameters of the optimizer that steps, and of no other."""
    module = Alternating()
    fit(module, TWO, gradient_clip_val=1.0)
    assert module.moved() == [clipped(STEEP, 1.0), clipped([6.0, 8.0], 1.0)]


def test_the_norm_is_over_all_groups_of_an_optimizer() -> None:
    """R101: an optimizer's groups are clipped together."""

    class Model(Together):
        def configure_optimizers(self):
            return SGD([{"params": [self.first]}, {"params": [self.second]}], lr=1.0)

    module = Model()
    fit(module, TWO, gradient_clip_val=1.0)
    whole = clipped([*STEEP, 6.0, 8.0], 1.0)
    assert module.moved() == [whole[:2], whole[2:]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (None, None)),
        ({"gradient_clip_val": 0.5}, (0.5, None)),
        ({"gradient_clip_algorithm": "value"}, (None, "value")),
        ({"gradient_clip_val": 2, "gradient_clip_algorithm": "norm"}, (2, "norm")),
    ],
)
def test_the_hook_gets_the_trainers_values(arguments: dict[str, Any], expected: Any) -> None:
    """R100: configure_gradient_clipping is always called, with the Trainer's values; the algorithm is an enum."""
    seen = []

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            assert optimizer is self.optimizers(use_pl_optimizer=False)
            seen.append((gradient_clip_val, gradient_clip_algorithm))

    module = Model(2)
    fit(module, given(STEEP), **arguments)
    assert seen == [expected]
    assert seen[0][1] is None or seen[0][1].value == expected[1]
    assert module.gradients == [STEEP]  # the override clips nothing


def test_the_hook_runs_for_each_optimizer_that_steps_and_behind_on_before_optimizer_step() -> None:
    """R100: once per optimizer and window, after on_before_optimizer_step, which sees what is not clipped yet."""
    events = []

    class Model(Alternating):
        def on_before_optimizer_step(self, optimizer, optimizer_idx):
            norms = [p.grad.norm().item() for p in (self.first, self.second) if p.grad is not None]
            events.append(("before step", optimizer_idx, norms[optimizer_idx]))

        def configure_gradient_clipping(
            self, optimizer, optimizer_idx, gradient_clip_val=None, gradient_clip_algorithm=None
        ):
            events.append(("clip", optimizer_idx))
            super().configure_gradient_clipping(optimizer, optimizer_idx, gradient_clip_val, gradient_clip_algorithm)

    fit(Model(), TWO * 4, gradient_clip_val=1.0, accumulate_grad_batches=2)
    window = [("before step", 0, 5.0), ("clip", 0), ("before step", 1, 10.0), ("clip", 1)]
    assert events == window * 2


def test_clip_gradients_takes_what_is_missing_from_the_trainer() -> None:
    """R101: a missing value is the Trainer's, a missing algorithm too."""

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer)

    module = Model(2)
    fit(module, given(STEEP), gradient_clip_val=3.5, gradient_clip_algorithm="value")
    assert module.gradients == [[3.0, 3.5]]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({}, STEEP),
        ({"gradient_clip_algorithm": "value"}, STEEP),
        ({"gradient_clip_val": 1.0}, clipped(STEEP, 1.0)),
        ({"gradient_clip_val": 3.5, "gradient_clip_algorithm": "VALUE"}, [3.0, 3.5]),
    ],
    ids=str,
)
def test_clip_gradients_where_the_trainer_says_nothing(call: dict[str, Any], expected: list[float]) -> None:
    """R101: then the value is 0, which clips nothing, and the algorithm is the norm."""

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, **call)

    module = Model(2)
    fit(module, given(STEEP))
    assert module.gradients == [expected]


# ---------------------------------------------------------------------------------- R102, R103, V14: who decides


@pytest.mark.parametrize(
    "call", [{"gradient_clip_val": 0.5}, {"gradient_clip_algorithm": "value"}], ids=lambda call: next(iter(call))
)
@pytest.mark.parametrize("hook", ["configure_gradient_clipping", "on_before_optimizer_step"])
def test_one_argument_that_contradicts_the_trainer_is_refused(call: dict[str, Any], hook: str) -> None:
    """R102, R103: each of the two by itself, naming both sides."""

    def contradict(self, optimizer, *args, **kwargs):
        self.clip_gradients(optimizer, **call)

    module = type("Model", (Given,), {hook: contradict})(2)
    ((name, value),) = call.items()
    with pytest.raises(MisconfigurationException, match=rf"{name}={value!r}\) contradicts Trainer\({name}="):
        fit(module, given(STEEP), gradient_clip_val=1.0, gradient_clip_algorithm="norm")


def test_the_trainers_own_values_are_no_contradiction() -> None:
    """R102: an explicit argument that says the same is fine."""

    class Model(Given):
        def on_before_optimizer_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")

    module = Model(2)
    fit(module, given(STEEP), gradient_clip_val=1.0, gradient_clip_algorithm="norm")
    assert module.gradients[0] == pytest.approx([0.6, 0.8], abs=1e-6)


def test_both_arguments_outside_of_the_hook_may_not_contradict() -> None:
    """R103: only inside of configure_gradient_clipping is a call with both arguments complete."""

    class Model(Given):
        def on_before_optimizer_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    with pytest.raises(MisconfigurationException, match="contradicts"):
        fit(Model(2), given(STEEP), gradient_clip_val=1.0)


@pytest.mark.parametrize("algorithm", ["value", "norm", None])
def test_both_arguments_in_the_hook_win_over_the_trainer(algorithm: str | None) -> None:
    """R103, V14: the page's "times two" example works, whatever the Trainer says; algorithm=None counts."""

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val * 2, gradient_clip_algorithm=algorithm)

    module = Model(2)
    fit(module, given(STEEP), gradient_clip_val=1.0, gradient_clip_algorithm="value")
    how = clip_grad_value_ if algorithm == "value" else clip_grad_norm_
    assert module.gradients == [clipped(STEEP, 2.0, how)]


def test_the_hook_may_choose_by_optimizer() -> None:
    """R103, V14: the generator clipped, the discriminator not."""

    class Model(Alternating):
        def configure_gradient_clipping(self, optimizer, optimizer_idx, gradient_clip_val, gradient_clip_algorithm):
            if optimizer_idx == 1:
                super().configure_gradient_clipping(optimizer, optimizer_idx, 1.0, None)

    module = Model()
    fit(module, TWO, gradient_clip_val=2.0, gradient_clip_algorithm="value")
    assert module.moved() == [STEEP, clipped([6.0, 8.0], 1.0)]


# ------------------------------------------------------------------------------------------------- R104 ... R109


@pytest.mark.parametrize("hook", [False, True])
def test_an_override_of_clip_gradients_is_called(hook: bool) -> None:
    """R104: users should not, but who overrides clip_gradients is not ignored."""

    class Model(Given):
        def clip_gradients(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.events.append((type(optimizer), gradient_clip_val))

    class WithHook(Model):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val)

    module = (WithHook if hook else Model)(2)
    fit(module, given(STEEP), gradient_clip_val=1.0)
    assert module.events == [(SGD, 1.0)]
    assert module.gradients == [STEEP]


def test_clip_gradients_takes_a_handle() -> None:
    """R105: clip_gradients works with what self.optimizers() hands out, as with the optimizer itself."""

    class Model(Given):
        def on_before_optimizer_step(self, optimizer):
            self.clip_gradients(self.optimizers(), gradient_clip_val=1.0)

    module = Model(2)
    fit(module, given(STEEP))
    assert module.gradients == [clipped(STEEP, 1.0)]


@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
def test_a_fused_optimizer_is_clipped(plugins: Any) -> None:
    """R106, V8: also where a scaler is in use: its gradients are unscaled and clipped before it sees them."""

    class Model(Given):
        def configure_optimizers(self):
            return Adam(self.parameters(), lr=0.1, fused=True)

    module = Model(2)
    fit(module, given(STEEP, [0.5, 0.25]), gradient_clip_val=1.0, plugins=plugins and plugins())
    twin = Adam([weight := nn.Parameter(torch.zeros(2))], lr=0.1, fused=True)
    for gradient in (STEEP, [0.5, 0.25]):
        weight.grad = torch.tensor(gradient)
        clip_grad_norm_([weight], 1.0)
        twin.step()
    assert torch.equal(weight, module.weight)


def test_a_closure_optimizer_is_clipped_at_every_evaluation() -> None:
    """R107: LBFGS sees clipped gradients, and the hook runs once per evaluation of the closure."""
    counts = {"evaluations": 0, "clips": 0}

    class Model(Given):
        def loss(self, batch):
            counts["evaluations"] += 1
            return (100 * (self.weight - batch).square()).sum()

        def configure_optimizers(self):
            return LBFGS(self.parameters(), lr=0.1, max_iter=4)

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            counts["clips"] += 1
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            assert self.weight.grad is not None
            assert self.weight.grad.norm() <= 1.0

    fit(Model(), given(1.0), gradient_clip_val=1.0)
    assert counts["evaluations"] > 2
    assert counts["clips"] == counts["evaluations"]


def test_the_hook_may_log() -> None:
    """R108: self.log works in configure_gradient_clipping."""

    class Model(Given):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.log("norm", self.weight.grad.norm())

    assert fit(Model(2), given(STEEP)).callback_metrics["norm"] == 5.0


def test_the_hook_is_not_called_in_manual_mode() -> None:
    """R109: there the user clips, and nobody else."""

    class Model(Manual):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            raise AssertionError("called")

        def before_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=1.0)

    module = Model(2)
    fit(module, given(STEEP))
    assert module.gradients == [clipped(STEEP, 1.0)]


# ------------------------------------------------------------------------------------------- R110: float16, by hand


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_by_hand_acts_on_unscaled_gradients(algorithm: str) -> None:
    """R110: the limit is the limit, not the limit over the scale; the step does not unscale a second time."""

    class Model(Manual):
        def before_step(self, optimizer):
            assert self.weight.grad.tolist() == [3 * 1024.0, 4 * 1024.0]
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)

        def on_before_optimizer_step(self, optimizer):
            self.events.append(self.weight.grad.tolist())

    module = Model(2)
    fit(module, given(STEEP, STEEP), plugins=half_precision())
    expected = clipped(STEEP, 1.0, clip_grad_value_ if algorithm == "value" else clip_grad_norm_)
    assert module.events == [expected] * 2
    assert module.gradients[0] == expected


def test_clipping_twice_by_hand_unscales_once() -> None:
    """R110: value, then norm: the second call finds unscaled gradients."""

    class Model(Manual):
        def before_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=3.5, gradient_clip_algorithm="value")
            self.clip_gradients(optimizer, gradient_clip_val=100.0, gradient_clip_algorithm="norm")

    module = Model(2)
    fit(module, given(STEEP), plugins=half_precision())
    assert module.gradients == [[3.0, 3.5]]


def test_clipping_one_optimizer_by_hand_leaves_the_other_scaled() -> None:
    """R110: only that optimizer is unscaled, and only once; the other one by its own step."""

    class Model(Alternating):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            self.manual_backward(self.both(batch))
            self.clip_gradients(first, gradient_clip_val=1.0)
            self.seen.append(self.second.grad.tolist())
            first.step()
            second.step()

    module = Model()
    fit(module, TWO, plugins=half_precision())
    assert module.seen == [[6 * 1024.0, 8 * 1024.0]]
    assert module.moved() == [clipped(STEEP, 1.0), [6.0, 8.0]]


@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
def test_clipping_of_the_trainer_acts_on_unscaled_gradients(plugins: Any) -> None:
    """R110, R118: automatic mode clips behind unscaling."""
    module = Given(2)
    fit(module, given(STEEP), gradient_clip_val=1.0, plugins=plugins and plugins())
    assert module.gradients == [clipped(STEEP, 1.0)]


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_clipping_in_a_hook_of_automatic_mode_acts_on_unscaled_gradients(hook: str) -> None:
    """R110: a limit never means the limit over the scale, whichever hook clips."""

    def clip(self, *args):
        self.clip_gradients(self.optimizers(), gradient_clip_val=1.0)

    module = type("Model", (Given,), {hook: clip})(2)
    fit(module, given(STEEP), plugins=half_precision())
    assert module.gradients == [clipped(STEEP, 1.0)]


# --------------------------------------------------------------------------------- calls that could have no effect


def test_clipping_in_an_automatic_training_step_is_refused() -> None:
    """R100: clipping follows backward. In an automatic training_step it would act on nothing, so it is an error."""

    class Model(Given):
        def training_step(self, batch, batch_idx):
            self.clip_gradients(self.optimizers(), gradient_clip_val=1.0)
            return self.loss(batch)

    with pytest.raises(MisconfigurationException, match="backward comes after it"):
        fit(Model(), given(100.0))


# ------------------------------------------------------------------------------------------- members of a Joint


@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
@pytest.mark.parametrize("module_class", [Together, TogetherByHand], ids=["automatic", "manual"])
def test_the_members_of_a_joint_are_clipped_each_by_its_own_norm(module_class: Any, plugins: Any) -> None:
    """R101 for a Joint: one backward, one verdict, but clipping is each member's own affair."""
    module = module_class()
    value = 1.0 if module_class is Together else None
    fit(module, TWO, gradient_clip_val=value, plugins=plugins and plugins())
    assert module.moved() == [clipped(STEEP, 1.0), clipped([6.0, 8.0], 1.0)]


@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
def test_one_member_of_a_joint_can_be_clipped_by_hand(plugins: Any) -> None:
    """R101, R105: clip_gradients takes a member; unscaling is for the whole Joint, once."""

    class Model(TogetherByHand):
        def before_step(self, optimizer):
            self.clip_gradients(optimizer.optimizers[1], gradient_clip_val=1.0)

    module = Model()
    fit(module, TWO, plugins=plugins and plugins())
    assert module.moved() == [STEEP, clipped([6.0, 8.0], 1.0)]


def test_the_hook_is_called_for_each_member_of_a_joint() -> None:
    """R100 for a Joint: configure_gradient_clipping gets the members one by one."""

    class Model(Together):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.seen.append(self.optimizers().optimizers.index(optimizer))
            if self.seen[-1] == 1:
                super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    module = Model()
    fit(module, TWO, gradient_clip_val=1.0)
    assert module.seen == [0, 1]
    assert module.moved() == [STEEP, clipped([6.0, 8.0], 1.0)]


# --------------------------------------------------------------------------------- track_grad_norm: norms are logged


@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
@pytest.mark.parametrize("norm_type", [1, 2, 2.0, float("inf")])
def test_the_norm_before_clipping_is_logged(norm_type: float, plugins: Any) -> None:
    """R167, R99-R101: Trainer(track_grad_norm) logs the unscaled norm of each update, as it is before clipping."""
    module = Given(2)
    trainer = fit(module, given(STEEP), gradient_clip_val=1.0, track_grad_norm=norm_type, plugins=plugins and plugins())
    expected = torch.linalg.vector_norm(torch.tensor(STEEP), norm_type)
    assert trainer.callback_metrics == {f"grad_{float(norm_type)}_norm_total": expected}
    assert module.gradients == [clipped(STEEP, 1.0)]


def test_the_norm_of_a_window_is_logged() -> None:
    """R113: once per window, of the whole window's gradient, a short last one included."""
    norms = []

    class Model(Given):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            norms.append(self.trainer.callback_metrics.get("grad_2.0_norm_total"))

    fit(Model(2), given(STEEP, [9.0, 12.0], [0.6, 0.8]), accumulate_grad_batches=2, track_grad_norm=2)
    assert norms[0] is None
    assert [norm.item() for norm in norms[1:]] == pytest.approx([10.0, 1.0])


def test_the_norms_of_alternating_optimizers_are_told_apart() -> None:
    """R100: with several optimizers the key ends with the index."""
    metrics = fit(Alternating(), TWO, track_grad_norm=2).callback_metrics
    assert metrics == {"grad_2.0_norm_total/0": torch.tensor(5.0), "grad_2.0_norm_total/1": torch.tensor(10.0)}


@pytest.mark.parametrize("plugins", [None, half_precision], ids=["32-true", "16-mixed"])
@pytest.mark.parametrize("module_class", [Together, TogetherByHand], ids=["automatic", "manual"])
def test_the_norms_of_the_members_of_a_joint_are_logged(module_class: Any, plugins: Any) -> None:
    """R101 for a Joint: each member's norm is what its clipping acts on, so each is logged, in both modes."""
    module = module_class()
    if module_class is TogetherByHand:
        module.before_step = lambda optimizer: None
    trainer = fit(module, TWO, track_grad_norm=2, plugins=plugins and plugins())
    assert sorted(value.item() for value in trainer.callback_metrics.values()) == [5.0, 10.0]


def test_norms_are_logged_in_manual_mode() -> None:
    """R82: every step of a handle logs its norm, after the user has clipped what he wanted."""

    class Model(Manual):
        def before_step(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=3.5, gradient_clip_algorithm="value")

    trainer = fit(Model(2), given(STEEP), track_grad_norm=2)
    assert trainer.callback_metrics["grad_2.0_norm_total"].item() == pytest.approx((3**2 + 3.5**2) ** 0.5)
