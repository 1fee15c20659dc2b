"""Callbacks that come with leyden, resolved when they are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.callback import Callback
    from leyden.callbacks.device_stats_monitor import DeviceStatsMonitor
    from leyden.callbacks.early_stopping import EarlyStopping
    from leyden.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from leyden.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from leyden.callbacks.lambda_callback import LambdaCallback
    from leyden.callbacks.learning_rate_monitor import LearningRateMonitor
    from leyden.callbacks.model_summary import ModelSummary
    from leyden.callbacks.progress import ProgressBar, TQDMProgressBar
    from leyden.callbacks.progress.rich_progress import RichProgressBar
    from leyden.callbacks.rich_model_summary import RichModelSummary
    from leyden.callbacks.throughput_monitor import ThroughputMonitor
    from leyden.callbacks.timer import Timer
    from leyden.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "Callback",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

_HOMES = {
    "BackboneFinetuning": "leyden.callbacks.finetuning",
    "BaseFinetuning": "leyden.callbacks.finetuning",
    "Callback": "leyden.callback",
    "DeviceStatsMonitor": "leyden.callbacks.device_stats_monitor",
    "EMAWeightAveraging": "leyden.callbacks.weight_averaging",
    "EarlyStopping": "leyden.callbacks.early_stopping",
    "GradientAccumulationScheduler": "leyden.callbacks.gradient_accumulation_scheduler",
    "LambdaCallback": "leyden.callbacks.lambda_callback",
    "LearningRateMonitor": "leyden.callbacks.learning_rate_monitor",
    "ModelSummary": "leyden.callbacks.model_summary",
    "ProgressBar": "leyden.callbacks.progress",
    "RichModelSummary": "leyden.callbacks.rich_model_summary",
    "RichProgressBar": "leyden.callbacks.progress.rich_progress",
    "TQDMProgressBar": "leyden.callbacks.progress",
    "ThroughputMonitor": "leyden.callbacks.throughput_monitor",
    "Timer": "leyden.callbacks.timer",
    "WeightAveraging": "leyden.callbacks.weight_averaging",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.callbacks' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
