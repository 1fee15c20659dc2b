"""What an optimizer can do, found out once when it joins a run.

Optimizers differ in how often they call their closure, whether they take one at all, and whether they have training
and evaluation modes. torch's own optimizers (LBFGS aside) evaluate a closure once, before they read a gradient; so
the closure can run first and the bare update afterwards, without the profiler marks and wrappers that torch puts
around ``step``: the same arithmetic on the same tensors, 15 % of a small step cheaper.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from leyden.optimization.joint import Joint, members_of

_REEVALUATING: Final = frozenset({"LBFGS"})


class Contract(NamedTuple):
    """How one optimizer wants to be driven.

    Attributes:
        evaluates_once: its ``step`` calls the closure exactly once, before reading gradients.
        takes_closure: its ``step`` has a ``closure`` parameter.
        bare_step: the update without torch's wrappers, or ``step`` itself where it is not torch's own.
        stock_zero_grad: ``zero_grad`` is torch's own, so dropping the gradients is all that it does.
        has_modes: it has ``train()`` and ``eval()``, which the loop must call (schedule-free optimizers).
    """

    evaluates_once: bool
    takes_closure: bool
    bare_step: Callable[[], Any]
    stock_zero_grad: bool
    has_modes: bool


def contract_of(optimizer: Any) -> Contract:
    """Find out what ``optimizer`` can do; everything not known for sure is taken the careful way."""
    members = members_of(optimizer)
    stock = [_stock_update(member) for member in members]
    once = all(update is not None for update in stock)
    if isinstance(optimizer, Joint):
        once = all(contract_of(member).evaluates_once for member in members)
        zero = all(contract_of(member).stock_zero_grad for member in members)
        steps = [contract_of(member).bare_step for member in members]
        return Contract(once, True, functools.partial(_each, optimizer, steps), zero, _has_modes(*members))
    update = stock[0]
    bare = functools.partial(_bare, optimizer, update) if update is not None else optimizer.step
    return Contract(once, _takes_closure(optimizer.step), bare, _zeroes_plainly(optimizer), _has_modes(optimizer))


def _stock_update(optimizer: Any) -> Callable[[Any], Any] | None:
    """The undecorated ``step`` of one of torch's own optimizers, or None."""
    kind = type(optimizer)
    step = inspect.getattr_static(kind, "step", None)
    own = kind.__module__.split(".")[:2] == ["torch", "optim"] and kind.__name__ not in _REEVALUATING
    if not own or not isinstance(optimizer, Optimizer) or optimizer.defaults.get("differentiable"):
        return None
    patched = optimizer.__dict__.get("step")
    if patched is not None and not hasattr(patched, "_wrapped_by_lr_sched"):
        return None
    return inspect.unwrap(step) if callable(step) else None


def _bare(optimizer: Any, update: Callable[[Any], Any]) -> Any:
    """Run ``update`` where nobody observes torch's wrapper; call the public ``step`` where somebody does."""
    if (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
        or not getattr(optimizer, "_opt_called", False)
    ):
        # torch's schedulers look at this mark to warn of a wrong order; they set it themselves where they patch step.
        optimizer._opt_called = True
        return optimizer.step()
    with torch.no_grad():
        return update(optimizer)


def _each(joint: Joint, steps: list[Callable[[], Any]]) -> None:
    if joint._optimizer_step_pre_hooks or joint._optimizer_step_post_hooks or not hasattr(joint, "_opt_called"):
        joint._opt_called = True  # type: ignore[attr-defined]
        joint.step()
        return
    for step in steps:
        step()


def _takes_closure(step: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.name == "closure" or p.kind is p.VAR_KEYWORD for p in parameters)


def _zeroes_plainly(optimizer: Any) -> bool:
    own = inspect.getattr_static(type(optimizer), "zero_grad", None)
    return own is inspect.getattr_static(Optimizer, "zero_grad") and "zero_grad" not in vars(optimizer)


def _has_modes(*optimizers: Any) -> bool:
    return any(callable(getattr(o, "train", None)) and callable(getattr(o, "eval", None)) for o in optimizers)
