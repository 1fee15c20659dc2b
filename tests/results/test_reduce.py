"""Reductions: numbers and tensors on a device give the same, in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from leyden.results import Results, reduce
from leyden.results.reduce import CHUNK, build_reduction

NAMES = ("mean", "sum", "min", "max")


def plain(name: str, values: list[float], weights: list[float]) -> float:
    if name == "mean":
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    return {"sum": sum, "min": min, "max": max}[name](values)


@pytest.mark.parametrize("same_weights", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_values_on_a_device_reduce_like_numbers(name: str, same_weights: bool) -> None:
    """R132: also across the limit of one batch of pending values, and mixed."""
    torch.manual_seed(0)
    values = torch.randn(2 * CHUNK + 7).tolist()
    weights = [4.0 if same_weights else 1.0 + index % 5 for index in range(len(values))]
    at_once, later, mixed = (build_reduction(name) for _ in range(3))
    for index, (value, weight) in enumerate(zip(values, weights, strict=True)):
        at_once.add(value, weight)
        later.add_later(torch.tensor(value), weight)
        if index % 2:
            mixed.add(value, weight)
        else:
            mixed.add_later(torch.tensor(value), weight)
    expected = plain(name, values, weights)
    for reduction in (at_once, later, mixed):
        assert float(reduction.result()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_pending_values_are_bounded(name: str) -> None:
    reduction: Any = build_reduction(name)
    for _ in range(10 * CHUNK):
        reduction.add_later(torch.tensor(1.0), 2)
        assert len(reduction._pending) < CHUNK


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_lost(name: str, later: bool) -> None:
    for position in range(3):
        reduction = build_reduction(name)
        for index in range(3):
            value = math.nan if index == position else float(index)
            if later:
                reduction.add_later(torch.tensor(value), 1)
                reduction.result()
            else:
                reduction.add(value, 1)
        assert math.isnan(reduction.result())


def test_a_long_mean_keeps_its_digits() -> None:
    """Sums in single precision stall at 2 ** 24."""
    reduction = build_reduction("mean")
    for _ in range(3):
        reduction.add(2.0**24, 1)
        for _ in range(100):
            reduction.add(1.0, 1)
    assert reduction.result() == (3 * 2.0**24 + 300) / 303


def test_weights_on_a_device_stay_there() -> None:
    """A count of tokens that was made on the device is not read."""
    reduction = build_reduction("mean")
    reduction.add_later(torch.tensor(1.0), torch.tensor(3))
    reduction.add(5.0, torch.tensor(1))
    result = reduction.result()
    assert isinstance(result, torch.Tensor) and result == 2.0


@pytest.mark.parametrize("name", NAMES)
def test_state(name: str) -> None:
    first, second = build_reduction(name), build_reduction(name)
    first.add(3.0, 2)
    first.add_later(torch.tensor(1.0), 1)
    second.load(first.state())
    assert float(first.result()) == float(second.result())


class Elsewhere(torch.Tensor):
    """A tensor whose values must not be read: stands for one on a device that is far behind."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in ("item", "tolist", "__float__", "__bool__"), "waited"
        if getattr(func, "__self__", None) is torch.Tensor.is_cpu:
            return False
        return super().__torch_function__(func, types, args, kwargs or {})


def test_values_on_a_device_are_not_read_before_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "CHUNK", 4)
    results = Results(training=True)
    for step in range(10):
        results.batch = torch.zeros(step % 3 + 1)
        for name in NAMES:
            value = torch.tensor(float(step)).as_subclass(Elsewhere)
            results.log("training_step", name, value, on_epoch=True, reduce_fx=name, prog_bar=True)
        results.publish()
        results.progress_bar_tensors()
        results.step_metrics()
    results.end_epoch()
    row = results.epoch_metrics()
    values = {name: value.as_subclass(torch.Tensor).item() for name, value in row.items()}
    expected_mean = sum(step * (step % 3 + 1) for step in range(10)) / sum(step % 3 + 1 for step in range(10))
    assert values == {
        "mean_epoch": pytest.approx(expected_mean),
        "sum_epoch": 45.0,
        "min_epoch": 0.0,
        "max_epoch": 9.0,
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_on_cuda() -> None:
    results = Results(training=True)
    values = torch.arange(3.0 * CHUNK, device="cuda").unbind()
    sizes = torch.arange(3 * CHUNK, device="cuda").unbind()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, value in enumerate(values):
            results.batch = torch.zeros(step % 3 + 1)
            for name in NAMES:
                results.log("training_step", name, value, on_epoch=True, reduce_fx=name, prog_bar=True)
            results.log("training_step", "half", value.bfloat16(), on_epoch=True)
            results.log("training_step", "tokens", value, on_epoch=True, batch_size=sizes[step])
        results.publish()
        results.end_epoch()
        row = results.epoch_metrics()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert row["max_epoch"].is_cuda and row["max_epoch"].item() == 3 * CHUNK - 1
    assert row["sum_epoch"].item() == sum(range(3 * CHUNK))
