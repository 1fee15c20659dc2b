"""Optimizer state goes with the names of parameters: into other groups, another order, another optimizer."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam

import modes
from leyden import Joint, LightningModule, Trainer
from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError
from leyden.optimization.joint import members_of
from resumption import SaveAt, differences

#: Batches before the file is written, and in all.
SAVED, ALL = 9, 12


class Net(LightningModule):
    """Several optimizers are stepped by hand, one after one backward; one, or a Joint, by leyden."""

    def __init__(self, configure: Any, *, wider: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.head = nn.Linear(3, 1)
        if wider:
            self.extra = nn.Linear(3, 1)
        self.configure = configure
        self.automatic_optimization = not isinstance(configure(self), list)

    def loss(self, batch: Any) -> Any:
        hidden = self.body(batch[0])
        value = self.head(hidden) + (self.extra(hidden) if hasattr(self, "extra") else 0)
        return nn.functional.mse_loss(value, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.automatic_optimization:
            return self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def of(net: Any, *parts: str) -> list[nn.Parameter]:
    """Parameters of parts of a network, in this order."""
    return [parameter for part in parts for parameter in net.get_submodule(part).parameters()]


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    silent["enable_checkpointing"] = bool(callbacks)
    return Trainer(max_epochs=2, accelerator="cpu", **silent, **options, callbacks=list(callbacks))


def save(path: Path, configure: Any) -> None:
    """Write a file in the middle of the second epoch."""
    trainer(SaveAt(path, "on_train_batch_end", 1, 2)).fit(Net(configure), modes.DATA)


def found(net: Any, optimizers: Any) -> dict[str, Any]:
    """Weights and states by the names of parameters."""
    members = [m for o in (optimizers if isinstance(optimizers, list) else [optimizers]) for m in members_of(o)]
    names = {parameter: name for name, parameter in net.named_parameters()}
    states = {names[p]: dict(m.state[p]) for m in members for g in m.param_groups for p in g["params"]}
    return {"weights": dict(net.state_dict()), "states": states}


def by_hand(before: Any, after: Any, *, wider: bool = False) -> dict[str, Any]:
    """The same without leyden: train, move the states to the optimizers of a new network by name, train on."""

    def train(net: Any, optimizers: Any, batches: range) -> None:
        flat = [m for o in (optimizers if isinstance(optimizers, list) else [optimizers]) for m in members_of(o)]
        for index in batches:
            for optimizer in flat:
                optimizer.zero_grad()
            net.loss(modes.DATA[index % 6]).backward()
            for optimizer in flat:
                optimizer.step()

    old = Net(before)
    first = before(old)
    train(old, first, range(SAVED))
    known = found(old, first)["states"]
    new = Net(after, wider=wider)
    new.load_state_dict(old.state_dict(), strict=False)
    second = after(new)
    names = {parameter: name for name, parameter in new.named_parameters()}
    for optimizer in second if isinstance(second, list) else [second]:
        for member in members_of(optimizer):
            for parameter in [p for group in member.param_groups for p in group["params"]]:
                if names[parameter] in known:
                    member.state[parameter] = copy.deepcopy(known[names[parameter]])
    train(new, second, range(SAVED, ALL))
    return found(new, second)


def frozen(net: Any) -> Any:
    net.body.requires_grad_(False)
    return Adam(net.head.parameters(), lr=0.05)


def rated(part: str, lr: float, net: Any) -> dict[str, Any]:
    return {"params": of(net, part), "lr": lr}


Case = tuple[Callable[[Any], Any], Callable[[Any], Any], dict[str, Any], str]
CASES: dict[str, Case] = {
    "the same": (
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        {},
        "",
    ),
    "reordered": (
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        lambda net: Adam(of(net, "head", "body.2", "body.0"), lr=0.05),
        {},
        "",
    ),
    "divided into groups": (
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        lambda net: Adam([rated("head", 0.05, net), rated("body", 0.05, net)]),
        {},
        "",
    ),
    "groups exchanged": (
        lambda net: SGD([rated("body", 0.05, net), rated("head", 0.2, net)], momentum=0.9),
        lambda net: SGD([rated("head", 0.2, net), rated("body", 0.05, net)], momentum=0.9),
        {},
        "",
    ),
    "a frozen layer": (
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        frozen,
        {},
        "left in the file: body.0.weight, body.0.bias, body.2.weight, body.2.bias",
    ),
    "an added head": (
        lambda net: Adam(net.parameters(), lr=0.05),
        lambda net: Adam(net.parameters(), lr=0.05),
        {"weights.extra": "reset"},
        "anew: extra.weight, extra.bias",
    ),
    "members exchanged": (
        lambda net: Joint([SGD(of(net, "body"), lr=0.1, momentum=0.9), Adam(of(net, "head"), lr=0.05)]),
        lambda net: Joint([Adam(of(net, "head"), lr=0.05), SGD(of(net, "body"), lr=0.1, momentum=0.9)]),
        {},
        "moved: 0.0 was 0.1, 0.1 was 0.0",
    ),
    "moved to another member": (
        lambda net: Joint([Adam(of(net, "body"), lr=0.05), Adam(of(net, "head"), lr=0.05)]),
        lambda net: Joint([Adam(of(net, "body.0"), lr=0.05), Adam(of(net, "body.2", "head"), lr=0.05)]),
        {},
        "from another optimizer: body.2.weight, body.2.bias",
    ),
    "optimizers exchanged": (
        lambda net: [SGD(of(net, "body"), lr=0.1, momentum=0.9), Adam(of(net, "head"), lr=0.05)],
        lambda net: [Adam(of(net, "head"), lr=0.05), SGD(of(net, "body"), lr=0.1, momentum=0.9)],
        {},
        "moved: 0 was 1, 1 was 0",
    ),
    "one made of two": (
        lambda net: Joint([Adam(of(net, "body"), lr=0.05), Adam(of(net, "head"), lr=0.05)]),
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        {},
        "moved: 0 was 0.0; from another optimizer: head.weight, head.bias",
    ),
    "two made of one": (
        lambda net: Adam(of(net, "body", "head"), lr=0.05),
        lambda net: Joint([Adam(of(net, "head"), lr=0.05), Adam(of(net, "body"), lr=0.05)]),
        {},
        "moved: 0.0 was 0, 0.1 was 0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_states_are_found_by_name(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R148 restores by position; here names decide, so that the run is the one that a hand would have moved."""
    caplog.set_level(logging.INFO, logger="leyden")
    before, after, resume, told = CASES[case]
    save(tmp_path / "a.ckpt", before)
    wider = bool(resume)
    expected, net, run = by_hand(before, after, wider=wider), Net(after, wider=wider), trainer()
    run.fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt", resume=resume)
    assert differences(expected, found(net, list(run.optimizers))) == []
    printed = " ".join(caplog.text.partition("but for:")[2].split())
    assert f"optimizers by name {told}" in printed if told else "by name" not in printed
    assert run.clocks.updates == ALL


