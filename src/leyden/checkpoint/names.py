"""Classes and functions by name: which ones a file may name, and how they are found again.

A file that may name any function needs no code of its own: the program that builds what its hyper-parameters say runs
it. So a file names what the program itself defines, torch's building blocks, and plain types. Nothing is imported for
it. ``torch.serialization.add_safe_globals([...])`` adds to that, as it does for ``torch.load``.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, Final

import torch
from torch import nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from leyden.errors import CheckpointError
from leyden.hparams import AttributeDict

#: Types whose values are data.
_PLAIN: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, object),
        *(OrderedDict, defaultdict, Counter, deque, Namespace, SimpleNamespace, AttributeDict, Decimal, range, slice),
        *(Path, type(Path()), date, time, datetime, timedelta, torch.Tensor, torch.dtype, torch.device, torch.Size),
    }
)
#: What models are built from, of any package.
_BLOCKS: Final = (nn.Module, Optimizer, LRScheduler, Dataset, Distribution, Enum)
_FUNCTIONS: Final = ("torch.nn.functional", "torch.nn.init", "torch.functional", "torch.optim.")
#: Modules that export operators which say that they are somebody else's.
_EXPORTERS: Final = (torch, nn.functional)
_WAYS_TO_PICKLE: Final = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__")
_USUAL: Final = (object, nn.Module, dict, OrderedDict, list, tuple, str, int, float)


def name_of(value: Any) -> str | None:
    """The name "module:qualified.name" under which a class or function is found again, or None."""
    own = (getattr(value, "__module__", None), getattr(value, "__qualname__", None))
    exported = [(module.__name__, getattr(value, "__name__", None)) for module in _EXPORTERS]
    for module, path in (own, *exported):
        if isinstance(module, str) and isinstance(path, str) and _find(sys.modules.get(module), path) is value:
            return f"{module}:{path}"
    return None


def look_up(name: str, allowed: Callable[[Any], bool], *, trusted: bool = False) -> Any:
    """What has a name.

    Args:
        name: what :func:`name_of` returned.
        allowed: which things a file may name here.
        trusted: whether it may name all, and their modules are imported for it.

    Raises:
        CheckpointError: nothing has that name here, or a file may not name it (``checkpoint-name``).
    """
    module_name, _, path = name.partition(":")
    module = importlib.import_module(module_name) if trusted else sys.modules.get(module_name)
    found = _find(module, path)
    if found is None:
        what = "nothing of that name is there" if module is not None else f"import {module_name} before you load it"
        raise CheckpointError(f"it names {name}; {what}", code="checkpoint-name")
    if not trusted and not (name_of(found) == name and allowed(found)):
        raise CheckpointError(
            f"it names {name}, which a file may not do. If you trust that, allow it with "
            "torch.serialization.add_safe_globals([...]); weights_only=False trusts all that the file says",
            code="checkpoint-name",
        )
    return found


def _find(module: ModuleType | None, path: str) -> Any:
    """Walk from a module through its classes. No code of theirs runs: ``__getattr__`` may import, or do anything."""
    found: Any = module
    for part in path.split("."):
        if found is None or not (found is module or isinstance(found, type)):
            return None
        found = vars(found).get(part)
    return found.__func__ if isinstance(found, staticmethod) else found


def is_nameable(value: Any) -> bool:
    """Whether a file may name a class or function, which the program may call then."""
    if is_registered(value):
        return True
    if isinstance(value, type):
        numpy = sys.modules.get("numpy")
        blocks = _BLOCKS if numpy is None else (*_BLOCKS, numpy.generic, numpy.ndarray)
        return value in _PLAIN or issubclass(value, blocks) or _is_own(value)
    if isinstance(value, FunctionType):
        return value.__module__.startswith(_FUNCTIONS) or _is_own(value)
    is_operator = isinstance(value, BuiltinFunctionType) and value.__name__ != "from_file"
    return is_operator and any(vars(module).get(value.__name__) is value for module in _EXPORTERS)


def is_buildable(kind: Any) -> bool:
    """Whether objects of a class are what their attributes are, so that they come back without a call of its code."""
    if not isinstance(kind, type) or hasattr(kind, "__del__"):
        return False
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return kind.__module__.partition(".")[0] not in sys.stdlib_module_names
    return (issubclass(kind, nn.Module) or _is_own(kind)) and all(
        getattr(kind, way, None) in [None, *(getattr(base, way, None) for base in _USUAL)] for way in _WAYS_TO_PICKLE
    )


def is_registered(value: Any) -> bool:
    """Whether the user has told torch that files may name it."""
    entries = torch.serialization.get_safe_globals()
    return any(value is (entry[0] if isinstance(entry, tuple) else entry) for entry in entries)


def _is_own(value: Any) -> bool:
    """Whether the program defines it: neither the standard library nor an installed package does."""
    module = value.__module__
    if module == "__main__" or value is AttributeDict:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or module.startswith("torch.") or module.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not {"site-packages", "dist-packages"} & set(Path(file).parts)
