"""The Trainer's arguments, checked before anything runs."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch

from leyden import callbacks as parts  # each is imported when it is used, as are the loggers
from leyden import loggers as back_ends
from leyden import profilers
from leyden.callback import Callback
from leyden.errors import InvalidTypeError, InvalidValueError, MisconfigurationException, warn
from leyden.loops.cadence import Limits, ValidationCadence
from leyden.precision import Precision, build_precision
from leyden.rank import rank_zero_info
from leyden.strategies.uncalled import refuse_uncalled
from leyden.units import Duration, Every, parse_duration

if TYPE_CHECKING:
    from leyden.callbacks import GradientAccumulationScheduler
    from leyden.profilers import Profiler

#: Epochs of a fit for which no maximum was given.
DEFAULT_EPOCHS = 1000
#: What None means for arguments that bring a part of the run along: everything that a research run usually has.
DEFAULTS: dict[str, bool] = {
    "logger": True,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "enable_checkpointing": True,
}
#: What ``barebones`` switches off, and what ``fast_dev_run`` sets, beside its limits of batches.
BAREBONES: Final[Mapping[str, Any]] = {
    **dict.fromkeys(DEFAULTS, False),
    **{"num_sanity_val_steps": 0, "log_every_n_steps": 0, "fast_dev_run": 0, "detect_anomaly": False},
    **{"profiler": None, "track_grad_norm": None},
}
FAST_DEV_RUN: Final[Mapping[str, Any]] = {
    **{"max_epochs": 1, "max_steps": -1},  # its batches end the run, however many optimizers step in each
    **{"num_sanity_val_steps": 0, "log_every_n_steps": 1, "val_check_interval": 1.0, "check_val_every_n_epoch": 1},
}
#: The arguments for which the Trainer adds a callback.
CALLBACK_DEFAULTS: Final = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing")
#: The arguments that limit the batches of a run.
BATCH_LIMITS: Final = tuple(f"limit_{name}_batches" for name in ("train", "val", "test", "predict"))


def wanted(name: str, value: Any) -> Any:
    """What was given for an argument of ``DEFAULTS``, or else its default."""
    return DEFAULTS[name] if value is None else value


def resolve_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments, with those changed that ``barebones`` or ``fast_dev_run`` sets.

    Raises:
        InvalidValueError: arguments that ask for what ``barebones`` switches off, all of them (``barebones``).
    """
    settings = dict(given)
    if given["former"]:
        settings["former"] = importlib.import_module("leyden.former").translate(given["former"], given)
        settings.update({name: value for name, value in settings["former"].items() if name in given})
    batches = settings["fast_dev_run"] = resolve_fast_dev_run(given["fast_dev_run"])
    settings["track_grad_norm"] = resolve_grad_norm(given["track_grad_norm"])
    if given["barebones"]:
        _check_barebones(settings)
        settings.update(BAREBONES)
    elif batches:
        rank_zero_info("fast_dev_run: one epoch of %d batches at most, without checkpoints and loggers", batches)
        logger = back_ends.DummyLogger() if wanted("logger", given["logger"]) else False
        settings.update(FAST_DEV_RUN, **dict.fromkeys(BATCH_LIMITS, batches), logger=logger)
    if settings["val_check_interval"] == 0 and 0 in (settings["max_steps"], settings["max_epochs"]):
        settings["val_check_interval"] = None  # programs compute it from the length of a fit, and this one has none
    return settings


def _check_barebones(settings: Mapping[str, Any]) -> None:
    asked = [f"{name}={settings[name]!r}" for name in BAREBONES if settings[name] not in (None, False, 0)]
    kinds = [
        type(callback).__name__
        for callback in _as_list(settings["callbacks"])
        if isinstance(callback, (parts.Checkpoint, parts.ProgressBar, parts.ModelSummary))
    ]
    asked += [f"callbacks=[{', '.join(kinds)}]"] if kinds else []
    if asked:
        raise InvalidValueError(
            f"Trainer(barebones=True) switches off what is asked for by {', '.join(asked)}; leave one or the other out",
            code="barebones",
        )


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Sequence) else [] if given is None else [given]


