"""The arguments of ``ModelCheckpoint``, checked before anything is trained."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

from leyden.errors import InvalidTypeError, InvalidValueError, warn
from leyden.units import Duration, Every, seconds_of

#: A value in a template of file names: its name, and its format.
FIELD: Final = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")


class Intervals(NamedTuple):
    """When to save: every so many epochs, or on a clock.

    Attributes:
        steps: ``every_n_train_steps``; 0 if another clock counts.
        epochs: ``every_n_epochs``; likewise.
        time: ``train_time_interval``; None likewise.
        clock: all but epochs, or None.
    """

    steps: int = 0
    epochs: int = 0
    time: timedelta | None = None
    clock: Every | None = None


def resolve_intervals(*, steps: Any, epochs: Any, time: Any, every: Any) -> Intervals:
    """The one interval that was given, or every epoch; ``every`` is a spelling of the others where it has their clock.

    Raises:
        InvalidValueError: an interval that cannot be (``checkpoint-every``, ``duration``), or several
            (``checkpoint-triggers``).
    """
    for name, value in (("every_n_train_steps", steps), ("every_n_epochs", epochs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InvalidValueError(
                f"ModelCheckpoint({name}={value!r}) must be an int >= 0, or None", code="checkpoint-every"
            )
    given = {"every_n_train_steps": steps, "every_n_epochs": epochs, "train_time_interval": time, "every": every}
    given = {name: value for name, value in given.items() if value is not None}
    chosen = [f"{name}={value!r}" for name, value in given.items() if value != 0]
    if len(chosen) > 1:
        raise InvalidValueError(
            f"ModelCheckpoint({', '.join(chosen)}): keep one, or use a callback for each", code="checkpoint-triggers"
        )
    if time is not None:
        seconds = seconds_of(time, what="ModelCheckpoint(train_time_interval=...)")
        each = Duration(seconds, "seconds") if seconds else Duration(1, "steps")  # no time: after every step
        return Intervals(time=timedelta(seconds=seconds), clock=Every(each))
    if every is not None:
        return _spelled_out(Every(every, what="ModelCheckpoint(every=...)"))
    if steps:
        return Intervals(steps=steps, clock=Every(Duration(steps, "steps")))
    return Intervals(epochs=epochs or 0 if given else 1)


def _spelled_out(every: Every) -> Intervals:
    count, clock = every.duration
    if clock == "epochs":
        return Intervals(epochs=int(count))
    steps, time = (int(count) if clock == "steps" else 0), (timedelta(seconds=count) if clock == "seconds" else None)
    return Intervals(steps=steps, time=time, clock=every)


def with_former(former: Mapping[str, Any], today: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Today's ``dirpath``, ``filename``, ``save_top_k`` and ``every_n_epochs``, where arguments of 1.x say them.

    Raises:
        InvalidTypeError: there was never such an argument (``checkpoint-argument``).

    >>> with_former({}, ("folder", None, 1, None))
    ('folder', None, 1, None)
    """
    dirpath, filename, save_top_k, every_n_epochs = today
    for name, value in former.items():
        if name == "filepath":
            is_folder = value is not None and os.path.isdir(value)
            dirpath, filename = (value, None) if is_folder or value is None else os.path.split(value)
        elif name == "save_best_only":
            save_top_k = 1 if value else -1
        elif name in ("period", "every_n_val_epochs"):
            every_n_epochs = value
        elif name != "prefix":
            raise InvalidTypeError(f"ModelCheckpoint() has no argument {name!r}", code="checkpoint-argument")
    if former.get("prefix"):
        filename = f"{former['prefix']}-{filename or '{epoch}-{step}'}"
    if former:
        names = f"dirpath={dirpath!r}, filename={filename!r}, save_top_k={save_top_k}, every_n_epochs={every_n_epochs}"
        text = f"ModelCheckpoint({', '.join(former)}) is of Lightning 1.x; write {names}"
        warn(text, code="checkpoint-argument-1x")
    return dirpath or None, filename or None, save_top_k, every_n_epochs


def check_arguments(
    *,
    dirpath: Any,
    filename: Any,
    monitor: Any,
    save_last: Any,
    save_top_k: Any,
    mode: Any,
    on_save_error: Any,
) -> None:
    """Refuse what cannot be.

    Raises:
        InvalidValueError: naming the argument.
    """
    is_count = isinstance(save_top_k, int) and not isinstance(save_top_k, bool) and save_top_k >= -1
    for is_wrong, text, code in (
        (
            "://" in str(dirpath) and save_last == "link",
            f"dirpath={str(dirpath)!r}, save_last='link'): links need a local folder; pass save_last=True",
            "checkpoint-save-last",
        ),
        (
            on_save_error not in ("warn", "raise"),
            f"on_save_error={on_save_error!r}): expected 'warn' (train on) or 'raise'",
            "checkpoint-on-save-error",
        ),
        (mode not in ("min", "max"), f"mode={mode!r}): expected 'min' (smaller is better) or 'max'", "checkpoint-mode"),
        (
            not isinstance(monitor, str | None),
            f"monitor={monitor!r}): expected the name of a logged value",
            "checkpoint-monitor",
        ),
        (
            save_last not in (None, True, False, "link"),
            f"save_last={save_last!r}): expected a bool or 'link'",
            "checkpoint-save-last",
        ),
        (
            not is_count,
            f"save_top_k={save_top_k!r}): expected -1 (all), 0 (none) or a number of files",
            "checkpoint-save-top-k",
        ),
        (
            is_count and save_top_k > 1 and monitor is None,
            f"save_top_k={save_top_k}) needs a monitor that says which files are best; without one it keeps the last "
            "(1), all (-1) or none (0)",
            "checkpoint-save-top-k",
        ),
    ):
        if is_wrong:
            raise InvalidValueError(f"ModelCheckpoint({text}", code=code)
    try:
        for field in FIELD.finditer(filename or ""):
            format(0, field[2] or "")
    except ValueError as error:
        text = f"ModelCheckpoint(filename={filename!r}): {error}; write numbers like {{val_loss:.2f}}"
        raise InvalidValueError(text, code="checkpoint-filename") from None
