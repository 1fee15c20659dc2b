"""Where batches come from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from leyden.data.combined import CombinedLoader, eval_loaders, train_loader
from leyden.data.kinds import check_validity
from leyden.data.loaders import Batches, length_of, num_batches, overfit, set_epoch

if TYPE_CHECKING:
    from leyden.data.prefetch import build_copier
    from leyden.data.workers import prepare_workers

__all__ = [
    "Batches",
    "CombinedLoader",
    "build_copier",
    "check_validity",
    "eval_loaders",
    "length_of",
    "num_batches",
    "overfit",
    "prepare_workers",
    "set_epoch",
    "train_loader",
]

_HOMES = {
    "build_copier": "leyden.data.prefetch",  # for CUDA only
    "prepare_workers": "leyden.data.workers",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.data' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
