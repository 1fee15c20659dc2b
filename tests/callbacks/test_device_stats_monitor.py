"""``DeviceStatsMonitor``."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import pytorch_lightning
import torch

from leyden.callbacks import DeviceStatsMonitor
from leyden.errors import MisconfigurationException, MissingExtraError
from modes import MODES, SHARED, run


def keys_by_step(rows: Any) -> list[tuple[int, list[str]]]:
    return [(step, sorted(row)) for step, row in rows.of("DeviceStatsMonitor")]


@pytest.mark.parametrize("mode", MODES)
def test_rows(mode: str) -> None:
    pytest.importorskip("psutil")
    _, _, rows = run(mode, [DeviceStatsMonitor()], max_epochs=2, log_every_n_steps=2)
    found = keys_by_step(rows)
    hooks = {key.split("/")[0].split(".")[1] for _, keys in found for key in keys}
    assert hooks == {f"on_{stage}_batch_{when}" for stage in ("train", "validation") for when in ("start", "end")}
    assert {key.split("/")[1] for _, keys in found for key in keys} == {
        "cpu_percent",
        "cpu_vm_percent",
        "cpu_swap_percent",
    }
    if mode in SHARED:
        theirs = pytorch_lightning.callbacks.DeviceStatsMonitor()
        _, _, their_rows = run(mode, [theirs], pytorch_lightning, max_epochs=2, log_every_n_steps=2)

        def of_training(rows: Any) -> Any:
            return [item for item in keys_by_step(rows) if "train" in item[1][0]]

        assert of_training(their_rows) == of_training(rows)


def test_a_test_has_rows() -> None:
    pytest.importorskip("psutil")
    trainer, module, rows = run("one", [DeviceStatsMonitor()], max_epochs=1, log_every_n_steps=1)
    module.test_step = module.training_step
    rows.rows.clear()
    trainer.test(module, [(torch.ones(2, 3), torch.ones(2, 1))] * 3, verbose=False)
    assert len(rows.of("DeviceStatsMonitor.on_test_batch_end")) == 3


def test_nothing_to_write() -> None:
    _, _, rows = run("one", [DeviceStatsMonitor(cpu_stats=False)], max_epochs=1)
    assert rows.of("Device") == []
    with pytest.raises(MisconfigurationException, match="nothing to write to"):
        run("one", [DeviceStatsMonitor()], logger=False)


def test_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leyden\[psutil\]'"):
        run("one", [DeviceStatsMonitor()])
    run("one", [DeviceStatsMonitor(cpu_stats=False)], max_epochs=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_the_gpu() -> None:
    _, _, rows = run("one", [DeviceStatsMonitor(cpu_stats=False)], max_epochs=1, accelerator="gpu")
    _, row = rows.of("DeviceStatsMonitor.on_train_batch_end")[0]
    assert row["DeviceStatsMonitor.on_train_batch_end/allocated_bytes.all.current"] > 0
