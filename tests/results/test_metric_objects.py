"""``torchmetrics`` objects: their own value per step and per epoch, reset by the results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leyden.errors import InvalidValueError
from leyden.results import Results

torchmetrics = pytest.importorskip("torchmetrics")


def test_step_and_epoch_values() -> None:
    """R134."""
    metric = torchmetrics.MeanMetric()
    results = Results(training=True)
    for value in (1.0, 3.0):
        results.batch = torch.zeros(5)
        metric(value)
        results.log("training_step", "x", metric, on_epoch=True)
        assert results.step_metrics() == {"x_step": value}
    results.end_epoch()
    assert results.epoch_metrics() == {"x_epoch": 2.0}
    results.reset()
    assert metric.update_count == 0


def test_update_alone_has_no_step_value() -> None:
    metric = torchmetrics.MeanMetric()
    results = Results(training=False)
    results.batch = torch.zeros(5)
    metric.update(1.0)
    results.log("validation_step", "x", metric, on_step=True)
    assert results.step_metrics() == {}
    results.end_epoch()
    assert results.evaluation_results() == [{"x_epoch": 1.0}]


def test_logged_at_the_end_of_the_epoch() -> None:
    metric = torchmetrics.MeanMetric()
    metric.update(4.0)
    results = Results(training=False)
    results.end_epoch()
    results.log("on_validation_epoch_end", "x", metric)
    assert results.callback_metrics()["x"] == 4.0


def test_must_compute_a_tensor() -> None:
    class Words(torchmetrics.Metric):
        def update(self) -> None:
            pass

        def compute(self) -> str:
            return "good"

    metric = Words()
    metric.update()
    results = Results(training=True)
    results.batch = torch.zeros(1)
    results.log("training_step", "x", metric, on_epoch=True)
    with pytest.raises(ValueError, match="returned str"):
        results.end_epoch()


def test_one_name_is_one_kind() -> None:
    metric = torchmetrics.MeanMetric()
    for first, second in ((metric, 1.0), (1.0, metric)):
        results = Results(training=True)
        results.log("training_step", "x", first)
        with pytest.raises(InvalidValueError, match="log-mixed"):
            results.log("training_step", "x", second)


def test_a_collection_is_for_log_dict() -> None:
    """R125."""
    collection: Any = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
    with pytest.raises(ValueError, match="log_dict"):
        Results(training=True).log("training_step", "x", collection)
