"""``ModelCheckpoint``: R149, R158, R161, R162."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
import yaml
from torch.utils.data import DataLoader

import leyden
from leyden import Callback
from leyden.callbacks import ModelCheckpoint
from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.loggers import CSVLogger
from modes import MODES, SHARED, build, run

NAN = float("nan")
Theirs = pytorch_lightning.callbacks.ModelCheckpoint


@contextmanager
def recorded(framework: Any, folder: Path) -> Iterator[list[str]]:
    """The files that are written meanwhile, in order, by their paths in the folder."""
    written: list[str] = []
    original = framework.Trainer.save_checkpoint

    def save_checkpoint(trainer: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        written.append(os.path.relpath(filepath, folder))
        original(trainer, filepath, *args, **kwargs)

    framework.Trainer.save_checkpoint = save_checkpoint
    try:
        yield written
    finally:
        framework.Trainer.save_checkpoint = original


def files_in(folder: Path) -> list[str]:
    """All files, and where links point to."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    links = {path: f" -> {os.readlink(path)}" for path in found if path.is_symlink()}
    return sorted(f"{path.relative_to(folder)}{links.get(path, '')}" for path in found)


def save(
    folder: Path, framework: Any = leyden, *, kind: str = "one", trainer: Any = None, module: Any = None, **given: Any
) -> tuple[Any, list[str], list[str]]:
    """Fit with a ModelCheckpoint; returns it, what was written, and what is left."""
    folder = Path(os.path.realpath(folder)) / framework.__name__
    callback = (ModelCheckpoint if framework is leyden else Theirs)(**{"dirpath": folder, **given})
    arguments = {"max_epochs": 3, "enable_checkpointing": True, **(trainer or {})}
    with recorded(framework, folder) as written:
        run(kind, [callback], framework, module=module, **arguments)
    return callback, written, files_in(folder)


def kept(callback: Any) -> dict[str, Any]:
    """What a callback says about the files, without the folder; means of epochs differ in their last digits."""
    state = {key: value for key, value in callback.state_dict().items() if key != "dirpath"}
    for name in ("best_model_score", "current_score", "kth_value"):
        state[name] = None if state[name] is None else f"{float(state[name]):.5g}"
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = os.path.basename(state[name])
    best = {os.path.basename(path): f"{float(score):.5g}" for path, score in state["best_k_models"].items()}
    return {**state, "best_k_models": best}


BY_METRIC = "{epoch}-{val_loss:.2f}"
HALF: dict[str, Any] = {"val_check_interval": 0.5}
SECOND: dict[str, Any] = {"check_val_every_n_epoch": 2}

#: name -> arguments of the callback, arguments of the Trainer
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "without validation": ({}, {"limit_val_batches": 0}),
    "without sanity check": ({"monitor": "val_loss"}, {"num_sanity_val_steps": 0}),
    "best": ({"monitor": "val_loss"}, {}),
    "best two": ({"monitor": "val_loss", "save_top_k": 2}, {}),
    "greatest two": ({"monitor": "val_loss", "save_top_k": 2, "mode": "max"}, {}),
    "all, ranked": ({"monitor": "val_loss", "save_top_k": -1}, {}),
    "all": ({"save_top_k": -1}, {}),
    "none": ({"save_top_k": 0}, {}),
    "none but last": ({"save_top_k": 0, "save_last": True}, {}),
    "a training value": ({"monitor": "train_loss", "save_top_k": 2, "save_last": True}, {}),
    "last, at the end": ({"monitor": "val_loss", "mode": "max", "save_last": True}, {}),
    "link": ({"monitor": "val_loss", "save_last": "link", "filename": BY_METRIC}, {}),
    "link, every step": ({"every_n_train_steps": 4, "save_last": "link", "save_top_k": -1}, {}),
    "link, not always best": ({"monitor": "val_loss", "mode": "max", "save_last": "link", "save_top_k": 2}, {}),
    "second epochs": ({"every_n_epochs": 2, "save_top_k": -1, "save_last": True}, {}),
    "no epochs": ({"every_n_epochs": 0, "save_last": True}, {}),
    "steps": ({"every_n_train_steps": 4, "save_top_k": -1}, {}),
    "steps and last": ({"every_n_train_steps": 4, "save_last": True}, {}),
    "template": ({"filename": "x{epoch:02d}-{step}-{val_loss:.3f}", "save_top_k": -1}, {}),
    "template without names": (
        {"filename": "e{epoch}_{val_loss:.1f}", "auto_insert_metric_name": False, "save_top_k": -1},
        {},
    ),
    "template with a folder": ({"filename": "{epoch}/{step}", "save_top_k": -1}, {}),
    "versions": ({"monitor": "val_loss", "filename": "best", "save_top_k": 3}, {}),
    "versions, one kept": ({"monitor": "val_loss", "filename": "best"}, {}),
    "one name, all": ({"filename": "model", "save_top_k": -1}, {}),
    "no versions": (
        {"monitor": "val_loss", "filename": "best", "save_top_k": 2, "enable_version_counter": False},
        {},
    ),
    "validations within epochs": ({"monitor": "val_loss", "save_top_k": 2}, HALF),
    "validations within epochs, all": ({"save_top_k": -1, "filename": "{epoch}", "save_last": True}, HALF),
    "ends of epochs, though": ({"save_top_k": -1, "save_on_train_epoch_end": True}, HALF),
    "after validations": ({"monitor": "val_loss", "save_top_k": -1, "save_on_train_epoch_end": False}, {}),
    "steps, after validations": (
        {"monitor": "val_loss", "every_n_train_steps": 12, "save_on_train_epoch_end": False},
        {"max_epochs": 6},
    ),
    "every second validation": ({"monitor": "val_loss", "save_last": True}, SECOND),
    "every second validation, all epochs": (
        {"monitor": "val_loss", "save_top_k": -1, "save_on_train_epoch_end": True},
        {**SECOND, "max_epochs": 4},
    ),
    "across epochs": (
        {"monitor": "val_loss", "save_top_k": 2, "save_last": True},
        {"check_val_every_n_epoch": None, "val_check_interval": 4},
    ),
    "debugging": ({}, {"fast_dev_run": True}),
    "max_steps": ({"save_top_k": -1, "save_last": True}, {"max_steps": 8}),
    "weights only": ({"save_weights_only": True}, {}),
    "no time": ({"train_time_interval": timedelta(0), "save_top_k": -1}, {}),
}
#: The rest of the table asks nothing of the mode.
ALL_MODES = (
    *("default", "best two", "link", "second epochs", "steps", "steps and last", "template", "versions"),
    *("validations within epochs", "across epochs", "max_steps"),
)


