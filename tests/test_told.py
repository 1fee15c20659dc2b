"""What a run says before it begins, or refuses, so that nobody believes in something that does not happen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leyden import Callback, LightningDataModule, LightningModule, Trainer
from leyden.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from leyden.errors import InvalidValueError, MisconfigurationException, OrderError

QUIET: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
BATCHES = [torch.ones(2, 3)] * 4


class Plain(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Validated(Plain):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).mean())


def told(caplog: pytest.LogCaptureFixture, module: LightningModule, *data: Any, **arguments: Any) -> list[str]:
    with caplog.at_level(logging.INFO, logger="leyden"):
        Trainer(**{**QUIET, **arguments}).fit(module, BATCHES, *data)
    return [record.getMessage() for record in caplog.records if record.name == "leyden"]


def test_a_validation_that_does_not_happen(caplog: pytest.LogCaptureFixture) -> None:
    assert "no validation data" in told(caplog, Validated())[0]
    caplog.clear()
    assert "no validation_step" in told(caplog, Plain(), BATCHES)[0]
    caplog.clear()
    assert told(caplog, Validated(), BATCHES) == []


def test_modules_that_train_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    """R165: they stay so, as in 2.x."""
    module = Plain()
    module.layer.eval()
    assert told(caplog, module)[0].startswith("1 modules are in eval mode")
    assert not module.layer.training


def test_rows_that_no_epoch_is_long_enough_for(caplog: pytest.LogCaptureFixture) -> None:
    class Rows:
        def log_metrics(self, metrics: Any, step: int) -> None:
            pass

    assert "fewer windows (4) than log_every_n_steps=50" in told(caplog, Plain(), logger=Rows())[0]
    caplog.clear()
    assert told(caplog, Plain(), logger=Rows(), log_every_n_steps=4) == []


def test_which_file_is_used(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    trainer = Trainer(**QUIET)
    trainer.fit(Plain(), BATCHES)
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    with caplog.at_level(logging.INFO, logger="leyden"):
        Trainer(**{**QUIET, "max_epochs": 2}).fit(Plain(), BATCHES, ckpt_path=path)
    assert f"trainer.fit goes on from {str(path)!r}" in caplog.text


def test_two_callbacks_under_one_key(tmp_path: Path) -> None:
    """R149: each state has its own key; without state it does not matter."""
    twice = [EarlyStopping("loss", patience=1), EarlyStopping("loss", patience=9)]
    with pytest.raises(MisconfigurationException, match="one key.*callback-state-key"):
        Trainer(**QUIET, callbacks=twice).fit(Plain(), BATCHES)
    saving = [ModelCheckpoint(tmp_path / name, monitor="loss") for name in ("a", "b")]
    with pytest.raises(MisconfigurationException, match="ModelCheckpoint"):
        Trainer(**QUIET, callbacks=saving).fit(Plain(), BATCHES)
    Trainer(**QUIET, callbacks=[Callback(), Callback(), EarlyStopping("loss"), EarlyStopping("loss", mode="max")]).fit(
        Plain(), BATCHES
    )


def test_a_run_inside_of_a_run() -> None:
    """The fit fails with it, and the Trainer can be used again."""

    class Validates(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.validate(pl_module, BATCHES)

    trainer = Trainer(**QUIET, callbacks=Validates())
    with pytest.raises(OrderError, match="run-in-run"):
        trainer.fit(Validated(), BATCHES)
    trainer.callbacks.clear()
    trainer.validate(Validated(), BATCHES, verbose=False)


def test_a_learning_rate_that_a_checkpoint_has(tmp_path: Path) -> None:
    """A resumed fit keeps it; nothing is announced that is not used."""
    trainer = Trainer(**QUIET)
    trainer.fit(Plain(), BATCHES)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    finder, module = LearningRateFinder(min_lr=1e-4, num_training_steps=20), Plain()
    Trainer(**{**QUIET, "max_epochs": 2}, callbacks=finder).fit(module, BATCHES, ckpt_path=tmp_path / "a.ckpt")
    assert finder.optimal_lr is None and module.hparams.lr == 0.1


def test_hyperparameters_that_contradict_each_other_matter_to_loggers_only() -> None:
    class Data(LightningDataModule):
        def __init__(self, lr: float = 0.2) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return BATCHES

    Trainer(**QUIET).fit(Plain(), datamodule=Data())


def test_hooks_of_other_runs_are_left_alone() -> None:
    class Wrong(Validated):
        def on_train_batch_end(self, nothing: Any) -> None:
            pass

    Trainer(**QUIET).validate(Wrong(), BATCHES, verbose=False)
    with pytest.raises(MisconfigurationException, match="on_train_batch_end"):
        Trainer(**QUIET).fit(Wrong(), BATCHES)


def test_accumulation_set_to_nonsense() -> None:
    with pytest.raises(InvalidValueError, match="expected an int >= 1"):
        Trainer(**QUIET).accumulate_grad_batches = 0
