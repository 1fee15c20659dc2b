"""Callbacks that come with leyden, resolved when they are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.callback import Callback
    from leyden.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from leyden.callbacks.progress import ProgressBar, TQDMProgressBar

__all__ = ["Callback", "GradientAccumulationScheduler", "ProgressBar", "TQDMProgressBar"]

_HOMES = {
    "Callback": "leyden.callback",
    "GradientAccumulationScheduler": "leyden.callbacks.gradient_accumulation_scheduler",
    "ProgressBar": "leyden.callbacks.progress",
    "TQDMProgressBar": "leyden.callbacks.progress",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.callbacks' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
