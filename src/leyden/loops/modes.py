"""Training and evaluation modes, given back as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Modes:
    """Switches a module to evaluation and gives every submodule its own mode back.

    Args:
        module: the module.
        to_eval: the user's override of ``on_*_model_eval``, or None.
        to_train: the user's override of ``on_*_model_train``, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        to_eval: Callable[[], Any] | None = None,
        to_train: Callable[[], Any] | None = None,
    ) -> None:
        self._module = module
        self._to_eval = to_eval
        self._to_train = to_train
        self._modes: dict[nn.Module, bool] = {}

    def switch_to_eval(self) -> None:
        """Remember every submodule's mode and switch to evaluation."""
        self._modes = {module: module.training for module in self._module.modules()}
        (self._to_eval or self._module.eval)()

    def restore(self) -> None:
        """Give every submodule back the mode that it had."""
        if self._to_train is not None:
            self._to_train()
            return
        for module, training in self._modes.items():
            module.training = training