@pytest.mark.filterwarnings("ignore:.*training-step-none")
@pytest.mark.parametrize("place", [("on_train_batch_end", 1, 2), ("on_train_epoch_end", 1, 5)])
def test_clocks_verdicts_and_windows_go_with_their_optimizers(place: Any, tmp_path: Path) -> None:
    """In the middle of a window, two optimizers that take turns are returned in another order."""

    class Turns(Net):
        is_turned = False

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            part = (optimizer_idx == 0) != self.is_turned
            return self.loss(batch) if part or batch_idx % 4 == 0 else None

    def both(net: Any) -> Any:
        return [SGD(of(net, "body"), lr=0.1, momentum=0.9), Adam(of(net, "head"), lr=0.05)]

    def build(configure: Any) -> Any:
        net = Turns(both)
        net.configure, net.automatic_optimization = configure, True
        return net

    whole = trainer(SaveAt(tmp_path / "a.ckpt", *place), accumulate_grad_batches=2)
    whole.fit(build(both), modes.DATA)
    net = build(lambda net: both(net)[::-1])
    net.is_turned = True
    rest = trainer(accumulate_grad_batches=2)
    rest.fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    clocks = [[(one.attempted, one.applied, one.skipped) for one in run.clocks.optimizers] for run in (whole, rest)]
    assert clocks[0] == clocks[1][::-1]
    assert clocks[0][0] != clocks[0][1]


