"""Objects that are no data, in checkpoints of programs for Lightning, which keeps any: closed until somebody trusts."""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch

import leyden
from leyden import LightningModule, Trainer
from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.checkpoint.encoding import Pickled, encode, is_data
from leyden.compat.saving import load
from leyden.errors import CheckpointError

BATCHES = [torch.ones(3, 2)] * 4


def scaler() -> Message:
    """An object of a class that is not the program's."""
    message = Message()
    message["Name"] = "scaler"
    return message


class Steps:
    """Has an argument of any type."""

    def __init__(self, scaler: Any = None, width: int = 2, act: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()  # type: ignore[attr-defined]
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), lr=0.1)


class Model(Steps, LightningModule):
    pass


class LightningModel(Steps, pytorch_lightning.LightningModule):
    pass


QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def trained(folder: Path, *, max_epochs: int = 1, ckpt_path: Any = None, **arguments: Any) -> Trainer:
    callback = leyden.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = Trainer(max_epochs=max_epochs, callbacks=[callback], logger=False, **QUIET)
    trainer.fit(Model(**{"scaler": scaler(), **arguments}), BATCHES, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def _keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As under ``leyden.compat.install``, which does not work here: the tests import Lightning."""
    monkeypatch.setattr(Pickled, "kept", True)
    yield


def test_they_are_refused_elsewhere(tmp_path: Path) -> None:
    """Code for leyden is told before the first step, as it can leave the object out."""
    with pytest.raises(CheckpointError, match=r"hyper_parameters\['scaler'\] is an object of email\.message\.Message"):
        trained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_keeping")
def test_a_run_goes_on_without_opening_them(tmp_path: Path) -> None:
    """R160: no trust is needed where nothing asks for the object, and the next file has it again."""
    trained(tmp_path)
    trainer = trained(tmp_path, max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert trainer.global_step == 8
    trainer.test(ckpt_path=str(tmp_path / "epoch=1.ckpt"), dataloaders=BATCHES)
    content = read_checkpoint(tmp_path / "epoch=1.ckpt")
    write_checkpoint(content, tmp_path / "again.ckpt")
    loaded = Model.load_from_checkpoint(tmp_path / "again.ckpt", trust=True)
    assert loaded.hparams.scaler["Name"] == "scaler"


@pytest.mark.usefixtures("_keeping")
def test_a_module_is_built_with_them_by_trust_alone(tmp_path: Path) -> None:
    """V11: as in Lightning 2.6 on today's torch; what the caller gives instead is not opened."""
    trained(tmp_path, width=2)
    path = tmp_path / "epoch=0.ckpt"
    with pytest.raises(
        CheckpointError, match=r"'scaler' is an object of email\.message\.Message.*checkpoint-untrusted"
    ):
        Model.load_from_checkpoint(path)
    assert Model.load_from_checkpoint(path, scaler=3).hparams.scaler == 3
    for trust in ({"trust": True}, {"weights_only": False}):
        assert Model.load_from_checkpoint(path, **trust).hparams.scaler["Name"] == "scaler"


@pytest.mark.usefixtures("_keeping")
def test_lightning_keeps_and_loads_the_same(tmp_path: Path) -> None:
    """The same module has the same hyper-parameters after a save and a load, in both."""
    trainer = pytorch_lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(LightningModel(scaler()), torch.utils.data.DataLoader(BATCHES[0], 3))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    theirs = LightningModel.load_from_checkpoint(tmp_path / "theirs.ckpt", weights_only=False)
    trained(tmp_path / "ours")
    ours = Model.load_from_checkpoint(tmp_path / "ours" / "epoch=0.ckpt", weights_only=False)
    assert theirs.hparams.scaler.items() == ours.hparams.scaler.items()


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path(self.path),)


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_runs(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R160, V11: whoever has written the file, and whether or not such files are written here."""
    monkeypatch.setattr(Pickled, "kept", kept)
    made, path = tmp_path / "made", tmp_path / "bad.ckpt"
    value = {"__leyden__": "pickle", "type": "x", "value": pickle.dumps(Program(str(made)))}
    torch.save({"state_dict": Model().state_dict(), "hyper_parameters": {"scaler": value}, "own": value}, path)
    closed = read_checkpoint(path)["own"]
    assert isinstance(closed, Pickled)
    with pytest.raises(AttributeError, match=r"no 'transform' here: an object of x, .*trust=True opens it"):
        _ = closed.transform
    with pytest.raises(CheckpointError, match="checkpoint-untrusted"):
        Model.load_from_checkpoint(path)
    assert not made.exists()
    read_checkpoint(path, weights_only=False)
    assert made.exists()  # or the test would show nothing


@pytest.mark.usefixtures("_keeping")
def test_what_cannot_be_pickled_is_refused() -> None:
    """By its place, as ever."""
    with pytest.raises(CheckpointError, match=r"hyper_parameters\['lock'\] is an object of _thread\.lock"):
        encode({"hyper_parameters": {"lock": threading.Lock()}})


def test_descriptions_are_built(tmp_path: Path) -> None:
    """torch shows how objects are described; 1.x's ``load`` builds them, and so Lightning gets them, if one wishes."""
    trained(tmp_path, scaler=None, act=torch.nn.Tanh)
    path, new = tmp_path / "epoch=0.ckpt", tmp_path / "new.ckpt"
    described = {"__leyden__": "name", "value": "torch.nn.modules.activation:Tanh"}
    assert torch.load(path)["hyper_parameters"]["act"] == described
    assert load(path)["hyper_parameters"]["act"] is torch.nn.Tanh
    torch.save(read_checkpoint(path), new)
    assert LightningModel.load_from_checkpoint(path).hparams.act == described
    assert LightningModel.load_from_checkpoint(new, weights_only=False).hparams.act is torch.nn.Tanh


@pytest.mark.usefixtures("_keeping")
def test_data_stays_data() -> None:
    """Only what has no other form is a pickle; and what is given out at once on a resume, as batches are, is none."""
    assert "pickle" not in str(
        encode({"a": Path("b"), "c": [torch.nn.ReLU, {1: functools.partial(torch.nn.Linear, 2)}]})
    )
    assert str(encode({"a": [Path("b"), scaler()]})).count("pickle") == 1
    assert not is_data([scaler()])
