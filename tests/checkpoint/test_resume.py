"""A run that is saved, ended and resumed by fresh objects is the run without a break, bit for bit."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, WeightedRandomSampler

import modes
from leyden import Callback, Trainer
from leyden.callbacks import (
    BackboneFinetuning,
    Checkpoint,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
)
from leyden.data.combined import CombinedLoader
from leyden.precision import MixedPrecision
from resumption import Outcome, SaveAt, differences, noisy, run, shuffled

#: name -> hook that saves, its epoch and batch, the Trainer's arguments
PLACES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "first batch": ("on_train_batch_end", 1, 0, {}),
    "epoch_end": ("on_train_epoch_end", 1, 5, {}),
    "first epoch": ("on_train_epoch_end", 0, 5, {}),
    "last epoch": ("on_train_epoch_end", 2, 5, {}),
    "batch": ("on_train_batch_end", 1, 2, {}),
    "limited": ("on_train_batch_end", 1, 2, {"limit_train_batches": 4}),
    "limit": ("on_train_batch_end", 1, 3, {"limit_train_batches": 4}),
    "last batch": ("on_train_batch_end", 1, 5, {}),
    "batch before validation": ("on_train_batch_end", 1, 2, {"val_check_interval": 3}),
    "validation": ("on_validation_end", 1, 2, {"val_check_interval": 3}),
    "validation at the end": ("on_validation_end", 1, 5, {}),
    "limit of steps": ("on_train_batch_end", 1, 2, {}),
}
#: Steps that are done at that place.
STEPS = {"one": 9, "accumulated": 3, "manual": 18, "alternating": 18, "joint": 9}


@functools.cache
def without_a_break(name: str, **options: Any) -> Outcome:
    return run(name, **options)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", modes.MODES)
def test_a_resumed_run_is_the_run_without_a_break(name: str, place: str, tmp_path: Path) -> None:
    """R148, R152, R154, V10: weights, optimizers, schedulers, clocks, random numbers and rows go on."""
    hook, epoch, batch, options = PLACES[place]
    if place == "limit of steps":
        options = {"max_steps": STEPS[name]}
    whole = without_a_break(name, **options)
    first = run(name, SaveAt(tmp_path / "a.ckpt", hook, epoch, batch), **options)
    assert differences(whole.state, first.state) == []  # saving changes nothing
    second = run(name, seed=99, ckpt_path=tmp_path / "a.ckpt", **options)
    assert differences(whole.state, second.state) == []
    assert second.rows
    assert differences(whole.rows[-len(second.rows) :], second.rows) == []


def resumed(path: Path, name: str = "one", place: str = "batch", *, build: Any = dict, **options: Any) -> None:
    """Assert that a run goes on from a place as if there had been no break; ``build`` makes fresh options each time."""
    hook, epoch, batch, more = PLACES[place]
    options = {**more, **options}

    def again(*savers: Any, **different: Any) -> Outcome:
        fresh = build()
        return run(name, *fresh.pop("callbacks", ()), *savers, **{**options, **fresh, **different})

    whole = again(SaveAt(path, hook, epoch, batch))
    second = again(seed=99, ckpt_path=path)
    assert differences(whole.state, second.state) == []
    assert second.rows
    assert differences(whole.rows[-len(second.rows) :], second.rows) == []


class Lazy:
    """Batches without a length."""

    def __init__(self) -> None:
        self.batches = modes.DATA

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            torch.rand(1)
            yield batch


class Stream(IterableDataset[Any]):
    """Samples without an index."""

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((3,), float(i)), torch.ones(1)) for i in range(12))


class ByEpoch(Sampler[int]):
    """Another order in every epoch, by its number."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([(7 * self.epoch + 5 * index) % 12 for index in range(12)])

    def __len__(self) -> int:
        return 12


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: modes.DATA,
    "without length": Lazy,
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "own generator": lambda: shuffled(generator=generator()),
    "sampler's generator": lambda: shuffled(shuffle=False, sampler=RandomSampler(range(12), generator=generator())),
    "with replacement": lambda: shuffled(shuffle=False, sampler=RandomSampler(range(12), replacement=True)),
    "weighted": lambda: shuffled(shuffle=False, sampler=WeightedRandomSampler([1.0, 2.0] * 6, 12)),
    "by epoch": lambda: shuffled(shuffle=False, sampler=ByEpoch()),
    "ready batches": lambda: DataLoader(modes.DATA, batch_size=None, shuffle=True),
    "uneven": lambda: shuffled(batch_size=5, drop_last=False),
    "combined": lambda: CombinedLoader([shuffled(), shuffled(batch_size=4)], "max_size_cycle"),
}


