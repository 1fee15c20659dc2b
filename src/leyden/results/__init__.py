"""What ``self.log`` collects: values, their reduction over an epoch, and the views of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from leyden.results.collect import Results
from leyden.results.views import Views

if TYPE_CHECKING:
    from leyden.results.table import results_table

__all__ = ["Results", "Views", "results_table"]

_HOMES = {"results_table": "leyden.results.table"}  # for ``validate`` and ``test`` only


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.results' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
