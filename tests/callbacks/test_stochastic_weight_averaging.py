"""``StochasticWeightAveraging``: R149, R161."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import leyden
import resumption
from leyden.callbacks import StochasticWeightAveraging
from leyden.errors import LeydenWarning, MisconfigurationException, OrderError
from modes import DATA, MODES, build, run

Theirs = pytorch_lightning.callbacks.StochasticWeightAveraging


class Watch(leyden.Callback):
    """Keeps what a user sees of each epoch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.steps: list[int] = []
        self.values: list[dict[str, float]] = []
        self.weights: list[Tensor] = []
        self.schedulers: list[list[str]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.rates.append([group["lr"] for o in members(trainer) for group in o.param_groups])
        self.schedulers.append([type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs])
        self.weights.append(pl_module.head.weight.detach().clone())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class TheirWatch(pytorch_lightning.Callback):
    """The same for Lightning."""

    __init__ = Watch.__init__
    on_train_epoch_start = Watch.on_train_epoch_start
    on_train_epoch_end = Watch.on_train_epoch_end


def members(trainer: Any) -> list[Any]:
    return [member for o in trainer.optimizers for member in getattr(o, "optimizers", [o])]


def per_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


def on_plateau(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "monitor": "val_loss"}


def two_groups(module: Any) -> Any:
    groups = [{"params": module.backbone.parameters()}, {"params": module.head.parameters(), "lr": 0.02}]
    return SGD(groups, lr=0.1, momentum=0.9)


CONFIGURATIONS: dict[str, Any] = {
    "StepLR": lambda m: ([o := SGD(m.parameters(), lr=0.1, momentum=0.9)], [StepLR(o, 1)]),
    "per step": lambda m: ([o := SGD(m.parameters(), lr=0.1)], [per_step(StepLR(o, 4))]),
    "plateau": lambda m: ([o := SGD(m.parameters(), lr=0.1)], [on_plateau(ReduceLROnPlateau(o, patience=0))]),
    "no scheduler": lambda m: SGD(m.parameters(), lr=0.1, weight_decay=0.01),
    "two groups": two_groups,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"swa_lrs": 0.05},
    "early and linear": {
        "swa_lrs": 0.05,
        "swa_epoch_start": 0.4,
        "annealing_epochs": 3,
        "annealing_strategy": "linear",
    },
    "epoch 2, at once": {"swa_lrs": 0.03, "swa_epoch_start": 2, "annealing_epochs": 0},
    "own mean": {"swa_lrs": 0.05, "swa_epoch_start": 0.0, "avg_fn": lambda a, p, n: 0.9 * a + 0.1 * p, "device": None},
}


def configured(mode: str, framework: Any, name: str, batch_norm: bool) -> Any:
    module = build(mode, framework)
    module.configure_optimizers = lambda: CONFIGURATIONS[name](module)
    if not batch_norm:
        module.backbone[1] = nn.LayerNorm(4)
    return module