@pytest.mark.parametrize("place", ["batch", "epoch_end", "last batch"])
@pytest.mark.parametrize("loader", LOADERS)
def test_data_goes_on_with_the_next_batch(loader: str, place: str, tmp_path: Path) -> None:
    """V10: whatever the loader, no sample is used twice or left out."""
    if loader == "uneven":
        place = {"batch": "first batch", "last batch": "batch"}.get(place, place)
    resumed(tmp_path / "a.ckpt", place=place, build=lambda: {"loader": LOADERS[loader]()})


def plateau(interval: str) -> dict[str, Any]:
    module = modes.build("one")

    def configure_optimizers() -> Any:
        optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        config = {"scheduler": scheduler, "monitor": "val_loss", "interval": interval, "frequency": 1, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": config}

    module.configure_optimizers = configure_optimizers
    return {"module": module}


def rows_of_validations() -> dict[str, Any]:
    module = modes.build("one")
    module.validation_step = lambda batch, batch_idx: module.log("val", module.loss(batch), on_step=True, batch_size=2)
    return {"module": module}


def in_turns() -> dict[str, Any]:
    module = modes.build("alternating")

    def configure_optimizers() -> Any:
        first, second = SGD(module.backbone.parameters(), lr=0.1), SGD(module.head.parameters(), lr=0.05)
        return [{"optimizer": first, "frequency": 3}, {"optimizer": second, "frequency": 1}]

    module.configure_optimizers = configure_optimizers
    return {"module": module}


def half(interval: int = 2) -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=interval)
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}


#: name -> mode and what makes the Trainer's arguments
SETTINGS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "plateau by epoch": ("one", lambda: plateau("epoch")),
    "plateau by step": ("one", lambda: plateau("step")),
    "frequencies": ("alternating", in_turns),
    "float16": ("one", half),
    "float16, every other update skipped": ("one", lambda: {**half(1), **plateau("step")}),
    "float16, manual": ("manual", half),
    "early stopping": ("one", lambda: {"callbacks": [EarlyStopping("val_loss", patience=5, min_delta=10.0)]}),
    "average": ("one", lambda: {"callbacks": [EMAWeightAveraging(decay=0.5)]}),
    "finetuning": ("one", lambda: {"callbacks": [BackboneFinetuning(unfreeze_backbone_at_epoch=1)]}),
    "finetuned before": ("one", lambda: {"callbacks": [BackboneFinetuning(unfreeze_backbone_at_epoch=0)]}),
    "growing windows": ("one", lambda: {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})]}),
    "rows of validations": ("one", rows_of_validations),
    "rare rows": ("one", lambda: {"log_every_n_steps": 4}),
    "rows on a clock": ("one", lambda: {"log_every_n_steps": "6 samples"}),
    "validation on a clock": ("one", lambda: {"val_check_interval": "6 samples"}),
    "validation by batches": ("one", lambda: {"val_check_interval": 4, "check_val_every_n_epoch": None}),
    "workers": ("one", lambda: {"loader": DataLoader(modes.DATA, None, shuffle=True, num_workers=2)}),
    "reloaded": ("one", lambda: {"reload_dataloaders_every_n_epochs": 2}),
    "norms": ("joint", lambda: {"track_grad_norm": 2}),
}


