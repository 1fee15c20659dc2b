"""Accumulation windows that are open: their gradients, by the parameters' names, and what they know of themselves.

Gradients are kept where they may still be used: in the middle of a window, and in manual optimization those that no
step has used yet. Optimizers that evaluate their closure several times (LBFGS, SAM) replay the batches of their window,
so these are kept too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leyden.optimization.joint import members_of
from leyden.optimization.turns import Turn
from leyden.optimization.window import Window
from leyden.precision.scaling import LossScale
from leyden.tree import map_tensors, move_to_device

_FIELDS = ("key", "is_open", "micro_batches", "size", "losses", "unit", "total", "sum", "batches")


def capture_windows(module: nn.Module, turns: Sequence[Turn], loss_scale: LossScale | None) -> dict[str, Any]:
    """Gradients and windows as plain data and tensors.

    Args:
        module: holds the parameters.
        turns: the optimizers.
        loss_scale: float16's loss scaler, or None.
    """
    windows = list({id(turn.window): turn.window for turn in turns}.values())
    return {
        "gradients": {n: p.grad.detach() for n, p in module.named_parameters() if p.grad is not None},
        "windows": [_take_apart(window) for window in windows],
        "turns": [
            {
                "window": next(i for i, window in enumerate(windows) if window is turn.window),
                "is_fresh": turn.is_fresh,
                "is_finite": turn.is_finite,
                "is_scaled": loss_scale is not None and loss_scale.is_scaled(turn.optimizer),
            }
            for turn in turns
        ],
    }


def restore_windows(
    saved: Mapping[str, Any], module: nn.Module, turns: Sequence[Turn], loss_scale: LossScale | None
) -> None:
    """Bring back what :func:`capture_windows` returned; the parameters have no gradients yet."""
    parameters = dict(module.named_parameters())
    for name, gradient in saved["gradients"].items():
        if name in parameters:
            parameters[name].grad = gradient.to(parameters[name], copy=True)
    windows: dict[int, Window] = {}
    for turn, state in zip(turns, saved["turns"], strict=False):
        index = state["window"]
        if index not in windows:
            windows[index] = _put_together(saved["windows"][index], _device_of(turn))
        turn.window = windows[index]
        turn.is_fresh, turn.is_finite = state["is_fresh"], state["is_finite"]
        if loss_scale is not None and state["is_scaled"]:
            loss_scale.gradients_made([turn.optimizer])


def _take_apart(window: Window) -> dict[str, Any]:
    fields = {name: getattr(window, name) for name in _FIELDS}
    return map_tensors(Tensor.detach, {**fields, "batches": list(window.batches)})  # type: ignore[no-any-return]


def _put_together(fields: Mapping[str, Any], device: torch.device) -> Window:
    window = Window()
    for name in _FIELDS:
        setattr(window, name, move_to_device(fields[name], device))
    return window


def _device_of(turn: Turn) -> torch.device:
    """Where the parameters of an optimizer are."""
    device: torch.device = members_of(turn.optimizer)[0].param_groups[0]["params"][0].device
    return device