def test_a_toggle_goes_with_its_optimizer(tmp_path: Path) -> None:
    """It was put on before the save, and is taken off by the same optimizer, which has another place now."""

    class Toggled(Net):
        flags: tuple[bool, bool] = (True, True)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (own,) = [one for one in self.optimizers() if one.param_groups[0]["params"][0] is self.body[0].weight]
            if (self.current_epoch, batch_idx) == (1, 0):
                self.toggle_optimizer(own)
            if (self.current_epoch, batch_idx) == (1, 3):
                toggled = self.head.weight.requires_grad
                self.untoggle_optimizer(own)
                self.flags = (toggled, self.head.weight.requires_grad)
            return super().training_step(batch, batch_idx)

    def both(net: Any) -> Any:
        return [SGD(of(net, "body"), lr=0.1), SGD(of(net, "head"), lr=0.1, momentum=0.9)]

    trainer(SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2)).fit(Toggled(both), modes.DATA)
    net = Toggled(lambda net: both(net)[::-1])
    trainer().fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    assert net.flags == (False, True)


def configure(kind: Any, *parts: str, **options: Any) -> Any:
    return lambda net: kind(of(net, *(parts or ("body", "head"))), lr=0.05, **options)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "another class": (configure(Adam), configure(SGD, momentum=0.9), r"optimizer 0 \(SGD of .*\) is Adam in the file"),
    "a member left out": (
        lambda net: Joint([Adam(of(net, "body"), lr=0.05), SGD(of(net, "head"), lr=0.1)]),
        configure(Adam, "body"),
        r"optimizer 0.1 \(SGD of head.weight, head.bias\) is only in the file",
    ),
    "a new optimizer": (
        configure(Adam, "body"),
        lambda net: Joint([Adam(of(net, "body"), lr=0.05), SGD(of(net, "head"), lr=0.1)]),
        r"optimizer 0.1 \(SGD of head.weight, head.bias\) is not in the file",
    ),
    "one state for all": (
        configure(LBFGS),
        configure(LBFGS, "head", "body"),
        r"optimizer 0 \(LBFGS of .*\) has one state for its parameters in their order",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_and_may_be_reset(case: str, tmp_path: Path) -> None:
    before, after, says = REFUSED[case]
    save(tmp_path / "a.ckpt", before)
    net = Net(after)
    with pytest.raises(CheckpointError, match=rf'(?s){says}.*"(optimizers\.[\d.]+)": "reset"') as error:
        trainer().fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    names = set(re.findall(r'"(optimizers[\d.]+)": "reset"', str(error.value)))
    trainer().fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt", resume=dict.fromkeys(names, "reset"))


def test_files_without_names_are_read_by_order(tmp_path: Path) -> None:
    """R148: as Lightning's are; parameters of other shapes show that the order is another one."""
    save(tmp_path / "a.ckpt", configure(Adam))
    content = read_checkpoint(tmp_path / "a.ckpt")
    del content["leyden"]
    write_checkpoint(content, tmp_path / "a.ckpt")
    net, run = Net(configure(Adam)), trainer()
    run.fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    expected = by_hand(configure(Adam), configure(Adam))
    assert differences(expected, found(net, run.optimizers)) == []
    for after, says in (
        (configure(Adam, "head", "body"), r"exp_avg of head.weight is floating \(4, 3\) for floating \(1, 3\)"),
        (configure(Adam, "body"), r"has groups of \[4\] parameters, and of \[6\] in the file"),
        (configure(SGD), "is of another class"),
        (lambda net: Joint([Adam(of(net, "body")), Adam(of(net, "head"))]), "optimizer 0 is only in the file"),
    ):
        with pytest.raises(CheckpointError, match=rf"(?s){says}.*\[resume-mismatch\]"):
            trainer().fit(Net(after), modes.DATA, ckpt_path=tmp_path / "a.ckpt")


def test_a_parameter_in_two_optimizers_keeps_both_states(tmp_path: Path) -> None:
    """Names alone do not tell which is meant; the optimizer that has most of the others does."""

    def shared(net: Any) -> Any:
        return [Adam(of(net, "body", "head"), lr=0.05), Adam(of(net, "head"), lr=0.01, betas=(0.5, 0.9))]

    save(tmp_path / "a.ckpt", shared)
    net, run = Net(lambda net: shared(net)[::-1]), trainer()
    states = read_checkpoint(tmp_path / "a.ckpt")["optimizer_states"]
    seen = []
    net.on_train_start = lambda: seen.extend(copy.deepcopy(one.state_dict()) for one in run.optimizers)
    run.fit(net, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    assert differences([state["state"] for state in states[::-1]], [state["state"] for state in seen]) == []
