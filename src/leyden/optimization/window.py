"""Accumulation: the micro-batches whose gradients make one update, and their exact weights.

The gradient of a window equals the gradient of the one big batch. With losses that are means over their micro-batch:

    unweighted:  mean(loss_i)                      each loss is divided by the window's true size
    weighted:    sum(w_i * loss_i) / sum(w_i)      w_i = tokens, samples, ... of micro-batch i

The true size is not always known when a window opens: a loader without length may end, a loss may be None, a weight
is known only when its micro-batch has run. So each loss is divided by what is known at its time, and at the close the
gradients are multiplied once by what was unknown (``correction``). In the plain case that factor is exactly 1 and
nothing is multiplied: the bits are those of ``(loss / size).backward()``.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Final

import torch
from torch import Tensor

from leyden.errors import InvalidValueError

Weight = float | Tensor


class Window:
    """The open window of one optimizer.

    Attributes:
        key: tells one window of a run from the next.
        is_open: whether it has begun and not been closed.
        micro_batches: how many have come, counted in manual mode.
        size: micro-batches planned for this window: its true size where the loader's length is known.
        losses: micro-batches of this window that had a loss.
        batches: ``(batch, batch_idx)`` of the window so far, kept only for optimizers that may ask for a replay.
        sum: the loss of the window so far, kept only where somebody reads it.
    """

    __slots__ = ("batches", "is_open", "key", "losses", "micro_batches", "size", "sum", "total", "unit")

    def __init__(self) -> None:
        self.key: int | None = None
        self.is_open = False
        self.micro_batches = 0
        self.size = 1
        self.batches: list[tuple[Any, int]] = []
        self.restart()

    def begin(self, size: int, key: int | None = None) -> None:
        """Open a window of ``size`` micro-batches."""
        self.key = key
        self.is_open = True
        self.micro_batches = 0
        self.size = size
        self.batches.clear()
        self.restart()

    def restart(self) -> None:
        """Forget the losses of this window: its closure is evaluated anew."""
        self.losses = 0
        self.unit: Weight | None = None
        self.total: Weight = 0.0
        self.sum: Tensor | None = None

    def value(self, share: Tensor | None, *, whole: bool) -> Tensor | None:
        """What the closure returns: the last share, or the loss of the whole window, for line searches.

        The value is a detached copy: the loss may be a view of a parameter that is about to move.
        """
        if not whole:
            return None if share is None else share.detach().clone()
        correction = self.correction()
        return self.sum if self.sum is None or correction is None else self.sum * correction

    def share(self, loss: Tensor, weight: Weight | None) -> Tensor:
        """The part of ``loss`` that goes into the window's gradient.

        Args:
            loss: mean loss of the micro-batch, one element.
            weight: number of things that the mean is over, or None. A tensor is never read, so it may live on the
                device.

        Returns:
            ``loss / size``, scaled by the weight relative to the first weight of the window, so that magnitudes (and
            float16 gradients) stay where they were.
        """
        if (weight is None) != (self.unit is None) and self.losses:
            raise InvalidValueError(
                "training_step returned a 'weight' for some micro-batches of a window and none for others; "
                "return it for all of them or for none",
                code="window-mixed-weights",
            )
        self.losses += 1
        if weight is None:
            return loss / self.size if self.size != 1 else loss
        weight = _checked(weight, loss.dtype)
        if self.unit is None:
            self.unit = _nonzero(weight)
        self.total = self.total + weight
        return loss * (weight / (self.unit * self.size))

    def correction(self) -> Weight | None:
        """What the accumulated gradients must be multiplied by at the close, or None if they are right already."""
        if self.losses == 0:
            return None
        if self.unit is None:
            return None if self.losses == self.size else self.size / self.losses
        factor = self.unit * self.size / _nonzero(self.total)
        return None if isinstance(factor, float) and factor == 1.0 else factor


_REMEDY: Final = "it is the number of tokens, samples or other things that the loss is a mean of"


def _checked(weight: Any, dtype: torch.dtype) -> Weight:
    if isinstance(weight, Tensor):
        if weight.numel() != 1:
            raise InvalidValueError(
                f"'weight' is a tensor of shape {tuple(weight.shape)}; it must have one element: {_REMEDY}",
                code="window-weight",
            )
        # single precision at least: halves cannot count tokens; double for a loss in double
        return weight.detach().reshape(()).to(torch.promote_types(dtype, torch.float32))
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
        raise InvalidValueError(
            f"'weight' is {weight!r}; it must be a finite number >= 0: {_REMEDY}", code="window-weight"
        )
    return float(weight)


def _nonzero(weight: Weight) -> Weight:
    """The weight, or 1 where it is 0: a window without a single token has a gradient of 0, not nan."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, torch.ones_like(weight), weight)
    return weight or 1.0
