"""Events that user code may listen to: their table, their dialects, and how a run calls them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.hooks.checks import check_batch_hooks as check_batch_hooks
    from leyden.hooks.checks import check_hooks as check_hooks
    from leyden.hooks.checks import check_state_keys as check_state_keys
    from leyden.hooks.checks import check_step as check_step
    from leyden.hooks.checks import misspelt_hooks as misspelt_hooks

# Asked when a run starts, not when leyden is imported.
_HOMES = dict.fromkeys(
    ("check_batch_hooks", "check_hooks", "check_state_keys", "check_step", "misspelt_hooks"), "leyden.hooks.checks"
)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.hooks' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
