"""Rows on their way to a slow back end, and loggers that send them so."""

from __future__ import annotations

import atexit
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import leyden
from leyden.loggers import CSVLogger, TensorBoardLogger, WandbLogger, outbox
from leyden.loggers.outbox import Outbox

LONG = 60.0  # seconds: what is written before was not written by the clock


class BackEnd:
    """Keeps rows, once it is let go."""

    def __init__(self, is_open: bool = True) -> None:
        self.calls: list[list[Any]] = []
        self.threads: set[str] = set()
        self.gate, self.entered, self.written = threading.Event(), threading.Event(), threading.Event()
        if is_open:
            self.gate.set()

    def write(self, rows: list[Any]) -> None:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(LONG)
        if "bad" in rows:
            raise ValueError("bad")
        self.calls.append(rows)
        self.written.set()

    @property
    def rows(self) -> list[Any]:
        return [row for call in self.calls for row in call]


def test_rows_are_gathered_and_keep_their_order() -> None:
    end = BackEnd()
    box = Outbox(end.write, interval=LONG)
    for row in range(5):
        box.put(row)
    assert end.calls == []
    box.flush()
    for row in range(5, 8):
        box.put(row)
    box.close()
    assert end.calls == [[0, 1, 2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize("interval", [None, 0.001])
def test_a_thread_writes_by_itself(interval: float | None) -> None:
    end = BackEnd()
    box = Outbox(end.write, interval=interval)
    box.put("row")
    assert end.written.wait(LONG)
    assert end.rows == ["row"] and end.threads == {"leyden-outbox"}
    box.close()


def test_nobody_waits_for_a_slow_back_end() -> None:
    """The loop goes on while a row is being written; closing waits for all of them."""
    end = BackEnd(is_open=False)
    box = Outbox(end.write, interval=None)
    box.put(0)
    assert end.entered.wait(LONG)
    for row in range(1, 100):
        box.put(row)
    assert end.rows == []
    end.gate.set()
    box.close()
    assert end.rows == list(range(100))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_MOST", 3)
    end = BackEnd()
    box = Outbox(end.write, interval=LONG)
    for row in range(4):
        box.put(row)
    assert end.rows == [0, 1, 2, 3] and end.threads == {"MainThread"}
    box.close()


def test_an_error_of_the_thread_is_raised_in_the_run() -> None:
    end = BackEnd()
    box = Outbox(end.write, interval=None)
    box.put("bad")
    with pytest.raises(ValueError, match="bad"):
        box.close()
    box.put("good")
    box.close()
    assert end.rows == ["good"]


def test_the_end_of_the_process_writes_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(atexit, "register", kept.append)
    monkeypatch.setattr(atexit, "unregister", kept.remove)
    end = BackEnd()
    box = Outbox(end.write, interval=LONG)
    box.put("row")
    (at_exit,) = kept
    at_exit()
    assert end.rows == ["row"] and kept == []


def test_copies_have_rows_of_their_own() -> None:
    box = Outbox(print, interval=LONG)
    box.put("row")
    copy = pickle.loads(pickle.dumps(box))
    assert copy._write is print and not copy._rows and copy._thread is None
    box.close()


class Module(leyden.LightningModule):
    """Logs its batches' numbers and fails at the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 3:
            raise ZeroDivisionError
        self.log("number", float(batch_idx))
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_nothing_is_lost_by_an_exception(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tensorboard")]
    silent: Any = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = leyden.Trainer(max_epochs=1, logger=loggers, log_every_n_steps=1, accelerator="cpu", **silent)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Module(), [torch.ones(1, 1)] * 5)
    assert (Path(loggers[0].log_dir) / "metrics.csv").read_text().splitlines()[1:] == ["0,0.0,0", "0,1.0,1", "0,2.0,2"]
    events = EventAccumulator(loggers[1].log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("number")] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_what_the_user_logs_to_wandb_has_its_place_behind_the_rows() -> None:
    """wandb numbers rows as they come, and gives an image without a step the step of the row before."""
    pytest.importorskip("wandb")
    seen: list[str] = []
    run: Any = SimpleNamespace(id="id", log=lambda row: seen.extend(row))
    logger = WandbLogger(experiment=run)
    for step in range(50):
        logger.log_metrics({f"row {step}": 1.0})
    logger.experiment.log({"image": 0})
    logger.finalize("success")
    assert seen == [*(f"row {step}" for step in range(50)), "image"]