@pytest.mark.filterwarnings("ignore:.*scheduler-monitor")  # before the first validation
@pytest.mark.parametrize("place", ["batch", "validation", "epoch_end"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_part_goes_on(setting: str, place: str, tmp_path: Path) -> None:
    """R149, R150: schedulers that watch a value, turns, loss scale, callbacks, windows, clocks of other units."""
    name, build = SETTINGS[setting]
    options = PLACES[place][3]
    if "val_check_interval" in build():
        options = {}
        place = {"validation": "batch"}.get(place, place)

    def fresh() -> dict[str, Any]:
        return {**options, **build()}

    resumed(tmp_path / "a.ckpt", name, place, build=fresh)


def content(path: Path) -> dict[str, Any]:
    """A whole file, without the time that was taken and the callbacks that have saved."""
    checkpoint: dict[str, Any] = torch.load(path)
    checkpoint["leyden"].get("plan", {}).pop("callbacks", None)
    del checkpoint["leyden"]["clocks"]["seconds_before"]
    return checkpoint


def test_loaders_are_reloaded_when_they_would_have_been(tmp_path: Path) -> None:
    """The interval counts from when the run before has loaded, not from the resume."""
    loaded: list[int] = []

    def build() -> Any:
        module = modes.build("one")

        def train_dataloader() -> Any:
            loaded.append(module.current_epoch)
            return shuffled()

        module.train_dataloader = train_dataloader
        return noisy(module)

    def fit(*savers: Any, ckpt_path: Path | None = None) -> list[int]:
        loaded.clear()
        options: dict[str, Any] = {"max_epochs": 5, "reload_dataloaders_every_n_epochs": 2}
        trainer = Trainer(accelerator="cpu", enable_progress_bar=False, callbacks=[*savers], **options)
        trainer.fit(build(), ckpt_path=ckpt_path)
        return list(loaded)

    assert fit(SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2)) == [0, 2, 4]
    assert fit(ckpt_path=tmp_path / "a.ckpt") == [1, 2, 4]


def test_a_resumed_run_can_be_resumed(tmp_path: Path) -> None:
    """The second break may be in the epoch of the first, in another hook, and at its very end."""
    places = [
        ("on_train_batch_end", 1, 1),
        ("on_train_batch_end", 1, 3),
        ("on_validation_end", 1, 5),
        ("on_train_epoch_end", 2, 5),
    ]
    whole = [SaveAt(tmp_path / f"whole {i}.ckpt", *place) for i, place in enumerate(places)]
    parts = [SaveAt(tmp_path / f"part {i}.ckpt", *place) for i, place in enumerate(places)]
    unbroken = run("one", *whole)
    before = None
    for seed, part in enumerate(parts):
        run("one", part, seed=seed + 1, ckpt_path=before)
        before = part.path
    assert differences(unbroken.state, run("one", seed=9, ckpt_path=before).state) == []
    for first, second in zip(whole, parts, strict=True):  # and the files are those of a run without a break
        assert differences(content(first.path), content(second.path)) == []


def test_a_run_that_has_not_gone_on_yet_is_where_its_file_was(tmp_path: Path) -> None:
    first = SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2)
    unbroken = run("one", first)
    second = SaveAt(tmp_path / "b.ckpt", "on_train_start", 1, 2)
    run("one", second, seed=2, ckpt_path=first.path)
    assert second.calls == 1
    assert differences(content(first.path), content(second.path)) == []
    assert differences(unbroken.state, run("one", seed=3, ckpt_path=second.path).state) == []


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"])
def test_a_save_in_the_sanity_check_is_one_before_the_first_step(hook: str, tmp_path: Path) -> None:
    """The numbers that the check has drawn and logged are not in it: the run goes on as if it had not been."""

    def build() -> Any:
        module: Any = modes.build("one")
        module.validation_step = lambda batch, batch_idx: module.log("checked", torch.rand(()))
        return module

    class Save(Checkpoint):
        def save(self, trainer: Trainer, *args: Any) -> None:
            if trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    saver = Save()
    setattr(saver, hook, saver.save)
    options: dict[str, Any] = {"max_epochs": 2, "check_val_every_n_epoch": 2}
    unbroken = run("one", module=build(), **options)
    assert differences(unbroken.state, run("one", saver, module=build(), **options).state) == []
    assert content(tmp_path / "a.ckpt")["leyden"]["views"]["callback"] == {}
    second = run("one", module=build(), seed=99, ckpt_path=tmp_path / "a.ckpt", **options)
    assert differences(unbroken.state, second.state) == []
    assert differences(unbroken.rows, second.rows) == []


@pytest.mark.parametrize("owner", ["module", "callback", "data"])
def test_what_is_drawn_for_a_save_changes_nothing(owner: str, tmp_path: Path) -> None:
    """By hooks that write into the checkpoint and by states: the run, and the one from its file, are as without."""

    def draw(*args: Any) -> dict[str, Any]:
        return {"drawn": torch.rand(3) + random.random()}

    class Drawing(Callback):
        on_save_checkpoint = state_dict = draw  # type: ignore[assignment]

    def build() -> tuple[Any, Any, list[Callback]]:
        module: Any = modes.build("one")
        loader: Any = shuffled()
        if owner == "module":
            module.on_save_checkpoint = lambda checkpoint: checkpoint.update(draw())
        if owner == "data":
            loader.dataset.state_dict, loader.dataset.load_state_dict = draw, lambda state: None
        return module, loader, [Drawing()] if owner == "callback" else []

    def outcome(*savers: Callback, **more: Any) -> Any:
        module, loader, drawing = build()
        return run("one", *drawing, *savers, module=module, loader=loader, **more)

    unbroken = outcome()
    saver = SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2)
    assert differences(unbroken.state, outcome(saver).state) == []
    assert differences(unbroken.state, outcome(seed=99, ckpt_path=saver.path).state) == []


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_a_file_holds_what_the_modules_own_hook_has_done(hook: str, tmp_path: Path) -> None:
    """Callbacks that save come after the module, so that a target network of its own, say, is not lost."""

    def build() -> dict[str, Any]:
        module = modes.build("one")

        def average(*args: Any) -> None:
            with torch.no_grad():
                module.head.weight.mul_(0.99)

        setattr(module, hook, average)
        return {"module": module}

    place = {"on_train_batch_end": "batch", "on_validation_end": "validation"}.get(hook, "epoch_end")
    resumed(tmp_path / "a.ckpt", place=place, build=build)
