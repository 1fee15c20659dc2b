"""``LearningRateMonitor``: R129, R130."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from leyden import Joint
from leyden.callbacks import LearningRateMonitor
from leyden.errors import InvalidValueError, MisconfigurationException
from modes import MODES, SHARED, build, run

Theirs = pytorch_lightning.callbacks.LearningRateMonitor


def compare(mode: str, *arguments: Any, configure: Any = None, **trainer: Any) -> Any:
    """Run both; rows, history and metrics must be equal."""
    ours, theirs = LearningRateMonitor(*arguments), Theirs(*arguments)
    modules = [build(mode), build(mode, pytorch_lightning)]
    if configure is not None:
        for module in modules:
            module.configure_optimizers = lambda module=module: configure(module)
    our_trainer, _, our_rows = run(mode, [ours], module=modules[0], **trainer)
    their_trainer, _, their_rows = run(mode, [theirs], pytorch_lightning, module=modules[1], **trainer)
    assert their_rows.of("lr") == our_rows.of("lr")
    assert theirs.lrs == ours.lrs
    assert theirs.last_momentum_values == ours.last_momentum_values
    assert theirs.last_weight_decay_values == ours.last_weight_decay_values
    found, expected = our_trainer.callback_metrics, their_trainer.callback_metrics
    assert expected.keys() == found.keys()
    for name in (key for key in expected if key.startswith("lr-")):
        assert expected[name].item() == found[name].item()
    return our_rows


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.parametrize("mode", SHARED)
def test_the_rows_of_lightning(mode: str, interval: str | None) -> None:
    """One optimizer, accumulation, two optimizers by hand."""
    compare(mode, interval)


def by_step(module: Any) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1)
    return [optimizer], [{"scheduler": StepLR(optimizer, 2), "interval": "step", "name": "mine"}]


def groups(module: Any) -> Any:
    parts = [{"params": module.head.parameters(), "name": "head"}, {"params": module.backbone.parameters(), "lr": 0.3}]
    return Adam(parts, lr=0.1, betas=(0.8, 0.99), weight_decay=0.01)


def one_named_group(module: Any) -> Any:
    optimizer = SGD([{"params": module.parameters(), "name": "all"}], lr=0.1, momentum=0.5)
    return [optimizer], [ExponentialLR(optimizer, 0.5)]


@pytest.mark.parametrize("configure", [by_step, groups, one_named_group])
@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.filterwarnings("ignore:.*lr-monitor-momentum")
def test_names_groups_and_what_else_there_is(configure: Any, interval: str | None) -> None:
    compare("one", interval, True, True, configure=configure)


@pytest.mark.parametrize("every", [1, 3, 50])
def test_rows_come_as_often_as_other_rows(every: int) -> None:
    compare("one", "step", log_every_n_steps=every)


@pytest.mark.parametrize("mode", MODES)
def test_all_modes_have_rows(mode: str) -> None:
    monitor = LearningRateMonitor("epoch")
    run(mode, [monitor])
    assert all(len(rates) == 4 for rates in monitor.lrs.values())
    assert monitor.lrs.keys() == {"joint": {"lr-SGD", "lr-Adam"}}.get(
        mode, {"lr-SGD"} if mode in ("one", "accumulated") else {"lr-SGD", "lr-SGD-1"}
    )


def test_two_optimizers_of_one_class_by_hand() -> None:
    rows = compare("manual", "epoch")
    assert rows.of("lr")[0] == (0, {"lr-SGD": 0.1, "lr-SGD-1": 0.05})


def test_a_joint_is_its_members() -> None:
    monitor = LearningRateMonitor()
    run("joint", [monitor], max_epochs=2)
    assert monitor.lrs["lr-SGD"] == [0.1, 0.05]  # with a scheduler, by epoch
    assert len(monitor.lrs["lr-Adam"]) > 2  # without one, by step and by epoch


def test_a_scheduler_on_the_joint_itself() -> None:
    module = build("joint")

    def configure() -> Any:
        joint = Joint([Adam([module.head.weight], lr=0.01), SGD([module.head.bias], lr=0.1)])
        return [joint], [StepLR(joint, 1)]

    module.configure_optimizers = configure
    monitor = LearningRateMonitor("epoch")
    run("joint", [monitor], module=module, max_epochs=1)
    assert monitor.lrs == {"lr-Joint/pg1": [0.01], "lr-Joint/pg2": [0.1]}


def test_a_group_that_is_added_renames_the_first() -> None:
    class Adds(LearningRateMonitor):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 7.0})
            super().on_train_epoch_start(trainer, pl_module)

    monitor = Adds("epoch")
    run("one", [monitor], module=build("one", scheduled=False), max_epochs=3)
    assert monitor.lrs == {"lr-SGD/pg1": [0.1, 0.1, 0.1], "lr-SGD/pg2": [7.0, 7.0]}


def test_groups_of_one_name() -> None:
    module = build("one")
    two = [{"params": [p], "name": "twin"} for p in module.head.parameters()]
    module.configure_optimizers = lambda: SGD(two, lr=0.1)
    with pytest.raises(MisconfigurationException, match="the same 'name': twin"):
        run("one", [LearningRateMonitor()], module=module)


def test_no_logger() -> None:
    with pytest.raises(MisconfigurationException, match="nothing to write to"):
        run("one", [LearningRateMonitor()], logger=False)
    run("one", [LearningRateMonitor()], fast_dev_run=True)


def test_bad_interval() -> None:
    with pytest.raises(InvalidValueError, match="expected 'step', 'epoch' or None"):
        LearningRateMonitor("batch")


def test_an_optimizer_without_momentum() -> None:
    module = build("one")
    module.configure_optimizers = lambda: torch.optim.Adagrad(module.parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning, match="neither momentum nor betas"):
        _, _, rows = run("one", [LearningRateMonitor("epoch", log_momentum=True)], module=module, max_epochs=1)
    assert rows.of("lr") == [(0, {"lr-Adagrad": 0.1, "lr-Adagrad-momentum": 0.0})]
