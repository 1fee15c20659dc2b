"""``Joint``: several optimizers, one backward, one verdict (V1, V15, V16), against loops written by hand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from leyden import Joint, LightningModule, MisconfigurationException
from leyden.errors import InvalidTypeError, InvalidValueError
from leyden.optimization.optimizer import LightningOptimizer
from leyden.precision import MixedPrecision
from seed_page import BATCHES, EPOCHS, Recorder, Regression, TwoPlayers, assert_same_weights, batches, create, fit

Muon = getattr(torch.optim, "Muon", None)
needs_muon = pytest.mark.skipif(Muon is None, reason="torch.optim.Muon came with torch 2.9")


def split(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, and the rest."""
    parameters = list(net.parameters())
    return [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]


def sgd_and_adam(net: nn.Module) -> tuple[Optimizer, Optimizer]:
    matrices, rest = split(net)
    return SGD(matrices, lr=0.1, momentum=0.9), Adam(rest, lr=0.02)


def muon_and_adamw(net: nn.Module) -> tuple[Optimizer, Optimizer]:
    matrices, rest = split(net)
    return Muon(matrices, lr=0.02), AdamW(rest, lr=0.02)  # type: ignore[misc]


PAIRS = [pytest.param(sgd_and_adam, id="SGD+Adam"), pytest.param(muon_and_adamw, id="Muon+AdamW", marks=needs_muon)]


class Joined(Regression):
    """The network of the examples, its matrices and its biases with an optimizer each."""

    pair: Any = staticmethod(sgd_and_adam)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def members(self) -> tuple[Any, Any]:
        return type(self).pair(self.net)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.compute_loss(batch)

    def configure_optimizers(self) -> Any:
        return Joint(self.members())


class JoinedByHand(Joined):
    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        joint = self.optimizers()
        joint.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        joint.step()


def with_pair(pair: Any, base: type[Any] = Joined, **members: Any) -> type[Any]:
    return type("Module", (base,), {"pair": staticmethod(pair), **members})


def train_by_hand(twin: Any, *, every: int = 1, count: int = BATCHES, clip: Any = None, schedulers: Any = None) -> Any:
    """One backward, two steps; windows of ``every`` batches, each member clipped by itself."""
    optimizers = twin.members()
    by_step, by_epoch = schedulers(*optimizers) if schedulers else ([], [])
    for _ in range(EPOCHS):
        listed = list(batches(count))
        for start in range(0, count, every):
            window = listed[start : start + every]
            for opt in optimizers:
                opt.zero_grad()
            for batch in window:
                (twin.compute_loss(batch) / len(window)).backward()
            for opt in optimizers:
                if clip is not None:
                    clip([p for group in opt.param_groups for p in group["params"]])
                opt.step()
            for scheduler in by_step:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    return optimizers


def assert_same_state(mine: Any, theirs: Any) -> None:
    for one, other in zip(mine, theirs, strict=True):
        for left, right in zip(one.state.values(), other.state.values(), strict=True):
            assert left.keys() == right.keys()
            assert all(torch.equal(torch.as_tensor(left[key]), torch.as_tensor(right[key])) for key in left)


# --------------------------------------------------------------------------------------------- automatic mode


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("form", ["Joint", "[Joint]", "list in a dict", "tuple in a dict", "pair"])
def test_one_backward_and_several_steps(form: str, pair: Any) -> None:
    """V1, V15: Joint([a, b]), or {"optimizer": [a, b]}: bit for bit the loop with two steps."""

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            members = self.members()
            return {
                "Joint": lambda: Joint(members),
                "[Joint]": lambda: [Joint(members)],
                "list in a dict": lambda: {"optimizer": list(members)},
                "tuple in a dict": lambda: {"optimizer": members},
                "pair": lambda: ([Joint(members)], []),
            }[form]()

    module, twin = create(with_pair(pair, Module))
    trainer = fit(module)
    theirs = train_by_hand(twin)
    assert_same_weights(module, twin)
    assert type(trainer.optimizers[0]) is Joint
    assert_same_state(trainer.optimizers[0].optimizers, theirs)
    assert (trainer.global_step, trainer.num_updates) == (EPOCHS * BATCHES, EPOCHS * BATCHES)
    assert len(trainer.clocks.optimizers) == 1


