"""Callbacks that come with leyden, resolved when they are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.callback import Callback
    from leyden.callbacks.batch_size_finder import BatchSizeFinder
    from leyden.callbacks.checkpoint import Checkpoint
    from leyden.callbacks.device_stats_monitor import DeviceStatsMonitor
    from leyden.callbacks.early_stopping import EarlyStopping
    from leyden.callbacks.failure_recorder import FailureRecorder
    from leyden.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from leyden.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from leyden.callbacks.lambda_callback import LambdaCallback
    from leyden.callbacks.learning_rate_finder import LearningRateFinder
    from leyden.callbacks.learning_rate_monitor import LearningRateMonitor
    from leyden.callbacks.model_checkpoint import ModelCheckpoint
    from leyden.callbacks.model_summary import ModelSummary
    from leyden.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
    from leyden.callbacks.prediction_writer import BasePredictionWriter
    from leyden.callbacks.progress import ProgressBar, TQDMProgressBar
    from leyden.callbacks.progress.rich_progress import RichProgressBar
    from leyden.callbacks.rich_model_summary import RichModelSummary
    from leyden.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
    from leyden.callbacks.throughput_monitor import ThroughputMonitor
    from leyden.callbacks.timer import Timer
    from leyden.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "FailureRecorder",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

_HOMES = {
    "BackboneFinetuning": "leyden.callbacks.finetuning",
    "BaseFinetuning": "leyden.callbacks.finetuning",
    "BasePredictionWriter": "leyden.callbacks.prediction_writer",
    "BatchSizeFinder": "leyden.callbacks.batch_size_finder",
    "Callback": "leyden.callback",
    "Checkpoint": "leyden.callbacks.checkpoint",
    "DeviceStatsMonitor": "leyden.callbacks.device_stats_monitor",
    "EMAWeightAveraging": "leyden.callbacks.weight_averaging",
    "EarlyStopping": "leyden.callbacks.early_stopping",
    "FailureRecorder": "leyden.callbacks.failure_recorder",
    "GradientAccumulationScheduler": "leyden.callbacks.gradient_accumulation_scheduler",
    "LambdaCallback": "leyden.callbacks.lambda_callback",
    "LearningRateFinder": "leyden.callbacks.learning_rate_finder",
    "LearningRateMonitor": "leyden.callbacks.learning_rate_monitor",
    "ModelCheckpoint": "leyden.callbacks.model_checkpoint",
    "ModelSummary": "leyden.callbacks.model_summary",
    "OnExceptionCheckpoint": "leyden.callbacks.on_exception_checkpoint",
    "ProgressBar": "leyden.callbacks.progress",
    "RichModelSummary": "leyden.callbacks.rich_model_summary",
    "RichProgressBar": "leyden.callbacks.progress.rich_progress",
    "StochasticWeightAveraging": "leyden.callbacks.stochastic_weight_averaging",
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
