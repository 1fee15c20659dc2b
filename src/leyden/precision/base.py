"""The interface of a precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, final

import torch

from leyden.precision.scaling import LossScale


class Precision(ABC):
    """How numbers are represented in forward, backward and update.

    Attributes:
        precision: the 2.x name, e.g. "bf16-mixed".
        loss_scale: the loss scaler, or None where losses are not scaled.
        autocasts: whether the step methods run under autocast, which the optimizer's arithmetic must not.
        device_type: the device that autocast is for.
    """

    precision: str
    loss_scale: LossScale | None = None
    autocasts: bool = False
    device_type: str = "cpu"

    @property
    def is_mixed(self) -> bool:
        """Whether parameters and arithmetic differ in type."""
        return self.precision.endswith("-mixed")

    @abstractmethod
    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Give parameters and buffers their type, in place."""

    @abstractmethod
    def convert_input(self, batch: Any) -> Any:
        """Give the floating tensors of a batch the type that the module wants."""

    @abstractmethod
    def forward_context(self) -> AbstractContextManager[Any]:
        """The context in which ``*_step`` methods run."""

    @final
    def update_context(self) -> AbstractContextManager[Any]:
        """The context in which backward and the optimizer run when they are called from inside ``training_step``."""
        return torch.autocast(self.device_type, enabled=False)
