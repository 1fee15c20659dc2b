"""Checkpoints at addresses, by fsspec; ``memory://`` stands for all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import modes
from leyden import Callback, Trainer
from leyden.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from leyden.checkpoint import read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError, CheckpointNotFoundError, InvalidValueError, LeydenWarning, MissingExtraError

fsspec = pytest.importorskip("fsspec")
GOOD = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 1}


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    """An empty file system."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def files(system: Any) -> list[str]:
    return sorted(name for name in system.find("/"))


def test_there_and_back(memory: Any) -> None:
    write_checkpoint(GOOD, "memory://run/a.ckpt")
    assert files(memory) == ["/run/a.ckpt"]
    assert read_checkpoint("memory://run/a.ckpt")["state_dict"]["weight"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointNotFoundError, match="memory://run/b.ckpt"):
        read_checkpoint("memory://run/b.ckpt")


def test_a_failed_save_leaves_the_older_file(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(GOOD, "memory://run/a.ckpt")

    def half(content: Any, file: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match="memory://run/a.ckpt' was not written: OSError.*No space left"):
        write_checkpoint({**GOOD, "epoch": 2}, "memory://run/a.ckpt")
    assert files(memory) == ["/run/a.ckpt"]
    assert read_checkpoint("memory://run/a.ckpt")["epoch"] == 1


def test_a_file_that_has_not_arrived_as_a_whole(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(memory), "size", lambda system, address: 10)
    with pytest.raises(CheckpointError, match=r"a\.ckpt' was not written: OSError: the file has 10 bytes there, and"):
        write_checkpoint(GOOD, "memory://run/a.ckpt")


def damage(memory: Any, name: str) -> None:
    memory.pipe(name, memory.cat(name)[:-500])


@pytest.mark.filterwarnings("ignore:.*checkpoint-last")
def test_the_last_is_one_that_is_whole(memory: Any) -> None:
    """As in a folder, though all of a file is fetched to know that."""

    def fit(epochs: int) -> Trainer:
        saver = ModelCheckpoint("memory://run", filename="{epoch}", save_top_k=-1)
        trainer = Trainer(max_epochs=epochs, enable_progress_bar=False, callbacks=[saver])
        trainer.fit(modes.build("one"), modes.DATA, ckpt_path="last")
        return trainer

    fit(2)
    damage(memory, "/run/epoch=1.ckpt")
    with pytest.warns(LeydenWarning, match=r"goes on from 'memory://.*epoch=0.ckpt'.*epoch=1.ckpt'.*cut off"):
        assert str(fit(3).ckpt_path).endswith("epoch=0.ckpt")


def test_a_damaged_file_is_refused(memory: Any) -> None:
    """By the CRCs of its records."""
    write_checkpoint(GOOD, "memory://run/a.ckpt")
    data = bytearray(memory.cat("/run/a.ckpt"))
    data[data.index(torch.arange(3.0).numpy().tobytes()) + 2] ^= 1
    memory.pipe("/run/a.ckpt", bytes(data))
    with pytest.raises(CheckpointError, match="memory://run/a.ckpt.*the CRC-32 differs"):
        read_checkpoint("memory://run/a.ckpt")


@pytest.mark.parametrize("given", [{}, {"asynchronous": True}, {"save_top_k": -1}])
def test_a_fit_saves_there_and_goes_on_from_there(given: dict[str, Any], memory: Any) -> None:
    """As in a folder: names, what is removed, "last", and the same weights in the end."""

    def fit(epochs: int, *callbacks: Any, **options: Any) -> Any:
        module = modes.build("one")
        Trainer(max_epochs=epochs, enable_progress_bar=False, callbacks=[*callbacks]).fit(module, modes.DATA, **options)
        return module

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint("memory://run/of", filename="{epoch}", save_last=True, **given)

    first = saver()
    fit(2, first)
    kept = ["epoch=0.ckpt"] if given.get("save_top_k") == -1 else []
    assert files(memory) == [f"/run/of/{name}" for name in (*kept, "epoch=1.ckpt", "last.ckpt")]
    assert first.best_model_path == "memory://run/of/epoch=1.ckpt"
    whole, rest = fit(4), fit(4, saver(), ckpt_path="last")
    assert all(torch.equal(rest.state_dict()[name], value) for name, value in whole.state_dict().items())
    assert "/run/of/epoch=3.ckpt" in files(memory)


def test_what_an_exception_leaves_is_there(memory: Any) -> None:
    class Failing(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1 and trainer.ckpt_path is None:
                raise KeyError("the reason")

    trainer = Trainer(
        max_epochs=2, enable_progress_bar=False, callbacks=[Failing(), OnExceptionCheckpoint("memory://run")]
    )
    with pytest.raises(KeyError):
        trainer.fit(modes.build("one"), modes.DATA)
    assert files(memory) == ["/run/on_exception.ckpt"]
    trainer.fit(modes.build("one"), modes.DATA, ckpt_path="memory://run/on_exception.ckpt")
    assert trainer.current_epoch == 2
    assert files(memory) == []


def test_what_does_not_exist_shows_before_the_first_step() -> None:
    trainer = Trainer(max_epochs=1, callbacks=[ModelCheckpoint("nosuch://bucket/run")], enable_progress_bar=False)
    with pytest.raises(InvalidValueError, match=r"cannot write to 'nosuch://bucket/run' \(.*nosuch"):
        trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.clocks.micro_batches == 0


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for call in (lambda: write_checkpoint(GOOD, "s3://bucket/a.ckpt"), lambda: read_checkpoint("s3://bucket/a.ckpt")):
        with pytest.raises(MissingExtraError, match=r"pip install 'leyden\[remote\]'"):
            call()
