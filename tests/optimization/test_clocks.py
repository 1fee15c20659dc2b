"""Rules R89-R98 (K: counters and properties) and V12."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from leyden import Callback, LightningModule, Trainer
from leyden.callbacks import GradientAccumulationScheduler
from leyden.errors import OrderError
from leyden.optimization.clocks import Clocks, UpdateClock
from seed_page import BATCHES, Regression, TwoPlayers, assert_same_weights, batches, create, fit


class Automatic(Regression):
    """Notes what ``look`` sees, under the name of the hook."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def look(self) -> Any:
        return None

    def note(self, name: str) -> None:
        self.seen.append((name, self.look()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.note("step")
        return self.compute_loss(batch)


class Everywhere(Automatic):
    """Looks in every hook of a fit."""

    def on_fit_start(self) -> None:
        self.note("fit start")

    def on_train_start(self) -> None:
        self.note("train start")

    def on_train_epoch_start(self) -> None:
        self.note("epoch start")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.note("batch start")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.note("before step")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("batch end")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("validation")

    def on_train_epoch_end(self) -> None:
        self.note("epoch end")

    def on_train_end(self) -> None:
        self.note("train end")

    def on_fit_end(self) -> None:
        self.note("fit end")

    def val_dataloader(self) -> Any:
        return batches(1)


class Manual(Automatic):
    """Steps ``steps`` times on each batch."""

    automatic_optimization = False
    steps = 1

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            optimizer.step()
            self.note("step")


class Unsized:
    """The same batches from a loader that does not know its length."""

    def __init__(self, count: int = BATCHES) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(batches(self.count))


def watching(kind: type[Any], look: Any) -> Any:
    return create(type("Module", (kind,), {"look": look}))[0]


# ---------------------------------------------------------------------------------------- R89: current_epoch


def test_current_epoch_is_constant_during_an_epoch_and_then_the_number_of_finished_ones() -> None:
    """R89: 0-based up to on_train_epoch_end, validation included; in on_train_end and after fit max_epochs."""
    module = watching(Everywhere, lambda self: self.trainer.current_epoch)
    trainer = fit(module, batches(1), max_epochs=2, num_sanity_val_steps=0)
    epoch = ["epoch start", "batch start", "step", "before step", "batch end", "validation", "epoch end"]
    assert module.seen == [
        ("fit start", 0),
        ("train start", 0),
        *((name, 0) for name in epoch),
        *((name, 1) for name in epoch),
        ("train end", 2),
        ("fit end", 2),
    ]
    assert (trainer.current_epoch, module.current_epoch) == (2, 2)


# ------------------------------------------------------------------- R90, R91, R92: global_step and num_updates


def both(module: Any) -> tuple[int, int]:
    return module.trainer.global_step, module.trainer.num_updates


def test_global_step_rises_after_the_step_and_updates_after_validation() -> None:
    """R90, R91: global_step right after optimizer_step returned; num_updates at the very end of the batch."""
    module = watching(Everywhere, both)
    trainer = fit(module, batches(2), max_epochs=1, num_sanity_val_steps=0, val_check_interval=1)
    assert module.seen == [
        ("fit start", (0, 0)),
        ("train start", (0, 0)),
        ("epoch start", (0, 0)),
        ("batch start", (0, 0)),
        ("step", (0, 0)),
        ("before step", (0, 0)),
        ("batch end", (1, 0)),
        ("validation", (1, 0)),
        ("batch start", (1, 1)),
        ("step", (1, 1)),
        ("before step", (1, 1)),
        ("batch end", (2, 1)),
        ("validation", (2, 1)),
        ("epoch end", (2, 2)),
        ("train end", (2, 2)),
        ("fit end", (2, 2)),
    ]
    assert (trainer.global_step, trainer.num_updates) == (2, 2)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulating_batches_count_for_neither(accumulate: int) -> None:
    """R90, R91: only batches on which a window closes raise the counters."""
    module = watching(Everywhere, both)
    trainer = fit(module, max_epochs=2, num_sanity_val_steps=0, accumulate_grad_batches=accumulate)
    expected = 2 * -(-BATCHES // accumulate)
    assert (trainer.global_step, trainer.num_updates, trainer.clocks.micro_batches) == (expected, expected, 10)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_manual_mode_counts_every_step_right_after_it(steps: int) -> None:
    """R90: +1 per step() of a handle, right after it; R91: num_updates counts batches, whatever stepped on them."""
    module = create(type("Module", (Manual,), {"steps": steps, "look": both}))[0]
    trainer = fit(module, batches(2), max_epochs=1)
    assert module.seen == [("step", (batch * steps + step + 1, batch)) for batch in range(2) for step in range(steps)]
    assert (trainer.global_step, trainer.num_updates) == (2 * steps, 2)


def test_raw_steps_do_not_count() -> None:
    """R90: optimizer.optimizer.step() in manual mode is nobody's step."""

    class Module(Manual):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(self.compute_loss(batch))
            self.optimizers().optimizer.step()

    module, _ = create(Module)
    trainer = fit(module)
    assert trainer.global_step == 0
    assert trainer.num_updates == 3 * BATCHES


def test_plateau_schedulers_step_before_num_updates_rises() -> None:
    """R91: the counter rises after validation and metric-driven schedulers."""

    class Module(Automatic):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("loss", 1.0)
            return self.compute_loss(batch)

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.seen.append(self.trainer.num_updates)

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "loss", "interval": "step"}
            return [optimizer], [plateau]

    module, _ = create(Module)
    fit(module, batches(3), max_epochs=1)
    assert module.seen == [0, 1, 2]


def test_two_optimizers_count_twice() -> None:
    """R92: +2 per batch for global_step, +1 for num_updates; each optimizer has a clock of its own."""
    module, _ = create(TwoPlayers)
    trainer = fit(module, batches(3), max_epochs=2)
    assert (trainer.global_step, trainer.num_updates) == (12, 6)
    assert trainer.clocks.optimizers == [UpdateClock(6, 6), UpdateClock(6, 6)]


def test_a_hook_that_did_not_step_counts() -> None:
    """R92: optimizer_step that only called the closure is a step of global_step."""

    class Module(Automatic):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer_closure()

    module, _ = create(Module)
    trainer = fit(module, batches(3), max_epochs=1)
    assert trainer.global_step == 3
    assert trainer.clocks.optimizers == [UpdateClock(3, 0, {"not stepped by its handle": 3})]


# ------------------------------------------------------------------------------- R93: max_steps and min_steps


@pytest.mark.parametrize(("max_steps", "batches_run"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_max_steps_counts_the_steps_of_all_optimizers(max_steps: int, batches_run: int) -> None:
    """R93: compared with global_step between batches: two optimizers with max_steps=3 stop after 2 batches, 4 steps."""
    module, _ = create(TwoPlayers)
    trainer = fit(module, max_steps=max_steps, max_epochs=-1)
    assert trainer.global_step == 2 * batches_run
    assert len(module.steps) == 2 * batches_run


def test_max_steps_counts_steps_by_hand_between_batches() -> None:
    """R93: manual mode with three steps per batch and max_steps=4: two batches, six steps."""
    module = create(type("Module", (Manual,), {"steps": 3}))[0]
    trainer = fit(module, max_steps=4, max_epochs=-1)
    assert trainer.global_step == 6


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"limit_train_batches": 0}, {"max_epochs": 0}], ids=str)
def test_nothing_is_trained(arguments: dict[str, Any]) -> None:
    """R93: max_steps=0, limit_train_batches=0, max_epochs=0: fit starts and ends without an epoch."""
    module = watching(Everywhere, both)
    trainer = fit(module, num_sanity_val_steps=0, **arguments)
    assert module.seen == [("fit start", (0, 0)), ("fit end", (0, 0))]
    assert (trainer.global_step, trainer.current_epoch) == (0, 0)


@pytest.mark.parametrize(("min_steps", "expected"), [(0, 1), (3, 3), (7, 7)])
def test_should_stop_waits_for_min_steps(min_steps: int, expected: int) -> None:
    """R93, R97: should_stop ends the fit after the batch on which global_step reaches min_steps."""

    class Module(Automatic):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = True

    module, _ = create(Module)
    if min_steps > BATCHES:
        with pytest.warns(UserWarning, match="min_epochs or min_steps is not reached yet"):
            trainer = fit(module, min_steps=min_steps)
    else:
        trainer = fit(module, min_steps=min_steps)
    assert trainer.global_step == expected


# ------------------------------------------------------------------------------------------ R94: is_last_batch


def last_batches(data: Any, **arguments: Any) -> list[bool]:
    module = watching(Automatic, lambda self: self.trainer.is_last_batch)
    fit(module, data, **{"max_epochs": 1, **arguments})
    return [seen for _, seen in module.seen]


@pytest.mark.parametrize(
    ("data", "arguments", "expected"),
    [
        (batches(3), {}, [False, False, True]),
        (Unsized(3), {}, [False, False, True]),
        (list(batches(3)), {}, [False, False, True]),
        (batches(3), {"limit_train_batches": 2}, [False, True]),
        (Unsized(3), {"limit_train_batches": 2}, [False, True]),
        (Unsized(2), {"limit_train_batches": 5}, [False, True]),
        (batches(4), {"limit_train_batches": 0.5}, [False, True]),
        (batches(3), {"fast_dev_run": 2}, [False, True]),
        (batches(3), {"overfit_batches": 2}, [False, True]),
        (batches(3), {"max_steps": 2}, [False, False]),
        (Unsized(3), {"max_steps": 2}, [False, False]),
        (batches(2), {"max_epochs": 2}, [False, True] * 2),
        (batches(1), {}, [True]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_is_last_batch(data: Any, arguments: dict[str, Any], expected: list[bool]) -> None:
    """R94: on the last batch of the epoch, at a limit too; never because of max_steps."""
    assert last_batches(data, **arguments) == expected


def test_is_last_batch_in_manual_mode_and_in_hooks() -> None:
    """R94: the page steps a scheduler by it; true from on_train_batch_start to on_train_batch_end."""
    module = watching(Everywhere, lambda self: self.trainer.is_last_batch)
    fit(module, batches(2), max_epochs=1, limit_val_batches=0)
    around = ["batch start", "step", "before step", "batch end"]
    assert [seen for seen in module.seen if seen[0] in around] == [
        *((name, False) for name in around),
        *((name, True) for name in around),
    ]


# ---------------------------------------------------------------------------- R95: estimated_stepping_batches


class Counting:
    """A loader that counts how often it is asked for batches."""

    def __init__(self, count: int, *, sized: bool = True) -> None:
        self.count, self.begun, self.drawn = count, 0, 0
        self.sized = sized

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError("no length")
        return self.count

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        for batch in batches(self.count):
            self.drawn += 1
            yield batch


def estimate(data: Any, **arguments: Any) -> int | float:
    """What configure_optimizers finds; the fit then runs no batch."""

    class Module(Automatic):
        def configure_optimizers(self) -> Any:
            self.estimated = self.trainer.estimated_stepping_batches
            raise StopAsyncIteration

    module, _ = create(Module)
    with pytest.raises(StopAsyncIteration):
        fit(module, data, **arguments)
    return module.estimated  # type: ignore[no-any-return]


SIZED = [
    ({"max_epochs": 3}, 21),
    ({"max_epochs": 3, "accumulate_grad_batches": 2}, 12),
    ({"max_epochs": 3, "accumulate_grad_batches": 10}, 3),
    ({"max_epochs": 3, "limit_train_batches": 4}, 12),
    ({"max_epochs": 3, "limit_train_batches": 0.5}, 9),
    ({"max_epochs": 3, "limit_train_batches": 4, "accumulate_grad_batches": 3}, 6),
    ({"max_epochs": 3, "max_steps": 10}, 10),
    ({"max_epochs": 3, "max_steps": 100}, 21),
    ({"max_epochs": 3, "max_steps": 10, "accumulate_grad_batches": 4}, 6),
    ({"max_epochs": -1}, math.inf),
    ({"max_epochs": -1, "max_steps": 10}, 10),
    ({"max_epochs": 0}, 0),
    ({"max_epochs": 3, "overfit_batches": 2}, 6),
    ({"fast_dev_run": 2}, 2),
    ({"max_epochs": 4, "accumulate_grad_batches": {0: 1, 2: 4}}, 7 + 7 + 2 + 2),
    ({"max_epochs": 4, "accumulate_grad_batches": {1: 3, 3: 7}}, 7 + 3 + 3 + 1),
    ({"max_epochs": 4, "accumulate_grad_batches": {1: 3, 3: 7}, "max_steps": 9}, 9),
    ({"max_epochs": 4, "callbacks": [GradientAccumulationScheduler({0: 2})]}, 16),
]


@pytest.mark.parametrize(("arguments", "expected"), SIZED, ids=str)
def test_the_estimate_for_a_loader_with_a_length(arguments: dict[str, Any], expected: int | float) -> None:
    """R95: ceil(batches / accumulation) over the epochs, epoch by epoch for a schedule, capped by max_steps."""
    assert estimate(batches(7), **arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_epochs": 3}, math.inf),
        ({"max_epochs": 3, "max_steps": 10}, 10),
        ({"max_epochs": -1, "max_steps": 10}, 10),
        ({"max_epochs": 3, "limit_train_batches": 4, "accumulate_grad_batches": 2}, 6),
    ],
    ids=str,
)
def test_the_estimate_for_a_loader_without_a_length(arguments: dict[str, Any], expected: int | float) -> None:
    """R95: max_steps if the length is unknown, inf if there is none; a limit in batches counts as the length."""
    assert estimate(Unsized(), **arguments) == expected


def test_the_estimate_is_what_happens() -> None:
    """R95: it equals the number of batches on which a window closes, short last windows and schedules included."""
    for arguments in (
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": {0: 1, 1: 3, 2: 4}},
        {"max_steps": 7},
    ):

        class Module(Automatic):
            def configure_optimizers(self) -> Any:
                self.estimated = self.trainer.estimated_stepping_batches
                return super().configure_optimizers()

        module, _ = create(Module)
        trainer = fit(module, batches(7), **arguments)
        assert trainer.num_updates == module.estimated == trainer.estimated_stepping_batches


def test_the_estimate_counts_batches_and_not_optimizers() -> None:
    """R95: two optimizers: one per batch."""

    class Module(TwoPlayers):
        def configure_optimizers(self) -> Any:
            self.estimated = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    module, _ = create(Module)
    trainer = fit(module, batches(4), max_epochs=2)
    assert (module.estimated, trainer.global_step) == (8, 16)


@pytest.mark.parametrize("sized", [True, False])
def test_the_estimate_draws_nothing(sized: bool) -> None:
    """R95: it asks the hook for the loader once, makes no iterator, draws no batch, and leaves all RNGs alone."""
    loader = Counting(4, sized=sized)

    class Module(Automatic):
        asked = 0

        def train_dataloader(self) -> Any:
            type(self).asked += 1
            return loader

        def configure_optimizers(self) -> Any:
            before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
            self.estimated = [self.trainer.estimated_stepping_batches for _ in range(3)]
            after = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
            assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
            assert (loader.begun, loader.drawn, self.asked) == (0, 0, 1)
            return super().configure_optimizers()

    module, _ = create(Module)
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(module)
    assert module.estimated == [8 if sized else math.inf] * 3
    assert (loader.begun, loader.drawn, module.asked) == (2, 8, 1)


def test_the_estimate_changes_no_bit_of_a_shuffled_run() -> None:
    """R95: a run that asked shuffles and trains as one that did not."""

    class Asking(Automatic):
        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches == 3 * BATCHES
            return super().configure_optimizers()

    def shuffled() -> DataLoader[Any]:
        return DataLoader(batches().dataset, batch_size=2, shuffle=True)

    module, _ = create(Asking)
    fit(module, shuffled())
    silent, _ = create(Automatic)
    fit(silent, shuffled())
    assert_same_weights(module, silent)


def test_the_estimate_keeps_to_reloading() -> None:
    """R95: reload_dataloaders_every_n_epochs asks as often as without it."""

    class Module(Automatic):
        asks = False
        asked = 0

        def train_dataloader(self) -> Any:
            self.asked += 1
            return batches(2)

        def configure_optimizers(self) -> Any:
            if self.asks:
                assert self.trainer.estimated_stepping_batches == 8
            return super().configure_optimizers()

    for asks in (False, True):
        module, _ = create(type("Module", (Module,), {"asks": asks}))
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", enable_progress_bar=False, reload_dataloaders_every_n_epochs=2
        )
        trainer.fit(module)
        assert module.asked == 2


def test_a_one_cycle_schedule_can_be_built_from_it() -> None:
    """R95: the length of a schedule that steps per update, accumulation included."""

    class Module(Automatic):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            self.cycle = OneCycleLR(optimizer, 0.2, total_steps=self.trainer.estimated_stepping_batches)
            return [optimizer], [{"scheduler": self.cycle, "interval": "step"}]

    module, _ = create(Module)
    fit(module, batches(7), accumulate_grad_batches=2)
    assert module.cycle.last_epoch == 3 * 4  # one step beyond would have raised


def test_the_estimate_before_any_fit_is_refused() -> None:
    """R95: there is no loader yet, unless epochs are unlimited and it is not needed."""
    assert Trainer(max_epochs=-1, max_steps=5, enable_progress_bar=False).estimated_stepping_batches == 5
    with pytest.raises(OrderError, match="known from trainer.fit"):
        _ = Trainer(max_epochs=2, enable_progress_bar=False).estimated_stepping_batches


# -------------------------------------------------------------------------------------- R96: callback_metrics


def test_callback_metrics_within_a_step_and_after_an_epoch() -> None:
    """R96: what was logged before in the same step is there; after the epoch, the epoch's values."""

    class Module(Automatic):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("value", float(batch_idx), on_step=True, on_epoch=True)
            self.seen.append(self.trainer.callback_metrics["value"].item())
            self.log("other", 1.0)
            assert self.trainer.callback_metrics["other"] == 1.0
            return self.compute_loss(batch)

    module, _ = create(Module)
    trainer = fit(module, batches(3), max_epochs=1)
    assert module.seen == [0.0, 1.0, 2.0]
    assert trainer.callback_metrics["value"] == 1.0
    assert all(isinstance(value, Tensor) for value in trainer.callback_metrics.values())


# ------------------------------------------------------------------------------- R97 and V12: going on, stopping


def test_properties_that_both_eras_have() -> None:
    """R97: num_training_batches, fit_loop.max_epochs, should_stop."""

    class Module(Automatic):
        def on_train_start(self) -> None:
            self.note("start")

    module = watching(Module, lambda self: self.trainer.num_training_batches)
    trainer = fit(module, batches(4), max_epochs=1)
    assert module.seen[0] == ("start", 4)
    assert (trainer.num_training_batches, trainer.fit_loop.max_epochs, trainer.should_stop) == (4, 1, False)
    unsized, _ = create(Automatic)
    assert fit(unsized, Unsized(2), max_epochs=1).num_training_batches == math.inf


def test_a_second_fit_goes_on_counting() -> None:
    """R97: 6 steps in 2 epochs, then max_epochs = 3: 9 steps, epoch 3."""
    module, _ = create(Automatic)
    trainer = fit(module, batches(3), max_epochs=2)
    assert (trainer.global_step, trainer.current_epoch) == (6, 2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, batches(3))
    assert (trainer.global_step, trainer.current_epoch, trainer.num_updates) == (9, 3, 9)
    assert trainer.clocks.optimizers == [UpdateClock(9, 9)]
    assert trainer.max_epochs == 3


def test_a_second_fit_goes_on_after_max_steps() -> None:
    """R97: fit_loop.max_steps can be raised as well; the epoch that was cut short counts as one."""
    module, _ = create(Automatic)
    trainer = fit(module, batches(3), max_steps=2, max_epochs=-1)
    assert trainer.global_step == 2
    trainer.fit_loop.max_steps = 4
    trainer.fit(module, batches(3))
    assert trainer.global_step == 4


def test_should_stop_ends_the_fit_after_the_batch() -> None:
    """R97: set in a hook; a later fit starts afresh."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    module, _ = create(Automatic)
    trainer = fit(module, callbacks=Stop())
    assert (trainer.global_step, trainer.current_epoch) == (2, 1)
    trainer.fit(module, batches())
    assert trainer.global_step == 2 + 2 * BATCHES


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_epochs": 2}, "2 epochs are done and max_epochs is 2; raise trainer.fit_loop.max_epochs to go on"),
        (
            {"max_steps": 4, "max_epochs": -1},
            "4 steps are done and max_steps is 4; raise trainer.fit_loop.max_steps to go on",
        ),
    ],
    ids=str,
)
def test_a_second_fit_with_nothing_left_says_so(arguments: dict[str, Any], text: str) -> None:
    """V12: it names the argument that continues, and trains nothing."""
    module, _ = create(Automatic)
    trainer = fit(module, **arguments)
    before = trainer.global_step
    with pytest.warns(UserWarning, match=text) as caught:
        trainer.fit(module, batches())
    assert "[fit-nothing-to-do]" in str(caught[0].message)
    assert trainer.global_step == before


def test_a_first_fit_with_nothing_to_do_is_silent() -> None:
    """V12: max_epochs=0 was asked for."""
    module, _ = create(Automatic)
    fit(module, max_epochs=0)


# ------------------------------------------------------------------------------------ R98: the module's view


def test_the_module_s_counters_are_the_trainer_s() -> None:
    """R98: global_step and current_epoch of the module; 0 without a trainer, and self.trainer is a RuntimeError."""
    module = watching(
        Everywhere,
        lambda self: (
            (self.global_step, self.current_epoch)
            == (
                self.trainer.global_step,
                self.trainer.current_epoch,
            )
        ),
    )
    assert (module.global_step, module.current_epoch) == (0, 0)
    with pytest.raises(RuntimeError, match="is not attached to a Trainer"):
        _ = module.trainer
    trainer = fit(module, batches(2), max_epochs=2)
    assert all(same for _, same in module.seen)
    assert (module.global_step, module.current_epoch) == (4, 2)
    assert module.trainer is trainer


# ---------------------------------------------------------------------------------------------- the clocks


def test_clocks_of_another_fit_go_on() -> None:
    """R97: clocks are kept by position; more optimizers get fresh ones, fewer leave the others alone."""
    clocks = Clocks()
    first, second = clocks.for_optimizers(2)
    first.attempted = 3
    assert clocks.for_optimizers(1) == [first]
    assert clocks.for_optimizers(3) == [first, second, UpdateClock()]
