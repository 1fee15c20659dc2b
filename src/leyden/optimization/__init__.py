"""The optimization process: plan, window, update, verdict, clocks.

Read in this order:

    plan        what configure_optimizers means            joint       several optimizers, one update
    automatic   the way of one batch                       optimizer   the handle that users hold
    window      accumulation, and its exact weights        contract    what an optimizer can do
    update      gradients ready, hooks, clip, verdict      turns       one optimizer in a run; who is active when
    manual      the same parts, driven by the user         toggling    whose parameters require gradients now
    schedulers  when each scheduler steps                  gradients   corrected, measured, clipped
    clocks      the counters, and the verdicts             bare        torch's calls without their wrappers
    tbptt       batches of long sequences, cut in time
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.optimization.plan_table import table_of as table_of
    from leyden.optimization.tbptt import build_truncated as build_truncated

#: What few runs need, loaded when it is used.
_HOMES = {"build_truncated": "leyden.optimization.tbptt", "table_of": "leyden.optimization.plan_table"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.optimization' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
