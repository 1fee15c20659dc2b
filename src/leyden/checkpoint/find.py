"""Which file ``ckpt_path`` means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leyden.checkpoint.files import fault_of, glance, missing
from leyden.checkpoint.places import by_age, is_remote, newest_first
from leyden.errors import CheckpointError, CheckpointNotFoundError, InvalidValueError, warn


def find_checkpoint(
    path: Any,
    *,
    stage: str,
    writers: Sequence[Any],
    is_implicit: bool = False,
    fast_dev_run: bool = False,
    interrupted: str | None = None,
    is_own: bool = True,
) -> Any:
    """The file that ``ckpt_path`` means, or None for none.

    Args:
        path: a path, a URL, "best", "last", or None.
        stage: "fit", "validate", "test" or "predict", for error texts.
        writers: the callbacks that write checkpoints.
        is_implicit: whether None means the best one, if there is one.
        fast_dev_run: whether this run writes none, so that there is no best one.
        interrupted: where a signal would have saved.
        is_own: whether leyden reads the files; a user's plug-in knows itself what is there.

    Raises:
        CheckpointNotFoundError: a path without a file (``checkpoint-missing``).
        InvalidValueError: "best" where no callback knows which that is (``checkpoint-best``).
    """
    if path is None:
        return _best(writers) if is_implicit and not fast_dev_run else None
    if path == "best":
        best = None if fast_dev_run else _best(writers)
        if best is None:
            why = "fast_dev_run writes none" if fast_dev_run else "no ModelCheckpoint of this Trainer has written one"
            raise InvalidValueError(
                f"trainer.{stage}(ckpt_path='best') finds no best checkpoint: {why}; pass the path of a file",
                code="checkpoint-best",
            )
        if len(writers) > 1:
            warn(
                f"ckpt_path='best' takes the first ModelCheckpoint's, of {len(writers)}: {best!r}; pass the path of a "
                "file to choose another",
                code="checkpoint-best",
            )
        return best
    if path == "last":
        return _last(writers, stage, interrupted, is_own=is_own)
    if is_own and not hasattr(path, "read") and "://" not in os.fspath(path) and not Path(path).expanduser().is_file():
        raise _no_file(os.fspath(path))
    return path


def _no_file(path: str) -> CheckpointNotFoundError:
    word = path.strip().lower()
    if word not in ("best", "last"):
        return missing(path)
    return CheckpointNotFoundError(
        f"there is no checkpoint {path!r}; did you mean {word!r}?", code="checkpoint-missing"
    )


def _best(writers: Sequence[Any]) -> str | None:
    return getattr(writers[0], "best_model_path", "") or None if writers else None


def _last(writers: Sequence[Any], stage: str, interrupted: str | None, *, is_own: bool) -> str | None:
    """The newest whole file that callbacks or a signal have written or, in a new process, that is in their folders."""
    saved = [interrupted] if interrupted else []
    known = [path for writer in writers for path in _written(writer)]
    folders = [str(writer.dirpath) for writer in writers if getattr(writer, "dirpath", None)]
    beside = [path for folder in folders for path in newest_first(folder)]
    known = by_age([*known, *saved]) if by_age(known) else by_age([*beside, *saved])
    files = list(dict.fromkeys([*known, *by_age(beside)]))
    if not files:
        where = f" in {', '.join(map(repr, folders))}" if folders else ": no callback writes any"
        warn(
            f"trainer.{stage}(ckpt_path='last') finds no checkpoint{where}; it starts from the module as it is",
            code="checkpoint-last",
        )
        return None
    return _whole(files, stage) if is_own else files[0]


def _whole(files: Sequence[str], stage: str) -> str:
    """The first file that is not damaged; one that is passed over is told. A fit needs more than weights, if it can."""
    faults: list[str] = []
    weights = ""
    for path in files:
        fault = fault_of(path)
        if fault is None and stage == "fit" and _holds_weights_only(path):
            weights = weights or path
        elif fault is None:
            if faults:
                warn(
                    f"trainer.{stage}(ckpt_path='last') goes on from {path!r}, because newer files are damaged: "
                    f"{'; '.join(faults)}",
                    code="checkpoint-fallback",
                )
            return path
        else:
            faults.append(f"{path!r}: {fault}")
    if weights:
        return weights
    raise CheckpointError(
        f"trainer.{stage}(ckpt_path='last') finds damaged files only: {'; '.join(faults)}. Remove them to start anew",
        code="checkpoint-last",
    )


def _holds_weights_only(path: str) -> bool:
    content = {} if is_remote(path) else glance(path)
    return bool(content) and "optimizer_states" not in content


def _written(writer: Any) -> list[str]:
    paths = [getattr(writer, "last_model_path", ""), getattr(writer, "best_model_path", "")]
    return [path for path in (*paths, *getattr(writer, "best_k_models", ())) if path]