@pytest.mark.filterwarnings("ignore:.*checkpoint-filename")
@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name in RUNS for mode in (SHARED if name in ALL_MODES else ["one"])]
)
def test_saves_what_lightning_saves(name: str, mode: str, tmp_path: Path) -> None:
    """R149, R158: names, order of writing, what is left, what is best, the state and its key."""
    arguments, trainer = RUNS[name]
    theirs, expected, their_files = save(tmp_path, pytorch_lightning, kind=mode, trainer=trainer, **arguments)
    ours, written, our_files = save(tmp_path, kind=mode, trainer=trainer, **arguments)
    assert written == expected
    assert our_files == their_files
    assert kept(ours) == kept(theirs)
    assert ours.state_key == theirs.state_key


STEPS_OF_A_BATCH = {"one": 1, "accumulated": 1 / 3, "manual": 2, "alternating": 2, "joint": 1}


@pytest.mark.parametrize("mode", MODES)
def test_epochs_in_all_modes(mode: str, tmp_path: Path) -> None:
    """R158: the step of a name is ``global_step``, over all optimizers."""
    _, written, _ = save(tmp_path, kind=mode)
    assert written == [f"epoch={i}-step={int(6 * (i + 1) * STEPS_OF_A_BATCH[mode])}.ckpt" for i in range(3)]


def test_a_multiple_that_is_jumped_over(tmp_path: Path) -> None:
    """Two optimizers step in a batch: 4 is the first step past 3. Lightning waits for one that hits, 6 and 12."""
    arguments: dict[str, Any] = {"every_n_train_steps": 3, "save_top_k": -1}
    for mode in ("alternating", "manual"):
        _, written, _ = save(tmp_path / mode, kind=mode, trainer={"max_epochs": 1}, **arguments)
        assert written == [f"epoch=0-step={step}.ckpt" for step in (4, 6, 10, 12)]
    _, written, _ = save(tmp_path, pytorch_lightning, kind="manual", trainer={"max_epochs": 1}, **arguments)
    assert written == [f"epoch=0-step={step}.ckpt" for step in (6, 12)]


