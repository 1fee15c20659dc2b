"""`ckpt_path`: a path, "best", "last", and what an evaluation without a module takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modes
from leyden import LightningModule, Trainer
from leyden.callbacks import EarlyStopping, ModelCheckpoint
from leyden.checkpoint import write_checkpoint
from leyden.checkpoint.places import by_age
from leyden.errors import CheckpointError, CheckpointNotFoundError, InvalidValueError, LeydenWarning


class Module(LightningModule):
    """Its weight is the number of steps; `val_loss` is best after the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return -self.layer.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.look()
        self.log("val_loss", abs(self.layer.weight.item() - 12))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.look()

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.look()

    def look(self) -> None:
        self.seen.append(self.layer.weight.item())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def build(*callbacks: Any, **options: Any) -> Trainer:
    return Trainer(max_epochs=3, accelerator="cpu", enable_progress_bar=False, callbacks=[*callbacks], **options)


def fitted(*callbacks: Any, **options: Any) -> tuple[Trainer, Module]:
    trainer, module = build(*callbacks, **options), Module()
    trainer.fit(module, modes.DATA, modes.DATA[:1])
    module.seen.clear()
    return trainer, module


RUNS = pytest.mark.parametrize("run", ["validate", "test", "predict"])


def evaluate(trainer: Trainer, run: str, *model: Any, **options: Any) -> None:
    quiet = {} if run == "predict" else {"verbose": False}
    getattr(trainer, run)(*model, dataloaders=modes.DATA[:1], **quiet, **options)


@RUNS
def test_the_best_is_loaded_by_name(run: str, tmp_path: Path) -> None:
    """`"best"` is what the first ModelCheckpoint thinks so; `trainer.ckpt_path` tells."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer, module = fitted(checkpoint)
    evaluate(trainer, run, module, ckpt_path="best")
    assert module.seen == [12.0]
    assert trainer.ckpt_path == checkpoint.best_model_path


@RUNS
def test_an_evaluation_without_a_module_takes_the_best(run: str, tmp_path: Path) -> None:
    """As 2.6 does after a fit; with a module it takes the weights that this has."""
    trainer, module = fitted(ModelCheckpoint(tmp_path, monitor="val_loss"))
    evaluate(trainer, run, module)
    assert (module.seen, trainer.ckpt_path) == ([18.0], None)
    evaluate(trainer, run)
    assert module.seen == [18.0, 12.0]


def test_without_checkpoints_an_evaluation_takes_the_weights_there_are() -> None:
    trainer, module = fitted()
    evaluate(trainer, "test")
    assert (module.seen, trainer.ckpt_path) == ([18.0], None)


def test_there_is_no_best(tmp_path: Path) -> None:
    """A ValueError that says why."""
    trainer, module = fitted()
    with pytest.raises(InvalidValueError, match=r"no ModelCheckpoint of this Trainer has written.*\[checkpoint-best\]"):
        evaluate(trainer, "test", module, ckpt_path="best")
    trainer = build(ModelCheckpoint(tmp_path), fast_dev_run=True)
    with pytest.raises(InvalidValueError, match="fast_dev_run writes none"):
        evaluate(trainer, "test", module, ckpt_path="best")


def test_several_know_a_best(tmp_path: Path) -> None:
    trainer, module = fitted(ModelCheckpoint(tmp_path / "a", monitor="val_loss"), ModelCheckpoint(tmp_path / "b"))
    with pytest.warns(LeydenWarning, match=r"takes the first ModelCheckpoint's, of 2: .*\[checkpoint-best\]"):
        evaluate(trainer, "test", module, ckpt_path="best")
    assert module.seen == [12.0]


def test_the_last_is_the_newest_that_was_written(tmp_path: Path) -> None:
    """In the process that wrote it, and in another one by the folder."""
    trainer, module = fitted(ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1))
    newest = max(tmp_path.glob("*.ckpt"), key=os.path.getmtime)
    evaluate(trainer, "test", module, ckpt_path="last")
    assert (Path(str(trainer.ckpt_path)), module.seen) == (newest, [18.0])

    other, fresh = build(ModelCheckpoint(tmp_path, monitor="val_loss")), Module()
    other.fit_loop.max_epochs = 4
    other.fit(fresh, modes.DATA, modes.DATA[:1], ckpt_path="last")
    assert (Path(str(other.ckpt_path)), other.current_epoch, fresh.layer.weight.item()) == (newest, 4, 24.0)


def test_there_is_no_last(tmp_path: Path) -> None:
    """A fit that is started again and again with "last" starts for the first time at some time."""
    trainer = build(ModelCheckpoint(tmp_path / "a"), default_root_dir=tmp_path)
    with pytest.warns(LeydenWarning, match=r"finds no checkpoint in '.*a'; it starts.*\[checkpoint-last\]"):
        trainer.fit(Module(), modes.DATA, ckpt_path="last")
    assert trainer.current_epoch == 3
    with pytest.warns(LeydenWarning, match="no callback writes any"):
        build(default_root_dir=tmp_path).fit(Module(), modes.DATA, ckpt_path="last")


@pytest.mark.parametrize("folders", [("a", "b"), ("a", "a")])
def test_the_last_is_one_to_go_on_from(folders: tuple[str, str], tmp_path: Path) -> None:
    """A newer one that holds weights only is for evaluations."""

    def savers() -> tuple[ModelCheckpoint, ModelCheckpoint]:
        whole = ModelCheckpoint(tmp_path / folders[0], "{step}", every_n_train_steps=4)
        return whole, ModelCheckpoint(tmp_path / folders[1], "weights-{epoch}", save_weights_only=True)

    fitted(*savers())
    trainer = build(*savers())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(Module(), modes.DATA, ckpt_path="last")
    assert Path(str(trainer.ckpt_path)).name == "step=16.ckpt"
    evaluate(trainer, "test", Module(), ckpt_path="last")
    assert Path(str(trainer.ckpt_path)).name == "weights-epoch=3.ckpt"


def test_the_last_of_a_copied_folder_is_the_newest(tmp_path: Path) -> None:
    """A plain copy gives all files new times, in any order; they know themselves when they were written."""
    trainer, module = fitted(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    for age, path in enumerate(sorted(tmp_path.iterdir())):
        os.utime(path, (10**9 - age,) * 2)
    other = build(ModelCheckpoint(tmp_path))
    evaluate(other, "test", module, ckpt_path="last")
    assert (Path(str(other.ckpt_path)).name, module.seen) == ("epoch=2.ckpt", [18.0])
    another = build(enable_checkpointing=False, max_steps=1)  # a new run, which has done less
    another.fit(Module(), modes.DATA)
    another.save_checkpoint(tmp_path / "new.ckpt")
    os.utime(tmp_path / "new.ckpt", (1, 1))
    evaluate(other, "test", module, ckpt_path="last")
    assert (Path(str(other.ckpt_path)).name, module.seen) == ("new.ckpt", [18.0, 1.0])


def test_files_that_do_not_say_when_they_were_written(tmp_path: Path) -> None:
    """Such as Lightning's: the time of the file system counts, as it does between equal times in files."""
    for age, name in enumerate("bac"):
        torch.save({"state_dict": {}}, tmp_path / name)
        os.utime(tmp_path / name, (10**9 - age,) * 2)
    paths = [str(tmp_path / name) for name in "abcd"]
    assert [Path(path).name for path in by_age(paths)] == ["b", "a", "c"]
    write_checkpoint({"state_dict": {}}, tmp_path / "d")
    shutil.copyfile(tmp_path / "d", tmp_path / "c")
    for age, name in enumerate("dc"):
        os.utime(tmp_path / name, (10 + age,) * 2)
    assert [Path(path).name for path in by_age(paths)] == ["c", "d", "b", "a"]


