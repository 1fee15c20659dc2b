"""backward, zero_grad and step without the wrappers that torch puts around them.

torch's public calls mark the profiler's timeline, guard against dynamo and look for hooks: a quarter of a small step.
Here they are left out where nobody observes them; the arithmetic, and so every bit, stays the same. Whatever is not
plain (a tensor subclass, an optimizer of another kind, a hook, a running profiler) takes torch's own way, with torch's
own errors. All that leyden knows of torch's internals about these calls stands in this file.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

_TORCH: Final = str(Path(torch.__file__).parent)
_REEVALUATING: Final = frozenset({"LBFGS.step"})


def backward(loss: Tensor) -> None:
    """``loss.backward()``."""
    if type(loss) is Tensor and loss.requires_grad and loss.numel() == 1 and loss.is_floating_point():
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        loss.backward()  # type: ignore[no-untyped-call]


def bare_zero_grad(optimizer: Any) -> Callable[[], Any]:
    """``optimizer.zero_grad()``; where that is torch's own, gradients are just dropped."""
    own = inspect.getattr_static(type(optimizer), "zero_grad", None)
    is_torchs = own is inspect.getattr_static(Optimizer, "zero_grad")
    return functools.partial(_drop_gradients if is_torchs else _zero_grad, optimizer)


def _zero_grad(optimizer: Any) -> None:
    optimizer.zero_grad()


def _drop_gradients(optimizer: Any) -> None:
    if "zero_grad" in optimizer.__dict__:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def bare_step(optimizer: Any) -> Callable[[], Any] | None:
    """``optimizer.step()`` without wrappers, or None unless it is known to call a closure once, at its start.

    That is known of the ``step`` methods of torch's own optimizers, inherited ones included, LBFGS aside.
    """
    if not isinstance(optimizer, Optimizer) or optimizer.defaults.get("differentiable"):
        return None
    of_class, of_instance = type(optimizer).step, optimizer.__dict__.get("step")
    update = _undecorated(of_class)
    if update is None or update.__qualname__ in _REEVALUATING:
        return None
    if of_instance is not None and not _is_schedulers_mark(of_instance, of_class):
        return None
    return functools.partial(_step, optimizer, update, of_class, of_instance)


def _undecorated(step: Any) -> FunctionType | None:
    """The function under its decorators, or None if any layer is not torch's: a patch wants to be called."""
    while isinstance(step, FunctionType) and step.__code__.co_filename.startswith(_TORCH):
        inner = getattr(step, "__wrapped__", None)
        if inner is None:
            return step
        step = inner
    return None


def _is_schedulers_mark(of_instance: Any, of_class: Any) -> bool:
    """Whether a ``step`` on the instance is what torch's schedulers put there around the class's own."""
    return hasattr(of_instance, "_wrapped_by_lr_sched") and getattr(of_instance, "__wrapped__", None) is of_class


def _step(optimizer: Any, update: Callable[[Any], Any], of_class: Any, of_instance: Any) -> Any:
    if (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
        or type(optimizer).step is not of_class
        or optimizer.__dict__.get("step") is not of_instance
        or not getattr(optimizer, "_opt_called", False)
    ):
        # torch's schedulers look at this mark to warn of a wrong order; they set it themselves where they patch step.
        optimizer._opt_called = True
        return optimizer.step()
    with torch.no_grad():
        return update(optimizer)
