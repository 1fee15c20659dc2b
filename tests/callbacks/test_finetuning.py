"""``BaseFinetuning`` and ``BackboneFinetuning``: R149, R161."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as lrs

import leyden
from leyden.callbacks import BackboneFinetuning, BaseFinetuning
from leyden.errors import MisconfigurationException
from modes import MODES, build, run

Theirs = pytorch_lightning.callbacks.BackboneFinetuning


class Watch(leyden.Callback):
    """Keeps the groups' learning rates and what is trained, by epoch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.trained: list[bool] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.rates.append([group["lr"] for o in trainer.optimizers for group in o.param_groups])
        self.trained.append(all(p.requires_grad for p in pl_module.backbone.parameters()))


class TheirWatch(pytorch_lightning.Callback):
    """The same for Lightning."""

    __init__ = Watch.__init__
    on_train_epoch_end = Watch.on_train_epoch_end


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "not aligned": {"should_align": False, "lambda_func": lambda epoch: 3.0},
    "given rate": {"backbone_initial_lr": 0.02},
    "without batch norms": {"train_bn": False},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("mode", ["one", "accumulated"])
def test_the_bits_of_lightning(mode: str, option: str) -> None:
    given = {"unfreeze_backbone_at_epoch": 2, **OPTIONS[option]}
    ours, theirs, watch, their_watch = BackboneFinetuning(**given), Theirs(**given), Watch(), TheirWatch()
    module, their_module = build(mode, scheduled=False), build(mode, pytorch_lightning, scheduled=False)
    run(mode, [ours, watch], module=module, max_epochs=7)
    run(mode, [theirs, their_watch], pytorch_lightning, module=their_module, max_epochs=7)
    assert their_watch.rates == watch.rates
    assert their_watch.trained == watch.trained
    for name, value in their_module.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    expected, found = theirs.state_dict(), ours.state_dict()
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_train_the_backbone_from_its_epoch_on(mode: str) -> None:
    """Toggling, clipping, the plan's names: whatever asks for parameters knows of the new group."""
    module, watch = build(mode, scheduled=False), Watch()
    clip = {} if mode == "manual" else {"gradient_clip_val": 1.0}
    callback = BackboneFinetuning(2, train_bn=True)
    before: list[torch.Tensor] = []
    frozen: list[bool] = []

    class Frozen(leyden.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            before.append(pl_module.backbone[0].weight.detach().clone())
            frozen.append(trainer.plan.names[0][-1] != ("backbone.0.weight", "backbone.0.bias"))

    trainer, _, _ = run(mode, [callback, watch, Frozen()], module=module, **clip)
    assert torch.equal(before[0], before[1])
    assert not torch.equal(before[1], before[2]) and not torch.equal(before[2], before[3])
    names = [name for groups in trainer.plan.names for group in groups for name in group]
    assert {"backbone.0.weight", "backbone.0.bias"} <= set(names)
    assert trainer.plan.coverage.unassigned == () and "backbone" in str(trainer.plan)


def test_two_optimizers_by_hand_as_in_lightning() -> None:
    """Each of them gets the backbone; its learning rate grows in each by itself, in Lightning twice as fast."""
    watch, their_watch = Watch(), TheirWatch()
    run("manual", [BackboneFinetuning(1), watch])
    run("manual", [Theirs(1), their_watch], pytorch_lightning)
    assert their_watch.rates[:2] == watch.rates[:2]
    assert watch.rates[2] == pytest.approx([0.1, 0.02, 0.05, 0.01])


def per_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


def on_plateau(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "monitor": "val_loss"}


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lrs.StepLR(o, 1),
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda epoch: 0.9),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 10),
    "OneCycleLR": lambda o: per_step(lrs.OneCycleLR(o, 0.3, total_steps=50, cycle_momentum=True)),
    "CyclicLR": lambda o: per_step(lrs.CyclicLR(o, 0.01, 0.3, step_size_up=4)),
    "SequentialLR": lambda o: lrs.SequentialLR(o, [lrs.StepLR(o, 1), lrs.LambdaLR(o, lambda e: 0.9**e)], [3]),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.StepLR(o, 2), lrs.LambdaLR(o, lambda e: 0.9**e)]),
    "ReduceLROnPlateau": lambda o: on_plateau(lrs.ReduceLROnPlateau(o, patience=0, min_lr=[1e-9])),
}


