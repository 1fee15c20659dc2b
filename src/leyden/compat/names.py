"""What Lightning's names mean here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from leyden.compat.imports import flag

#: Modules that name what they have; the first that has a name gives it.
_SOURCES: Final = (
    "leyden",
    "leyden.callbacks",
    "leyden.loggers",
    "leyden.profilers",
    "leyden.strategies",
    "leyden.precision",
    "leyden.states",
    "leyden.compat.hardware",
    "leyden.compat.utilities",
    "leyden.compat.module_helpers",
    "leyden.compat.types",
    "leyden.compat.saving",
    "leyden.compat.imports",
    "leyden.checkpoint.plugins",
    "leyden.compat.loggers",
    "leyden.compat.boring",
    "leyden.tuner",
    "leyden.cli",
)

#: Names that are spelt otherwise, or stand elsewhere.
_RENAMED: Final = {
    "AttributeDict": "leyden.hparams:AttributeDict",
    "CheckpointHooks": "leyden.module_hooks:ModuleHooks",
    "DataHooks": "leyden.module_hooks:ModuleHooks",
    "DummyExperiment": "leyden.loggers.base:DummyExperiment",
    "EarlyStoppingReason": "leyden.callbacks.early_stopping:EarlyStoppingReason",
    "ExperimentWriter": "leyden.loggers.csv_logs:ExperimentWriter",
    "HyperparametersMixin": "leyden.hparams:HyperparametersMixin",
    "LightningLoggerBase": "leyden.loggers:Logger",
    "MixedPrecisionPlugin": "leyden.precision:MixedPrecision",
    "ModelHooks": "leyden.module_hooks:ModuleHooks",
    "NativeMixedPrecisionPlugin": "leyden.precision:MixedPrecision",
    "PrecisionPlugin": "leyden.precision:Precision",
    "ProgressBarBase": "leyden.callbacks:ProgressBar",
    "RichProgressBarTheme": "leyden.callbacks.progress.rich_progress:RichProgressBarTheme",
    "SingleDevicePlugin": "leyden.strategies:SingleDeviceStrategy",
    "TrainingTypePlugin": "leyden.strategies:Strategy",
    "AbstractProfiler": "leyden.profilers:Profiler",
    "BaseProfiler": "leyden.profilers:Profiler",
    "Tqdm": "tqdm.auto:tqdm",
    "LightningLite": "leyden.fabric.lite:LightningLite",
    "_FabricDataLoader": "leyden.fabric.wrappers:FabricDataLoader",
    "_FabricModule": "leyden.fabric.wrappers:FabricModule",
    "_FabricOptimizer": "leyden.optimization.optimizer:LightningOptimizer",
    "is_wrapped": "leyden.fabric:is_wrapped",
    "_unwrap_objects": "leyden.fabric.wrappers:unwrapped",
    "_WrappingCheckpointIO": "leyden.checkpoint.plugins:WrappingCheckpointIO",
    "WriteInterval": "leyden.callbacks.prediction_writer:WriteInterval",
    "isolate_rng": "leyden.seed:isolate_rng",
    "move_data_to_device": "leyden.compat.utilities:move_data_to_device",
    "multiplicative": "leyden.callbacks.finetuning:multiplicative",
    "pl_worker_init_function": "leyden.seed:worker_init",
    "rank_zero_debug": "leyden.rank:rank_zero_debug",
    "rank_zero_experiment": "leyden.loggers.base:rank_zero_experiment",
    "rank_zero_info": "leyden.rank:rank_zero_info",
    "rank_zero_only": "leyden.rank:rank_zero_only",
    "rank_zero_warn": "leyden.rank:rank_zero_warn",
    "summarize": "leyden.callbacks.model_summary:summarize",
    "GradClipAlgorithmType": "leyden.optimization.gradients:GradClipAlgorithmType",
    "get_human_readable_count": "leyden.callbacks.model_summary:human_readable_count",
    "DeviceDtypeModuleMixin": "leyden.module:LightningModule",
    "_DeviceDtypeModuleMixin": "leyden.module:LightningModule",
    "AcceleratorConnector": "leyden.compat.hardware:AcceleratorConnector",
    "add_argparse_args": "leyden.former:add_trainer_arguments",
    "from_argparse_args": "leyden.former:trainer_from",
    "PredictionLoop": "leyden.loops.evaluate:EvaluationLoop",
    "EvaluationLoop": "leyden.compat.loops:EvaluationLoopWithReport",
    "_EvaluationLoop": "leyden.compat.loops:EvaluationLoopWithReport",
    "FitLoop": "leyden.loops.fit:FitLoop",
    "_FitLoop": "leyden.loops.fit:FitLoop",
    "_TrainingEpochLoop": "leyden.loops.counts:EpochLoop",
    "_OUT_DICT": "builtins:dict",
    "_AcceleratorConnector": "leyden.compat.hardware:AcceleratorConnector",
    "_SignalConnector": "leyden.compat.hardware:SignalConnector",
    "_compare_version": "leyden.compat.imports:compare_version",
    "_distributed_is_initialized": "leyden.compat.utilities:distributed_available",
    "_get_rank": "leyden.rank:rank_from_environment",
    "_load": "leyden.compat.saving:load",
    "_module_available": "leyden.compat.imports:module_available",
    "_restricted_classmethod": "leyden.hparams:class_only",
    "_sync_ddp_if_available": "leyden.compat.utilities:sync_ddp_if_available",
    "num_cuda_devices": "torch.cuda:device_count",
    "gather_all_tensors": "torchmetrics.utilities.distributed:gather_all_tensors",
    "is_cuda_available": "torch.cuda:is_available",
    "_LRFinder": "leyden.callbacks.learning_rate_finder:LearningRateCurve",
}

#: Modules in which a name means something else than elsewhere.
_IN_PLACE: Final = {
    ("pytorch", "utilities.model_summary", "ModelSummary"): "leyden.callbacks.model_summary:Summary",
    ("pytorch", "utilities.model_summary.model_summary", "ModelSummary"): "leyden.callbacks.model_summary:Summary",
    **{
        ("pytorch", place, name): f"leyden.cli:{name}"
        for place in ("cli", "utilities.cli")
        for name in ("LRSchedulerTypeTuple", "ReduceLROnPlateau")
    },
    ("pytorch", "core.memory", "ModelSummary"): "leyden.callbacks.model_summary:Summary",
}

#: Names that meant something else in 1.x, for programs that are told such a version.
_OF_1X: Final = {"ProgressBar": "leyden.callbacks:TQDMProgressBar"}

#: What packages name with ``import *``.
_LISTED: Final = {
    "callbacks": "leyden.callbacks",
    "cli": "leyden.cli",
    "utilities.cli": "leyden.cli",
    "loggers": "leyden.loggers",
    "profilers": "leyden.profilers",
    "profiler": "leyden.profilers",
    "strategies": "leyden.compat.hardware",
    "accelerators": "leyden.compat.hardware",
}
_ROOT: Final = ("Callback", "LightningDataModule", "LightningModule", "Trainer", "seed_everything")
_FABRIC_ROOT: Final = ("Fabric", "seed_everything", "is_wrapped")

#: Why leyden has nothing of these names.
ABSENT: Final = {
    "EvalResult": "Lightning removed it in 1.0; return values or call self.log",
    "TrainResult": "Lightning removed it in 1.0; return values or call self.log",
    "data_loader": "Lightning removed it in 0.8; define train_dataloader without it",
    "ModelPruning": "prune by torch.nn.utils.prune in a Callback",
    "QuantizationAwareTraining": "Lightning removed it in 2.0; use torch.ao.quantization",
    "NeptuneLogger": "no logger for Neptune yet",
    "Throughput": "the callback ThroughputMonitor measures and logs it",
    "LitLogger": "it writes to Lightning's own service",
}

_PROCESSES: Final = "one device in this version"
_INSIDE: Final = "a part of Lightning's inside"

#: Why leyden has nothing of what stands in these places.
_ABSENT_PLACES: Final[dict[str, str]] = {
    "(the package).": _INSIDE,
    "LightningDataModule.": _INSIDE,
    "LightningModule.": _INSIDE,
    "LightningModule.device_mesh": _PROCESSES,
    "LightningModule.fabric": "self.log, self.print and self.manual_backward are the Fabric's by themselves",
    "LightningModule.to_tensorrt": "export by to_onnx or torch_tensorrt",
    "Trainer.device_ids": _PROCESSES,
    "Trainer.distributed_sampler_kwargs": _PROCESSES,
    "accelerators": _INSIDE,
    "callbacks.progress.rich_progress": "the parts of the bar are leyden's own; override RichProgressBar",
    "callbacks.spike": "record_failures=True writes what led to a bad loss",
    "core.optimizer": _INSIDE,
    "core.saving": "hyper-parameters are in hparams.yaml since 1.0, which load_hparams_from_yaml reads",
    "demos": "examples of Lightning's; leyden's are in examples/",
    "loggers.logger.merge_dicts": _INSIDE,
    "loops": _INSIDE,
    "overrides": _PROCESSES,
    "plugins": _INSIDE,
    "plugins.precision": "not among leyden's precisions",
    "profilers": _INSIDE,
    "profilers.xla": "leyden runs on the CPU, CUDA and MPS",
    "serve": "serving is not a trainer's",
    "strategies": _PROCESSES,
    "utilities.compile": _INSIDE,
    "utilities.data": _PROCESSES,
    "utilities.deepspeed": _PROCESSES,
    "utilities.memory": _INSIDE,
    "utilities.model_helpers": "takes torchvision's models by name",
    "utilities.model_registry": "it reads from Lightning's own service",
    "utilities.model_summary": _INSIDE,
    "utilities.parameter_tying": _INSIDE,
    "utilities.parsing": _INSIDE,
    "utilities.upgrade_checkpoint": "leyden reads the files of 1.5 to 2.6 as they are",
}


def reason(place: str, name: str) -> str:
    """Why leyden does not have a name; "" where nobody has said."""
    known = ABSENT.get(name, "")
    fitting = [start for start in _ABSENT_PLACES if f"{place}.{name}".startswith(start)]
    return known or (_ABSENT_PLACES[max(fitting, key=len)] if fitting else "")


@cache
def _listed(source: str) -> frozenset[str]:
    return frozenset(importlib.import_module(source).__all__)


def find(tree: str, place: str, name: str, *, version: str = "") -> Any:
    """The object that a name means in a module, to a program that sees ``version``.

    Raises:
        LookupError: there is none.
    """
    if place == "metrics" or place.startswith("metrics."):
        return _metric(place, name)
    home = _IN_PLACE.get((tree, place, name)) or _RENAMED.get(name)
    if version.startswith("1."):
        home = _OF_1X.get(name, home)
    if home is not None:
        module, _, attribute = home.partition(":")
        return getattr(importlib.import_module(module), attribute)
    for source in _SOURCES:
        if name in _listed(source):
            return getattr(importlib.import_module(source), name)
    return flag(name)


def _metric(place: str, name: str) -> Any:
    """What ``pytorch_lightning.metrics`` had until 1.4 is torchmetrics today."""
    try:
        return getattr(importlib.import_module(place.replace("metrics", "torchmetrics", 1)), name)
    except (ImportError, AttributeError):
        raise LookupError(name) from None


def names_of(tree: str, place: str) -> list[str]:
    """The names that a module tells."""
    if not place:
        fabric = _FABRIC_ROOT if tree != "pytorch" else ()
        return sorted({*(_ROOT if tree != "fabric" else ()), *fabric})
    if place in _LISTED:
        return sorted(_listed(_LISTED[place]))
    return sorted(_leaf_names(place))


def _leaf_names(place: str) -> Iterator[str]:
    """Of a module with one thing in it, such as ``callbacks.early_stopping``, its names."""
    source = _LISTED.get(place.partition(".")[0])
    if source is None:
        return
    key = place.rpartition(".")[2].replace("_", "")
    yield from (name for name in _listed(source) if name.lower() == key)