def resolve_limits(settings: Mapping[str, Any]) -> Limits:
    """How long a fit runs. Without any maximum it ends after 1,000 epochs, which the fit warns of."""
    max_epochs, max_time = settings["max_epochs"], settings["max_time"]
    max_steps = -1 if settings["max_steps"] is None else settings["max_steps"]
    is_default = max_epochs is None and max_steps == -1 and max_time is None
    if max_epochs is None:
        max_epochs = DEFAULT_EPOCHS if is_default else -1
    limits = Limits(is_default=is_default)
    limits.set_most("max_epochs", _length("max_epochs", max_epochs, least=-1))
    limits.set_most("max_steps", _length("max_steps", max_steps, least=-1))
    if max_time is not None:
        limits.set_most("max_time", parse_duration(max_time, what="Trainer(max_time=...)"))
    for name in ("min_epochs", "min_steps"):
        limits.set_least(name, _length(name, settings[name] or 0, least=0))
    return limits


def _length(name: str, value: Any, *, least: int) -> int | Duration:
    """An int on the clock of the argument's name, or a length on any clock."""
    if isinstance(value, str):
        return parse_duration(value, what=f"Trainer({name}=...)")
    check_int(name, value, least=least, code="trainer-limit")
    return value  # type: ignore[no-any-return]


def resolve_schedules(settings: Mapping[str, Any]) -> dict[str, Every]:
    """The intervals that are not numbers, by argument."""
    names = [name for name in ("val_check_interval", "log_every_n_steps") if is_length(settings[name])]
    return {name: Every(settings[name], what=f"Trainer({name}=...)") for name in names}


def is_length(value: Any) -> bool:
    """Whether an interval names its clock, as Lightning's numbers do not."""
    return isinstance(value, str | timedelta | Mapping)


