"""What is done to gradients between backward and step: corrected, measured, clipped."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from leyden.errors import InvalidTypeError, MisconfigurationException
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import parameters_of


class GradClipAlgorithmType(str, Enum):
    """How gradients are clipped: by the total norm of an optimizer's gradients, or value by value."""

    NORM = "norm"
    VALUE = "value"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)  # as users write it, in error texts too


def check_clip_value(value: Any) -> None:
    """Refuse a ``gradient_clip_val`` that is no number.

    Raises:
        InvalidTypeError: naming what came.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidTypeError(
            f"gradient_clip_val must be an int or a float, got {value!r} of type {type(value).__name__}",
            code="clip-value",
        )


def clip_algorithm(algorithm: Any) -> GradClipAlgorithmType | None:
    """The algorithm meant by a string of any case, an enum or None.

    Raises:
        MisconfigurationException: naming the allowed ones.
    """
    if algorithm is None:
        return None
    try:
        return GradClipAlgorithmType(str(algorithm).lower())
    except ValueError:
        raise MisconfigurationException(
            f"gradient_clip_algorithm {algorithm!r} is not known; allowed are 'norm' and 'value'",
            code="clip-algorithm",
        ) from None


def clip(optimizer: Any, value: float | None, algorithm: GradClipAlgorithmType | None) -> None:
    """Clip the gradients of one optimizer in place; of a Joint, member by member.

    Args:
        optimizer: whose parameters' gradients are clipped.
        value: greatest norm or absolute value; nothing is clipped where it is None or not positive.
        algorithm: None means the total norm.
    """
    if not value or value <= 0:
        return
    for member in members_of(optimizer):
        if algorithm is GradClipAlgorithmType.VALUE:
            clip_grad_value_(parameters_of(member), value)
        else:
            clip_grad_norm_(parameters_of(member), value)


def total_norm(optimizer: Any, norm_type: float = 2.0) -> Tensor:
    """The norm of all gradients of one optimizer, a 0-d tensor on their device; nothing is read."""
    return torch.nn.utils.get_total_norm(gradients_of(optimizer), norm_type)


def gradients_of(optimizer: Any) -> list[Tensor]:
    """The gradients that an optimizer's parameters have now."""
    return [p.grad for p in parameters_of(optimizer) if p.grad is not None]


@torch.no_grad()
def scale_gradients(optimizer: Any, factor: float | Tensor) -> None:
    """Multiply all gradients of an optimizer in place, in one call where their kind allows it."""
    gradients = gradients_of(optimizer)
    if any(gradient.is_sparse for gradient in gradients):
        for gradient in gradients:
            gradient.mul_(factor)
    elif gradients:
        torch._foreach_mul_(gradients, factor)