@pytest.mark.parametrize("every", ["2 batches", "1 updates", "4 samples"])
def test_not_inside_of_a_window(every: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of three micro-batches close after the third and the sixth."""
    saved_after: list[int] = []
    monkeypatch.setattr(
        leyden.Trainer, "save_checkpoint", lambda trainer, *args: saved_after.append(trainer.clocks.micro_batches)
    )
    run("accumulated", [ModelCheckpoint(tmp_path, every=every, save_top_k=-1)], enable_checkpointing=True, max_epochs=2)
    assert saved_after == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("4 updates", [4, 8, 12]),
        ("5 batches", [5, 10, 15]),
        ("7 samples", [4, 7, 11, 14, 18]),  # batches of two
        ("4 steps", [4, 8, 12, 16]),
        ("2 epochs", [12]),
    ],
)
def test_every(every: str, expected: list[int], tmp_path: Path) -> None:
    mode = "alternating" if every == "4 updates" else "one"
    epochs = 2 if mode == "alternating" else 3
    _, written, _ = save(tmp_path, kind=mode, trainer={"max_epochs": epochs}, every=every, save_top_k=-1)
    steps = [int(name.partition("step=")[2].removesuffix(".ckpt")) for name in written]
    assert steps == [step * 2 for step in expected] if mode == "alternating" else expected


@pytest.mark.parametrize(
    ("every", "same"),
    [
        ("2 epochs", {"every_n_epochs": 2}),
        ("500 steps", {"every_n_train_steps": 500}),
        ("30 min", {"train_time_interval": timedelta(minutes=30)}),
        (timedelta(hours=1), {"train_time_interval": timedelta(hours=1)}),
    ],
)
def test_every_as_another_spelling(every: Any, same: dict[str, Any]) -> None:
    """R149: the key is Lightning's where Lightning has the clock."""
    assert ModelCheckpoint(every=every).state_key == ModelCheckpoint(**same).state_key == Theirs(**same).state_key
    assert "'every': '500 updates'" in ModelCheckpoint(every="500 updates").state_key


class Clock(Callback):
    """Ten seconds go by with every batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.now += 10


def test_time_counts_from_the_end_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a file that takes as long as the interval to write would be followed by the next one."""
    clock, saved_at = Clock(monkeypatch), []

    def save_checkpoint(trainer: Any, *args: Any) -> None:
        saved_at.append(trainer.global_step)
        clock.now += 100

    monkeypatch.setattr(leyden.Trainer, "save_checkpoint", save_checkpoint)
    run("one", [ModelCheckpoint(tmp_path, every="25 s"), clock], enable_checkpointing=True, max_epochs=2)
    assert saved_at == [3, 6, 9, 12]


@pytest.mark.parametrize(("mode", "steps"), [("one", (3, 6)), ("accumulated", (1, 2)), ("alternating", (6, 12))])
def test_time(mode: str, steps: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = ModelCheckpoint(tmp_path, train_time_interval=timedelta(seconds=25), save_top_k=-1)
    run(mode, [callback, Clock(monkeypatch)], max_epochs=1, enable_checkpointing=True)
    assert files_in(tmp_path) == sorted(f"epoch=0-step={step}.ckpt" for step in steps)


def test_optimizers_that_nobody_counts(tmp_path: Path) -> None:
    """Raw optimizers leave ``global_step`` at 0; Lightning never saves then."""

    class Raw:
        def training_step(self: Any, batch: Any, batch_idx: int) -> None:
            for handle in self.optimizers():
                handle.optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                handle.optimizer.step()

    def module(framework: Any) -> Any:
        built = build("manual", framework)
        built.__class__ = type("RawSteps", (Raw, type(built)), {})
        return built

    assert save(tmp_path, pytorch_lightning, module=module(pytorch_lightning))[1] == []
    given: dict[str, Any] = {"save_top_k": -1, "trainer": {"max_epochs": 2}}
    assert save(tmp_path, module=module(leyden), **given)[1] == ["epoch=0-step=0.ckpt", "epoch=1-step=0.ckpt"]


class Validations(Callback):
    """The values of all validations by step."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.values[trainer.global_step] = float(trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trainer", [{}, HALF], ids=["epochs", "halves"])
def test_a_checkpoint_is_judged_by_its_own_validation(mode: str, trainer: dict[str, Any], tmp_path: Path) -> None:
    """Lightning takes the value of the validation before, so that "best" is another one's."""
    validations = Validations()
    callback = ModelCheckpoint(tmp_path, monitor="val_loss", every="3 batches", save_top_k=-1)
    run(mode, [callback, validations], enable_checkpointing=True, max_epochs=3, **trainer)
    scores = {int(path.partition("step=")[2].removesuffix(".ckpt")): s for path, s in callback.best_k_models.items()}
    own = {step: score for step, score in scores.items() if step in validations.values}
    assert len(own) == (6 if trainer else 3)
    assert own == pytest.approx({step: validations.values[step] for step in own})
    assert (min(scores) in own) is True  # what is due before the first validation waits for it


def test_nothing_to_validate_on(tmp_path: Path) -> None:
    """Lightning writes nothing at all in these two."""
    for name, given, trainer in (
        ("interval", {}, SECOND),
        ("asked for", {"save_on_train_epoch_end": False}, {}),
    ):
        trainer = {**trainer, "limit_val_batches": 0}
        assert save(tmp_path / name, trainer=trainer, **given)[2] == ["epoch=2-step=18.ckpt"]
        assert save(tmp_path / name, pytorch_lightning, trainer=trainer, **given)[2] == []


class Told:
    """Logs given values, one for every validation, and one at the end of every epoch."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val", self.told[self.validations], batch_size=2)

    def on_validation_epoch_end(self: Any) -> None:
        self.validations += not self.trainer.sanity_checking

    def on_train_epoch_end(self: Any) -> None:
        self.log("late", self.told[self.trainer.current_epoch])


def telling(told: list[float], framework: Any = leyden) -> Any:
    module = build("one", framework)
    module.__class__ = type("Telling", (Told, type(module)), {})
    module.told, module.validations = told, 0
    return module


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ([NAN, 3.0, NAN, 2.0], {}),
        ([NAN, 3.0, NAN, 2.0], {"mode": "max", "save_top_k": 2}),
        ([3.0, NAN, NAN, 2.0], {"save_top_k": 3}),
        ([3.0, 3.0, 3.0, 3.0], {"save_top_k": 2}),
        ([1.0, 2.0, 4.0, 3.0], {"save_top_k": 2, "mode": "max", "save_last": "link"}),
        ([1.0, 2.0, 4.0, 3.0], {"monitor": "late", "mode": "max"}),
    ],
)
def test_given_values(told: list[float], given: dict[str, Any], tmp_path: Path) -> None:
    """R162: the module has logged at the end of the epoch before the callback looks."""
    given = {"monitor": "val", "filename": "{step}", "trainer": {"max_epochs": 4}, **given}
    theirs, expected, their_files = save(tmp_path, pytorch_lightning, module=telling(told, pytorch_lightning), **given)
    ours, written, our_files = save(tmp_path, module=telling(told), **given)
    assert (written, our_files, kept(ours)) == (expected, their_files, kept(theirs))


@pytest.mark.parametrize(
    ("given", "trainer"),
    [
        ({"monitor": "train_los"}, {}),
        ({"monitor": "val_los"}, HALF),
        ({"monitor": "val_los", "every_n_train_steps": 2}, {}),
        ({"monitor": "train_los", "every_n_train_steps": 2}, {"limit_val_batches": 0}),
        ({"monitor": "train_los"}, {"limit_val_batches": 0}),
    ],
)
def test_a_misspelt_monitor(given: dict[str, Any], trainer: dict[str, Any], tmp_path: Path) -> None:
    """At the first check; Lightning goes on without a file where nothing is validated."""
    module = build("one")
    with pytest.raises(MisconfigurationException, match=r"_los'.* Did you mean '\w+_loss'\?") as caught:
        save(tmp_path, module=module, trainer=trainer, **given)
    assert caught.value.code == "checkpoint-monitor"
    assert module.trainer.current_epoch == 0
    assert module.trainer.global_step == (3 if trainer is HALF else 6)


def test_a_monitor_that_never_came(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"'val_loss'.*\n*the fit ended before a validation .*checkpoint-monitor"):
        callback, written, _ = save(tmp_path, monitor="val_loss", every_n_train_steps=2, trainer={"max_steps": 5})
    assert written == []


@pytest.mark.parametrize("monitor", ["accuracy", "val_loss"])  # "train_loss" is logged, and no misspelling of it
def test_a_monitor_of_validations_in_a_fit_without_validation(monitor: str, tmp_path: Path) -> None:
    """The fit goes on, as Lightning's does, and says once that it saves nothing but "last"."""
    trainer = {"limit_val_batches": 0, "max_epochs": 2}
    with pytest.warns(UserWarning, match=f"'{monitor}'.*checkpoint-monitor") as caught:
        _, written, _ = save(tmp_path, monitor=monitor, save_last=True, trainer=trainer)
    assert len(caught) == 1 and written == ["last.ckpt"] * 2  # after each epoch


def test_a_sanity_check_is_no_validation(tmp_path: Path) -> None:
    """What has waited in vain does not take the value of the next fit's sanity check."""
    callback = ModelCheckpoint(tmp_path, monitor="val_loss", every_n_train_steps=2, save_top_k=-1)
    with pytest.warns(UserWarning, match="checkpoint-monitor"):
        trainer, module, _ = run("one", [callback], enable_checkpointing=True, max_steps=5)
    trainer.fit_loop.max_steps = 11
    batches = [(torch.ones(2, 3), torch.ones(2, 1))] * 6
    trainer.fit(module, batches, batches[:2])
    assert files_in(tmp_path) == ["epoch=1-step=11.ckpt"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"mode": "auto"}, "checkpoint-mode"),
    "monitor": ({"monitor": 3}, "checkpoint-monitor"),
    "save_top_k": ({"save_top_k": -2}, "checkpoint-save-top-k"),
    "save_top_k as a word": ({"save_top_k": "all"}, "checkpoint-save-top-k"),
    "best of what": ({"save_top_k": 3}, "checkpoint-save-top-k"),
    "save_last": ({"save_last": "links"}, "checkpoint-save-last"),
    "negative steps": ({"every_n_train_steps": -1}, "checkpoint-every"),
    "part of an epoch": ({"every_n_epochs": 0.5}, "checkpoint-every"),
    "no time": ({"train_time_interval": 30}, "duration"),
    "no clock": ({"every": "5 parsecs"}, "duration"),
    "nothing of a clock": ({"every": "0 epochs"}, "duration"),
    "steps and epochs": ({"every_n_train_steps": 2, "every_n_epochs": 1}, "checkpoint-triggers"),
    "epochs and every": ({"every": "5 steps", "every_n_epochs": 1}, "checkpoint-triggers"),
    "time and steps": ({"train_time_interval": timedelta(0), "every_n_train_steps": 1}, "checkpoint-triggers"),
    "template": ({"filename": "{val_loss:.2fx}"}, "checkpoint-filename"),
    "a link in a bucket": ({"dirpath": "s3://bucket/run", "save_last": "link"}, "checkpoint-save-last"),
    "on_save_error": ({"on_save_error": "ignore"}, "checkpoint-on-save-error"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    arguments, code = BAD[name]
    with pytest.raises(MisconfigurationException) as caught:
        ModelCheckpoint(**arguments)
    assert caught.value.code == code


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = build("one")
    with pytest.raises(InvalidValueError, match=r"ModelCheckpoint cannot write to .*file/run") as caught:
        save(tmp_path, dirpath=tmp_path / "file" / "run", module=module)
    assert caught.value.code == "checkpoint-folder"
    assert module.trainer.clocks.micro_batches == 0


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the file and the cause; what was saved before is still there. See test_background as well."""

    class Full(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                (tmp_path / "epoch=1").touch()  # where a folder is to be made

    callback = ModelCheckpoint(tmp_path, filename="{epoch}/{step}", on_save_error="raise")
    with pytest.raises(leyden.errors.LeydenError, match=r"epoch=1/step=12.ckpt.*File.*exists") as caught:
        run("one", [Full(), callback], enable_checkpointing=True)
    assert caught.value.code == "checkpoint-write"
    assert files_in(tmp_path) == ["epoch=0/step=6.ckpt", "epoch=1"]


def test_the_old_file_goes_after_the_new_one_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill at any moment leaves a whole file, and a link that points to one."""
    removed: list[tuple[str, list[str]]] = []
    remove = os.remove

    def watched(path: Any) -> None:
        if str(path).endswith(".ckpt"):
            removed.append((os.path.basename(path), files_in(tmp_path)))
        remove(path)

    monkeypatch.setattr(os, "remove", watched)
    run("one", [ModelCheckpoint(tmp_path, filename="{epoch}", save_last="link")], enable_checkpointing=True)
    assert removed == [
        (f"epoch={i}.ckpt", [f"epoch={i}.ckpt", f"epoch={i + 1}.ckpt", f"last.ckpt -> epoch={i + 1}.ckpt"])
        for i in range(3)
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("given", [{}, {"monitor": "epoch", "mode": "max", "save_top_k": 2}, {"save_last": True}])
def test_the_old_file_goes_when_the_new_one_is_durable(
    given: dict[str, Any], asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has reached the disk since the last file took its name."""
    events: list[str] = []
    sync, replace, remove = os.fsync, os.replace, os.remove

    def note_sync(handle: int) -> None:
        sync(handle)
        events.extend(["durable"] if os.path.isdir(f"/dev/fd/{handle}") else [])

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda *paths: (replace(*paths), events.append("new")))
    monkeypatch.setattr(os, "remove", lambda path: (remove(path), str(path).endswith("t") and events.append("gone")))
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=asynchronous, **given)
    run("one", [callback], enable_checkpointing=True, max_epochs=4)
    assert events.count("gone") == 4 - given.get("save_top_k", 1)
    for index, event in enumerate(events):
        before = [name for name in events[:index] if name != "gone"]
        assert event != "gone" or before[-1] == "durable"


def test_removes_nothing_of_others(tmp_path: Path) -> None:
    """A run that goes on from another's state, in another folder, leaves its files alone; so it does in its own."""
    first = ModelCheckpoint(tmp_path / "first", filename="{epoch}")
    run("one", [first], enable_checkpointing=True, max_epochs=1)
    second = ModelCheckpoint(tmp_path / "second", filename="{epoch}")
    with pytest.warns(UserWarning, match="checkpoint-dirpath"):
        second.load_state_dict(first.state_dict())
    (tmp_path / "second").mkdir()
    for name in ("epoch=0.ckpt", "notes.txt"):
        (tmp_path / "second" / name).write_text("mine")
    with pytest.warns(UserWarning, match="checkpoint-folder-not-empty"):
        run("one", [second], enable_checkpointing=True, max_epochs=2)
    assert files_in(tmp_path / "first") == ["epoch=0.ckpt"]
    assert files_in(tmp_path / "second") == ["epoch=0.ckpt", "epoch=1.ckpt", "notes.txt"]
    assert (tmp_path / "second" / "epoch=0.ckpt").read_text() == "mine"


OTHERS = ("epoch=0.ckpt", "epoch=1.ckpt", "epoch=3.ckpt", "last.ckpt", "last-v1.ckpt", ".leyden-1.ckpt", "notes.txt")


@pytest.mark.filterwarnings("ignore:.*checkpoint-folder-not-empty")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "given",
    [{}, {"save_last": True}, {"save_last": "link"}, {"monitor": "train_loss", "save_top_k": 2, "save_last": "link"}],
)
def test_files_of_others_with_its_own_names(given: dict[str, Any], asynchronous: bool, tmp_path: Path) -> None:
    """They are neither deleted nor overwritten, by the fit nor by one that goes on from it."""
    for name in OTHERS:
        (tmp_path / name).write_text("mine")
    for epochs in (2, 5):
        callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=asynchronous, **given)
        trainer = leyden.Trainer(max_epochs=epochs, callbacks=[callback], enable_progress_bar=False)
        trainer.fit(build("one"), [(torch.ones(2, 3), torch.ones(2, 1))] * 6, ckpt_path="last" if epochs == 5 else None)
        assert trainer.current_epoch == epochs
        assert {name: (tmp_path / name).read_text(errors="replace") for name in OTHERS} == dict.fromkeys(OTHERS, "mine")
    kept = {*os.listdir(tmp_path)} - {*OTHERS}
    assert len(kept) == given.get("save_top_k", 1) + bool(given.get("save_last"))


def test_keeps_what_it_goes_on_from(tmp_path: Path) -> None:
    """R149, R161: the state comes back from the file; the file itself stays, by whatever name it was given."""
    first = ModelCheckpoint(tmp_path, save_last="link", filename="{epoch}")
    run("one", [first], enable_checkpointing=True, max_epochs=1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"][first.state_key]
    assert state == first.state_dict()

    second = ModelCheckpoint(tmp_path, save_last="link", filename="{epoch}")
    go_on(second, tmp_path / "last.ckpt", max_epochs=3)
    assert files_in(tmp_path) == ["epoch=0.ckpt", "epoch=2.ckpt", "last.ckpt -> epoch=2.ckpt"]


def go_on(callback: ModelCheckpoint, path: Path, max_epochs: int) -> None:
    trainer = leyden.Trainer(max_epochs=max_epochs, callbacks=[callback], enable_progress_bar=False)
    trainer.fit(build("one"), DataLoader([(torch.ones(2, 3), torch.ones(2, 1))] * 6, batch_size=None), ckpt_path=path)


def test_steps_go_on_where_they_were(tmp_path: Path) -> None:
    trainer, *_ = run("one", [], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    callback = ModelCheckpoint(tmp_path / "second", every_n_train_steps=4, save_top_k=-1)
    go_on(callback, tmp_path / "first.ckpt", max_epochs=3)
    assert files_in(tmp_path / "second") == [f"epoch={e}-step={step}.ckpt" for e, step in ((1, 12), (1, 8), (2, 16))]


def test_the_key_of_1_5(tmp_path: Path) -> None:
    """R149: 1.5 to 1.8 named one argument more."""
    first = ModelCheckpoint(tmp_path / "first", monitor="train_loss")
    run("one", [first], enable_checkpointing=True, max_epochs=1)
    path = Path(first.best_model_path)
    checkpoint = torch.load(path, weights_only=True)
    key = first.state_key.replace("}", ", 'save_on_train_epoch_end': True}")
    checkpoint["callbacks"] = {key: {**first.state_dict(), "best_model_path": "theirs.ckpt"}}
    torch.save(checkpoint, path)
    second = ModelCheckpoint(tmp_path / "first", monitor="train_loss", every_n_epochs=1)
    go_on(second, path, max_epochs=1)
    assert second.best_model_path == "theirs.ckpt"


def test_state(tmp_path: Path) -> None:
    """R149, R161: the same here and there, and from one to the other."""
    given: dict[str, Any] = {"monitor": "val_loss", "save_top_k": 2, "save_last": True}
    ours, *_ = save(tmp_path, **given)
    state = ours.state_dict()
    for kind in (ModelCheckpoint, Theirs):
        restored = kind(ours.dirpath, **given)
        restored.load_state_dict(dict(state))
        assert {**restored.state_dict(), "current_score": ours.current_score} == state
    theirs = Theirs(ours.dirpath, **given)
    theirs.load_state_dict(dict(state))
    ours.load_state_dict(theirs.state_dict())
    assert kept(ours) == {**kept(theirs), "current_score": kept(ours)["current_score"]}


def test_state_from_another_folder(tmp_path: Path) -> None:
    ours, *_ = save(tmp_path, monitor="val_loss")
    moved, theirs = ModelCheckpoint(tmp_path / "new", monitor="val_loss"), Theirs(tmp_path / "new", monitor="val_loss")
    with pytest.warns(UserWarning, match=r"saved to .* saves to .*new.* \[checkpoint-dirpath\]"):
        moved.load_state_dict(ours.state_dict())
    with pytest.warns(UserWarning, match="dirpath has changed"):
        theirs.load_state_dict(ours.state_dict())
    assert moved.state_dict() == theirs.state_dict()
    assert moved.best_model_path == ours.best_model_path


def test_the_order_of_callbacks(tmp_path: Path) -> None:
    """R162: as given, and checkpoints at the end."""
    first, second = ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path, every_n_epochs=2)
    other, more = Callback(), Callback()
    silent: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = leyden.Trainer(callbacks=[first, other, second, more], **silent)
    assert trainer.callbacks == [other, more, first, second]


def test_the_default_folder(tmp_path: Path) -> None:
    for framework, csv_logger, class_ in (
        (pytorch_lightning, pytorch_lightning.loggers.CSVLogger, Theirs),
        (leyden, CSVLogger, ModelCheckpoint),
    ):
        root = tmp_path / framework.__name__
        for logger in (csv_logger(root, name="name", version=3), csv_logger(root, version="tuned"), False):
            arguments = {"logger": logger, "default_root_dir": root, "enable_checkpointing": True, "max_epochs": 1}
            run("one", [class_(filename="model")], framework, **arguments)
    files = [name for name in files_in(tmp_path / "leyden") if name.endswith(".ckpt")]
    assert files == [name for name in files_in(tmp_path / "pytorch_lightning") if name.endswith(".ckpt")]
    assert files == [
        "checkpoints/model.ckpt",
        "lightning_logs/tuned/checkpoints/model.ckpt",
        "name/version_3/checkpoints/model.ckpt",
    ]


def test_a_logger_without_a_folder(tmp_path: Path) -> None:
    callback = ModelCheckpoint()
    run("one", [callback], enable_checkpointing=True, max_epochs=1, default_root_dir=tmp_path)
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "epoch=0-step=6.ckpt")


def test_loggers_hear_of_it(tmp_path: Path) -> None:
    class Listening:
        heard: list[tuple[str, str]] = []

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            pass

        def after_save_checkpoint(self, callback: Any) -> None:
            self.heard.append((os.path.basename(callback.best_model_path), os.path.basename(callback.last_model_path)))

    callback = ModelCheckpoint(tmp_path, filename="{epoch}", save_last=True)
    run("one", [callback], enable_checkpointing=True, max_epochs=2, logger=[Listening()])
    first, second, last = "epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"
    assert Listening.heard == [(first, last), (first, last), (second, last), (second, last)]


METRICS = {"epoch": 3, "step": 12, "val_loss": 0.12345, "val/acc": 0.5, "a.b": 2.0}


@pytest.mark.parametrize("insert", [True, False])
@pytest.mark.parametrize(
    "template",
    [None, "{epoch}", "{epoch:03d}", "{epoch}-{val_loss:.2f}", "x_{val/acc:.1f}", "{missing:d}", "{a.b:.0f}", "plain"],
)
def test_names(template: str | None, insert: bool, tmp_path: Path) -> None:
    """R158."""
    theirs, ours = (
        kind(tmp_path, template, auto_insert_metric_name=insert).format_checkpoint_name
        for kind in (Theirs, ModelCheckpoint)
    )
    tensors = {name: torch.tensor(value) for name, value in METRICS.items()}
    for given in ({}, {"ver": 2}, {"prefix": "test"}, {"filename": "{step}-other", "prefix": "a", "ver": 1}):
        assert ours(dict(METRICS), **given) == theirs(dict(METRICS), **given)
        assert ours(tensors, **given) == theirs(dict(tensors), **given)
    assert ModelCheckpoint(filename="{step}").format_checkpoint_name({"step": 0}) == "step=0.ckpt"


@pytest.mark.parametrize("save_last", [True, "link"])
def test_other_characters(save_last: Any, tmp_path: Path) -> None:
    results = []
    for framework, class_ in ((pytorch_lightning, Theirs), (leyden, ModelCheckpoint)):

        class Named(class_):  # type: ignore[misc, valid-type]
            CHECKPOINT_JOIN_CHAR = "_"
            CHECKPOINT_EQUALS_CHAR = ":"
            CHECKPOINT_NAME_LAST = "{epoch}_last"
            FILE_EXTENSION = ".pt"
            STARTING_VERSION = 5

        folder = tmp_path / framework.__name__
        callback = Named(folder, save_last=save_last, every_n_epochs=2)
        run("one", [callback], framework, enable_checkpointing=True, max_epochs=3)
        results.append((files_in(folder), kept(callback), callback.state_key))
    assert results[0] == results[1]
    link = "epoch:2_last.pt -> epoch:1_step:12.pt"
    assert (
        results[1][0] == ["epoch:1_step:12.pt", link]
        if save_last == "link"
        else ["epoch:1_last.pt", "epoch:1_step:12.pt"]
    )


def test_a_name_that_was_not_logged(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"val_los was not logged and is 0 in the name\. Logged were: .*val_loss"):
        _, written, _ = save(tmp_path, filename="{val_los:.1f}", trainer={"max_epochs": 1})
    assert written == ["val_los=0.0.ckpt"]


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    """Said once, of checkpoints, and not of one's own."""
    (tmp_path / "notes.txt").touch()
    run("one", [ModelCheckpoint(tmp_path, filename="gone")], enable_checkpointing=True, max_epochs=1)
    (tmp_path / "gone.ckpt").unlink()
    (tmp_path / "old.ckpt").touch()
    callback = ModelCheckpoint(tmp_path)
    with pytest.warns(UserWarning, match=r"is not empty.*gets a version .*checkpoint-folder-not-empty"):
        trainer, module, _ = run("one", [callback], enable_checkpointing=True, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, [(torch.ones(2, 3), torch.ones(2, 1))] * 6)
    assert files_in(tmp_path) == ["epoch=1-step=12.ckpt", "notes.txt", "old.ckpt"]


def test_only_fits_save(tmp_path: Path) -> None:
    """Neither evaluations nor debugging; Lightning writes "last" in ``fast_dev_run``."""
    callback = ModelCheckpoint(tmp_path / "new", save_last=True, save_on_train_epoch_end=False)
    trainer, module, _ = run("one", [callback], enable_checkpointing=True, fast_dev_run=True)
    trainer.validate(module, [(torch.ones(2, 3), torch.ones(2, 1))], verbose=False)
    assert not (tmp_path / "new").exists()
    trainer = leyden.Trainer(callbacks=[callback], enable_progress_bar=False)
    trainer.validate(module, [(torch.ones(2, 3), torch.ones(2, 1))], verbose=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
def test_nothing_was_trained(framework: Any, tmp_path: Path) -> None:
    module = build("one", framework, scheduled=False)
    module.on_train_batch_start = lambda batch, batch_idx: -1
    assert save(tmp_path, framework, module=module, save_top_k=-1)[1] == []


def test_to_yaml(tmp_path: Path) -> None:
    callback, *_ = save(tmp_path, monitor="val_loss", save_top_k=2)
    callback.to_yaml()
    callback.to_yaml(tmp_path / "scores.yaml")
    expected = {path: score.item() for path, score in callback.best_k_models.items()}
    for path in (tmp_path / "scores.yaml", Path(callback.dirpath) / "best_k_models.yaml"):
        assert yaml.safe_load(path.read_text()) == expected


def test_verbose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="leyden"):
        save(tmp_path, monitor="val", module=telling([2.0, 3.0, 1.0]), verbose=True)
    told = [record.getMessage() for record in caplog.records if "val =" in record.getMessage()]
    assert told[0].startswith("epoch 0, step 6: val = 2 (best 2) is saved to '")
    assert told[1] == "epoch 1, step 12: val = 3 is not among the best 1"
    assert told[2].startswith("epoch 2, step 18: val = 1 (best 1) is saved to '")


class Failing(Callback, pytorch_lightning.Callback):  # one callback for both
    def __init__(self, kind: type[BaseException] = RuntimeError, spoil: Path | None = None) -> None:
        self.kind, self.spoil = kind, spoil

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            if self.spoil is not None:
                shutil.rmtree(self.spoil)
                self.spoil.touch()
            raise self.kind("the reason")


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
def test_an_exception(framework: Any, tmp_path: Path) -> None:
    class_ = ModelCheckpoint if framework is leyden else Theirs
    callback = class_(tmp_path, save_on_exception=True, save_last=True, save_top_k=-1)
    with pytest.raises(RuntimeError, match="the reason"):
        run("one", [callback, Failing()], framework, enable_checkpointing=True)
    assert files_in(tmp_path) == ["epoch=0-step=6.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8


def test_an_exception_and_a_full_disk(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "run", save_on_exception=True)
    with (
        pytest.raises(RuntimeError, match="the reason"),
        pytest.warns(
            UserWarning, match=r"could not save what was trained until RuntimeError .*checkpoint-on-exception"
        ),
    ):
        run("one", [callback, Failing(spoil=tmp_path / "run")], enable_checkpointing=True)


def test_a_relative_folder_of_a_logger_keeps_the_best_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that are kept no longer go there, too."""
    monkeypatch.chdir(tmp_path)
    run("one", [ModelCheckpoint()], leyden, max_epochs=3, enable_checkpointing=True, logger=CSVLogger("logs", "run"))
    assert len(list(tmp_path.glob("logs/run/version_0/checkpoints/*.ckpt"))) == 1
