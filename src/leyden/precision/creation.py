"""Where and in which type new tensors and parameters are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from leyden.precision.base import Precision


@contextmanager
def creating(precision: Precision, device: torch.device, *, empty: bool = False) -> Iterator[None]:
    """Make new floating tensors on a device, in the type that a precision gives parameters.

    Args:
        precision: that of the run.
        device: where they are made, if the code does not say.
        empty: whether what ``torch.nn.init`` does is left out, so that new parameters hold whatever memory held.

    >>> from leyden.precision import build_precision
    >>> with creating(build_precision("bf16-true", device_type="cpu"), torch.device("cpu")):
    ...     torch.nn.Linear(1, 1).weight.dtype
    torch.bfloat16
    """
    typed = nullcontext() if precision.autocasts else precision.forward_context()
    with torch.device(device), typed, _Uninitialised() if empty else nullcontext():
        yield


class _Uninitialised(TorchFunctionMode):
    """Functions of ``torch.nn.init`` return their tensor as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
