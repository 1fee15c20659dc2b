"""The interface of a precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch

from leyden.precision.scaling import LossScale


class Precision:
    """How numbers are represented in forward, backward and update: as they are, until a subclass says otherwise.

    Methods of Lightning's that are not here are refused in a subclass (:mod:`leyden.strategies.uncalled`).

    Attributes:
        precision: the 2.x name, e.g. "bf16-mixed".
        loss_scale: the loss scaler, or None where losses are not scaled.
        autocasts: whether the step methods run under autocast, which the optimizer's arithmetic must not.
        device_type: the device that autocast is for.
    """

    precision: str = "32-true"
    loss_scale: LossScale | None = None
    autocasts: bool = False
    device_type: str = "cpu"

    @property
    def is_mixed(self) -> bool:
        """Whether parameters and arithmetic differ in type."""
        return self.precision.endswith("-mixed")

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Give parameters and buffers their type, in place; by default that which they have."""
        return module

    def convert_input(self, batch: Any) -> Any:
        """Give the floating tensors of a batch the type that the module wants; by default that which they have."""
        return batch

    def convert_output(self, output: Any) -> Any:
        """Convert what a module of a ``Fabric`` returns; a Trainer leaves outputs alone."""
        return output

    def forward_context(self) -> AbstractContextManager[Any]:
        """The context in which ``*_step`` methods run; by default one that does nothing."""
        return nullcontext()

    @final
    def update_context(self) -> AbstractContextManager[Any]:
        """The context in which backward and the optimizer run when they are called from inside ``training_step``."""
        return torch.autocast(self.device_type, enabled=False)
