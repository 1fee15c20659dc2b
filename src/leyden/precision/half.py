"""16-true, bf16-true and 64-true: everything in one other type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor

from leyden.precision.base import Precision
from leyden.tree import map_tensors

_TYPES: Final = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


@final
class HalfPrecision(Precision):
    """Floating parameters, inputs and new tensors all have one type other than float32.

    Args:
        precision: "16-true", "bf16-true" or "64-true".
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._dtype = _TYPES[precision]

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        """Convert floating parameters and buffers in place; complex ones stay as they are."""
        # Not module.to(dtype), which would also convert complex tensors, and drop their imaginary parts.
        convert = {torch.float16: module.half, torch.bfloat16: module.bfloat16, torch.float64: module.double}
        return convert[self._dtype]()

    def convert_input(self, batch: Any) -> Any:
        """Convert the floating tensors of a batch."""

        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        return map_tensors(convert, batch)

    def forward_context(self) -> AbstractContextManager[Any]:
        """A context in which new floating tensors have this type."""
        return _default_dtype(self._dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
