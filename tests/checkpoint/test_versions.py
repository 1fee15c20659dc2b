"""Started again with `ckpt_path="last"`, a run goes on in its own folder, and no row is there twice."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modes
from leyden import Callback, LightningModule, Trainer
from leyden.callbacks import ModelCheckpoint
from leyden.checkpoint import writing
from leyden.loggers import CSVLogger, Logger, TensorBoardLogger


class Module(LightningModule):
    """Logs by step and by epoch; another value from `late` on, so that the file gets another column."""

    def __init__(self, lr: float = 0.1, activation: Any = nn.Tanh, late: int = 99) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=2)
        if self.trainer.global_step >= self.hparams.late:
            self.log("late", 1.0)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class PowerCut(Exception):
    """Ends a run."""


class CutAt(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.clocks.micro_batches > self.batch:
            raise PowerCut


def start(logger: Any, *callbacks: Any, ckpt_path: Any = "last", saves: Any = None, **arguments: Any) -> Trainer:
    """Start the script: a save every four steps, two epochs of six batches."""
    saves = {"every_n_train_steps": 4, "save_top_k": -1} | (saves or {})
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=logger,
        callbacks=[*callbacks, ModelCheckpoint(**saves)],
        enable_progress_bar=False,
    )
    trainer.fit(Module(**arguments), modes.DATA, ckpt_path=ckpt_path)
    return trainer


def rows(folder: Any) -> str:
    return Path(folder, "metrics.csv").read_text()


FIRST = pytest.mark.filterwarnings("ignore:.*checkpoint-last")  # the first start finds none
MOVED = pytest.mark.filterwarnings("ignore:.*checkpoint-dirpath")


@FIRST
@pytest.mark.parametrize("batch", [4, 5, 8, 10])
@pytest.mark.parametrize("late", [99, 3, 7, 9])
def test_rows_are_those_of_a_run_without_a_break(batch: int, late: int, tmp_path: Path) -> None:
    """Rows, and columns, that came after the checkpoint are cut; they come again."""
    start(CSVLogger(tmp_path / "whole"), late=late)
    with pytest.raises(PowerCut):
        start(CSVLogger(tmp_path / "run"), CutAt(batch), late=late)
    again = start(CSVLogger(tmp_path / "run"), late=late)
    assert Path(str(again.ckpt_path)).name == f"epoch={batch // 8}-step={batch // 4 * 4}.ckpt"
    assert rows(again.logger.log_dir) == rows(tmp_path / "whole" / "lightning_logs" / "version_0")
    assert sorted(path.name for path in (tmp_path / "run" / "lightning_logs").iterdir()) == ["version_0"]


@FIRST
def test_a_run_is_broken_off_again_and_again(tmp_path: Path) -> None:
    whole = start(CSVLogger(tmp_path / "whole"))
    for batch in (3, 6, 7, 7, 11):
        with pytest.raises(PowerCut):
            start(CSVLogger(tmp_path / "run"), CutAt(batch))
    again = start(CSVLogger(tmp_path / "run"))
    assert again.logger.version == 1  # before the first checkpoint there is nothing to go on with
    assert rows(again.logger.log_dir) == rows(whole.logger.log_dir)


@FIRST
def test_a_run_that_was_killed_in_its_first_save_leaves_no_file(tmp_path: Path) -> None:
    """The next start takes another version, and nobody else would look into the folder of this one."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    alive, stale = (
        tmp_path / "lightning_logs/version_0/checkpoints" / f".leyden-a.{writing._HOST}-{pid}.partial"
        for pid in (os.getppid(), dead.pid)
    )
    stale.parent.mkdir(parents=True)
    alive.touch()
    stale.touch()
    assert start(CSVLogger(tmp_path)).logger.version == 1
    assert list(stale.parent.iterdir()) == [alive]


