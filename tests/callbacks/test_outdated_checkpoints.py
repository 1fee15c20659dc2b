"""A kill between the saving of a file and the deletion of the one before leaves no file behind for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import modes
from leyden import LightningModule, Trainer
from leyden.callbacks import ModelCheckpoint, saving


class Module(LightningModule):
    """Its value falls with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("value", -float(self.trainer.global_step))
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PowerCut(BaseException):
    """Ends a run."""


def fit(folder: Path, ckpt_path: Any = "last", **arguments: Any) -> Trainer:
    callback = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, **arguments)
    trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=[callback], enable_progress_bar=False)
    trainer.fit(Module(), modes.DATA, ckpt_path=ckpt_path)
    return trainer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the last": ({}, ["step=12.ckpt"]),
    "and a copy": ({"save_last": True}, ["last.ckpt", "step=12.ckpt"]),
    "and a link": ({"save_last": "link"}, ["last.ckpt", "step=12.ckpt"]),
    "the best": ({"monitor": "value"}, ["step=12.ckpt"]),
    "the two best": ({"monitor": "value", "save_top_k": 2}, ["step=10.ckpt", "step=12.ckpt"]),
    "in the background": ({"asynchronous": True}, ["step=12.ckpt"]),
}


@pytest.mark.filterwarnings("ignore:.*checkpoint-last")
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kill_has_left_is_deleted(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, expected = KINDS[kind]
    real = saving._remove_unless

    def cut(path: str, kept: str, strategy: Any) -> None:
        raise PowerCut

    monkeypatch.setattr(saving, "_remove_unless", cut)
    with pytest.raises(PowerCut):
        fit(tmp_path, **arguments)
    left = {name for name in names(tmp_path) if name.startswith("step")}
    assert len(left) == arguments.get("save_top_k", 1) + 1
    monkeypatch.setattr(saving, "_remove_unless", real)
    trainer = fit(tmp_path, **arguments)
    assert trainer.ckpt_path is not None
    assert names(tmp_path) == expected


@pytest.mark.filterwarnings("ignore:.*checkpoint-last")
def test_the_file_that_a_run_has_gone_on_from(tmp_path: Path) -> None:
    """The last one is a file like others; one that the user has named is kept."""
    fit(tmp_path, save_top_k=-1)
    for step in (4, 6, 8, 10, 12):
        (tmp_path / f"step={step}.ckpt").unlink()
    named = tmp_path / "step=2.ckpt"
    fit(tmp_path, ckpt_path=named)
    assert names(tmp_path) == ["step=12.ckpt", "step=2.ckpt"]
    (tmp_path / "step=12.ckpt").unlink()
    assert fit(tmp_path).resumes_last
    assert names(tmp_path) == ["step=12.ckpt"]
