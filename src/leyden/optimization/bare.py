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
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

_REEVALUATING: Final = frozenset({"LBFGS"})


def backward(loss: Tensor) -> None:
    """``loss.backward()``."""
    if type(loss) is Tensor and loss.requires_grad and loss.numel() == 1 and loss.is_floating_point():
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        loss.backward()  # type: ignore[no-untyped-call]


def drop_gradients(optimizer: Any) -> None:
    """``optimizer.zero_grad()``, for optimizers whose ``zero_grad`` is torch's own."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def bare_step(optimizer: Any) -> Callable[[], Any] | None:
    """``optimizer.step()`` for one of torch's own optimizers that calls its closure once, at the start; else None."""
    kind, instances = type(optimizer), getattr(optimizer, "__dict__", {}).get("step")
    is_own = kind.__module__.split(".")[:2] == ["torch", "optim"] and kind.__name__ not in _REEVALUATING
    if not is_own or not isinstance(optimizer, Optimizer) or optimizer.defaults.get("differentiable"):
        return None
    if instances is not None and not hasattr(instances, "_wrapped_by_lr_sched"):
        return None
    return functools.partial(_step, optimizer, inspect.unwrap(kind.step), instances)


def _step(optimizer: Any, update: Callable[[Any], Any], instances: Any) -> Any:
    if (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
        or optimizer.__dict__.get("step") is not instances
        or not getattr(optimizer, "_opt_called", False)
    ):
        # torch's schedulers look at this mark to warn of a wrong order; they set it themselves where they patch step.
        optimizer._opt_called = True
        return optimizer.step()
    with torch.no_grad():
        return update(optimizer)
