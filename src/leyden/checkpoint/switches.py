"""What a fit has switched since it began: parameters that are frozen or not, submodules that train or not, toggles.

Only what the fit itself has changed is kept, by name. A script that freezes other parameters when its fit starts again
is so obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from leyden.optimization.toggling import Toggler

Flags = dict[str, bool]


class Switches(NamedTuple):
    """Flags by name.

    Attributes:
        trained: of parameters: whether they require gradients.
        training: of submodules: whether they are in training mode.
    """

    trained: Flags
    training: Flags


def look_at(module: nn.Module, modes: Sequence[tuple[nn.Module, bool]] = ()) -> Switches:
    """The flags of a module.

    Args:
        module: the module.
        modes: submodules with their modes outside of the evaluation that runs; none if none does.
    """
    before = {id(part): training for part, training in modes}
    return Switches(
        {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        {name: before.get(id(part), part.training) for name, part in module.named_modules()},
    )


def changes(before: Switches, now: Switches) -> dict[str, Flags]:
    """Those of ``now`` that differ from ``before``."""
    return {
        kind: {name: flag for name, flag in after.items() if first.get(name, flag) != flag}
        for kind, first, after in zip(Switches._fields, before, now, strict=True)
    }


def apply(changed: Mapping[str, Flags], module: nn.Module) -> None:
    """Change a module as the fit before has changed it; names that it does not have are left out."""
    parameters, parts = dict(module.named_parameters()), dict(module.named_modules())
    for name, flag in changed["trained"].items():
        if name in parameters:
            parameters[name].requires_grad = flag
    for name, flag in changed["training"].items():
        if name in parts:
            parts[name].training = flag


def toggles_of(toggler: Toggler, module: nn.Module) -> list[dict[str, Any]]:
    """The toggles that are on, with names in the place of parameters."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def named(records: Any) -> list[tuple[str, bool]]:
        return [(names[id(parameter)], flag) for parameter, flag in records if id(parameter) in names]

    return [
        {"optimizer": index, "foreign": named(foreign), "own": named(own)} for index, foreign, own in toggler.frames()
    ]


def toggle(toggles: list[dict[str, Any]], toggler: Toggler, module: nn.Module) -> None:
    """Put toggles back on; the parameters have their flags already."""
    parameters = dict(module.named_parameters())

    def found(records: Any) -> list[Any]:
        return [(parameters[name], flag) for name, flag in records if name in parameters]

    toggler.load_frames([(one["optimizer"], found(one["foreign"]), found(one["own"])) for one in toggles])
