"""Rules R60-R63 (G: whose parameters require gradients), in automatic and manual mode and without a trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from leyden import LightningModule
from leyden.errors import OrderError
from leyden.optimization.joint import Joint
from leyden.optimization.optimizer import LightningOptimizer
from leyden.optimization.toggling import Toggler
from seed_page import BATCHES, EPOCHS, TwoPlayers, assert_same_weights, batches, create, fit


class Parts(nn.Module):
    """``a`` and ``b`` have an optimizer each, ``shared`` is in both, ``free`` in none; ``frozen`` is a's, frozen."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "shared", "free", "frozen"):
            setattr(self, name, nn.Parameter(torch.ones(1)))
        self.frozen.requires_grad_(False)

    def optimizers(self) -> tuple[SGD, SGD]:
        return SGD([self.a, self.shared, self.frozen], lr=0.1), SGD([self.b, self.shared], lr=0.1)

    def wants(self) -> dict[str, bool]:
        return {name: parameter.requires_grad for name, parameter in self.named_parameters()}


START = {"a": True, "b": True, "shared": True, "free": True, "frozen": False}


@pytest.fixture
def parts() -> Parts:
    return Parts()


# ------------------------------------------------------------------------------------- the rules, on the part


def test_toggle_freezes_what_only_others_have(parts: Parts) -> None:
    """R60: shared parameters stay trainable, frozen ones frozen, those in no optimizer untouched."""
    a, b = parts.optimizers()
    toggler = Toggler([a, b])
    toggler.toggle(a)
    assert parts.wants() == {**START, "b": False}
    toggler.untoggle(a)
    assert parts.wants() == START
    toggler.toggle(b)
    assert parts.wants() == {**START, "a": False}
    toggler.untoggle(b)
    assert parts.wants() == START


def test_toggle_takes_handles(parts: Parts) -> None:
    """R60: an optimizer and its handle mean the same, on both sides."""
    a, b = parts.optimizers()
    handles = [LightningOptimizer(a), LightningOptimizer(b)]
    toggler = Toggler(handles)
    toggler.toggle(a)
    assert parts.wants() == {**START, "b": False}
    toggler.untoggle(handles[0])
    assert parts.wants() == START


def test_untoggle_restores_only_the_others(parts: Parts) -> None:
    """R61: what the user changed on the active optimizer's own parameters inside survives."""
    a, b = parts.optimizers()
    toggler = Toggler([a, b])
    toggler.toggle(a)
    parts.a.requires_grad_(False)
    parts.frozen.requires_grad_(True)
    parts.b.requires_grad_(True)
    toggler.untoggle(a)
    assert parts.wants() == {**START, "a": False, "frozen": True}


def test_untoggle_forgets(parts: Parts) -> None:
    """R61: a second untoggle, or one without a toggle, changes nothing."""
    a, b = parts.optimizers()
    toggler = Toggler([a, b])
    toggler.toggle(a)
    toggler.untoggle(a)
    parts.b.requires_grad_(False)
    toggler.untoggle(a)
    toggler.untoggle(b)
    assert parts.wants() == {**START, "b": False}


@pytest.mark.parametrize("order", ["ab", "ba", "aa", "aba", "abab"])
def test_toggles_nest(parts: Parts, order: str) -> None:
    """R62: each untoggle brings back what its toggle found."""
    optimizers = dict(zip("ab", parts.optimizers(), strict=True))
    toggler = Toggler(list(optimizers.values()))
    active = {"a": {**START, "b": False}, "b": {**START, "a": False}}
    found = []
    for name in order:
        found.append(parts.wants())
        toggler.toggle(optimizers[name])
        assert active[name] == parts.wants()
    for name in reversed(order):
        toggler.untoggle(optimizers[name])
        assert found.pop() == parts.wants()
    assert parts.wants() == START


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_overlapping_toggles_lose_nothing(parts: Parts, order: str) -> None:
    """R62: toggle a, toggle b, untoggle a, untoggle b: nothing stays frozen."""
    optimizers = dict(zip("ab", parts.optimizers(), strict=True))
    toggler = Toggler(list(optimizers.values()))
    for name in order:
        toggler.toggle(optimizers[name])
    toggler.untoggle(optimizers[order[0]])
    assert {**START, order[0]: False} == parts.wants()
    toggler.untoggle(optimizers[order[1]])
    assert parts.wants() == START


def test_toggle_sees_parameters_that_were_added(parts: Parts) -> None:
    """R60: a group that joins an optimizer between two toggles is frozen like the rest."""
    a, b = parts.optimizers()
    toggler = Toggler([a, b])
    toggler.toggle(a)
    toggler.untoggle(a)
    b.add_param_group({"params": [parts.free]})
    toggler.toggle(a)
    assert parts.wants() == {**START, "b": False, "free": False}
    toggler.untoggle(a)
    assert parts.wants() == START


