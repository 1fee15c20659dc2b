"""``ThroughputMonitor``."""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import leyden
from leyden.callbacks import ThroughputMonitor
from leyden.errors import InvalidValueError
from modes import DATA, MODES, SHARED, build, run


class Clock:
    """Half a second for every training batch, two for every validation batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def on_train_batch_start(self, *args: Any) -> None:
        self.now += 0.5

    def on_validation_batch_start(self, *args: Any) -> None:
        self.now += 2.0

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


class Ours(Clock, leyden.Callback):
    """For leyden."""


class Theirs(Clock, pytorch_lightning.Callback):
    """For Lightning."""


def size(batch: Any) -> int:
    return int(batch[0].shape[0])


def fit(mode: str, monkeypatch: pytest.MonkeyPatch, framework: Any = leyden, **arguments: Any) -> Any:
    clock = Ours(monkeypatch) if framework is leyden else Theirs(monkeypatch)
    module = build(mode, framework, flops_per_batch=1000)
    class_ = ThroughputMonitor if framework is leyden else pytorch_lightning.callbacks.ThroughputMonitor
    monitor = class_(size, lambda batch: 3 * size(batch), **{"window_size": 3, **arguments})
    return run(mode, [clock, monitor], framework, module=module, max_epochs=3)


@pytest.mark.parametrize("mode", MODES)
def test_training(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, rows = fit(mode, monkeypatch)
    found = rows.of("train/")
    _, last = found[-1]
    assert last == {
        "epoch": 2,
        "train/time": 9.0,
        "train/batches": 18,
        "train/samples": 36,
        "train/lengths": 108,
        "train/device/batches_per_sec": 2.0,
        "train/device/samples_per_sec": 4.0,
        "train/device/items_per_sec": 12.0,
        "train/device/flops_per_sec": 2000.0,
    }
    if mode in SHARED:
        _, _, their_rows = fit(mode, monkeypatch, pytorch_lightning)
        assert their_rows.of("train/") == found


def test_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, rows = fit("one", monkeypatch)
    _, _, their_rows = fit("one", monkeypatch, pytorch_lightning)
    values = {"validate/time": 4.0, "validate/batches": 2, "validate/samples": 4, "validate/lengths": 12}
    assert rows.of("validate/") == [(2, values), (4, values), (6, values)]
    assert [row for _, row in rows.of("validate/")] == [row for _, row in their_rows.of("validate/")]


def test_test_and_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, module, rows = fit("one", monkeypatch, available_flops=1000.0, separator="|")
    module.test_step = module.training_step
    module.predict_step = lambda batch, batch_idx: None
    loader: Any = DataLoader(DATA, batch_size=None)  # type: ignore[arg-type]
    trainer.test(module, loader, verbose=False)
    trainer.predict(module, loader)
    for stage in ("test", "predict"):
        step, row = rows.of(stage)[-1]
        assert step == 6 and row[f"{stage}|time"] == 12.0 and row[f"{stage}|device|mfu"] == 0.5


def test_without_operations_and_items(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, rows = run("one", [Ours(monkeypatch), ThroughputMonitor(size, window_size=2)], max_epochs=1)
    assert {key for _, row in rows.of("train/") for key in row} == {
        "epoch",
        "train/time",
        "train/batches",
        "train/samples",
        "train/device/batches_per_sec",
        "train/device/samples_per_sec",
    }


def test_bad_window() -> None:
    with pytest.raises(InvalidValueError, match="expected at least 2"):
        ThroughputMonitor(size, window_size=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    _, _, rows = run("one", [ThroughputMonitor(size, window_size=2)], max_epochs=1, accelerator="gpu")
    assert rows.of("train/")[-1][1]["train/time"] > 0
