"""Files for Lightning 1.5, and what becomes of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import modes
from leyden import Callback, Trainer
from leyden.callbacks import EarlyStopping, ModelCheckpoint
from leyden.checkpoint import export, read_checkpoint
from leyden.errors import CheckpointError, InvalidValueError, LeydenWarning
from leyden.precision import MixedPrecision
from resumption import differences


class SaveIn(Callback):
    """Saves in a hook of an epoch and batch."""

    def __init__(self, path: Path, hook: str, epoch: int = 1, batch: int = 5) -> None:
        self.path, self.place = path, (epoch, batch)
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *args: Any) -> None:
        if (trainer.current_epoch, trainer.clocks.batch_idx) == self.place and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


def fit(name: str, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> Any:
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    given = {"max_epochs": 3, "accelerator": "cpu", **silent, **modes.MODES[name][1], **options}
    trainer, module = Trainer(**given, callbacks=list(callbacks)), modes.build(name)
    module.seen = []
    module.on_train_batch_start = lambda batch, batch_idx: module.seen.append((module.current_epoch, batch_idx))
    trainer.fit(module, modes.DATA, modes.DATA[:2], ckpt_path=ckpt_path)
    return trainer, module


@pytest.mark.parametrize(
    ("hook", "place", "epoch", "steps"),
    [("on_train_epoch_end", (1, 5), 2, 12), ("on_fit_end", (2, 5), 2, 12), ("on_train_batch_end", (1, 5), 2, 12)],
)
@pytest.mark.parametrize("name", ["one", "manual"])
def test_the_content_is_that_of_1_5(name: str, hook: str, place: Any, epoch: int, steps: int, tmp_path: Path) -> None:
    """R151, R155: the epoch to go on with, the batches that have stepped, and no `loops`."""
    epochs = {"max_epochs": 2} if hook == "on_fit_end" else {}
    trainer, _ = fit(name, SaveIn(tmp_path / "a.ckpt", hook, *place), EarlyStopping("val_loss"), **epochs)
    export(tmp_path / "a.ckpt", tmp_path / "b.ckpt", version="1.5")
    old, new = read_checkpoint(tmp_path / "a.ckpt"), torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert list(new) == [
        *("epoch", "global_step", "pytorch-lightning_version", "state_dict"),
        *("callbacks", "optimizer_states", "lr_schedulers"),
    ]
    assert (new["epoch"], new["global_step"], new["pytorch-lightning_version"]) == (epoch, steps, "1.5.10")
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(old[key], new[key]) == []
    assert list(new["callbacks"]) == list(old["callbacks"])


def test_keys_have_the_names_of_1_5(tmp_path: Path) -> None:
    """R149, R150: one argument more in the key of a ModelCheckpoint, and another name of the loss scale."""
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    writer = ModelCheckpoint(tmp_path, filename="a", monitor="val_loss", save_on_train_epoch_end=False)
    fit("one", writer, plugins=precision, max_epochs=1)
    export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    old, new = read_checkpoint(tmp_path / "a.ckpt"), torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert "MixedPrecision" not in new
    assert new["native_amp_scaling_state"] == old["MixedPrecision"]
    (before,), (after,) = old["callbacks"], new["callbacks"]
    assert after == before[:-1] + ", 'save_on_train_epoch_end': None}"


@pytest.mark.filterwarnings("ignore:.*export-mid-epoch")
@pytest.mark.parametrize("name", ["one", "accumulated", "manual", "alternating", "joint"])
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_batch_end"])
def test_it_comes_back_as_a_file_of_1_5(name: str, hook: str, tmp_path: Path) -> None:
    """R155: the run goes on with the next epoch; at the end of an epoch nothing is lost on the way."""
    batch = 5 if hook == "on_train_epoch_end" else 2
    whole, module = fit(name, SaveIn(tmp_path / "a.ckpt", hook, 1, batch))
    export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    trainer, again = fit(name, ckpt_path=tmp_path / "b.ckpt")
    assert again.seen == module.seen[12:]
    assert trainer.current_epoch == whole.current_epoch
    same = differences(dict(module.state_dict()), dict(again.state_dict())) == []
    assert same == (hook == "on_train_epoch_end")


def test_what_is_left_out_of_an_epoch_is_told(tmp_path: Path) -> None:
    fit("one", SaveIn(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2))
    with pytest.warns(
        LeydenWarning, match=r"middle of epoch 1; Lightning 1.5 goes on with the next.*\[export-mid-epoch"
    ):
        export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    new = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert (new["epoch"], new["global_step"]) == (2, 9)


def test_files_of_lightning_and_objects_that_are_no_plain_data(tmp_path: Path) -> None:
    """1.5 unpickles whatever a file holds: a namespace is written as one, not in leyden's form."""
    path, module = tmp_path / "a.ckpt", modes.build("one")
    module.save_hyperparameters({"folder": Path("runs"), "options": argparse.Namespace(depth=3)})
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
    trainer.fit(module, modes.DATA)
    trainer.save_checkpoint(path)
    export(path, tmp_path / "b.ckpt")
    new = torch.load(tmp_path / "b.ckpt", weights_only=False)
    assert new["hyper_parameters"] == {"folder": Path("runs"), "options": argparse.Namespace(depth=3)}
    export(tmp_path / "b.ckpt", tmp_path / "c.ckpt")  # they are values, and nobody has to trust the file
    assert torch.load(tmp_path / "c.ckpt", weights_only=False)["epoch"] == new["epoch"]


def test_only_1_5_needs_an_export(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"version='1.9'.*from 1.6 on reads leyden's files \[export-version\]"):
        export(tmp_path / "a.ckpt", tmp_path / "b.ckpt", version="1.9")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