def test_toggle_knows_all_members_of_a_joint(parts: Parts) -> None:
    """R60: a Joint owns the parameters of all its members."""
    first, second = SGD([parts.a], lr=0.1), SGD([parts.shared], lr=0.1)
    toggler = Toggler([Joint([first, second]), SGD([parts.b], lr=0.1)])
    joint = toggler.by_index(0)
    toggler.toggle(joint)
    assert parts.wants() == {**START, "b": False}
    toggler.untoggle(joint)
    toggler.toggle(toggler.by_index(1))
    assert parts.wants() == {**START, "a": False, "shared": False}


def test_an_index_that_does_not_exist_is_refused(parts: Parts) -> None:
    """R61: 1.x untoggles by index; one without an optimizer is named."""
    toggler = Toggler(parts.optimizers())
    with pytest.raises(OrderError, match="there is no optimizer 2; the run has 2"):
        toggler.by_index(2)


# ------------------------------------------------------------------------------------------- automatic mode


class Sharing(LightningModule):
    """The parts above under a trainer; notes what wants gradients in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = Parts()
        self.seen: list[tuple[Any, dict[str, bool]]] = []

    def note(self, place: Any) -> None:
        self.seen.append((place, self.parts.wants()))

    def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
        self.note(optimizer_idx)
        p = self.parts
        return batch[0].mean() * (p.a * p.b + p.shared + p.free + p.frozen).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        self.note("end")

    def configure_optimizers(self) -> Any:
        return self.parts.optimizers()


def test_each_pass_wants_gradients_of_its_own_parameters() -> None:
    """R60, R61: in automatic mode every pass is toggled, and nothing stays frozen behind it."""
    module = Sharing()
    fit(module, batches(1), max_epochs=1)
    assert module.seen == [(0, {**START, "b": False}), (1, {**START, "a": False}), ("end", START)]
    assert [p.grad is not None for p in module.parts.parameters()] == [True, True, True, True, False]
    assert torch.equal(torch.ones(1), module.parts.free)  # it has a gradient, but no optimizer


def test_what_training_step_freezes_of_its_own_stays_frozen() -> None:
    """R61: the user may freeze for good inside of a pass."""

    class Module(Sharing):
        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
            if optimizer_idx == 0:
                self.parts.a.requires_grad_(False)
            return super().training_step(batch, batch_idx, optimizer_idx)

    module = Module()
    fit(module, batches(1), max_epochs=1)
    frozen = {**START, "a": False}
    assert [(0, {**frozen, "b": False}), (1, frozen), ("end", frozen)] == module.seen


def test_a_single_optimizer_toggles_nothing() -> None:
    """R60: parameters in no optimizer, and everything else, are left alone with one optimizer."""

    class Module(Sharing):
        def configure_optimizers(self) -> Any:
            return self.parts.optimizers()[0]

        def toggle_optimizer(self, *_: Any) -> None:
            raise AssertionError("toggled")

    module = Module()
    fit(module, batches(1), max_epochs=1)
    assert module.seen == [(0, START), ("end", START)]


def test_an_exception_in_a_pass_leaves_nothing_frozen() -> None:
    """R62: what a pass froze comes back when training_step raises."""

    class Module(Sharing):
        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
            raise ZeroDivisionError

    module = Module()
    with pytest.raises(ZeroDivisionError):
        fit(module, batches(1), max_epochs=1)
    assert module.parts.wants() == START


def overriding(era: str) -> type[Sharing]:
    """A module whose overrides of toggle and untoggle are written for 1.x or 2.x and call the base class's."""

    class Second(Sharing):
        def toggle_optimizer(self, optimizer: Any) -> None:  # type: ignore[override]
            self.calls = [*getattr(self, "calls", []), ("toggle", self.trainer.optimizers.index(optimizer))]
            super().toggle_optimizer(optimizer)

        def untoggle_optimizer(self, optimizer: Any) -> None:
            self.calls.append(("untoggle", self.trainer.optimizers.index(optimizer)))
            super().untoggle_optimizer(optimizer)

    class First(Sharing):
        def toggle_optimizer(self, optimizer: Any, optimizer_idx: int) -> None:  # type: ignore[override]
            self.calls = [*getattr(self, "calls", []), ("toggle", optimizer_idx)]
            super().toggle_optimizer(optimizer, optimizer_idx)

        def untoggle_optimizer(self, optimizer_idx: int) -> None:  # type: ignore[override]
            self.calls.append(("untoggle", optimizer_idx))
            super().untoggle_optimizer(optimizer_idx)

    return First if era == "1.x" else Second


@pytest.mark.parametrize("era", ["1.x", "2.x"])
def test_overrides_of_either_era_may_call_super(era: str) -> None:
    """R60, R61: toggle_optimizer(optimizer, optimizer_idx) / untoggle_optimizer(index), and the 2.x forms."""
    module = overriding(era)()
    fit(module, batches(1), max_epochs=1)
    assert module.calls == [("toggle", 0), ("untoggle", 0), ("toggle", 1), ("untoggle", 1)]
    assert module.seen == [(0, {**START, "b": False}), (1, {**START, "a": False}), ("end", START)]


# ---------------------------------------------------------------------------------------------- manual mode


class Manual(Sharing):
    """Runs ``body`` once, in manual mode."""

    body: Callable[..., Any]

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        type(self).body(self)


