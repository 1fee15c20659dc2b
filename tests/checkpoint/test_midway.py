"""Saves where something is half done: in a window, in a step, in a validation; a run goes on from there exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import Metric

import modes
from leyden.precision import MixedPrecision
from resumption import Noisy, Outcome, SaveAt, differences, run, shuffled

#: name -> hook that saves, its epoch and batch, which of its calls there, the Trainer's arguments
PLACES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "first of a window": ("on_train_batch_end", 1, 0, 1, {}),
    "second of a window": ("on_train_batch_end", 1, 1, 1, {}),
    "open in the first epoch": ("on_train_batch_end", 0, 3, 1, {}),
    "before a step": ("on_train_batch_start", 1, 2, 1, {}),
    "before the first step": ("on_train_batch_start", 0, 0, 1, {}),
    "after a backward": ("on_after_backward", 1, 1, 1, {}),
    "before an update": ("on_before_optimizer_step", 1, 2, 1, {}),
    "before gradients are cleared": ("on_before_zero_grad", 1, 3, 1, {}),
    "start of a validation": ("on_validation_start", 1, 5, 1, {}),
    "start of a validation's epoch": ("on_validation_epoch_start", 1, 2, 1, {"val_check_interval": 3}),
    "before a step of a validation": ("on_validation_batch_start", 1, 2, 2, {"val_check_interval": 3}),
    "first batch of a validation": ("on_validation_batch_end", 1, 2, 1, {"val_check_interval": 3}),
    "last batch of a validation": ("on_validation_batch_end", 1, 2, 2, {"val_check_interval": 3}),
    "validation in an open window": ("on_validation_batch_end", 1, 1, 1, {"val_check_interval": 2}),
    "validation at the end": ("on_validation_batch_end", 1, 5, 1, {}),
    "end of a validation's epoch": ("on_validation_epoch_end", 1, 2, 1, {"val_check_interval": 3}),
}


@functools.cache
def without_a_break(name: str, **options: Any) -> Outcome:
    return run(name, **options)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", modes.MODES)
def test_a_run_goes_on_from_the_middle_of_anything(name: str, place: str, tmp_path: Path) -> None:
    """V10: gradients of an open window, what a validation has so far; a save in a step waits for its end."""
    hook, epoch, batch, number, options = PLACES[place]
    whole = without_a_break(name, **options)
    saver = SaveAt(tmp_path / "a.ckpt", hook, epoch, batch, number)
    first = run(name, saver, **options)
    if not saver.calls:
        pytest.skip("this hook is not called there in this mode")
    assert differences(whole.state, first.state) == []  # saving changes nothing
    assert differences(whole.rows, first.rows) == []
    second = run(name, seed=99, ckpt_path=tmp_path / "a.ckpt", **options)
    assert differences(whole.state, second.state) == []
    assert second.rows
    assert differences(whole.rows[-len(second.rows) :], second.rows) == []


def resumed(saver: SaveAt, name: str, build: Callable[[], dict[str, Any]], **options: Any) -> Outcome:
    """Assert that a run goes on from a save as if there had been no break; ``build`` makes fresh options each time."""

    def again(*savers: Any, **different: Any) -> Outcome:
        fresh = build()
        return run(name, *fresh.pop("callbacks", ()), *savers, **{**options, **fresh, **different})

    whole = again(saver)
    assert saver.calls
    second = again(seed=99, ckpt_path=saver.path)
    assert differences(whole.state, second.state) == []
    assert second.rows
    assert differences(whole.rows[-len(second.rows) :], second.rows) == []
    return second


def trained_by(name: str, **attributes: Any) -> Any:
    """The module of a mode with other methods; each gets the module."""
    module = modes.build(name)
    for method, function in attributes.items():
        setattr(module, method, functools.partial(function, module))
    return module


def weighted(module: Any, batch: Any, batch_idx: int) -> Any:
    return {"loss": module.loss(batch), "weight": batch_idx + 1.0}


def weighted_by_tensor(module: Any, batch: Any, batch_idx: int) -> Any:
    return {"loss": module.loss(batch), "weight": torch.tensor(batch_idx + 1)}


def sometimes_skipped(module: Any, batch: Any, batch_idx: int) -> Any:
    return None if batch_idx % 3 == 0 else module.loss(batch)


def with_lbfgs(module: Any) -> Any:
    return LBFGS(module.parameters(), lr=0.1, max_iter=3)


def by_hand(module: Any, batch: Any, batch_idx: int) -> None:
    """Two optimizers, gradients of three batches, across the end of an epoch."""
    module.manual_backward(module.loss(batch) / 3)
    if (module.trainer.fit_loop.clocks.micro_batches - 1) % 4 == 3:
        for optimizer in module.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def without_manual_backward(module: Any, batch: Any, batch_idx: int) -> None:
    module.loss(batch).backward()
    if batch_idx % 3 == 2:
        for optimizer in module.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def in_one_window(module: Any, batch: Any, batch_idx: int) -> None:
    optimizers = module.optimizers()
    with module.accumulate(optimizers, 3) as window:
        module.manual_backward(module.loss(batch))
    if window.closes:
        for optimizer in optimizers:
            optimizer.step()


def in_windows_of_their_own(module: Any, batch: Any, batch_idx: int) -> None:
    for size, optimizer in zip((2, 3), module.optimizers(), strict=True):
        with module.toggled_optimizer(optimizer), module.accumulate(optimizer, size) as window:
            module.manual_backward(module.loss(batch))
        if window.closes:
            optimizer.step()


def toggled_over_batches(module: Any, batch: Any, batch_idx: int) -> None:
    first, second = module.optimizers()
    if batch_idx % 3 == 0:
        module.toggle_optimizer(first)
    module.manual_backward(module.loss(batch))
    first.step()
    if batch_idx % 3 == 2:
        module.untoggle_optimizer(first)
        second.step()
    module.zero_grad()


def half(interval: int = 2) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=interval)
    return MixedPrecision("16-mixed", "cpu", scaler)


def frequencies(module: Any) -> Any:
    first, second = SGD(module.backbone.parameters(), lr=0.1), SGD(module.head.parameters(), lr=0.05)
    return [{"optimizer": first, "frequency": 3}, {"optimizer": second, "frequency": 2}]


def never_clears(module: Any, epoch: int, batch_idx: int, optimizer: Any) -> None:
    if batch_idx % 2:
        optimizer.zero_grad()


THREE = {"accumulate_grad_batches": 3}
#: name -> mode and what makes the Trainer's arguments
WINDOWS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "weights": ("one", lambda: {**THREE, "module": trained_by("one", training_step=weighted)}),
    "weights in tensors": ("one", lambda: {**THREE, "module": trained_by("one", training_step=weighted_by_tensor)}),
    "no loss": ("one", lambda: {**THREE, "module": trained_by("one", training_step=sometimes_skipped)}),
    "alternating": ("alternating", lambda: THREE),
    "joint": ("joint", lambda: THREE),
    "frequencies": (
        "alternating",
        lambda: {**THREE, "module": trained_by("alternating", configure_optimizers=frequencies)},
    ),
    "several evaluations": ("one", lambda: {**THREE, "module": trained_by("one", configure_optimizers=with_lbfgs)}),
    "float16": ("one", lambda: {**THREE, "plugins": half()}),
    "float16, joint": ("joint", lambda: {**THREE, "plugins": half(1)}),
    "float16, alternating": ("alternating", lambda: {**THREE, "plugins": half(1)}),
    "gradients of the user's": (
        "one",
        lambda: {"module": trained_by("one", optimizer_zero_grad=never_clears)},
    ),
    "by hand": ("manual", lambda: {"module": trained_by("manual", training_step=by_hand)}),
    "by hand in float16": (
        "manual",
        lambda: {"module": trained_by("manual", training_step=by_hand), "plugins": half(1)},
    ),
    "by torch": ("manual", lambda: {"module": trained_by("manual", training_step=without_manual_backward)}),
    "manual": ("manual", lambda: {"module": trained_by("manual", training_step=in_one_window)}),
    "manual in float16": (
        "manual",
        lambda: {"module": trained_by("manual", training_step=in_one_window), "plugins": half(1)},
    ),
    "manual, two windows": ("manual", lambda: {"module": trained_by("manual", training_step=in_windows_of_their_own)}),
    "toggled": ("manual", lambda: {"module": trained_by("manual", training_step=toggled_over_batches)}),
}


@pytest.mark.filterwarnings("ignore:.*training-step-none", "ignore:.*accumulation-frequency")
@pytest.mark.parametrize("place", [(1, 0), (1, 1), (0, 4), (1, 5)])
@pytest.mark.parametrize("setting", WINDOWS)
def test_an_open_window_is_kept(setting: str, place: tuple[int, int], tmp_path: Path) -> None:
    """R150: its gradients and weights, the loss scale that they carry, the batches of closures, and toggles."""
    name, build = WINDOWS[setting]
    resumed(SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", *place), name, build)


@pytest.mark.parametrize("setting", ["by hand", "by torch"])
def test_gradients_of_the_users_go_on_in_the_next_epoch(setting: str, tmp_path: Path) -> None:
    name, build = WINDOWS[setting]
    resumed(SaveAt(tmp_path / "a.ckpt", "on_train_epoch_end", 0, 5), name, build)


# -- validations ------------------------------------------------------------------------------------------------------


class Seen(Metric):
    """A metric object without torchmetrics' state in the file."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), "sum")
        self.add_state("values", [], "cat")

    def update(self, value: torch.Tensor) -> None:
        self.total += value.detach().mean()
        self.values.append(value.detach().reshape(-1))

    def compute(self) -> torch.Tensor:
        return self.total + torch.cat(self.values).median()