def test_a_list_of_one_is_just_that_optimizer() -> None:
    """V15: {"optimizer": [a]} is a."""

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            return {"optimizer": [SGD(self.parameters(), lr=0.1)]}

    module, _ = create(Module)
    assert type(fit(module, max_epochs=1).optimizers[0]) is SGD


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("base", [Joined, JoinedByHand])
def test_members_share_the_window(base: type[Any], pair: Any) -> None:
    """V1: one accumulation window for all members, in manual mode with the helper."""

    class Helped(JoinedByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            joint = self.optimizers()
            with self.accumulate(joint, 2) as window:
                self.manual_backward(self.compute_loss(batch))
            if window.closes:
                joint.step()

    manual = base is JoinedByHand
    module, twin = create(with_pair(pair, Helped if manual else Joined))
    trainer = fit(module, **({} if manual else {"accumulate_grad_batches": 2}))
    train_by_hand(twin, every=2)
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * 3


@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [
        ("norm", lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.05)),
        ("value", lambda parameters: nn.utils.clip_grad_value_(parameters, 0.05)),
    ],
    ids=["norm", "value"],
)
@pytest.mark.parametrize("pair", PAIRS)
def test_each_member_is_clipped_by_itself(pair: Any, algorithm: str, clip: Any) -> None:
    """V1: the norm is that of the member's own gradients."""
    module, twin = create(with_pair(pair))
    fit(module, gradient_clip_val=0.05, gradient_clip_algorithm=algorithm)
    train_by_hand(twin, clip=clip)
    assert_same_weights(module, twin)


def test_the_clipping_hook_is_called_once_per_member() -> None:
    """V1: configure_gradient_clipping gets one member after the other, so that each can have its own limit."""

    class Module(Joined):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            self.events.append(type(optimizer))
            if isinstance(optimizer, Adam):
                self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")

    module, twin = create(Module)
    fit(module)
    assert module.events == [SGD, Adam] * (EPOCHS * BATCHES)

    sgd, adam = twin.members()
    for _ in range(EPOCHS):
        for batch in batches():
            sgd.zero_grad()
            adam.zero_grad()
            twin.compute_loss(batch).backward()
            nn.utils.clip_grad_norm_(split(twin.net)[1], 0.05)
            sgd.step()
            adam.step()
    assert_same_weights(module, twin)


def test_hooks_see_the_joint_once() -> None:
    """V1: one update, so one call of each hook, with the Joint; optimizer_step gets its handle."""

    class Module(Joined):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.events.append(("zero_grad", optimizer is self.trainer.optimizers[0]))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.events.append(("before", optimizer is self.trainer.optimizers[0]))

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            self.events.append(("step", optimizer is self.optimizers() and isinstance(optimizer, Joint)))
            optimizer.step(closure=optimizer_closure)

        def on_after_backward(self) -> None:
            self.events.append(("backward", True))

    module, twin = create(Module)
    fit(module)
    names = ["step", "zero_grad", "backward", "before"]
    assert module.events == [(name, True) for name in names] * (EPOCHS * BATCHES)
    train_by_hand(twin)
    assert_same_weights(module, twin)


def schedules(first: Any, second: Any) -> tuple[list[Any], list[Any]]:
    return [StepLR(first, 2, gamma=0.7)], [ExponentialLR(second, 0.9)]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_scheduler_belongs_to_the_member_that_it_was_built_on(pair: Any) -> None:
    """V16: StepLR of one member by step, ExponentialLR of the other by epoch."""

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            members = self.members()
            (by_step,), (by_epoch,) = schedules(*members)
            return [Joint(members)], [{"scheduler": by_step, "interval": "step"}, by_epoch]

    recorder = Recorder()
    module, twin = create(with_pair(pair, Module))
    trainer = fit(module, callbacks=recorder)
    mine = [group["lr"] for group in trainer.optimizers[0].param_groups]
    theirs = train_by_hand(twin, schedulers=schedules)
    assert mine == [opt.param_groups[0]["lr"] for opt in theirs]
    assert_same_weights(module, twin)
    assert [config.opt_idx for config in trainer.lr_scheduler_configs] == [0, 0]
    assert module.lr_schedulers() == [config.scheduler for config in trainer.lr_scheduler_configs]


