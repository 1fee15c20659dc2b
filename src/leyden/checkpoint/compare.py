"""What a file and the present run do not have in common, to begin with in their weights.

Everything is found before anything changes, and told at once: as an error where going on would be wrong, as a warning
where it is a choice that the user may not know of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leyden.optimization.undo import Undo

_SHOWN: Final = 6
_TYPES: Final = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


@dataclass
class Report:
    """Differences, each with its remedy.

    Attributes:
        errors: with these the run would not be the one that was broken off, or fail later.
        choices: these may be meant.
        lines: what is not done as the file says, and is printed: the component, the choice, what is done.
    """

    errors: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    lines: list[tuple[str, str, str]] = field(default_factory=list)


def compare_weights(report: Report, module: nn.Module, weights: Mapping[str, Any], *, strict: bool) -> None:
    """Compare names and shapes of a module's tensors with those of a file; neither changes.

    Args:
        report: gets what was found.
        module: the module.
        weights: what the file has under ``state_dict``.
        strict: whether a name that only one of them has is an error.
    """
    own, found = module.state_dict(), Report()
    told, remedy = found.choices, ", and are left out"
    if strict:
        told, remedy = found.errors, "; build the module as it was, or set self.strict_loading = False"
    for what, names in (
        ("missing in the file", [name for name in own if name not in weights]),
        ("only in the file", [name for name in weights if name not in own]),
    ):
        told += [f"weights are {what}: {listed(names)}{remedy}"] if names else []
    shapes = [
        f"{name} is {_shape(weights[name])} in the file and {_shape(value)} here"
        for name, value in own.items()
        if name in weights and not is_lazy(value) and _shape(value) != _shape(weights[name])
    ]
    if shapes:
        found.errors.append(f"weights have another shape: {listed(shapes)}; build the module as it was")
    has_none = bool(own) and own.keys().isdisjoint(weights)
    if has_none and not strict:
        found.errors.append("not a single weight of the module is in the file; take the file of this module")
    if found.errors and _loads(module, weights, strict=strict):
        return  # the module has a way of its own to load what an older one has saved
    report.errors += found.errors
    report.choices += found.choices


def not_finite(module: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Names of weights in a file that are NaN or infinite, where the module's own are not so from the start."""
    own = module.state_dict()
    return [
        name
        for name, value in weights.items()
        if not is_finite(value) and not (name in own and _is_alike(value, own[name]))
    ]


def compare_types(report: Report, module: nn.Module, weights: Mapping[str, Any], *, precision: str) -> None:
    """Compare the types of tensors that both have.

    Args:
        report: gets what was found.
        module: the module, before it is converted.
        weights: what the file has under ``state_dict``.
        precision: of the run, to whose type the module will be converted.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(weights.get(name), Tensor)}
    types = {
        name: (weights[name].dtype, _TYPES.get(precision, here.dtype) if here.is_floating_point() else here.dtype)
        for name, here in own.items()
    }
    differ = {name: pair for name, pair in types.items() if pair[0] != pair[1]}
    told = listed([f"{name} is {there} in the file and {here} here" for name, (there, here) in differ.items()])
    if not all(there.is_floating_point and here.is_floating_point for there, here in differ.values()):
        report.errors.append(f"weights have another type: {told}; build the module as it was")
    elif differ:
        report.choices.append(f"weights are converted to another precision: {told}")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def is_finite(value: Any) -> bool:
    """Whether a tensor has no NaN and nothing infinite; anything else has none."""
    if not isinstance(value, Tensor) or value.is_quantized or value.is_meta:
        return True
    values = value.values() if value.is_sparse else value
    return bool(torch.isfinite(values).all()) if values.is_floating_point() or values.is_complex() else True


def _is_alike(there: Tensor, here: Tensor) -> bool:
    """Whether the module has it so from the start, as a mask of attention has."""
    if there.shape != here.shape:
        return False
    there, here = there.detach().cpu(), here.detach().cpu()
    return torch.equal(torch.isnan(there), torch.isnan(here)) and torch.equal(torch.isinf(there), torch.isinf(here))


def _loads(module: nn.Module, weights: Mapping[str, Any], *, strict: bool) -> bool:
    """Whether the module takes some of the weights nevertheless; it is then as it was before."""
    undo, count = Undo(module), len(module.state_dict())
    try:
        missing = getattr(module.load_state_dict(weights, strict=strict), "missing_keys", ())
    except Exception:
        return False
    finally:
        undo()
    return len(missing) < count


def listed(items: Sequence[str]) -> str:
    """A few items in full, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
