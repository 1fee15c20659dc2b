"""What an optimizer can do, found out once when it joins a run.

Optimizers differ in how often they call their closure, whether they take one at all, and whether they have training
and evaluation modes. torch's own optimizers (LBFGS aside) evaluate a closure once, before they read a gradient; so
the closure can run first and the bare update (see ``bare``) afterwards.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.optim import LBFGS, Optimizer

from leyden.optimization.bare import bare_step
from leyden.optimization.joint import Joint, members_of


class Contract(NamedTuple):
    """How one optimizer wants to be driven.

    Attributes:
        evaluates_once: its ``step`` calls the closure exactly once, before reading gradients.
        takes_closure: its ``step`` has a ``closure`` parameter.
        bare_step: the update without torch's wrappers, or ``step`` itself where it is not torch's own.
        stock_zero_grad: ``zero_grad`` is torch's own, so dropping the gradients is all that it does.
        has_modes: it has ``train()`` and ``eval()``, which the loop must call (schedule-free optimizers).
        reads_value: it reads the closure's value as a number, so that None is none that it could take.
    """

    evaluates_once: bool
    takes_closure: bool
    bare_step: Callable[[], Any]
    stock_zero_grad: bool
    has_modes: bool
    reads_value: bool = False


def contract_of(optimizer: Any) -> Contract:
    """Find out what ``optimizer`` can do; everything not known for sure is taken the careful way."""
    if isinstance(optimizer, Joint):
        contracts = [contract_of(member) for member in members_of(optimizer)]
        return Contract(
            evaluates_once=all(contract.evaluates_once for contract in contracts),
            takes_closure=True,
            bare_step=functools.partial(_each, optimizer, [contract.bare_step for contract in contracts]),
            stock_zero_grad=all(contract.stock_zero_grad for contract in contracts),
            has_modes=any(contract.has_modes for contract in contracts),
        )
    bare = bare_step(optimizer)
    return Contract(
        evaluates_once=bare is not None,
        takes_closure=_takes_closure(optimizer.step),
        bare_step=bare or optimizer.step,
        stock_zero_grad=_zeroes_plainly(optimizer),
        has_modes=callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)),
        reads_value=isinstance(optimizer, LBFGS),
    )


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