def assert_same_state(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def assert_same_run(mode: str, ours: Any, theirs: Any, **arguments: Any) -> None:
    """Weights, statistics, learning rates, values and rows of both, epoch by epoch."""
    watch, their_watch = Watch(), TheirWatch()
    their_trainer, their_module, their_rows = run(mode, [theirs[1], their_watch], pytorch_lightning, module=theirs[0])
    trainer, module, rows = run(mode, [ours[1], watch], module=ours[0], **arguments)
    assert_same_state(their_module.state_dict(), module.state_dict())
    assert their_watch.rates == watch.rates
    assert all(torch.equal(a, b) for a, b in zip(their_watch.weights, watch.weights, strict=True))
    for expected, found in zip(their_watch.values, watch.values, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    assert [(s, pytest.approx(row, rel=1e-6)) for s, row in their_rows.rows] == rows.rows
    assert (their_trainer.current_epoch, their_trainer.max_epochs) == (trainer.current_epoch, trainer.max_epochs)
    assert trainer.accumulate_grad_batches == their_trainer.accumulate_grad_batches


@pytest.mark.parametrize("mode", ["one", "accumulated"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_bits_of_lightning(option: str, mode: str, batch_norm: bool) -> None:
    """R161: with batch norms there is one more epoch, which validates the average; its state is the same."""
    callbacks = StochasticWeightAveraging(**OPTIONS[option]), Theirs(**OPTIONS[option])
    ours, theirs = ((configured(mode, f, "StepLR", batch_norm)) for f in (leyden, pytorch_lightning))
    assert_same_run(mode, (ours, callbacks[0]), (theirs, callbacks[1]))
    found, expected = callbacks[0].state_dict(), callbacks[1].state_dict()
    assert found.keys() == expected.keys()
    for name in ("n_averaged", "latest_update_epoch"):
        assert found[name] == expected[name]
    for name in ("_last_lr", "_step_count", "anneal_epochs", "_anneal_strategy"):
        assert found["scheduler_state"][name] == expected["scheduler_state"][name]
    averages = [
        {name: callback._average_model.state_dict()[name] for name, _ in callback._average_model.named_parameters()}
        for callback in callbacks
    ]
    assert_same_state(averages[1], averages[0])


@pytest.mark.parametrize("configuration", sorted(set(CONFIGURATIONS) - {"StepLR"}))
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_whatever_schedulers_there_were(configuration: str) -> None:
    given = {"swa_lrs": [0.05, 0.2] if configuration == "two groups" else 0.05, "swa_epoch_start": 0.5}
    ours, theirs = (configured("one", f, configuration, True) for f in (leyden, pytorch_lightning))
    assert_same_run("one", (ours, StochasticWeightAveraging(**given)), (theirs, Theirs(**given)))


def test_a_manual_optimization_of_one_optimizer() -> None:
    """The user's scheduler is replaced in its place. Without batch norms: Lightning would train in the extra epoch."""

    def module(framework: Any) -> Any:
        built = configured("manual", framework, "StepLR", batch_norm=False)

        def training_step(batch: Any, batch_idx: int) -> None:
            optimizer, scheduler = built.optimizers(), built.lr_schedulers()
            optimizer.zero_grad()
            built.manual_backward(built.loss(batch))
            optimizer.step()
            if batch_idx == len(DATA) - 1:
                scheduler.step()

        built.training_step = training_step
        return built

    given = {"swa_lrs": 0.05, "swa_epoch_start": 0.5, "annealing_epochs": 2}
    assert_same_run(
        "manual", (module(leyden), StochasticWeightAveraging(**given)), (module(pytorch_lightning), Theirs(**given))
    )


def by_hand(mode: str, weights: list[Tensor], start: int) -> Tensor:
    average = weights[start]
    for count, weight in enumerate(weights[start + 1 : -1], 1):  # the last epoch begins with the average
        average = average + (weight - average) / (count + 1)
    return average


@pytest.mark.parametrize("mode", MODES)
def test_all_modes(mode: str) -> None:
    """One ``SWALR`` for each optimizer; the extra epoch makes statistics and updates nothing."""
    watch, module = Watch(), build(mode)
    callback = StochasticWeightAveraging(0.01, 2, annealing_epochs=2)
    trainer, _, rows = run(mode, [callback, watch], module=module)
    assert torch.equal(by_hand(mode, watch.weights, 1), module.head.weight.detach())
    assert watch.steps[-1] == watch.steps[-2] == trainer.global_step
    assert watch.rates[3] == pytest.approx([0.01] * len(watch.rates[3]))
    batch_norm = module.backbone[1]
    inputs = torch.stack([module.backbone[0](x).detach() for x, _ in DATA])
    torch.testing.assert_close(batch_norm.running_mean, inputs.mean((0, 1)))
    forwards = {"alternating": 2, "manual": 3}.get(mode, 1)  # of each batch
    assert batch_norm.num_batches_tracked == forwards * len(DATA)
    assert batch_norm.momentum == 0.1 and not callback.momenta
    assert trainer.max_epochs == 4 and trainer.current_epoch == 5
    assert [row["epoch"] for _, row in rows.of("val_loss")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("one", [["StepLR"], ["SWALR"]]),
        ("alternating", [["ExponentialLR"], ["SWALR", "SWALR"]]),
        ("joint", [["ExponentialLR"], ["SWALR", "SWALR"]]),
        ("manual", [[], []]),
    ],
)
def test_schedulers_are_replaced(mode: str, names: list[list[str]]) -> None:
    watch = Watch()
    run(mode, [Watch(), StochasticWeightAveraging([0.01, 0.02] if mode != "one" else 0.01, 3, 1), watch])
    assert watch.schedulers[1:4] == [names[0], names[1], names[1]]
    assert watch.rates[3] == pytest.approx([0.01, 0.02] if mode != "one" else [0.01])


def test_manual_schedulers_keep_their_places() -> None:
    """Two schedulers of the second of two optimizers; the first optimizer's SWALR is stepped by the callback."""
    module, watch = build("manual"), Watch()
    seen: list[list[str]] = []

    def configure() -> Any:
        optimizers = type(module).configure_optimizers(module)
        return optimizers, [StepLR(leyden.LightningOptimizer(optimizers[1]), 1)]

    def look(self: Any = None) -> None:
        seen.append([type(module.lr_schedulers()).__name__])
        module.lr_schedulers().step()

    module.configure_optimizers, module.on_train_epoch_end = configure, look
    run("manual", [StochasticWeightAveraging(0.01, 2, annealing_epochs=1), watch], module=module)
    assert seen[0] == ["StepLR"] and seen[1:] == [["SWALR"]] * 4
    assert watch.rates[2] == pytest.approx([0.01, 0.01])


def test_closures_by_hand_are_evaluated_in_the_extra_epoch() -> None:
    """What is forward in a closure makes statistics too; gradients, steps and the window stay out of it."""
    module, seen = build("manual"), []

    def training_step(batch: Any, batch_idx: int) -> None:
        first, second = module.optimizers()

        def closure() -> Tensor:
            first.zero_grad()
            loss = module.loss(batch)
            module.manual_backward(loss)
            seen.append(module.head.weight.grad is None)
            return loss

        assert first.step(closure) is not None
        with module.accumulate(second, 2) as window:
            module.manual_backward(module.loss(batch))
        if window.closes:
            module.clip_gradients(second, 1.0)
            second.step()

    module.training_step = training_step
    trainer, _, _ = run("manual", [StochasticWeightAveraging(0.01, 3)], module=module)
    assert trainer.global_step == 4 * (6 + 3)
    assert seen == [False] * 24 + [True] * 6
    assert module.backbone[1].num_batches_tracked == 12


def test_a_closure_optimizer_of_automatic_optimization() -> None:
    module = build("one", scheduled=False)
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=2)
    run("one", [StochasticWeightAveraging(0.05, 3)], module=module)
    assert module.backbone[1].num_batches_tracked == 6


def test_hooks_of_updates_are_silent_in_the_extra_epoch() -> None:
    module, events = build("one"), []
    for name in ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end"):
        setattr(module, name, lambda *args, name=name: events.append((module.current_epoch, name)))
    run("one", [StochasticWeightAveraging(0.05, 2)], module=module, max_epochs=2)
    assert {name for epoch, name in events if epoch == 2} == {"on_train_batch_end"}
    assert len([name for epoch, name in events if epoch == 1]) == 24


def test_frozen_batch_norms_keep_their_statistics() -> None:
    """Lightning sets them to 0 and 1 and leaves them there."""
    module = build("one")
    module.backbone[1].running_mean.fill_(7.0)
    module.backbone[1].eval()
    run("one", [StochasticWeightAveraging(0.05)], module=module)
    assert module.backbone[1].running_mean.tolist() == [7.0] * 4


class Stop(leyden.Callback):
    """Ends or breaks the fit in an epoch."""

    def __init__(self, epoch: int, error: Exception | None = None) -> None:
        self.epoch, self.error = epoch, error

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.current_epoch == self.epoch:
            if self.error is not None:
                raise self.error
            trainer.should_stop = True


def test_a_fit_that_ends_early_keeps_its_weights() -> None:
    watch = Watch()
    with pytest.warns(LeydenWarning, match=r"ended after 3 of 5 epochs.*\[swa-incomplete\]"):
        trainer, module, _ = run("one", [StochasticWeightAveraging(0.05, 2), Stop(2), watch])
    assert trainer.max_epochs == 4
    assert not torch.equal(watch.weights[-1], module.head.weight)
    twin_watch = Watch()
    with pytest.warns(LeydenWarning):
        _, twin, _ = run("one", [Stop(2), StochasticWeightAveraging(0.05, 2, avg_fn=lambda a, p, n: 0 * p), twin_watch])
    assert_same_state(twin.state_dict(), module.state_dict())


@pytest.mark.parametrize("epoch", [2, 4])
def test_an_exception_gives_everything_back(epoch: int) -> None:
    module = build("accumulated")
    trainer = leyden.Trainer(
        max_epochs=4,
        accumulate_grad_batches=3,
        callbacks=[StochasticWeightAveraging(0.05), Stop(epoch, ZeroDivisionError())],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, DATA)
    assert (trainer.max_epochs, trainer.accumulate_grad_batches) == (4, 3)
    assert module.backbone[1].momentum == 0.1


def test_a_fit_that_goes_on() -> None:
    """The second fit has an average of its own, of its own last epochs."""
    module, watch, callback = build("one"), Watch(), StochasticWeightAveraging(0.05)
    trainer, _, _ = run("one", [callback, watch], module=module)
    trainer.fit_loop.max_epochs = 10
    trainer.fit(module, DATA)
    assert (callback.swa_start, callback.swa_end, trainer.max_epochs, trainer.current_epoch) == (7, 9, 10, 11)
    assert torch.equal(by_hand("one", watch.weights, 5 + 2), module.head.weight.detach())


PLACES = {
    "before the average": ("on_train_batch_end", 0, 2),
    "at the start of an averaged epoch": ("on_train_epoch_start", 1, 5),
    "in an averaged epoch": ("on_train_batch_end", 2, 2),
    "after the last averaged epoch": ("on_train_epoch_end", 2, 5),
    "in the extra epoch": ("on_train_batch_end", 3, 3),
    "at its end": ("on_train_epoch_end", 3, 5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
def test_resumed_anywhere_it_ends_the_same(mode: str, place: str, tmp_path: Path) -> None:
    """A break leaves no trace in weights, statistics, schedulers and clocks."""
    path, averaging = tmp_path / "saved.ckpt", partial(StochasticWeightAveraging, 0.05, 2, annealing_epochs=2)
    unbroken = resumption.run(mode, averaging(), resumption.SaveAt(path, *PLACES[place]))
    assert path.exists()
    resumed = resumption.run(mode, averaging(), seed=2, ckpt_path=path)
    assert resumption.differences(unbroken.state, resumed.state) == []
    assert resumed.trainer.max_epochs == 3 and resumed.module.backbone[1].momentum == 0.1


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_rates_of_their_own(configuration: str) -> None:
    """1.x's default: from its first epoch on the rates stay, which those have that are given the same numbers."""
    weights, rates = [], []
    for swa_lrs in (None, "the same"):
        if swa_lrs is not None:
            swa_lrs = [0.1, 0.02] if configuration == "two groups" else rates[0][1][0]
        watch = Watch()
        _, module, _ = run(
            "one",
            [StochasticWeightAveraging(swa_lrs, 2, annealing_epochs=3), watch],
            module=configured("one", leyden, configuration, batch_norm=True),
            max_epochs=4,
        )
        weights.append(module.state_dict())
        rates.append(watch.rates)
    assert rates[0] == rates[1] and np.allclose(rates[0][1:], rates[0][1], rtol=1e-12)
    assert_same_state(*weights)


class Halves(leyden.Callback):
    """Changes a rate before the checkpoint, so that it is no longer where the annealing goes."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.optimizers[0].param_groups[0]["lr"] /= 2


def test_rates_of_their_own_are_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    callback = partial(StochasticWeightAveraging, None, 0.4, annealing_epochs=4)
    unbroken = resumption.run("one", callback(), Halves(), resumption.SaveAt(path, "on_train_batch_end", 1, 3))
    resumed = resumption.run("one", callback(), seed=2, ckpt_path=path)
    assert resumption.differences(unbroken.state, resumed.state) == []


def test_a_fit_of_others_goes_on_with_an_average(tmp_path: Path) -> None:
    """In the last epoch of a fit that was saved without the callback, what is left of it makes the average."""
    path, watch = tmp_path / "saved.ckpt", Watch()
    resumption.run("one", resumption.SaveAt(path, "on_train_batch_end", 2, 3))
    averaged = resumption.run("one", StochasticWeightAveraging(0.05), watch, ckpt_path=path)
    saved = torch.load(path, weights_only=False)["state_dict"]
    assert torch.equal(saved["head.weight"], averaged.module.head.weight)
    assert averaged.trainer.current_epoch == 4 and averaged.module.backbone[1].num_batches_tracked == 6


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_state_of_both_is_read(framework: Any, is_begun: bool) -> None:
    """R149: a fit that goes on after or at the start of an epoch ends where the unbroken one ends."""
    kept: dict[str, Any] = {}
    base: Any = framework.callbacks.StochasticWeightAveraging

    class Keep(base):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            if not is_begun and trainer.current_epoch == 2:
                self.keep(trainer, pl_module)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_start(trainer, pl_module)
            if is_begun and trainer.current_epoch == 3:
                self.keep(trainer, pl_module)

        def keep(self, trainer: Any, pl_module: Any) -> None:
            parts = {"callback": self, "module": pl_module, "optimizer": trainer.optimizers[0]}
            kept.update({name: copy.deepcopy(part.state_dict()) for name, part in parts.items()})

    _, unbroken, _ = run("one", [Keep(0.05, 2, annealing_epochs=4)], framework, max_epochs=6)
    module, callback = build("one"), StochasticWeightAveraging(0.05, 2, annealing_epochs=4)
    module.load_state_dict(kept["module"])
    callback.load_state_dict(kept["callback"])

    class Resume(leyden.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.optimizers[0].load_state_dict(kept["optimizer"])
            trainer.clocks.epoch = 3

    run("one", [callback, Resume()], module=module, max_epochs=6)
    assert_same_state(unbroken.state_dict(), module.state_dict())


def test_states_have_lightnings_keys() -> None:
    ours, theirs = StochasticWeightAveraging(0.1), Theirs(0.1)
    assert ours.state_dict() == theirs.state_dict()
    assert ours.state_key == theirs.state_key
    public = {name for name in dir(theirs) if not name.startswith("_")} - set(dir(pytorch_lightning.Callback))
    assert public <= set(dir(ours))


BAD: list[dict[str, Any]] = [
    {"swa_epoch_start": 0},
    {"swa_epoch_start": 1.5},
    {"swa_epoch_start": -0.1},
    {"swa_lrs": 1},
    {"swa_lrs": 0.0},
    {"swa_lrs": [0.2, -1.0]},
    {"avg_fn": 2},
    {"device": 3},
]


@pytest.mark.parametrize("given", BAD, ids=str)
def test_arguments_that_lightning_refuses(given: dict[str, Any]) -> None:
    arguments = {"swa_lrs": 0.1, **given}
    with pytest.raises(pytorch_lightning.utilities.exceptions.MisconfigurationException):
        Theirs(**arguments)
    with pytest.raises(MisconfigurationException, match=rf"{next(iter(given))}=.*: expected .*\[swa-option\]"):
        StochasticWeightAveraging(**arguments)


@pytest.mark.parametrize("given", [{"annealing_strategy": "log"}, {"annealing_epochs": -1}, {"swa_epoch_start": "1"}])
def test_arguments_that_lightning_finds_late_or_never(given: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=next(iter(given))):
        StochasticWeightAveraging(0.1, **given)


@pytest.mark.parametrize(
    ("mode", "given", "arguments", "text"),
    [
        ("one", {"swa_lrs": 0.1, "swa_epoch_start": 5}, {}, r"swa_epoch_start=5.*max_epochs=4.*\[swa-epochs\]"),
        ("one", {"swa_lrs": 0.1}, {"max_epochs": -1, "max_steps": 9}, r"max_epochs=-1.*\[swa-epochs\]"),
        ("joint", {"swa_lrs": [0.1]}, {}, r"1 learning rates for 2 optimizers.*\[swa-rates\]"),
        ("alternating", {"swa_lrs": [0.1] * 3}, {}, r"3 learning rates for 2 optimizers.*\[swa-rates\]"),
        ("one", {"swa_lrs": []}, {}, r"0 learning rates for 1 parameter groups.*\[swa-rates\]"),
    ],
)
def test_what_does_not_fit_the_run_is_said_before_the_first_step(
    mode: str, given: dict[str, Any], arguments: dict[str, Any], text: str
) -> None:
    module = build(mode)
    with pytest.raises(MisconfigurationException, match=text):
        run(mode, [StochasticWeightAveraging(**given)], module=module, **arguments)
    assert module.trainer.global_step == 0 and module.trainer.max_epochs == arguments.get("max_epochs", 4)


def test_seams_of_the_trainer() -> None:
    trainer = leyden.Trainer(logger=False, enable_progress_bar=False)
    with pytest.raises(OrderError, match=r"\[no-fit\]"):
        trainer.stop_updates()
    assert trainer.lr_scheduler_configs == trainer.lr_schedulers == []
    with pytest.raises(OrderError, match=r"\[plan-before-fit\]"):
        trainer.lr_scheduler_configs = []