def row_of_each_step(module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
    loss = module.loss(batch) + torch.rand(())
    module.log("val", loss, on_step=True, on_epoch=True, batch_size=2)
    module.log("val_max", loss, reduce_fx="max", batch_size=2)
    return loss


def with_metric(module: Any, batch: Any, batch_idx: int) -> None:
    module.seen.update(module.loss(batch))
    module.log("val_seen", module.seen)
    module.listed[0].update(module.loss(batch))
    module.log("val_listed", module.listed[0])
    module.ever.update(module.loss(batch))


def trained_with_metric(module: Any, batch: Any, batch_idx: int) -> Any:
    loss = module.loss(batch)
    module.log("train_seen", module.train_seen(loss), on_step=True)
    module.ever.update(loss)
    module.log("train_ever", module.ever.compute(), on_step=True)
    module.listed[1](loss)
    module.log("train_listed", module.listed[1], on_step=False, on_epoch=True)
    return loss


def logs_outputs(name: str, module: Any, outputs: Any) -> None:
    flat = outputs if isinstance(outputs[0], torch.Tensor) else [out["loss"] for out in outputs]
    module.log(name, torch.stack(flat).std())


def metrics() -> Any:
    module = trained_by("one", validation_step=with_metric, training_step=trained_with_metric)
    module.seen, module.train_seen, module.ever = Seen(), Seen(), Seen()
    module.listed = [Seen(), Seen()]
    return module


def several_loaders() -> dict[str, Any]:
    return {
        "module": trained_by("one", validation_step=row_of_each_step),
        "validation": [shuffled(), DataLoader(Noisy(4), batch_size=2)],
    }


def outputs() -> dict[str, Any]:
    module = trained_by("one", validation_step=row_of_each_step)
    module.validation_epoch_end = functools.partial(logs_outputs, "val_outputs", module)
    module.training_epoch_end = functools.partial(logs_outputs, "train_outputs", module)
    return {"module": module, "validation": shuffled()}


def logged_at_the_end(module: Any) -> None:
    module.log("val_end", torch.rand(()))
    module.log("val_end_sum", torch.rand(()), reduce_fx="sum")


class Samples(IterableDataset[Any]):
    """Samples without an index, each with random numbers."""

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((3,), float(i)) + torch.rand(3), torch.ones(1)) for i in range(9))