def test_a_scheduler_on_the_joint_itself() -> None:
    """V16: one schedule for all members."""

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            joint = Joint(self.members())
            return {"optimizer": joint, "lr_scheduler": {"scheduler": StepLR(joint, 1, 0.5), "interval": "step"}}

    module, twin = create(Module)
    fit(module)
    train_by_hand(twin, schedulers=lambda a, b: ([StepLR(a, 1, 0.5), StepLR(b, 1, 0.5)], []))
    assert_same_weights(module, twin)


def test_a_plateau_scheduler_of_a_member() -> None:
    """V16: metric-driven schedulers too."""

    class Module(Joined):
        def on_train_epoch_end(self) -> None:
            self.log("value", 1.0)

        def configure_optimizers(self) -> Any:
            sgd, adam = self.members()
            plateau = ReduceLROnPlateau(adam, patience=0, factor=0.5)
            return {"optimizer": [sgd, adam], "lr_scheduler": plateau, "monitor": "value"}

    module, _ = create(Module)
    trainer = fit(module)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.02 * 0.25]


def test_a_scheduler_of_a_stranger_is_refused() -> None:
    """V16: of neither the Joint nor a member."""

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            return [Joint(self.members())], [StepLR(SGD(self.parameters(), lr=0.1), 1)]

    module, _ = create(Module)
    with pytest.raises(MisconfigurationException, match="StepLR belongs to an optimizer"):
        fit(module)


# ------------------------------------------------------------------------------------------- among other turns


class Alternating(TwoPlayers):
    """Player A's weight and bias are a Joint, which takes turns with player B's optimizer."""

    frequencies: tuple[int, ...] = ()

    def parts(self) -> tuple[Any, Any, Any]:
        return (
            SGD([self.A.weight], lr=0.1, momentum=0.9),
            Adam([self.A.bias], lr=0.02),
            SGD(self.B.parameters(), lr=0.1),
        )

    def configure_optimizers(self) -> Any:
        weight, bias, b = self.parts()
        if self.frequencies:
            dicts = {"optimizer": [weight, bias]}, {"optimizer": b}
            return [{**one, "frequency": n} for one, n in zip(dicts, self.frequencies, strict=True)]
        return [Joint([weight, bias]), b]


@pytest.mark.parametrize("every", [1, 2])
def test_a_joint_takes_turns_with_another_optimizer(every: int) -> None:
    """V1: Joint and alternation nest: the Joint is one turn, toggled and clipped like any other."""
    module, twin = create(Alternating)
    trainer = fit(module, batches(4), accumulate_grad_batches=every, gradient_clip_val=0.05)
    assert trainer.global_step == EPOCHS * 2 * 4 // every
    assert [clock.attempted for clock in trainer.clocks.optimizers] == [EPOCHS * 4 // every] * 2
    assert module.steps[:2] == [(0, 0, True, False), (0, 1, False, True)]

    weight, bias, b = twin.parts()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches(4)):
            for index, turn in enumerate(((weight, bias), (b,))):
                other = (twin.B, twin.A)[index].requires_grad_(False)
                if batch_idx % every == 0:
                    for opt in turn:
                        opt.zero_grad()
                (twin.loss(batch, index) / every).backward()
                other.requires_grad_(True)
                if (batch_idx + 1) % every == 0:
                    for opt in turn:
                        nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], 0.05)
                        opt.step()
    assert_same_weights(module, twin)


def test_a_joint_takes_turns_by_frequency() -> None:
    """V15: {"optimizer": [a, b], "frequency": 2} beside {"optimizer": c, "frequency": 1}."""
    module, twin = create(type("Module", (Alternating,), {"frequencies": (2, 1)}))
    trainer = fit(module)
    assert [clock.attempted for clock in trainer.clocks.optimizers] == [10, 5]

    weight, bias, b = twin.parts()
    every = [batch for _ in range(EPOCHS) for batch in batches()]
    for place, batch in enumerate(every):
        index = 0 if place % 3 < 2 else 1
        turn = ((weight, bias), (b,))[index]
        for opt in turn:
            opt.zero_grad()
        twin.loss(batch, index).backward()
        for opt in turn:
            opt.step()
    assert_same_weights(module, twin)


