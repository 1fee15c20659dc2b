"""Names that annotations in client code use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from leyden.optimization.schedulers import LRSchedulerConfig

__all__ = [
    "EPOCH_OUTPUT",
    "EVAL_DATALOADERS",
    "LRSchedulerConfig",
    "LRSchedulerConfigType",
    "LRSchedulerPLType",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "OptimizerConfig",
    "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "_BATCH",
    "_DEVICE",
    "_EVALUATE_OUTPUT",
    "_LRScheduler",
    "_MAP_LOCATION_TYPE",
    "_METRIC",
    "_METRIC_COLLECTION",
    "_PARAMETERS",
    "_PATH",
    "_PREDICT_OUTPUT",
    "DistributedDataParallel",
    "LRScheduler",
    "ReduceLROnPlateau",
]

STEP_OUTPUT = Optional[Union[Tensor, Mapping[str, Any]]]  # noqa: UP007, UP045
EPOCH_OUTPUT = list[STEP_OUTPUT]
OptimizerLRScheduler = Any
LRSchedulerConfigType = OptimizerConfig = OptimizerLRSchedulerConfig = dict[str, Any]
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion = LRSchedulerType = LRSchedulerPLType = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007, UP045
_LRScheduler = LRScheduler
_BATCH = Any
_METRIC = Any
_METRIC_COLLECTION = Any
_EVALUATE_OUTPUT = list[Mapping[str, float]]
_PREDICT_OUTPUT = Any
_PARAMETERS = Iterable[torch.nn.Parameter]
_PATH = Union[str, Path]  # noqa: UP007, UP045
_DEVICE = Union[torch.device, str, int]  # noqa: UP007, UP045
_MAP_LOCATION_TYPE = Optional[Union[_DEVICE, Callable[[Any, str], Any], dict[Any, Any]]]  # noqa: UP007, UP045
