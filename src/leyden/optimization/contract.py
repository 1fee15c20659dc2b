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

from torch.optim import LBFGS

from leyden.optimization.bare import bare_step, bare_zero_grad
from leyden.optimization.joint import Joint, members_of


class Contract(NamedTuple):
    """How one optimizer wants to be driven.

    Attributes:
        bare_step: the update without torch's wrappers, for optimizers whose ``step`` is known to call its closure
            exactly once, before reading gradients; None for all others.
        zero_grad: clears the gradients in the plainest way that does the same.
        takes_closure: its ``step`` has a ``closure`` parameter.
        has_modes: it has ``train()`` and ``eval()``, which the loop must call (schedule-free optimizers).
        reads_value: it reads the closure's value as a number, so that None is none that it could take.
    """

    bare_step: Callable[[], Any] | None
    zero_grad: Callable[[], Any]
    takes_closure: bool
    has_modes: bool
    reads_value: bool = False


def contract_of(optimizer: Any) -> Contract:
    """Find out what ``optimizer`` can do; everything not known for sure is taken the careful way."""
    if type(optimizer) is Joint:
        members = members_of(optimizer)
        contracts = [contract_of(member) for member in members]
        # The Joint itself calls its closure once, whatever its members are.
        steps = [
            contract.bare_step or member.step for contract, member in zip(contracts, optimizer.optimizers, strict=True)
        ]
        return Contract(
            bare_step=functools.partial(_each, optimizer, steps),
            zero_grad=functools.partial(_each_zero_grad, [contract.zero_grad for contract in contracts]),
            takes_closure=True,
            has_modes=any(contract.has_modes for contract in contracts),
        )
    return Contract(
        bare_step=bare_step(optimizer),
        zero_grad=bare_zero_grad(optimizer),
        takes_closure=_takes_closure(optimizer.step),
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


def _each_zero_grad(zero_grads: list[Callable[[], Any]]) -> None:
    for zero_grad in zero_grads:
        zero_grad()