def test_hooks_of_the_first_era_get_the_index_of_the_joint() -> None:
    """V1: optimizer_idx is the turn's index, for a member as well."""

    class Module(Alternating):
        def configure_gradient_clipping(
            self, optimizer: Any, optimizer_idx: int, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            self.calls = [*getattr(self, "calls", []), (type(optimizer), optimizer_idx)]

    module, _ = create(Module)
    fit(module, batches(1), max_epochs=1)
    assert module.calls == [(SGD, 0), (Adam, 0), (SGD, 1)]


def test_several_optimizers_without_an_index_name_the_joint_as_a_remedy() -> None:
    """V1: never guessed: still an error, with a third remedy."""

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            return list(self.members())

    module, _ = create(Module)
    with pytest.raises(ValueError, match=r"return Joint\(\[...\]\) from configure_optimizers"):
        fit(module)


# -------------------------------------------------------------------------------------------------- manual mode


@pytest.mark.parametrize("pair", PAIRS)
def test_a_joint_by_hand(pair: Any) -> None:
    """V1: in manual mode self.optimizers() is the Joint's handle; one step() counts once."""
    module, twin = create(with_pair(pair, JoinedByHand))
    trainer = fit(module)
    train_by_hand(twin)
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * BATCHES
    assert isinstance(module.optimizers(), Joint) and type(module.optimizers()) is LightningOptimizer


def test_a_joint_by_hand_with_a_closure() -> None:
    """V1: the closure runs once, before both steps."""

    class Module(JoinedByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            joint = self.optimizers()

            def closure() -> Tensor:
                self.events.append("closure")
                joint.zero_grad()
                loss = self.compute_loss(batch)
                self.manual_backward(loss)
                return loss.detach()

            self.events.append(joint.step(closure).item() > 0)

    module, twin = create(Module)
    fit(module)
    assert module.events == ["closure", True] * (EPOCHS * BATCHES)
    train_by_hand(twin)
    assert_same_weights(module, twin)


@pytest.mark.parametrize("whole", [True, False])
def test_clipping_a_joint_by_hand(whole: bool) -> None:
    """V1: clip_gradients(joint) clips each member by itself; a member can be clipped alone."""

    class Module(JoinedByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            joint = self.optimizers()
            joint.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            for optimizer in [joint] if whole else joint.optimizers:
                self.clip_gradients(optimizer, gradient_clip_val=0.05)
            joint.step()

    module, twin = create(Module)
    fit(module)
    train_by_hand(twin, clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.05))
    assert_same_weights(module, twin)


# ------------------------------------------------------------------------------------------------- the verdict


class Overflowing(LightningModule):
    """On batch 1 the second member's gradient is infinite, the first one's is not."""

    def __init__(self, automatic: bool) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.first, self.second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = (self.first + self.second * (torch.inf if batch_idx == 1 else 1.0)).sum()
        if self.automatic_optimization:
            return loss
        joint = self.optimizers()
        joint.zero_grad()
        self.manual_backward(loss)
        joint.step()
        return None

    def configure_optimizers(self) -> Joint:
        return Joint([SGD([self.first], lr=1.0), Adam([self.second], lr=1.0)])


@pytest.mark.parametrize("automatic", [True, False])
def test_all_members_step_or_none_does(automatic: bool) -> None:
    """V1: one verdict: under float16 an infinite gradient of one member skips the update of all."""
    module = Overflowing(automatic)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    trainer = fit(module, batches(3), max_epochs=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, clock.skipped) == (3, 2, {"non-finite gradients": 1})
    assert module.first.item() == -1.0
    assert trainer.optimizers[0].state[module.second]["step"] == 2
    assert scaler.get_scale() == 2.0


# --------------------------------------------------------------------------------------------- without a trainer


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_joint_alone(pair: Any, with_closure: bool) -> None:
    """V1: Joint([a, b]).step() == a.step(); b.step(), with and without closure."""
    net, twin = create(with_pair(pair))
    joint = Joint(net.members())
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                joint.zero_grad()
                loss = net.compute_loss(batch)
                loss.backward()
                return loss

            if with_closure:
                with torch.no_grad():
                    assert joint.step(closure).requires_grad
            else:
                closure()
                assert joint.step() is None
    theirs = train_by_hand(twin)
    assert_same_weights(net, twin)
    assert_same_state(joint.optimizers, theirs)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", ["state_dict", "saved", "pickle", "deepcopy"])
def test_state_survives(pair: Any, way: str, tmp_path: Any) -> None:
    """V1: a round trip of the state goes on bit for bit, also through torch.save with weights_only."""

    def train(module: Any, joint: Any) -> None:
        for batch in batches():
            joint.zero_grad()
            module.compute_loss(batch).backward()
            joint.step()

    module, _ = create(with_pair(pair))
    joint = Joint(module.members())
    train(module, joint)
    if way in ("pickle", "deepcopy"):
        both = (module, joint)
        resumed, again = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(_plain(both)))
    else:
        resumed = copy.deepcopy(module)
        again = Joint(resumed.members())
        state = copy.deepcopy(joint.state_dict())  # torch's load_state_dict keeps the tensors that it is given
        if way == "saved":
            torch.save(state, tmp_path / "joint.pt")
            state = torch.load(tmp_path / "joint.pt", weights_only=True)
        again.load_state_dict(state)
    train(module, joint)
    train(resumed, again)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), resumed.parameters(), strict=True))
    assert_same_state(joint.optimizers, again.optimizers)


