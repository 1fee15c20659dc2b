"""Helpers of ``pytorch_lightning.utilities`` for modules, their attributes and arguments."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from leyden.callback import Callback
from leyden.callbacks.progress.progress_bar import run_number
from leyden.datamodule import LightningDataModule
from leyden.hooks.dispatch import overrides
from leyden.module import LightningModule
from leyden.tree import move_to_device

__all__ = [
    "auto_move_data",
    "convert_inf",
    "get_init_args",
    "get_standard_metrics",
    "grad_norm",
    "is_overridden",
    "is_param_in_hook_signature",
    "save_hyperparameters",
    "unwrap_lightning_module",
]


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, float]:
    """The norms of all gradients, of each parameter and in total, under the keys that Lightning gives them."""
    order = float(norm_type)
    norms = {
        f"grad_{order}_norm{group_separator}{name}": parameter.grad.data.norm(order)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        norms[f"grad_{order}_norm_total"] = torch.tensor(list(norms.values())).norm(order)
    return norms


def unwrap_lightning_module(wrapped_model: Any) -> Any:
    """The module inside of torch's wrappers."""
    while not isinstance(wrapped_model, LightningModule) and hasattr(wrapped_model, "module"):
        wrapped_model = wrapped_model.module
    return getattr(wrapped_model, "_orig_mod", wrapped_model)


def is_overridden(method_name: str, instance: Any = None, parent: type | None = None) -> bool:
    """Whether an object's class overrides a method of its base."""
    if instance is None:
        return False
    bases = (LightningModule, LightningDataModule, Callback) if parent is None else (parent,)
    return overrides(instance, method_name, bases)


def is_param_in_hook_signature(
    hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Whether a function takes a parameter; ``explicit``: by its name."""
    parameters = inspect.signature(getattr(hook_fx, "__wrapped__", hook_fx)).parameters
    positional = [one for one in parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    takes_any = any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters.values())
    enough = min_args is not None and len(positional) >= min_args
    return param in parameters or (not explicit and (takes_any or enough))


# -- attributes and arguments --------------------------------------------------------------------------------------


def get_init_args(frame: FrameType) -> dict[str, Any]:
    """The arguments of the ``__init__`` whose frame this is."""
    values = inspect.getargvalues(frame)
    if "__class__" not in values.locals:
        return {}
    own = {name: values.locals[name] for name in values.args[1:]}
    return {**own, **(values.locals[values.keywords] if values.keywords else {})}


def save_hyperparameters(obj: Any, *args: Any, ignore: Any = None, frame: FrameType | None = None) -> None:
    """``obj.save_hyperparameters(...)``, from the ``__init__`` that calls this."""
    obj.save_hyperparameters(*args, ignore=ignore, frame=frame or sys._getframe(1))


def get_standard_metrics(trainer: Any) -> dict[str, int | str]:
    """What bars show beside the logged values: the version of the run."""
    return run_number(trainer.loggers)


def convert_inf(x: float | None) -> float | None:
    """None for what is no length of a bar."""
    return None if x is None or x != x or abs(x) == float("inf") else x


def auto_move_data(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a module that has its arguments moved to the module's device."""

    @functools.wraps(function)
    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *move_to_device(args, self.device), **move_to_device(kwargs, self.device))

    return moved
