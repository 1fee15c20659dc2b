"""Reductions over an epoch that never wait for the device.

A value that lives on the CPU is a Python number when it gets here, and is reduced at once, in double
precision. A value on another device stays there: such values are gathered and reduced in batches of
``CHUNK``, by one kernel each, so that logging neither synchronises nor holds more than ``CHUNK`` scalars.
Sums on the device are kept in float64, too (float32 on MPS, which has no float64): the mean over a long
epoch does not lose digits.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from leyden.errors import MisconfigurationException

#: Values of one key that wait on the device before they are folded into one by a single cheap kernel.
CHUNK: Final = 256

Number = float | Tensor  # a tensor has shape () and lives on the device of what was logged

_NAMES: Final[dict[str, str]] = {"mean": "mean", "avg": "mean", "sum": "sum", "min": "min", "max": "max"}
_FUNCTIONS: Final[tuple[tuple[Any, str], ...]] = (
    (torch.mean, "mean"),
    (torch.sum, "sum"),
    (torch.min, "min"),
    (torch.max, "max"),
    (builtins.sum, "sum"),
    (builtins.min, "min"),
    (builtins.max, "max"),
)


def reduction_name(reduce_fx: Any) -> str:
    """The name behind what a user gave as ``reduce_fx``.

    Args:
        reduce_fx: "mean", "avg", "sum", "min" or "max" in any case, the torch function of that name, or one
            of the builtins ``sum``, ``min`` and ``max``.

    Returns:
        "mean", "sum", "min" or "max".

    Raises:
        MisconfigurationException: for anything else (``log-reduce-fx``).

    >>> reduction_name("AVG"), reduction_name(torch.max), reduction_name(sum)
    ('mean', 'max', 'sum')
    """
    if isinstance(reduce_fx, str):
        name = _NAMES.get(reduce_fx.lower())
    else:
        name = next((known for function, known in _FUNCTIONS if function is reduce_fx), None)
    if name is None:
        raise MisconfigurationException(
            f"self.log(..., reduce_fx={reduce_fx!r}): expected 'mean', 'sum', 'min' or 'max', or the torch "
            "function of that name; log a torchmetrics.Metric for any other reduction",
            code="log-reduce-fx",
        )
    return name


class Reduction(Protocol):
    """How the values of one key become the value of the epoch."""

    def add(self, number: Number, weight: Number) -> None:
        """Take one value in at once. Hot path for Python numbers."""

    def add_later(self, tensor: Tensor, weight: Number) -> None:
        """Take in a value that lives on a device. The tensor belongs to the reduction from now on."""

    def result(self, sync: Callable[[Number], Tensor] | None = None) -> Number:
        """The value so far; nothing is read from the device.

        Args:
            sync: reduces one number over processes.
        """

    def clear(self) -> None:
        """Start a new epoch."""

    def state(self) -> list[float]:
        """The epoch so far, for a checkpoint. Reads from the device."""

    def load(self, state: list[float]) -> None:
        """Go on from ``state``."""


def build_reduction(name: str) -> Reduction:
    """A fresh reduction.

    >>> mean = build_reduction("mean")
    >>> mean.add(1.0, 3), mean.add(5.0, 1), mean.result()
    (None, None, 2.0)
    """
    return Mean() if name == "mean" else Fold(*_FOLDS[name])


class Mean:
    """Mean weighted by batch size: ``sum(value * weight) / sum(weight)``."""

    __slots__ = ("_pending", "_total", "_weight", "_weights")

    def __init__(self) -> None:
        self._pending: list[Tensor] = []
        self._weights: list[float] = []
        self._total: Number = 0.0
        self._weight: Number = 0.0

    def add(self, number: Number, weight: Number) -> None:
        """See :class:`Reduction`."""
        # never `+=`: a total that is a tensor may be shown to users, and must not change in their hands
        self._total = self._total + number * weight
        self._weight = self._weight + weight

    def add_later(self, tensor: Tensor, weight: Number) -> None:
        """See :class:`Reduction`."""
        if isinstance(weight, Tensor):
            self.add(tensor.to(_accurate(tensor.device)), weight)
            return
        self._pending.append(tensor)
        self._weights.append(weight)
        if len(self._pending) == CHUNK:
            self._fold()

    def result(self, sync: Callable[[Number], Tensor] | None = None) -> Number:
        """See :class:`Reduction`."""
        self._fold()
        total, weight = self._total, self._weight
        if sync is not None:
            total, weight = sync(total), sync(weight)
        if not isinstance(weight, Tensor) and weight == 0:
            return math.nan
        return total / weight

    def clear(self) -> None:
        """See :class:`Reduction`."""
        self._total = 0.0
        self._weight = 0.0
        self._pending.clear()
        self._weights.clear()

    def state(self) -> list[float]:
        """See :class:`Reduction`."""
        self._fold()
        return [float(self._total), float(self._weight)]

    def load(self, state: list[float]) -> None:
        """See :class:`Reduction`."""
        self.clear()
        self._total, self._weight = state

    def _fold(self) -> None:
        if not self._pending:
            return
        values = torch.stack(self._pending)
        values = values.to(_accurate(values.device))
        weights = self._weights
        if weights.count(weights[0]) == len(weights):
            total = values.sum() * weights[0]
        else:
            total = torch.dot(values, _to_device(weights, values))
        self._total = self._total + total
        self._weight = self._weight + sum(weights)
        self._pending.clear()
        self._weights.clear()


class Fold:
    """Sum, minimum or maximum: every value counts alike.

    Args:
        start: the value before anything was logged.
        merge: two numbers into one; a nan wins.
        fold: a tensor of shape ``(n,)`` into one of shape ``()``.
    """

    __slots__ = ("_fold", "_merge", "_pending", "_start", "_value")

    def __init__(
        self, start: float, merge: Callable[[Number, Number], Number], fold: Callable[[Tensor], Tensor]
    ) -> None:
        self._start = start
        self._merge = merge
        self._fold = fold
        self._pending: list[Tensor] = []
        self._value: Number = start

    def add(self, number: Number, weight: Number) -> None:
        """See :class:`Reduction`."""
        self._value = self._merge(self._value, number)

    def add_later(self, tensor: Tensor, weight: Number) -> None:
        """See :class:`Reduction`."""
        self._pending.append(tensor)
        if len(self._pending) == CHUNK:
            self.result()

    def result(self, sync: Callable[[Number], Tensor] | None = None) -> Number:
        """See :class:`Reduction`."""
        if self._pending:
            values = torch.stack(self._pending)
            self._value = self._merge(self._value, self._fold(values.to(_accurate(values.device))))
            self._pending.clear()
        return self._value if sync is None else sync(self._value)

    def clear(self) -> None:
        """See :class:`Reduction`."""
        self._value = self._start
        self._pending.clear()

    def state(self) -> list[float]:
        """See :class:`Reduction`."""
        return [float(self.result())]

    def load(self, state: list[float]) -> None:
        """See :class:`Reduction`."""
        self.clear()
        (self._value,) = state


def _smaller(a: Number, b: Number) -> Number:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.minimum(*_tensors(a, b))
    return b if b < a or b != b else a


def _larger(a: Number, b: Number) -> Number:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.maximum(*_tensors(a, b))
    return b if b > a or b != b else a


def _tensors(a: Number, b: Number) -> tuple[Tensor, Tensor]:
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    # full_like is a kernel with a constant; torch.tensor(a, device=...) is a copy that waits for the device
    first = a if isinstance(a, Tensor) else torch.full_like(like, a)
    second = b if isinstance(b, Tensor) else torch.full_like(like, b)
    return first, second


_FOLDS: Final[dict[str, tuple[float, Callable[[Number, Number], Number], Callable[[Tensor], Tensor]]]] = {
    "sum": (0.0, lambda a, b: a + b, torch.sum),
    "min": (math.inf, _smaller, torch.amin),
    "max": (-math.inf, _larger, torch.amax),
}


def _accurate(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _to_device(numbers: list[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of shape ``(n,)`` beside ``like``, without waiting for the device."""
    tensor = torch.tensor(numbers, dtype=like.dtype)
    if like.is_cuda:  # only from pinned memory does a copy return at once
        return tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.device)
