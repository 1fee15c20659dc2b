"""Metric objects go on with what they have accumulated, logged or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import CatMetric, MeanMetric, MetricCollection, MinMaxMetric
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score

import modes
from resumption import SaveAt, run
from sameness import differences


class Measured(modes.Steps):
    """Logs metric objects by step and by epoch, or computes them itself at the epoch's end."""

    def build(self) -> None:
        super().build()
        self.accuracy = BinaryAccuracy()
        self.most = MinMaxMetric(MeanMetric())
        self.several = MetricCollection([BinaryAccuracy(), BinaryF1Score()])
        self.all = CatMetric()
        self.in_list = [MeanMetric()]
        self.sums: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        guess, truth = (self.head(self.backbone(batch[0]))).sigmoid(), (batch[1] > 0.5).int()
        self.accuracy(guess, truth)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict(self.several(guess, truth), on_step=False, on_epoch=True, batch_size=2)
        self.most(loss.detach())
        self.all.update(loss.detach())
        self.in_list[0].update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict({f"most_{name}": value for name, value in self.most.compute().items()})
        self.log("std", self.all.compute().std())
        self.sums.append(self.all.compute())
        self.all.reset()


def build() -> Any:
    class Module(Measured, modes.leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            Measured.build(self)

    return Module()


@pytest.mark.parametrize(
    ("hook", "batch"), [("on_train_batch_end", 0), ("on_train_batch_end", 5), ("on_validation_end", 5)]
)
def test_metric_objects_go_on(hook: str, batch: int, tmp_path: Path) -> None:
    whole = run("one", SaveAt(tmp_path / "a.ckpt", hook, 1, batch), module=build())
    second = run("one", seed=9, ckpt_path=tmp_path / "a.ckpt", module=build())
    assert differences(whole.state["metrics"], second.state["metrics"]) == []
    assert differences(whole.rows[-len(second.rows) :], second.rows) == []
    assert "most_max" in whole.state["metrics"]
    assert differences(whole.module.sums[-2:], second.module.sums) == []


def test_a_validation_leaves_no_mode_behind(tmp_path: Path) -> None:
    """Metric objects change their hash with what they hold, so that their modes are found by other means."""

    def evaluated() -> Any:
        module = build()
        module.validation_step = lambda batch, batch_idx: module.accuracy(torch.ones(2), torch.ones(2).int())
        return module

    run("one", SaveAt(tmp_path / "a.ckpt", "on_validation_batch_end", 1, 5, 1), module=evaluated())
    assert torch.load(tmp_path / "a.ckpt")["leyden"]["switches"] == {"trained": {}, "training": {}}
    second = run("one", seed=9, ckpt_path=tmp_path / "a.ckpt", module=evaluated())
    assert all(part.training for part in second.module.modules())


def test_a_metric_object_that_no_attribute_holds_starts_anew(tmp_path: Path) -> None:
    """Its state cannot be found in another process, so that its values are those since the resume."""

    def hidden() -> Any:
        module, held_by_nobody = build(), MeanMetric()
        step = module.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            loss = step(batch, batch_idx)
            held_by_nobody.update(loss.detach())
            module.log("hidden", held_by_nobody, on_step=False, on_epoch=True)
            module.log("listed", module.in_list[0], on_step=False, on_epoch=True)
            return loss

        module.training_step = training_step
        return module

    run("one", SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 3), module=hidden())
    checkpoint = torch.load(tmp_path / "a.ckpt")
    names = [entry["name"] for entry in checkpoint["leyden"]["results"]["entries"]]
    assert "listed" in names
    assert "hidden" not in names
    second = run("one", seed=9, ckpt_path=tmp_path / "a.ckpt", module=hidden())
    assert "hidden" in second.state["metrics"]
