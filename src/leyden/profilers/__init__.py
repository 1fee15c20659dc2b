"""Profilers: where the time of a run goes, action by action. Resolved when they are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.profilers.actions import profile_with as profile_with
    from leyden.profilers.advanced import AdvancedProfiler
    from leyden.profilers.profiler import PassThroughProfiler, Profiler
    from leyden.profilers.pytorch import PyTorchProfiler
    from leyden.profilers.simple import SimpleProfiler

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler"]

_HOMES = {
    "AdvancedProfiler": "leyden.profilers.advanced",
    "PassThroughProfiler": "leyden.profilers.profiler",
    "Profiler": "leyden.profilers.profiler",
    "PyTorchProfiler": "leyden.profilers.pytorch",
    "SimpleProfiler": "leyden.profilers.simple",
    "profile_with": "leyden.profilers.actions",  # for the Trainer's own use
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.profilers' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
