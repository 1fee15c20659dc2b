"""32-true: numbers as they are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch

from leyden.precision.base import Precision


@final
class FullPrecision(Precision):
    """Leaves module, batches and arithmetic alone."""

    precision = "32-true"

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module unchanged."""
        return module

    def convert_input(self, batch: Any) -> Any:
        """Return the batch unchanged."""
        return batch

    def forward_context(self) -> AbstractContextManager[Any]:
        """A context that does nothing."""
        return nullcontext()
