"""The loops: fit, evaluate, predict."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.loops.counts import EpochLoop as EpochLoop
    from leyden.loops.counts import epochs_of as epochs_of
    from leyden.loops.outputs import EpochOutputs as EpochOutputs

_HOMES = {
    "EpochOutputs": "leyden.loops.outputs",  # loaded for modules with hooks of 1.x
    "EpochLoop": "leyden.loops.counts",  # loaded for programs that read where Lightning's loops are
    "epochs_of": "leyden.loops.counts",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.loops' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
