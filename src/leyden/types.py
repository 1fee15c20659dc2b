"""Types that several parts share: what users may bring, and what they may return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Batch: TypeAlias = Any
"""What a loader yields; leyden looks into it only to move it and to find its size."""

Loader: TypeAlias = Iterable[Any]
"""Anything that can be iterated once per epoch; most often a ``torch.utils.data.DataLoader``."""

StepOutput: TypeAlias = "Tensor | Mapping[str, Any] | None"
"""What ``training_step`` may return: a loss, a mapping with ``"loss"``, or None to leave the batch out."""


@runtime_checkable
class Stateful(Protocol):
    """An object whose state goes into a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over what ``state_dict`` of an equal object returned."""
        ...


@runtime_checkable
class Steppable(Stateful, Protocol):
    """What leyden needs of an optimizer that does not derive from ``torch.optim.Optimizer``."""

    param_groups: list[dict[str, Any]]
    state: Any
    defaults: dict[str, Any]

    def step(self, closure: Any = None) -> Any:
        """Update the parameters; ``closure`` evaluates the loss anew, for those that need it."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters."""
        ...