class Plain:
    """A network and its loss, picklable where a class made in a test is not."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def parameters(self) -> Any:
        return self.net.parameters()

    def compute_loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)


def _plain(both: tuple[Any, Joint]) -> tuple[Plain, Joint]:
    return Plain(both[0].net), both[1]


def test_groups_and_state_are_the_members_own() -> None:
    """V1: param_groups and state are live views over the members."""
    module, _ = create(Joined)
    sgd, adam = module.members()
    joint = Joint([sgd, LightningOptimizer(adam)])
    assert isinstance(joint, Optimizer)
    assert joint.optimizers == (sgd, adam)
    assert [id(group) for group in joint.param_groups] == [id(sgd.param_groups[0]), id(adam.param_groups[0])]
    joint.param_groups[1]["lr"] = 0.5
    assert adam.param_groups[0]["lr"] == 0.5
    module.compute_loss(next(iter(batches()))).backward()
    joint.step()
    assert set(joint.state) == {*sgd.state, *adam.state}
    assert len(joint.state) == 4
    joint.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())
    assert "SGD" in repr(joint) and "Adam" in repr(joint)


def test_schedulers_without_a_trainer() -> None:
    """V1: torch's schedulers work on the Joint and on a member, without their warning about a wrong order."""
    module, _ = create(Joined)
    sgd, adam = module.members()
    joint = Joint([sgd, adam])
    on_all, on_one = StepLR(joint, 1, gamma=0.5), StepLR(adam, 1, gamma=0.1)
    module.compute_loss(next(iter(batches()))).backward()
    joint.step()
    on_all.step()
    on_one.step()
    assert [group["lr"] for group in joint.param_groups] == pytest.approx([0.05, 0.001])


def test_step_hooks_of_joint_and_members_run() -> None:
    """V1: hooks that were registered with torch run in a fit as well as outside of one."""
    calls: list[str] = []

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            members = self.members()
            joint = Joint(members)
            for name, optimizer in zip(("joint", "sgd", "adam"), (joint, *members), strict=True):
                optimizer.register_step_pre_hook(lambda *_, name=name: calls.append(f"{name} pre"))
                optimizer.register_step_post_hook(lambda *_, name=name: calls.append(f"{name} post"))
            return joint

    expected = ["joint pre", "sgd pre", "sgd post", "adam pre", "adam post", "joint post"]
    module, _ = create(Module)
    module.configure_optimizers().step()
    assert calls == expected
    calls.clear()
    fit(module, batches(2), max_epochs=1)
    assert calls == expected * 2


def test_a_joint_in_a_joint_is_one_joint() -> None:
    """V1: members of members are members, so that schedulers, clipping and names find them."""
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    a, b, c = (SGD([parameter], lr=0.1) for parameter in parameters)
    assert Joint([Joint([a, b]), c]).optimizers == (a, b, c)


