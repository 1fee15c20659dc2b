"""Which parameters of a module are in which optimizer, by name, as they are when asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from leyden.optimization.optimizer import parameters_of

GroupNames = tuple[tuple[str, ...], ...]

#: Stands for the name of a parameter that is not the module's.
FOREIGN = "(not in the module)"


class Coverage(NamedTuple):
    """How the module's parameters and the optimizers' match, by name.

    Attributes:
        unassigned: trainable parameters of the module in no optimizer.
        shared: parameters in more than one optimizer.
        frozen: parameters in an optimizer that do not require gradients.
        foreign: number of optimized parameters that are not the module's.
    """

    unassigned: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    foreign: int = 0


def group_names(optimizers: Sequence[Any], module: nn.Module) -> tuple[GroupNames, ...]:
    """For each optimizer the names of its parameters, group by group."""
    known = _known(module)
    return tuple(
        tuple(tuple(known.get(id(p), FOREIGN) for p in group["params"]) for group in optimizer.param_groups)
        for optimizer in optimizers
    )


def coverage_of(optimizers: Sequence[Any], module: nn.Module) -> Coverage:
    """What is odd about the parameters of the optimizers, in the module's order."""
    known = _known(module)
    owners = Counter(identity for o in optimizers for identity in dict.fromkeys(id(p) for p in parameters_of(o)))
    return Coverage(
        unassigned=tuple(n for n, p in module.named_parameters() if p.requires_grad and id(p) not in owners),
        shared=tuple(known.get(identity, FOREIGN) for identity, count in owners.items() if count > 1),
        frozen=tuple(n for n, p in module.named_parameters() if not p.requires_grad and id(p) in owners),
        foreign=sum(identity not in known for identity in owners),
    )


def _known(module: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters()}
