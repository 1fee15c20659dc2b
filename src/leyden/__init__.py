"""leyden: a PyTorch trainer whose subject is the optimization process.

Public names are resolved when they are first used, so ``import leyden`` adds almost nothing to ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.callback import Callback as Callback
    from leyden.cli.verify import verify_resume as verify_resume
    from leyden.data.combined import CombinedLoader as CombinedLoader
    from leyden.datamodule import LightningDataModule as LightningDataModule
    from leyden.errors import MisconfigurationException as MisconfigurationException
    from leyden.fabric import Fabric as Fabric
    from leyden.module import LightningModule as LightningModule
    from leyden.optimization.joint import Joint as Joint
    from leyden.optimization.optimizer import LightningOptimizer as LightningOptimizer
    from leyden.optimization.plan import Plan as Plan
    from leyden.replaying import replay as replay
    from leyden.seed import seed_everything as seed_everything
    from leyden.trainer import Trainer as Trainer
    from leyden.tuner import Tuner as Tuner

__version__ = "0.1.0"

_HOMES = {
    "Callback": "leyden.callback",
    "CombinedLoader": "leyden.data.combined",
    "Fabric": "leyden.fabric",
    "Joint": "leyden.optimization.joint",
    "LightningDataModule": "leyden.datamodule",
    "LightningModule": "leyden.module",
    "LightningOptimizer": "leyden.optimization.optimizer",
    "MisconfigurationException": "leyden.errors",
    "Plan": "leyden.optimization.plan",
    "Trainer": "leyden.trainer",
    "Tuner": "leyden.tuner",
    "replay": "leyden.replaying",
    "verify_resume": "leyden.cli.verify",
    "seed_everything": "leyden.seed",
}

_PARTS = ("callbacks", "loggers", "precision", "profilers", "strategies")

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None and name in _PARTS:
        return importlib.import_module(f"leyden.{name}")
    if home is None:
        raise AttributeError(f"module 'leyden' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
