"""Loggers: where logged values, hyper-parameters and graphs are written. Resolved when they are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.loggers.base import DummyLogger, Logger
    from leyden.loggers.comet import CometLogger
    from leyden.loggers.csv_logs import CSVLogger
    from leyden.loggers.mlflow import MLFlowLogger
    from leyden.loggers.tensorboard import TensorBoardLogger
    from leyden.loggers.wandb import WandbLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "DummyLogger",
    "Logger",
    "MLFlowLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

_HOMES = {
    "CSVLogger": "leyden.loggers.csv_logs",
    "CometLogger": "leyden.loggers.comet",
    "DummyLogger": "leyden.loggers.base",
    "Logger": "leyden.loggers.base",
    "MLFlowLogger": "leyden.loggers.mlflow",
    "TensorBoardLogger": "leyden.loggers.tensorboard",
    "WandbLogger": "leyden.loggers.wandb",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.loggers' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