def changes_as_it_goes(module: Any) -> None:
    """Freezes in the first epoch, and never again."""
    if module.current_epoch == 0:
        module.head.bias.requires_grad = False
        module.backbone[1].eval()


class ScheduleFree(SGD):
    """Other weights in evaluation than in training, as the schedule-free optimizers have."""

    def train(self) -> None:
        self.swap(True)

    def eval(self) -> None:
        self.swap(False)

    @torch.no_grad()
    def swap(self, train: bool) -> None:
        for group in self.param_groups:
            if group.get("train_mode", False) != train:
                group["train_mode"] = train
                for p in group["params"]:
                    p.mul_(1.1).sub_(0.003) if train else p.add_(0.003).div_(1.1)  # not undone to the last bit


def schedule_free(module: Any) -> Any:
    return ScheduleFree(module.parameters(), lr=0.05)


#: name -> mode and what makes the Trainer's arguments
SETTINGS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "rows": ("one", lambda: {"module": trained_by("one", validation_step=row_of_each_step)}),
    "shuffled": (
        "one",
        lambda: {"module": trained_by("one", validation_step=row_of_each_step), "validation": shuffled()},
    ),
    "limited": ("one", lambda: {**several_loaders(), "limit_val_batches": 2}),
    "several loaders": ("one", several_loaders),
    "own generator": ("one", lambda: {"validation": shuffled(generator=torch.Generator().manual_seed(2))}),
    "workers": ("one", lambda: {"validation": shuffled(num_workers=2)}),
    "without length": ("one", lambda: {"validation": DataLoader(Samples(), batch_size=2)}),
    "metrics": ("one", lambda: {"module": metrics()}),
    "outputs": ("one", outputs),
    "end of the epoch": ("one", lambda: {"module": trained_by("one", on_validation_epoch_end=logged_at_the_end)}),
    "switches": ("one", lambda: {"module": trained_by("one", on_train_epoch_start=changes_as_it_goes)}),
    "modes of an optimizer": ("one", lambda: {"module": trained_by("one", configure_optimizers=schedule_free)}),
    "reloaded": ("one", lambda: {"reload_dataloaders_every_n_epochs": 2}),
}
#: hook that saves, its epoch and batch, which of its calls there
IN_VALIDATION = [
    ("on_validation_start", 1, 2, 1),
    ("on_validation_batch_end", 1, 2, 1),
    ("on_validation_batch_end", 1, 2, 2),
    ("on_validation_batch_end", 1, 2, 4),
    ("on_validation_epoch_end", 1, 2, 1),
    ("on_validation_end", 1, 2, 1),
    ("on_train_batch_end", 1, 1, 1),
    ("on_train_epoch_end", 1, 5, 1),
]


@pytest.mark.parametrize("place", IN_VALIDATION)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_a_validation_has_so_far_is_kept(setting: str, place: tuple[str, int, int, int], tmp_path: Path) -> None:
    """V10: metric objects, outputs, values of several loaders, modes and rows: nothing is lost, nothing doubled."""
    name, build = SETTINGS[setting]
    saver = SaveAt(tmp_path / "a.ckpt", *place)
    options = {"val_check_interval": 3}
    if place[0] == "on_validation_batch_end" and place[3] == 4 and "validation" not in build():
        pytest.skip("a validation of two batches")
    resumed(saver, name, build, **options)