class Own(BaseFinetuning):
    """A user's own, in the form of 1.x."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze([pl_module.backbone, [pl_module.head]], train_bn=False)
        self.make_trainable(pl_module.head)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any, opt_idx: int) -> None:  # type: ignore[override]
        assert opt_idx == 0
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone[0], optimizer)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_schedulers_take_the_new_group_along(name: str) -> None:
    """torch refuses to step most schedulers with fewer values than groups."""
    module = build("one")

    def configure() -> Any:
        optimizer = SGD(module.trained(module), lr=0.1, momentum=0.9)
        return [optimizer], [SCHEDULERS[name](optimizer)]

    module.configure_optimizers = configure
    watch = Watch()
    run("one", [Own(), watch], module=module, max_epochs=6)
    assert [len(rates) for rates in watch.rates] == [1, 2, 2, 2, 2, 2]
    assert len({rates[0] for rates in watch.rates}) > 1
    for first, second in watch.rates[1:]:
        assert second == pytest.approx(first / 10)


def test_a_users_own() -> None:
    watch = Watch()
    _, module, _ = run("one", [Own(), watch], module=build("one", scheduled=False))
    assert watch.rates == [[0.1], [0.1, 0.01], [0.1, 0.01], [0.1, 0.01]]
    assert not module.backbone[1].track_running_stats


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
def test_right_after_a_resume(framework: Any) -> None:
    """The groups are there before the optimizers' states are read, and the backbone is trained at once."""
    callback = framework.callbacks.BackboneFinetuning(1)
    run("one", [callback], framework, module=build("one", framework, scheduled=False), max_epochs=3)
    state = copy.deepcopy(callback.state_dict())
    restored, module = BackboneFinetuning(1), build("one", scheduled=False)
    restored.load_state_dict(state)
    seen: list[Any] = []

    class Look(leyden.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(([len(g["params"]) for g in trainer.optimizers[0].param_groups], pl_module.backbone[0].weight))

    run("one", [restored, Look()], module=module, max_epochs=1)
    groups, weight = seen[0]
    assert groups == [4, 2]
    assert weight is module.backbone[0].weight
    if framework is leyden:  # Lightning forgets what was trained
        assert weight.requires_grad


def test_a_fit_that_goes_on() -> None:
    module, watch = build("one", scheduled=False), Watch()
    trainer, _, _ = run("one", [BackboneFinetuning(1), watch], module=module, max_epochs=3)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, [(torch.ones(2, 3), torch.ones(2, 1))])
    assert [rate for rates in watch.rates for rate in rates[1:]] == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert watch.trained == [False, True, True, True, True]


def test_no_backbone() -> None:
    module = build("one")
    module.trunk = module.backbone
    del module.backbone
    with pytest.raises(MisconfigurationException, match="needs Module.backbone"):
        run("one", [BackboneFinetuning()], module=module)


def test_what_the_optimizer_has_already() -> None:
    layer = nn.Linear(2, 2)
    optimizer = SGD(layer.parameters(), lr=0.1)
    BaseFinetuning.freeze(layer)
    with pytest.warns(UserWarning, match="2 parameters were frozen, but in the optimizer from the start"):
        BaseFinetuning.unfreeze_and_add_param_group(layer, optimizer)
    assert len(optimizer.param_groups) == 1


def test_equal_values_are_not_the_same_parameter() -> None:
    """Two biases of zeros; Lightning compares values."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(second.bias)
    optimizer = SGD(first.parameters(), lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(second, optimizer)
    assert len(optimizer.param_groups[1]["params"]) == 2


def test_modules_are_flattened_as_in_lightning() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.ones(1))
            self.child = nn.Sequential(nn.Linear(1, 1), nn.ReLU())

    given = [nn.ModuleDict({"a": Parent(), "b": nn.Linear(1, 1)}), [nn.Sequential(nn.Tanh())]]
    expected = pytorch_lightning.callbacks.BaseFinetuning.flatten_modules(given)
    assert expected == BaseFinetuning.flatten_modules(given)
    for requires_grad in (True, False):
        ours = list(BaseFinetuning.filter_params(given, requires_grad=requires_grad))
        theirs = list(pytorch_lightning.callbacks.BaseFinetuning.filter_params(given, requires_grad=requires_grad))
        assert [id(p) for p in theirs] == [id(p) for p in ours]


def test_what_a_subclass_must_define() -> None:
    with pytest.raises(NotImplementedError, match="BaseFinetuning must define freeze_before_training"):
        run("one", [BaseFinetuning()])