def test_members_with_modes_are_switched() -> None:
    """V1: train() and eval() reach the members that have them (schedule-free), during a fit at its start and end."""

    class Modal(SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            self.modes: list[str] = []

        def train(self) -> None:
            self.modes.append("train")

        def eval(self) -> None:
            self.modes.append("eval")

    class Module(Joined):
        def configure_optimizers(self) -> Any:
            matrices, rest = split(self.net)
            return Joint([Modal(matrices), Adam(rest)])

    module, _ = create(Module)
    trainer = fit(module, batches(1), max_epochs=1)
    assert trainer.optimizers[0].optimizers[0].modes == ["train", "eval"]


# ------------------------------------------------------------------------------------------------------- misuse


def make(*sizes: int) -> list[SGD]:
    return [SGD([nn.Parameter(torch.ones(size))], lr=0.1) for size in sizes]


def test_no_members() -> None:
    """V1: at least one."""
    with pytest.raises(InvalidValueError, match="give it at least one optimizer") as error:
        Joint([])
    assert error.value.code == "joint-empty"


@pytest.mark.parametrize("member", [None, "SGD", [nn.Parameter(torch.ones(1))], StepLR(make(1)[0], 1)], ids=type)
def test_members_are_optimizers(member: Any) -> None:
    """V1: anything else is named."""
    with pytest.raises(InvalidTypeError, match=f"member 1 of a Joint is {type(member).__name__}") as error:
        Joint([*make(1), member])
    assert error.value.code == "joint-member"


def test_a_single_optimizer_is_no_list() -> None:
    """V1: Joint takes a list."""
    with pytest.raises(InvalidTypeError, match=r"Joint takes a list of optimizers, got SGD") as error:
        Joint(make(1)[0])  # type: ignore[arg-type]
    assert error.value.code == "joint-member"


def test_a_parameter_in_two_members() -> None:
    """V1: one backward would update it twice."""
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(InvalidValueError, match="give each parameter to one member") as error:
        Joint([SGD([parameter], lr=0.1), Adam([parameter])])
    assert error.value.code == "joint-shared-parameter"


def test_lbfgs_takes_turns() -> None:
    """V1: it evaluates its closure by itself."""
    with pytest.raises(InvalidValueError, match="let it take turns") as error:
        Joint([LBFGS([nn.Parameter(torch.ones(1))])])
    assert error.value.code == "joint-lbfgs"


class SharpnessAware(SGD):
    """Evaluates its closure by itself, so it cannot step without one."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        closure()
        return super().step(closure)


@pytest.mark.parametrize("has_scheduler", [False, True])  # which wraps step
def test_what_needs_a_closure_takes_turns(has_scheduler: bool) -> None:
    """V1: an optimizer whose step has a closure without a default; named, with the remedy, before any step."""
    needy = SharpnessAware([nn.Parameter(torch.ones(1))])
    if has_scheduler:
        StepLR(needy, 1)
    with pytest.raises(
        InvalidValueError, match=r"SharpnessAware\.step cannot .* without a closure.* take turns"
    ) as error:
        Joint([*make(1), needy])
    assert error.value.code == "joint-closure"


class Duck:
    """An optimizer of no class, whose zero_grad takes nothing."""

    def __init__(self) -> None:
        self.param_groups = [{"params": [nn.Parameter(torch.ones(1))]}]
        self.cleared = 0

    def step(self) -> None: ...

    def zero_grad(self) -> None:
        self.cleared += 1

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def test_members_of_any_class_are_cleared() -> None:
    """V1, R12: set_to_none is passed on only where it is not the default."""
    duck, sgd = Duck(), SGD([parameter := nn.Parameter(torch.ones(1))], lr=0.1)
    parameter.grad = torch.ones(1)
    Joint([duck, sgd]).zero_grad()
    assert (duck.cleared, parameter.grad) == (1, None)
    parameter.grad = torch.ones(1)
    Joint([sgd]).zero_grad(set_to_none=False)
    assert parameter.grad.tolist() == [0.0]


def test_a_group_is_added_to_a_member() -> None:
    """V1: the Joint cannot know to which."""
    a, b = make(1, 1)
    joint = Joint([a, b])
    with pytest.raises(InvalidValueError, match="call add_param_group on the member") as error:
        joint.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert error.value.code == "joint-add-group"
    b.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert len(joint.param_groups) == 3


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (lambda: Joint(make(1, 1, 1)).state_dict(), "of a Joint of 3 optimizers, this one has 2"),
        (lambda: make(1)[0].state_dict(), "is not of a Joint"),
    ],
    ids=["another number", "of another optimizer"],
)
def test_state_of_another_kind(state: Any, text: str) -> None:
    """V1: refused before anything is loaded."""
    with pytest.raises(InvalidValueError, match=text) as error:
        Joint(make(1, 1)).load_state_dict(state())
    assert error.value.code == "joint-state"
