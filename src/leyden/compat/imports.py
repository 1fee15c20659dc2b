"""What is installed, and in which version: ``pytorch_lightning.utilities.imports``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Callable
from typing import Any, Final

__all__ = ["compare_version", "module_available"]

#: ``_RICH_AVAILABLE``, ``_TORCH_GREATER_EQUAL_2_0`` and their like.
_FLAG: Final = re.compile(r"_([A-Z][A-Z_]*?)_(?:AVAILABLE|GREATER_EQUAL_(\d+(?:_\d+)*))")


def flag(name: str) -> bool:
    """What a flag says whose name tells a package, and perhaps its least version.

    Raises:
        LookupError: it is no such name.

    >>> flag("_TORCH_GREATER_EQUAL_1_12"), flag("_TORCH_AVAILABLE"), flag("_BOLTS_AVAILABLE")
    (True, True, False)
    """
    found = _FLAG.fullmatch(name)
    if found is None:
        raise LookupError(name)
    package, version = found[1].lower(), (found[2] or "0").replace("_", ".")
    if package == "python":
        return _numbers(platform.python_version()) >= _numbers(version)
    return module_available(package) and compare_version(package, tuple.__ge__, version)


def module_available(module_path: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module_path) is not None
    except ModuleNotFoundError:
        return False


def compare_version(package: str, op: Callable[[Any, Any], bool], version: str, use_base_version: bool = False) -> bool:
    """Whether a package is installed, in a version that compares so; only the numbers of versions count."""
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return module_available(package)
    return op(_numbers(installed), _numbers(version))


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while numbers and not numbers[-1]:
        numbers.pop()  # 2.0 is 2
    return tuple(numbers)