@pytest.mark.parametrize(("word", "meant"), [("Last", "last"), ("BEST", "best")])
def test_a_word_in_another_case(word: str, meant: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=rf"no checkpoint '{word}'; did you mean '{meant}'\?"):
        build().fit(Module(), modes.DATA, ckpt_path=word)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    """Its newest file is named."""
    with pytest.raises(CheckpointNotFoundError, match="is a folder, not a checkpoint; there are no checkpoints in it"):
        build().fit(Module(), modes.DATA, ckpt_path=tmp_path)
    for name in ("b", "a"):
        write_checkpoint({"state_dict": {}}, tmp_path / f"{name}.ckpt")
    with pytest.raises(CheckpointNotFoundError, match=r"is a folder, not a checkpoint; .*newest in it is '.*a\.ckpt'"):
        build().fit(Module(), modes.DATA, ckpt_path=tmp_path)


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("in_new_process", [False, True])
def test_the_last_is_one_that_is_whole(in_new_process: bool, tmp_path: Path) -> None:
    """A damaged file is passed over, which is told; one that was written before it is taken."""
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer, module = fitted(checkpoint)
    damage(tmp_path / "epoch=2.ckpt")
    if in_new_process:
        trainer = build(ModelCheckpoint(tmp_path))
    with pytest.warns(
        LeydenWarning, match=r"goes on from '.*epoch=1\.ckpt'.*epoch=2\.ckpt': its end.*\[checkpoint-fallback"
    ):
        evaluate(trainer, "test", module, ckpt_path="last")
    assert (Path(str(trainer.ckpt_path)).name, module.seen) == ("epoch=1.ckpt", [12.0])
    for path in tmp_path.iterdir():
        damage(path)
    with pytest.raises(CheckpointError, match=r"finds damaged files only: .*\[checkpoint-last\]"):
        evaluate(trainer, "test", module, ckpt_path="last")


def test_a_path_that_is_not_there_shows_before_anything_is_done(tmp_path: Path) -> None:
    class Slow(Module):
        def prepare_data(self) -> None:
            raise AssertionError("prepared for nothing")

    with pytest.raises(CheckpointNotFoundError, match="checkpoint-missing"):
        build().fit(Slow(), modes.DATA, ckpt_path=tmp_path / "a.ckpt")


def test_callbacks_by_what_they_do() -> None:
    """`trainer.early_stopping_callback` and the like."""
    stops = [EarlyStopping("a"), EarlyStopping("b")]
    trainer = build(*stops)
    assert (trainer.early_stopping_callbacks, trainer.early_stopping_callback) == (stops, stops[0])
    assert (build().early_stopping_callback, build().checkpoint_callback) == (None, None)


def test_a_test_does_not_turn_back_what_was_written(tmp_path: Path) -> None:
    """A ModelCheckpoint goes on to know what was saved after the best; Lightning's forgets it."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    trainer, module = fitted(checkpoint)
    before = dict(checkpoint.best_k_models)
    assert len(before) == 3
    evaluate(trainer, "test", module, ckpt_path="best")
    assert checkpoint.best_k_models == before