@FIRST
def test_another_run_of_a_sweep_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest checkpoint of the folder may belong to other hyper-parameters, or to another module."""
    caplog.set_level(logging.INFO, logger="leyden")
    assert start(CSVLogger(tmp_path), lr=0.1).logger.version == 0
    other = start(CSVLogger(tmp_path), lr=0.2)
    assert (other.logger.version, other.ckpt_path) == (1, None)
    assert "is of another run (lr)" in caplog.text
    again = start(CSVLogger(tmp_path), lr=0.1, activation=nn.ReLU)  # classes have no plain values to compare
    assert (again.logger.version, again.current_epoch) == (0, 2)


@FIRST
def test_a_version_that_was_given_is_kept(tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        start(CSVLogger(tmp_path), CutAt(6))
    assert start(CSVLogger(tmp_path, version=7)).ckpt_path is None
    assert start(CSVLogger(tmp_path, version="version_0")).ckpt_path is not None


@FIRST
def test_the_folder_of_the_checkpoints_may_be_another(tmp_path: Path) -> None:
    """A checkpoint knows the versions of all loggers."""
    loggers = lambda: [CSVLogger(tmp_path / name) for name in "ab"]  # noqa: E731
    saves = {"dirpath": tmp_path / "files"}
    (tmp_path / "b" / "lightning_logs" / "version_3").mkdir(parents=True)
    with pytest.raises(PowerCut):
        start(loggers(), CutAt(6), saves=saves)
    again = start(loggers(), saves=saves)
    assert [logger.version for logger in again.loggers] == [0, 4]
    assert rows(again.loggers[0].log_dir) == rows(again.loggers[1].log_dir)
    elsewhere = start([CSVLogger(tmp_path / "c")], saves=saves)
    assert elsewhere.logger.version == 0  # nothing is there to go on with


@FIRST
@MOVED
def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    whole = start(CSVLogger(tmp_path / "whole"))
    with pytest.raises(PowerCut):
        start(CSVLogger(tmp_path / "a"), CutAt(6))
    (tmp_path / "a").rename(tmp_path / "b")
    again = start(CSVLogger(tmp_path / "b"))
    assert again.ckpt_path is not None
    assert rows(again.logger.log_dir) == rows(whole.logger.log_dir)


@FIRST
@MOVED
def test_rows_of_another_run_are_left_alone(tmp_path: Path) -> None:
    """A fit that begins with somebody else's checkpoint cuts nothing of what is in its own folder."""
    with pytest.raises(PowerCut):
        start(CSVLogger(tmp_path / "a", version=0), CutAt(6))
    (checkpoint,) = (tmp_path / "a").glob("**/*.ckpt")
    logger = CSVLogger(tmp_path / "b", version=0)
    logger.log_metrics({"mine": 1.0, "yours": 2.0}, 5)
    logger.save()
    mine = rows(logger.log_dir).splitlines()
    branch = start(CSVLogger(tmp_path / "b", version=0), ckpt_path=checkpoint)
    assert [line.rstrip(",") for line in rows(branch.logger.log_dir).splitlines()][1:2] == mine[1:]
    own = start(CSVLogger(tmp_path / "a"), ckpt_path=checkpoint)  # a path is no "last": the version is a new one
    assert own.logger.version == 1


class Plain:
    """A logger of the user's, with no more than it needs."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass


class Own(Logger):
    """A logger of the user's that keeps a place."""

    name, version = "own", 0

    def __init__(self) -> None:
        self.steps: list[int | None] = []
        self.rewound: Any = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"count": len(self.steps)}

    def rewind(self, state: Any) -> None:
        self.rewound = state


@FIRST
def test_loggers_of_users(tmp_path: Path) -> None:
    saves = {"dirpath": tmp_path}
    with pytest.raises(PowerCut):
        start([Plain(), Own()], CutAt(6), saves=saves)
    assert start([Plain(), Own()], saves=saves).loggers[1].rewound == {"count": 3}


def events(folder: Any, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


@FIRST
def test_tensorboard_has_no_event_twice(tmp_path: Path) -> None:
    """Events after the checkpoint are cut from the files, and hyper-parameters come once."""
    whole = start(TensorBoardLogger(tmp_path / "whole"))
    for batch in (6, 10):
        with pytest.raises(PowerCut):
            start(TensorBoardLogger(tmp_path / "run"), CutAt(batch))
    again = start(TensorBoardLogger(tmp_path / "run"))
    assert again.logger.version == 0
    for tag in ("loss_step", "loss_epoch", "epoch", "hp_metric"):
        assert events(whole.logger.log_dir, tag) == events(again.logger.log_dir, tag)


@FIRST
def test_a_tensorboard_that_is_running_drops_what_was_cut(tmp_path: Path) -> None:
    """It has read the events already; one in the new file tells from which step on they count no more."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(PowerCut):
        start(TensorBoardLogger(tmp_path), CutAt(7))
    running = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"))
    running.Reload()
    assert [event.step for event in running.Scalars("loss_step")] == [0, 1, 2, 3, 4, 5, 6]
    start(TensorBoardLogger(tmp_path))
    running.Reload()
    assert [event.step for event in running.Scalars("loss_step")] == list(range(12))


@FIRST
@MOVED
def test_tensorboard_leaves_files_of_another_run_alone(tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        start(TensorBoardLogger(tmp_path / "a"), CutAt(6))
    (checkpoint,) = (tmp_path / "a").glob("**/*.ckpt")
    other = TensorBoardLogger(tmp_path / "b", version=0)
    other.log_metrics({"mine": 1.0}, 5)
    other.finalize("success")
    start(TensorBoardLogger(tmp_path / "b", version=0), ckpt_path=checkpoint)
    assert events(other.log_dir, "mine") == [(5, 1.0)]
