"""Loggers and checkpoints: a run that goes on writes to the folder that it wrote to, and no row twice.

A logger whose version nobody has given takes a new one at each start, and a ModelCheckpoint without a folder saves
there. But whoever starts a script again with ``ckpt_path="last"`` means the run that has ended too early. So the
version is taken from the newest checkpoint, among those of the same module with the same hyper-parameters: the next
run of a sweep is another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leyden.checkpoint.files import glance
from leyden.checkpoint.places import by_age, is_remote
from leyden.checkpoint.writing import remove_stale
from leyden.rank import rank_zero_info


def describe(module: Any, loggers: Sequence[Any]) -> dict[str, Any]:
    """For a checkpoint: which run it is of, and how far its loggers are."""
    states = [logger.state_dict() if hasattr(logger, "state_dict") else None for logger in loggers]
    return {"run": _run_of(module), "loggers": states}


def take_up_version(
    loggers: Sequence[Any], *, writers: Sequence[Any], module: Any, interrupted: str | None = None
) -> None:
    """Let loggers go on in the version of the newest checkpoint of this run, before they write anything.

    Args:
        loggers: those of the Trainer; one with a version keeps it.
        writers: the callbacks that write checkpoints.
        module: the module of this run.
        interrupted: where a signal would have saved.
    """
    is_open = [getattr(logger, "is_open", False) for logger in loggers]
    if not any(is_open):
        return
    folders = [getattr(writer, "dirpath", None) for writer in writers]
    beside = [*Path(loggers[0].root_dir).glob("*/checkpoints")] if is_open[0] and None in folders else []
    named = {Path(folder) for folder in folders if folder is not None and not is_remote(folder)}
    for folder in beside:  # a run that was killed in its first save goes on in another one
        remove_stale(folder)
    found = [str(path) for folder in {*beside, *named} for path in folder.glob("*.ckpt")]
    run, other = _run_of(module), None
    for path in map(Path, by_age([*found, *([interrupted] if interrupted else [])])):
        place, is_beside = glance(path).get("leyden", {}), path.parent in beside
        if path.parent not in named and place.get("run") != run:
            other = other or (path, place.get("run", {}))
            continue
        for logger, state in zip(loggers, place.get("loggers", ()), strict=False):
            if state and is_beside:  # the whole folder may have been moved
                state = {**state, "root_dir": os.path.realpath(logger.root_dir)}
            if state:
                logger.load_state_dict(state)
        return
    if other is not None:
        path, before = other
        changed = sorted(name for name in {*run, *before} if run.get(name) != before.get(name))
        rank_zero_info(
            f"{str(path)!r} is of another run ({', '.join(changed)}), so ckpt_path='last' does not mean it; pass its "
            "path to go on with it"
        )


def rewind(loggers: Sequence[Any], place: Mapping[str, Any]) -> None:
    """Let loggers drop what was written after a checkpoint.

    Args:
        loggers: those of the Trainer.
        place: what the checkpoint says about the run.
    """
    for logger, state in zip(loggers, place.get("loggers", ()), strict=False):
        if state and hasattr(logger, "rewind") and state.keys() >= logger.state_dict().keys():  # of its own kind
            logger.rewind(state)


def _run_of(module: Any) -> dict[str, str]:
    """What tells a run from others in the same folder: the class of the module and its plain hyper-parameters."""
    values = {str(name): repr(value) for name, value in dict(module.hparams).items() if _is_plain(value)}
    return {"module": type(module).__qualname__, **values}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