def check_int(name: str, value: Any, *, least: int, code: str = "trainer-argument") -> None:
    """Refuse what is no int, or too small.

    Raises:
        InvalidValueError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidValueError(f"Trainer({name}={value!r}) must be an int >= {least}", code=code)


def check_cadences(settings: Mapping[str, Any]) -> None:
    """Refuse what cannot say how often something happens; None is the default of the argument.

    Raises:
        InvalidValueError: naming the argument.
    """
    for name, least in (("check_val_every_n_epoch", 1), ("num_sanity_val_steps", -1), ("log_every_n_steps", 0)):
        value = settings[name]
        if value is not None and not (name == "log_every_n_steps" and is_length(value)):
            check_int(name, value, least=least)
    check_int("reload_dataloaders_every_n_epochs", settings["reload_dataloaders_every_n_epochs"], least=0)
    check_interval(settings["val_check_interval"], settings["check_val_every_n_epoch"])


def resolve_fast_dev_run(value: Any) -> int:
    """Batches of a run that only finds mistakes; 0 for a real one."""
    if not isinstance(value, bool):
        check_int("fast_dev_run", value, least=0)
    return int(value)


def resolve_grad_norm(value: Any) -> float | None:
    """Order of the norm of gradients that is logged; None, and -1 as in 1.x, log nothing."""
    if value is None or (value == -1 and not isinstance(value, bool)):
        return None
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidValueError(
            f"Trainer(track_grad_norm={value!r}) must be the order of a norm: a number > 0 such as 2, or 'inf'",
            code="trainer-argument",
        )
    return float(value)  # the key that is logged has it as in Lightning: grad_2.0_norm_total


def resolve_batch_limit(name: str, value: Any) -> int | float:
    """An int >= 0 is a number of batches, a float in [0, 1] a part of them."""
    if value is None:
        return 1.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and value >= 0 and (isinstance(value, int) or value <= 1):
        return value  # type: ignore[no-any-return]
    raise MisconfigurationException(
        f"Trainer({name}={value!r}) must be an int >= 0 (batches) or a float from 0.0 to 1.0 (part of the batches)",
        code="trainer-batch-limit",
    )


def resolve_validation_interval(
    val_check_interval: Any,
    every_n_epochs: int | None,
    num_batches: int | float,
    every: Every | None = None,
) -> ValidationCadence:
    """When to validate, now that the number of training batches is known (inf if it is not)."""
    check_interval(val_check_interval, every_n_epochs)
    if is_length(val_check_interval):
        return ValidationCadence(every_n_epochs=every_n_epochs, every=every)
    interval = 1.0 if val_check_interval is None else val_check_interval
    if isinstance(interval, int):
        if every_n_epochs is not None and interval > num_batches:
            raise _bad_interval(
                interval,
                f"at most the {num_batches} training batches of an epoch; set check_val_every_n_epoch=None to count "
                "batches across epochs",
            )
        return ValidationCadence(every_n_epochs=every_n_epochs, every_n_batches=interval)
    if interval == 1.0:
        return ValidationCadence(every_n_epochs=every_n_epochs)
    if num_batches == math.inf:
        raise _bad_interval(interval, "1.0 or an int, because the training loader has no length")
    return ValidationCadence(every_n_epochs=every_n_epochs, every_n_batches=max(int(num_batches * interval), 1))


def check_interval(interval: Any, every_n_epochs: int | None) -> None:
    """Refuse an interval between validations that no number of training batches can fit.

    Raises:
        InvalidValueError: naming ``val_check_interval``.
    """
    if interval is None or is_length(interval):
        return
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise _bad_interval(
            interval,
            "a positive int (batches), a float up to 1.0 (part of the epoch), or as '500 updates' or '30 min'",
        )
    if isinstance(interval, float) and interval > 1:
        raise _bad_interval(interval, "at most 1.0 if it is a float; give an int to count batches")
    if isinstance(interval, float) and every_n_epochs is None:
        raise _bad_interval(interval, "an int when check_val_every_n_epoch is None, which counts batches")


def _bad_interval(value: Any, wanted: str) -> MisconfigurationException:
    return InvalidValueError(f"Trainer(val_check_interval={value!r}) must be {wanted}", code="val-check-interval")


def resolve_accumulation(value: Any) -> tuple[int, GradientAccumulationScheduler | None]:
    """Micro-batches of a window, and the callback that a schedule ``{epoch: micro-batches}`` stands for."""
    if value is None:
        return 1, None
    if isinstance(value, Mapping):
        return 1, parts.GradientAccumulationScheduler(dict(value))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MisconfigurationException(
            f"Trainer(accumulate_grad_batches={value!r}) must be an int >= 1, a dict {{epoch: int}} or None",
            code="trainer-accumulation",
        )
    return value, None


def resolve_callbacks(
    callbacks: Any,
    *,
    enable_progress_bar: bool | None = None,
    enable_model_summary: bool | None = None,
    enable_checkpointing: bool | None = None,
) -> list[Callback]:
    """The callbacks in calling order, with those of the defaults that are wanted and not given."""
    listed = _as_list(callbacks)
    for callback in listed:
        if not isinstance(callback, Callback):
            raise InvalidTypeError(
                f"Trainer(callbacks=...) takes callbacks, got {callback!r} of type {type(callback).__name__}; derive "
                "it from leyden.Callback",
                code="trainer-callback",
            )
    bars = [type(callback).__name__ for callback in listed if isinstance(callback, parts.ProgressBar)]
    if len(bars) > 1:
        raise MisconfigurationException(
            f"several progress bars were given: {bars}; keep one", code="trainer-progress-bar"
        )
    writers = [type(callback).__name__ for callback in listed if isinstance(callback, parts.Checkpoint)]
    _refuse_contradiction("enable_progress_bar", enable_progress_bar, bars, code="trainer-progress-bar")
    _refuse_contradiction("enable_checkpointing", enable_checkpointing, writers, code="trainer-checkpointing")
    if not bars and wanted("enable_progress_bar", enable_progress_bar):
        listed.append(parts.TQDMProgressBar())
    has_summary = any(isinstance(callback, parts.ModelSummary) for callback in listed)
    if not has_summary and wanted("enable_model_summary", enable_model_summary):
        listed.append(parts.ModelSummary(max_depth=1))
    if not writers and wanted("enable_checkpointing", enable_checkpointing):
        listed.append(parts.ModelCheckpoint())
    return writers_last(listed)


def _refuse_contradiction(name: str, value: bool | None, given: Sequence[str], *, code: str) -> None:
    if given and value is False:
        raise MisconfigurationException(
            f"Trainer({name}=False) contradicts the callback {given[0]}; leave one out", code=code
        )


def writers_last(callbacks: Sequence[Callback]) -> list[Callback]:
    """Callbacks as given, with those that write checkpoints at the end."""
    writers = [callback for callback in callbacks if getattr(callback, "writes_checkpoints", False)]
    return [callback for callback in callbacks if callback not in writers] + writers


def resolve_recorder(record_failures: Any) -> Callback | None:
    """What records steps that fail; None if nobody is to."""
    if record_failures is False:
        return None
    if record_failures is not True and not isinstance(record_failures, str | os.PathLike):
        raise InvalidTypeError(
            f"Trainer(record_failures={record_failures!r}) must be True, False or a folder", code="trainer-argument"
        )
    return parts.FailureRecorder(None if record_failures is True else record_failures)


def resolve_precision(name: Any, chosen: Sequence[Precision], *, device_type: str) -> Precision:
    """The precision that ``precision=`` names, or a plug-in is."""
    if len(chosen) > 1 or (chosen and name is not None):
        raise InvalidValueError(
            f"several precisions were given: precision={name!r} and the plugins "
            f"{[type(plugin).__name__ for plugin in chosen]}; keep one",
            code="precision-twice",
        )
    if chosen:
        refuse_uncalled(chosen[0], "precision")
    return chosen[0] if chosen else build_precision(name, device_type=device_type)


def resolve_loggers(logger: Any, *, default_root_dir: str = ".") -> list[Any]:
    """The loggers: True, the default, means TensorBoard's if tensorboard is installed, else a CSV file.

    Users' own need ``log_metrics(metrics, step)``.
    """
    logger = wanted("logger", logger)
    if logger is False:
        return []
    if logger is True:
        has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        return [(back_ends.TensorBoardLogger if has_tensorboard else back_ends.CSVLogger)(default_root_dir)]
    loggers = list(logger) if isinstance(logger, Sequence) else [logger]
    for one in loggers:
        if not callable(getattr(one, "log_metrics", None)):
            raise InvalidTypeError(
                f"Trainer(logger=...) takes objects with log_metrics(metrics, step), got {type(one).__name__}",
                code="trainer-logger",
            )
    return loggers


#: Profilers by the name that ``Trainer(profiler=...)`` takes.
PROFILERS: Mapping[str, str] = {
    "simple": "SimpleProfiler",
    "advanced": "AdvancedProfiler",
    "pytorch": "PyTorchProfiler",
}


def resolve_profiler(value: Any) -> Profiler:
    """The profiler that an argument names or is; without one, the profiler that measures nothing."""
    if value is None:
        return profilers.PassThroughProfiler()
    if isinstance(value, str) and value.lower() in PROFILERS:
        return getattr(profilers, PROFILERS[value.lower()])()  # type: ignore[no-any-return]
    if isinstance(value, profilers.Profiler):
        return value
    kind = InvalidValueError if isinstance(value, str) else InvalidTypeError
    raise kind(
        f"Trainer(profiler={value!r}) must be one of {', '.join(map(repr, PROFILERS))}, an object derived from "
        "leyden.profilers.Profiler, or None",
        code="trainer-profiler",
    )


#: Arguments that users know and that come with a later version, with the values that ask for nothing.
NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "model_registry": (None,),
}


def refuse_what_is_not_yet(arguments: Mapping[str, Any]) -> None:
    """Refuse an argument that would silently do nothing.

    Raises:
        MisconfigurationException: naming it.
    """
    for name, neutral in NOT_YET.items():
        if name in arguments and arguments[name] not in neutral:
            raise MisconfigurationException(
                f"Trainer({name}={arguments[name]!r}) is not available in this version; leave it out",
                code="not-yet",
            )


def set_backends(deterministic: bool | str | None, benchmark: bool | None) -> None:
    """Tell torch about determinism and cuDNN's choice of algorithms; None leaves both as they are.

    Raises:
        InvalidValueError: values that mean neither (``deterministic``, ``benchmark``).
    """
    if deterministic not in (None, True, False, "warn"):
        raise InvalidValueError(
            f"Trainer(deterministic={deterministic!r}) must be True, False or 'warn'", code="deterministic"
        )
    if not isinstance(benchmark, bool | None):
        raise InvalidValueError(f"Trainer(benchmark={benchmark!r}) must be True, False or None", code="benchmark")
    if deterministic is not None:
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        if benchmark:
            warn(
                f"Trainer(deterministic={deterministic!r}, benchmark=True): what cuDNN finds fastest may differ from "
                "run to run; leave benchmark out",
                code="deterministic-benchmark",
            )
        benchmark = bool(benchmark)
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark
