"""Names that PyTorch itself has removed, for programs of that time."""

from __future__ import annotations

import collections.abc
import sys
from types import ModuleType
from typing import Any, Final

import torch
from torch.utils.data._utils import collate

#: What ``torch._six`` had, until 1.13.
_SIX: Final[dict[str, Any]] = {
    "string_classes": (str, bytes),
    "int_classes": int,
    "container_abcs": collections.abc,
    "inf": torch.inf,
    "nan": torch.nan,
    "istuple": lambda value: isinstance(value, tuple),
    "PY3": True,
    "PY37": True,
}
#: Those of them that its ``collate`` had, too.
_COLLATE: Final = ("string_classes", "int_classes", "container_abcs")
_provided: list[tuple[Any, str]] = []


def provide() -> None:
    """Put the names in place, where PyTorch has none."""
    if "torch._six" not in sys.modules and not hasattr(torch, "_six"):
        six = ModuleType("torch._six", "Names of PyTorch up to 1.13, provided by leyden.compat.")
        vars(six).update(_SIX)
        sys.modules["torch._six"] = six
        _set(torch, "_six", six)
    for name in _COLLATE:
        _set(collate, name, _SIX[name])
    _set(torch.optim.lr_scheduler, "_LRScheduler", torch.optim.lr_scheduler.LRScheduler)


def withdraw() -> None:
    """Take them away again."""
    for holder, name in _provided:
        delattr(holder, name)
    if any(name == "_six" for _, name in _provided):
        sys.modules.pop("torch._six", None)
    _provided.clear()


def _set(holder: Any, name: str, value: Any) -> None:
    if not hasattr(holder, name):
        setattr(holder, name, value)
        _provided.append((holder, name))
