"""Rules R59-R67 (G: several optimizers that take turns in automatic mode), against loops written by hand.

R60-R63, about whose parameters want gradients, are in ``test_toggling.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from leyden import Callback, Trainer
from seed_page import BATCHES, EPOCHS, Recorder, TwoPlayers, assert_same_weights, batches, create, fit


class Outputs(Callback):
    """Keeps what ``on_train_batch_end`` gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs)


# -------------------------------------------------------------------------------------------- R59: in order


class Alternating(TwoPlayers):
    """Notes every hook of an update, with the index of the optimizer that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []

    def index_of(self, optimizer: Any) -> int:
        return [id(one) for one in self.trainer.optimizers].index(id(optimizer))

    def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
        self.events.append(("training_step", optimizer_idx))
        return super().training_step(batch, batch_idx, optimizer_idx)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.events.append(("zero_grad", self.index_of(optimizer)))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append(("before_step", self.index_of(optimizer)))

    def configure_gradient_clipping(self, optimizer: Any, *values: Any) -> None:
        self.events.append(("clip", self.index_of(optimizer)))
        self.clip_gradients(optimizer, *values)


def test_every_optimizer_runs_its_own_pass_in_order() -> None:
    """R59: training_step(batch, batch_idx, optimizer_idx) for optimizer 0, its update, then for optimizer 1."""
    module, twin = create(Alternating)
    trainer = fit(module)
    names = ["training_step", "zero_grad", "before_step", "clip"]
    assert [*((name, 0) for name in names), *((name, 1) for name in names)] == module.events[:8]
    assert trainer.global_step == 2 * EPOCHS * BATCHES

    a, b = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            a.zero_grad()
            twin.loss(batch, 0).backward()
            a.step()
            b.zero_grad()
            twin.loss(batch, 1).backward()
            b.step()
    assert_same_weights(module, twin)


def test_accumulation_and_clipping_apply_to_each_optimizer() -> None:
    """R59: each optimizer has its own window and is clipped by the norm of its own gradients."""
    module, twin = create(TwoPlayers)
    trainer = fit(module, batches(4), accumulate_grad_batches=2, gradient_clip_val=0.05)
    assert trainer.global_step == 2 * EPOCHS * 2

    optimizers = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches(4)):
            opens = batch_idx % 2 == 0
            for index, (opt, player) in enumerate(zip(optimizers, (twin.A, twin.B), strict=True)):
                other = twin.B if player is twin.A else twin.A
                other.requires_grad_(False)
                loss = twin.loss(batch, index) / 2
                if opens:
                    opt.zero_grad()
                loss.backward()
                other.requires_grad_(True)
                if not opens:
                    nn.utils.clip_grad_norm_(player.parameters(), 0.05)
                    opt.step()
    assert_same_weights(module, twin)


def test_each_optimizer_corrects_its_own_window() -> None:
    """R59 (with V3): a None of one optimizer leaves the window of the other alone."""

    class Module(TwoPlayers):
        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor | None:
            skips = optimizer_idx == 0 and batch_idx % 2 == 1
            return None if skips else self.loss(batch, optimizer_idx)

    module, twin = create(Module)
    with pytest.warns(UserWarning, match="training_step returned None"):
        fit(module, batches(4), accumulate_grad_batches=2)

    a, b = twin.configure_optimizers()
    for _ in range(EPOCHS):
        every = list(batches(4))
        for first, second in (every[:2], every[2:]):
            a.zero_grad()
            (twin.loss(first, 0)).backward()  # the only loss of the window: weight 1
            b.zero_grad()
            (twin.loss(first, 1) / 2).backward(inputs=list(twin.B.parameters()))
            a.step()
            (twin.loss(second, 1) / 2).backward(inputs=list(twin.B.parameters()))
            b.step()
    assert_same_weights(module, twin)


# ---------------------------------------------------------------------------------- R64 and R65: frequencies


class Cyclic(TwoPlayers):
    """Optimizer 0 for two batches, optimizer 1 for one, and so on; each with a scheduler of its own."""

    frequencies = (2, 1)
    interval = "step"

    def configure_optimizers(self) -> Any:
        a, b = SGD(self.A.parameters(), lr=0.1), SGD(self.B.parameters(), lr=0.2)
        schedulers = StepLR(a, 1, gamma=0.5), ExponentialLR(b, 0.9)
        return [
            {
                "optimizer": optimizer,
                "frequency": frequency,
                "lr_scheduler": {"scheduler": scheduler, "interval": self.interval},
            }
            for optimizer, frequency, scheduler in zip((a, b), self.frequencies, schedulers, strict=True)
        ]


def optimizers_and_schedulers(twin: Cyclic) -> tuple[list[Any], list[Any]]:
    dicts = twin.configure_optimizers()
    return [one["optimizer"] for one in dicts], [one["lr_scheduler"]["scheduler"] for one in dicts]


@pytest.mark.parametrize("count", [3, 4, 5, 1])
def test_frequencies_are_one_unbroken_cycle_over_epochs(count: int) -> None:
    """R64: f0 batches for the first, f1 for the second; optimizer and scheduler count across epochs alike."""
    module, twin = create(Cyclic)
    recorder = Recorder()
    trainer = fit(module, batches(count), callbacks=recorder, max_epochs=6)
    total = 6 * count
    assert ([0, 0, 1] * 10)[:total] == [step[1] for step in module.steps]
    assert total == trainer.global_step
    assert trainer.optimizer_frequencies == [2, 1]

    optimizers, schedulers = optimizers_and_schedulers(twin)
    rates = []
    for epoch in range(6):
        for batch_idx, batch in enumerate(batches(count)):
            active = 0 if (epoch * count + batch_idx) % 3 < 2 else 1
            optimizers[active].zero_grad()
            twin.loss(batch, active).backward()
            optimizers[active].step()
            schedulers[active].step()
            rates.append([opt.param_groups[0]["lr"] for opt in optimizers])
    assert rates == recorder.rates
    assert_same_weights(module, twin)


def test_epoch_schedulers_of_the_last_batch_s_optimizer_step() -> None:
    """R64: interval "epoch": only the scheduler of the optimizer that was active on the epoch's last batch."""

    class Module(Cyclic):
        interval = "epoch"

    module, _ = create(Module)
    trainer = fit(module, batches(4))  # last batches 3, 7, 11 of the cycle (0, 0, 1): optimizers 0, 0, 1
    assert [opt.param_groups[0]["lr"] for opt in trainer.optimizers] == [0.1 * 0.5**2, 0.2 * 0.9]