def run_manually(body: Callable[[Any], Any], **overridden: Any) -> Any:
    module = type("Module", (Manual,), {"body": staticmethod(body), **overridden})()
    fit(module, batches(1), max_epochs=1)
    return module


def test_toggle_and_untoggle_by_hand() -> None:
    """R60, R61: toggle_optimizer and untoggle_optimizer take a handle or an optimizer; 1.x's index as well."""

    def body(module: Any) -> None:
        a, b = module.optimizers()
        module.toggle_optimizer(a)
        module.note("a")
        module.untoggle_optimizer(a)
        module.toggle_optimizer(b.optimizer, 1)
        module.note("b")
        module.untoggle_optimizer(1)

    module = run_manually(body)
    assert module.seen == [("a", {**START, "b": False}), ("b", {**START, "a": False}), ("end", START)]


ENTER = {
    "module.toggle_model": lambda module, optimizer, **options: module.toggle_model(optimizer, **options),
    "module.toggled_optimizer": lambda module, optimizer, **options: module.toggled_optimizer(optimizer, **options),
    "optimizer.toggle_model": lambda module, optimizer, **options: optimizer.toggle_model(**options),
}


@pytest.mark.parametrize("form", ENTER)
@pytest.mark.parametrize("options", [{}, {"sync_grad": True}, {"sync_grad": False}], ids=str)
def test_toggle_model_is_a_context(form: str, options: dict[str, bool]) -> None:
    """R63: a context that toggles and untoggles, on the module and on the handle (1.x and 2.x have it there)."""

    def body(module: Any) -> None:
        for name, optimizer in zip("ab", module.optimizers(), strict=True):
            with ENTER[form](module, optimizer, **options):
                module.note(name)
            module.note("after")

    module = run_manually(body)
    after = ("after", START)
    assert [("a", {**START, "b": False}), after, ("b", {**START, "a": False}), after] == module.seen[:4]


@pytest.mark.parametrize("form", ENTER)
def test_toggle_model_restores_after_an_exception(form: str) -> None:
    """R62: what was frozen comes back also when the block raises."""

    def body(module: Any) -> None:
        with pytest.raises(ZeroDivisionError), ENTER[form](module, module.optimizers()[0]):
            raise ZeroDivisionError
        module.note("after")

    assert run_manually(body).seen[0] == ("after", START)


@pytest.mark.parametrize("form", ENTER)
def test_toggle_model_with_a_single_optimizer_does_nothing(form: str) -> None:
    """R63: a no-op where there is only one optimizer."""

    def body(module: Any) -> None:
        with ENTER[form](module, module.optimizers()):
            module.note("inside")

    module = run_manually(body, configure_optimizers=lambda self: self.parts.optimizers()[0])
    assert module.seen[0] == ("inside", START)


@pytest.mark.parametrize("form", ENTER)
def test_toggle_model_goes_through_the_user_s_overrides(form: str) -> None:
    """R63: it is toggle_optimizer plus untoggle_optimizer, overridden or not."""
    calls: list[str] = []

    def toggle(self: Any, optimizer: Any, optimizer_idx: Any = None) -> None:
        calls.append("toggle")

    def untoggle(self: Any, optimizer: Any) -> None:
        calls.append("untoggle")

    def body(module: Any) -> None:
        with ENTER[form](module, module.optimizers()[1]):
            calls.append("inside")

    run_manually(body, toggle_optimizer=toggle, untoggle_optimizer=untoggle)
    assert calls == ["toggle", "inside", "untoggle"]


@pytest.mark.parametrize("form", ENTER)
@pytest.mark.parametrize(("sync_grad", "expected"), [(True, ["inside"]), (False, ["enter", "inside", "exit"])])
def test_toggle_model_without_sync_blocks_the_reduction(form: str, sync_grad: bool, expected: list[str]) -> None:
    """R63: sync_grad=False enters the strategy's no_sync."""
    calls: list[str] = []

    @contextmanager
    def no_sync() -> Any:
        calls.append("enter")
        yield
        calls.append("exit")

    def body(module: Any) -> None:
        module.trainer.strategy.no_sync = no_sync
        with ENTER[form](module, module.optimizers()[0], sync_grad=sync_grad):
            calls.append("inside")

    run_manually(body)
    assert expected == calls


def test_toggled_training_equals_the_loop_by_hand() -> None:
    """R63: two players, each in its own toggled block, against requires_grad_ by hand."""

    class Module(TwoPlayers):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            for index, optimizer in enumerate(self.optimizers()):
                with self.toggled_optimizer(optimizer):
                    optimizer.zero_grad()
                    self.manual_backward(self.loss(batch, index))
                    optimizer.step()

    module, twin = create(Module)
    trainer = fit(module)
    assert trainer.global_step == 2 * EPOCHS * BATCHES

    optimizers = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            for index, opt in enumerate(optimizers):
                other = (twin.B, twin.A)[index].requires_grad_(False)
                opt.zero_grad()
                twin.loss(batch, index).backward()
                opt.step()
                other.requires_grad_(True)
    assert_same_weights(module, twin)
