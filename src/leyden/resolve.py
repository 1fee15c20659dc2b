"""The Trainer's arguments, checked before anything runs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from leyden import loggers as back_ends  # each is imported when it is used
from leyden.callback import Callback
from leyden.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from leyden.callbacks.progress import ProgressBar, TQDMProgressBar
from leyden.errors import InvalidTypeError, InvalidValueError, MisconfigurationException, warn
from leyden.loops.cadence import Limits, ValidationCadence, seconds_of
from leyden.precision import Precision, build_precision

#: Epochs of a fit for which no maximum was given.
DEFAULT_EPOCHS = 1000


def resolve_limits(
    *, max_epochs: int | None, min_epochs: int | None, max_steps: int | None, min_steps: int | None, max_time: Any
) -> Limits:
    """How long a fit runs. Without any maximum it ends after 1,000 epochs, which the fit warns of."""
    for name, value, least in (
        ("max_epochs", max_epochs, -1),
        ("min_epochs", min_epochs, 0),
        ("max_steps", max_steps, -1),
        ("min_steps", min_steps, 0),
    ):
        if value is not None:
            check_int(name, value, least=least, code="trainer-limit")
    max_steps = -1 if max_steps is None else max_steps
    is_default = max_epochs is None and max_steps == -1 and max_time is None
    if max_epochs is None:
        max_epochs = DEFAULT_EPOCHS if is_default else -1
    return Limits(
        max_epochs=max_epochs,
        min_epochs=min_epochs or 0,
        max_steps=max_steps,
        min_steps=min_steps or 0,
        max_seconds=None if max_time is None else seconds_of(max_time, what="Trainer(max_time=...)"),
        is_default=is_default,
    )


def check_int(name: str, value: Any, *, least: int, code: str = "trainer-argument") -> None:
    """Refuse what is no int, or too small.

    Raises:
        InvalidValueError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidValueError(f"Trainer({name}={value!r}) must be an int >= {least}", code=code)


def check_cadences(
    *,
    val_check_interval: Any,
    check_val_every_n_epoch: Any,
    num_sanity_val_steps: Any,
    log_every_n_steps: Any,
    reload_dataloaders_every_n_epochs: Any,
) -> None:
    """Refuse what cannot say how often something happens; None is the default of the argument.

    Raises:
        InvalidValueError: naming the argument.
    """
    if check_val_every_n_epoch is not None:
        check_int("check_val_every_n_epoch", check_val_every_n_epoch, least=1)
    if num_sanity_val_steps is not None:
        check_int("num_sanity_val_steps", num_sanity_val_steps, least=-1)
    if log_every_n_steps is not None:
        check_int("log_every_n_steps", log_every_n_steps, least=0)
    check_int("reload_dataloaders_every_n_epochs", reload_dataloaders_every_n_epochs, least=0)
    check_interval(val_check_interval, check_val_every_n_epoch)


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
    return value


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
    val_check_interval: int | float | None, every_n_epochs: int | None, num_batches: int | float
) -> ValidationCadence:
    """When to validate, now that the number of training batches is known (inf if it is not)."""
    check_interval(val_check_interval, every_n_epochs)
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
    if interval is None:
        return
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise _bad_interval(interval, "a positive int (batches) or a float up to 1.0 (part of the epoch)")
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
        return 1, GradientAccumulationScheduler(dict(value))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MisconfigurationException(
            f"Trainer(accumulate_grad_batches={value!r}) must be an int >= 1, a dict {{epoch: int}} or None",
            code="trainer-accumulation",
        )
    return value, None


def resolve_callbacks(callbacks: Any, *, enable_progress_bar: bool) -> list[Callback]:
    """The callbacks in calling order, with the default progress bar unless there is one or none is wanted."""
    if callbacks is None:
        callbacks = []
    listed = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    for callback in listed:
        if not isinstance(callback, Callback):
            raise InvalidTypeError(
                f"Trainer(callbacks=...) takes callbacks, got {callback!r} of type {type(callback).__name__}; derive "
                "it from leyden.Callback",
                code="trainer-callback",
            )
    bars = [callback for callback in listed if isinstance(callback, ProgressBar)]
    if len(bars) > 1:
        raise MisconfigurationException(
            f"several progress bars were given: {[type(bar).__name__ for bar in bars]}; keep one",
            code="trainer-progress-bar",
        )
    if bars and not enable_progress_bar:
        raise MisconfigurationException(
            f"Trainer(enable_progress_bar=False) contradicts the callback {type(bars[0]).__name__}; leave one out",
            code="trainer-progress-bar",
        )
    if enable_progress_bar and not bars:
        listed.append(TQDMProgressBar())
    return writers_last(listed)


def writers_last(callbacks: Sequence[Callback]) -> list[Callback]:
    """Callbacks as given, with those that write checkpoints at the end."""
    writers = [callback for callback in callbacks if getattr(callback, "writes_checkpoints", False)]
    return [callback for callback in callbacks if callback not in writers] + writers


def resolve_precision(name: Any, plugins: Any, *, device_type: str) -> Precision:
    """The precision that ``precision=`` or a plugin names."""
    given = list(plugins) if isinstance(plugins, Sequence) else [] if plugins is None else [plugins]
    chosen = [plugin for plugin in given if isinstance(plugin, Precision)]
    others = [type(plugin).__name__ for plugin in given if not isinstance(plugin, Precision)]
    if others:
        raise InvalidTypeError(
            f"Trainer(plugins=...) takes a precision in this version, got {', '.join(others)}", code="trainer-plugins"
        )
    if len(chosen) > 1 or (chosen and name is not None):
        raise InvalidValueError(
            f"several precisions were given: precision={name!r} and the plugins "
            f"{[type(plugin).__name__ for plugin in chosen]}; keep one",
            code="precision-twice",
        )
    return chosen[0] if chosen else build_precision(name, device_type=device_type)


def resolve_loggers(logger: Any, *, default_root_dir: str = ".") -> list[Any]:
    """The loggers: True means TensorBoard's if tensorboard is installed, else a CSV file; None and False mean none.

    Users' own need ``log_metrics(metrics, step)``.
    """
    if logger is None or logger is False:
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


#: Arguments that users know and that come with a later version, with the values that ask for nothing.
NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "profiler": (None,),
    "sync_batchnorm": (False,),
    "model_registry": (None,),
    "barebones": (False,),
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


#: What arguments ask for that this version does not do. Their default, None, leaves the choice to the version.
WITHOUT_EFFECT: Mapping[str, str] = {
    "enable_checkpointing": "writes no checkpoints",
    "enable_model_summary": "prints no summary",
}


def warn_of_what_is_not_yet(**arguments: Any) -> None:
    """Say of each argument that asks for what does not come that it does not; the run is none the worse for it."""
    for name, what in WITHOUT_EFFECT.items():
        if arguments.get(name):
            warn(
                f"Trainer({name}={arguments[name]!r}) has no effect: this version {what}; leave it out",
                code="not-yet",
                stacklevel=4,
            )