def test_hooks_get_the_true_index_of_the_active_optimizer() -> None:
    """R64: optimizer_idx in 1.x hooks is the position among the configured optimizers."""

    class Module(Cyclic):
        frequencies = (1, 2)

        def __init__(self) -> None:
            super().__init__()
            self.indices: list[tuple[str, int]] = []

        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int, optimizer_closure: Any, **_: Any
        ) -> None:
            self.indices.append(("step", optimizer_idx))
            optimizer.step(closure=optimizer_closure)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int) -> None:
            self.indices.append(("zero", optimizer_idx))
            optimizer.zero_grad()

        def on_before_optimizer_step(self, optimizer: Any, optimizer_idx: int) -> None:
            self.indices.append(("before", optimizer_idx))

    module, _ = create(Module)
    fit(module, batches(4), max_epochs=1)
    each = ["step", "zero", "before"]
    assert [(name, index) for index in (0, 1, 1, 0) for name in each] == module.indices


def test_only_the_active_optimizer_s_parameters_move() -> None:
    """R64: on a batch of optimizer 0 the weights of optimizer 1 stay, and the other way round."""

    class Watch(Callback):
        def __init__(self) -> None:
            self.weights: list[Any] = []

        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            self.weights.append((copy.deepcopy(module.A.state_dict()), copy.deepcopy(module.B.state_dict())))

    watch = Watch()
    module, twin = create(Cyclic)
    fit(module, batches(3), max_epochs=1, callbacks=watch)
    (a0, b0), (a1, b1), (a2, b2) = watch.weights
    assert torch.equal(twin.B.weight, b0["weight"]) and torch.equal(b0["weight"], b1["weight"])
    assert not torch.equal(a0["weight"], a1["weight"])
    assert torch.equal(a1["weight"], a2["weight"]) and not torch.equal(b1["weight"], b2["weight"])


def test_plateau_scheduler_of_an_inactive_optimizer_rests() -> None:
    """R64: a metric-driven scheduler with interval "step" steps on the batches of its optimizer only."""

    class Counted(ReduceLROnPlateau):
        count = -1  # torch itself does not step it when it is built

        def step(self, *args: Any, **kwargs: Any) -> None:
            self.count = max(self.count, 0) + 1
            super().step(*args, **kwargs)

    class Module(TwoPlayers):
        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
            loss = self.loss(batch, optimizer_idx)
            self.log("loss", loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            a, b = SGD(self.A.parameters(), lr=0.1), SGD(self.B.parameters(), lr=0.2)
            self.plateaus = Counted(a), Counted(b)
            return [
                {
                    "optimizer": optimizer,
                    "frequency": frequency,
                    "lr_scheduler": {"scheduler": scheduler, "interval": "step", "monitor": "loss"},
                }
                for optimizer, frequency, scheduler in zip((a, b), (3, 1), self.plateaus, strict=True)
            ]

    module, _ = create(Module)
    fit(module, batches(8), max_epochs=1)
    assert [plateau.count for plateau in module.plateaus] == [6, 2]


def test_frequencies_and_windows_both_count_batches() -> None:
    """R65: an optimizer that is active only while a window accumulates never steps; a warning says so."""

    class Module(TwoPlayers):
        def configure_optimizers(self) -> Any:
            a, b = SGD(self.A.parameters(), lr=0.1), SGD(self.B.parameters(), lr=0.2)
            return [{"optimizer": a, "frequency": 1}, {"optimizer": b, "frequency": 1}]

    module, twin = create(Module)
    with pytest.warns(UserWarning, match="frequencies and accumulation both count batches"):
        trainer = fit(module, batches(4), accumulate_grad_batches=2)
    assert [clock.attempted for clock in trainer.clocks.optimizers] == [0, EPOCHS * 2]
    assert torch.equal(twin.A.weight, module.A.weight)

    _, b = (one["optimizer"] for one in twin.configure_optimizers())
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches(4)):
            if batch_idx % 2:
                b.zero_grad()
                twin.loss(batch, 1).backward()  # the only micro-batch of its window
                b.step()
    assert torch.equal(twin.B.weight, module.B.weight) and torch.equal(twin.B.bias, module.B.bias)


# ---------------------------------------------------------------------------------------------- R66: outputs


class Returning(TwoPlayers):
    """Returns batch and optimizer beside the loss; nothing for optimizer 0 on batch 1."""

    def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Any:
        if (batch_idx, optimizer_idx) == (1, 0):
            return None
        return {"loss": self.loss(batch, optimizer_idx), "place": (batch_idx, optimizer_idx)}


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_batch_end_gets_a_list_with_the_output_of_each_optimizer() -> None:
    """R66: on_train_batch_end: one dict per optimizer that returned a loss; skipped ones are dropped."""
    outputs = Outputs()
    module, _ = create(Returning)
    fit(module, batches(3), max_epochs=1, callbacks=outputs)
    assert [[out["place"] for out in seen] for seen in outputs.seen] == [[(0, 0), (0, 1)], [(1, 1)], [(2, 0), (2, 1)]]
    assert all(not out["loss"].requires_grad for seen in outputs.seen for out in seen)


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_epoch_end_gets_outputs_by_optimizer() -> None:
    """R66: training_epoch_end gets outputs[optimizer][batch], as in 1.5."""

    class Module(Returning):
        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.places = [[out["place"] for out in one] for one in outputs]

    module, _ = create(Module)
    fit(module, batches(3), max_epochs=1)
    assert module.places == [[(0, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)]]


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_epoch_end_in_the_new_format_gets_outputs_by_batch() -> None:
    """R66: with a parameter new_format it gets outputs[batch][optimizer]."""

    class Module(Returning):
        def training_epoch_end(self, outputs: list[Any], new_format: bool = True) -> None:
            self.places = [[out["place"] for out in one] for one in outputs]

    module, _ = create(Module)
    fit(module, batches(3), max_epochs=1)
    assert module.places == [[(0, 0), (0, 1)], [(1, 1)], [(2, 0), (2, 1)]]


def test_epoch_end_with_frequencies_gets_each_optimizer_s_own_batches() -> None:
    """R66: with frequencies outputs[i] holds only the batches of optimizer i."""

    class Module(Cyclic):
        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Any:
            return {"loss": self.loss(batch, optimizer_idx), "place": (batch_idx, optimizer_idx)}

        def training_epoch_end(self, outputs: list[Any]) -> None:
            self.places = [[out["place"] for out in one] for one in outputs]

    outputs = Outputs()
    module, _ = create(Module)
    fit(module, batches(5), max_epochs=1, callbacks=outputs)
    assert module.places == [[(0, 0), (1, 0), (3, 0), (4, 0)], [(2, 1)]]
    assert [len(seen) for seen in outputs.seen] == [1] * 5


# ---------------------------------------------------------------------------------------------- R67: logging


def test_the_same_key_from_two_passes() -> None:
    """R67: the step value is the last pass's, the epoch value the mean over both."""

    class Module(TwoPlayers):
        def training_step(self, batch: list[Tensor], batch_idx: int, optimizer_idx: int) -> Tensor:
            self.log("value", float(10 * batch_idx + optimizer_idx), on_step=True, on_epoch=True)
            return self.loss(batch, optimizer_idx)

        def on_train_batch_end(self, *_: Any) -> None:
            self.by_step = [*getattr(self, "by_step", []), self.trainer.callback_metrics["value_step"].item()]

    module, _ = create(Module)
    trainer = fit(module, batches(3), max_epochs=1)
    assert module.by_step == [1.0, 11.0, 21.0]
    assert trainer.callback_metrics["value_epoch"].item() == 10.5


def test_adam_state_of_each_optimizer_is_its_own() -> None:
    """R59: two Adams keep separate moments and step counts."""

    class Module(TwoPlayers):
        def configure_optimizers(self) -> Any:
            return [Adam(self.A.parameters(), lr=0.02), Adam(self.B.parameters(), lr=0.03)]

    module, twin = create(Module)
    trainer = fit(module)
    optimizers = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            for index, opt in enumerate(optimizers):
                opt.zero_grad()
                twin.loss(batch, index).backward()
                opt.step()
    assert_same_weights(module, twin)
    for expected, opt in zip(optimizers, trainer.optimizers, strict=True):
        for mine, theirs in zip(expected.state.values(), opt.state.values(), strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
