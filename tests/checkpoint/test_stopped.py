"""A run that EarlyStopping has stopped, resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import leyden
import modes


def fit(framework: Any, path: Path, hook: str = "", *, stops: bool = True, patience: int = 2, **options: Any) -> Any:
    """Train with values that get worse; returns the batches, what the trainer counts, and the callback."""

    class Module(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)
            self.seen: list[int] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(self.current_epoch * 6 + batch_idx)
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("value", float(len(self.seen)))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    ckpt_path = options.pop("ckpt_path", None)
    stopping = framework.callbacks.EarlyStopping("value", patience=patience)
    saver = framework.Callback()
    if hook:
        setattr(saver, hook, lambda trainer, *args: trainer.save_checkpoint(path))
    names = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    given = {"max_epochs": 8, "num_sanity_val_steps": 0, "accelerator": "cpu", **dict.fromkeys(names, False), **options}
    trainer, module = framework.Trainer(**given, callbacks=[stopping, saver] if stops else [saver]), Module()
    data, validation = DataLoader(modes.DATA, batch_size=None), DataLoader(modes.DATA[:2], batch_size=None)
    trainer.fit(module, data, validation, ckpt_path=ckpt_path)
    return module.seen, (trainer.current_epoch, trainer.global_step), stopping


STAYS = "on_train_end"


@pytest.mark.parametrize("interval", [1.0, 3])
@pytest.mark.parametrize("writer", [leyden, pytorch_lightning])
def test_it_has_ended(writer: Any, interval: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run without a break would not train on, so a resumed one does not; Lightning trains until the next check."""
    caplog.set_level(logging.INFO, logger="leyden")
    seen, counts, _ = fit(writer, tmp_path / "a.ckpt", STAYS, val_check_interval=interval)
    rest, same, stopping = fit(leyden, tmp_path, ckpt_path=tmp_path / "a.ckpt", val_check_interval=interval)
    assert (rest, same, stopping.wait_count) == ([], counts, 2)
    assert 'resume={"callbacks.EarlyStopping": "reset"}' in caplog.text
    theirs, *_ = fit(pytorch_lightning, tmp_path, ckpt_path=tmp_path / "a.ckpt", val_check_interval=interval)
    assert len(theirs) == 6 * interval if interval == 1.0 else 3
    assert len(seen) == {1.0: 18, 3: 9}[interval]


@pytest.mark.parametrize("writer", [leyden, pytorch_lightning])
@pytest.mark.filterwarnings("ignore:(?s).*resume-differs")
def test_without_the_callback_it_trains_on(writer: Any, tmp_path: Path) -> None:
    """On both, to the last epoch."""
    fit(writer, tmp_path / "a.ckpt", STAYS)
    for reader in (leyden, pytorch_lightning):
        seen, counts, _ = fit(reader, tmp_path, stops=False, ckpt_path=tmp_path / "a.ckpt")
        assert (seen, counts) == (list(range(18, 48)), (8, 48))


@pytest.mark.parametrize("writer", [leyden, pytorch_lightning])
def test_the_patience_of_the_code_counts(writer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where it was raised, the run goes on with the checks that the file has counted; Lightning takes the file's."""
    caplog.set_level(logging.INFO, logger="leyden")
    fit(writer, tmp_path / "a.ckpt", STAYS)
    seen, (epoch, _), stopping = fit(leyden, tmp_path, patience=4, ckpt_path=tmp_path / "a.ckpt")
    assert (seen, epoch) == (list(range(18, 30)), 5)
    assert (stopping.patience, stopping.wait_count, stopping.stopped_epoch) == (4, 4, 4)
    assert "patience was 2 in the checkpoint and is 4 now, which counts" in caplog.text


@pytest.mark.filterwarnings("ignore:(?s).*resume-differs")
def test_its_state_may_begin_anew(tmp_path: Path) -> None:
    """With the choice of a callback that has seen nothing yet, the run trains on and is stopped again."""
    fit(leyden, tmp_path / "a.ckpt", STAYS)
    from leyden.callbacks import EarlyStopping

    stopping, seen = EarlyStopping("value", patience=2), []

    class Module(leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(batch_idx)
            self.log("value", float(len(seen)))
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = leyden.Trainer(max_epochs=8, accelerator="cpu", enable_progress_bar=False, callbacks=[stopping])
    trainer.fit(Module(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", resume={"callbacks.EarlyStopping": "reset"})
    assert (len(seen), trainer.current_epoch) == (18, 6)
