"""How forward, backward and update are run numerically, and which precision a name means."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from leyden.errors import InvalidValueError, warn
from leyden.precision.base import Precision

if TYPE_CHECKING:
    from leyden.precision.creation import creating as creating
    from leyden.precision.half import HalfPrecision
    from leyden.precision.mixed import MixedPrecision

__all__ = ["HalfPrecision", "MixedPrecision", "Precision", "build_precision"]

_HOMES = {
    "HalfPrecision": "leyden.precision.half",
    "MixedPrecision": "leyden.precision.mixed",
    "creating": "leyden.precision.creation",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.precision' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


_SPELLINGS: dict[Any, str] = {
    None: "32-true",
    "32": "32-true",
    "64": "64-true",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
    "32-true": "32-true",
    "64-true": "64-true",
    "16-true": "16-true",
    "bf16-true": "bf16-true",
    "16-mixed": "16-mixed",
    "bf16-mixed": "bf16-mixed",
}


def build_precision(name: Any, *, device_type: str) -> Precision:
    """The precision that ``Trainer(precision=name)`` means.

    Args:
        name: 16, 32, 64, "bf16" or one of the 2.x strings, e.g. "bf16-mixed"; None is "32-true".
        device_type: "cpu", "cuda" or "mps".

    Raises:
        InvalidValueError: an unknown name.
    """
    key = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(key, str | None) or key not in _SPELLINGS:
        allowed = ", ".join(repr(spelling) for spelling in _SPELLINGS if spelling)
        raise InvalidValueError(f"precision {name!r} is not known; allowed are {allowed}", code="precision")
    meant = _SPELLINGS[key]
    if key in ("16", "bf16"):
        warn(f"precision {name!r} is read as {meant!r}; write that instead", code="precision-spelling")
    if meant == "16-mixed" and device_type == "cpu":
        warn("'16-mixed' needs a GPU; on the CPU 'bf16-mixed' is used", code="precision-cpu")
        meant = "bf16-mixed"
    if meant.endswith("-mixed"):
        return __getattr__("MixedPrecision")(meant, device_type)  # type: ignore[no-any-return]
    return Precision() if meant == "32-true" else __getattr__("HalfPrecision")(meant)
