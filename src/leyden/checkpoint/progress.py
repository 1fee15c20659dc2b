"""Where a fit is: as leyden keeps it, and under the names that Lightning has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from leyden.errors import CheckpointError

#: Version of the part "leyden" of a checkpoint; rises with a change that older versions of leyden cannot read.
FORMAT: Final = 1

#: What a run was doing last; :func:`leyden.checkpoint.resume.capture` says what is left to do then.
PHASES: Final = ("between", "batch", "batch_end", "validation", "validated", "batch_over", "epoch_end")

Counts = dict[str, int]


def loops_of(place: Mapping[str, Any], *, automatic: bool) -> dict[str, Any]:
    """The part ``loops`` of a checkpoint, as Lightning 2.x writes it.

    Args:
        place: what ``capture`` returned.
        automatic: whether leyden runs the updates.
    """
    clocks, phase = place["clocks"], place["phase"]
    running = phase != "between"
    epoch, batches = clocks["epoch"], place["batches"]
    in_hand = int(phase in ("batch", "batch_end"))  # a batch that is not completed
    unprocessed = int(phase == "batch")
    started = clocks["epoch"] + running
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": clocks["updates"]},
            "epoch_loop.batch_progress": {
                "total": _four(clocks["micro_batches"], clocks["micro_batches"] - in_hand, unprocessed),
                "current": _four(batches, batches - in_hand, unprocessed),
                "is_last_batch": place["is_last"],
            },
            "epoch_loop.scheduler_progress": {"total": _two(0), "current": _two(0)},
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": _optimizers(place, is_used=automatic),
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": _steps(place, is_used=not automatic),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": _no_batches(),
            "epoch_progress": {
                part: {
                    "ready": started,
                    "completed": epoch,
                    "started": started,
                    "processed": started if phase == "epoch_end" else epoch,
                }
                for part in ("total", "current")
            },
        },
        "validate_loop": {"state_dict": {}, "batch_progress": _no_batches()},
        "test_loop": {"state_dict": {}, "batch_progress": _no_batches()},
        "predict_loop": {"state_dict": {}, "batch_progress": {"total": _four(0, 0), "current": _four(0, 0)}},
    }


def _two(count: int) -> Counts:
    return {"ready": count, "completed": count}


def _four(ready: int, completed: int, unprocessed: int = 0) -> Counts:
    return {"ready": ready, "completed": completed, "started": ready, "processed": ready - unprocessed}


def _no_batches() -> dict[str, Any]:
    return {"total": _four(0, 0), "current": _four(0, 0), "is_last_batch": False}


def _steps(place: Mapping[str, Any], *, is_used: bool) -> dict[str, Counts]:
    steps = place["clocks"]["global_step"] if is_used else 0
    in_epoch = steps - place["steps_before"] if is_used else 0
    return {"total": _two(steps), "current": _two(in_epoch)}


def _optimizers(place: Mapping[str, Any], *, is_used: bool) -> dict[str, Any]:
    steps = _steps(place, is_used=is_used)
    cleared = {part: {**counts, "started": counts["ready"]} for part, counts in steps.items()}
    return {"optimizer": {"step": steps, "zero_grad": cleared}}


def place_of(checkpoint: Mapping[str, Any], *, window_size: int = 1) -> dict[str, Any]:
    """Where the fit was that wrote a checkpoint: leyden's, or Lightning's from 1.5 on.

    Args:
        checkpoint: the whole file.
        window_size: micro-batches of a window, which Lightning's files do not tell.

    Raises:
        CheckpointError: a later version of leyden wrote it (``checkpoint-format``).
    """
    if "leyden" in checkpoint:
        check_format(checkpoint)
        return dict(checkpoint["leyden"])
    if "loops" not in checkpoint:  # 1.5: the epoch to go on with, and batches that stepped; frequencies begin anew
        epoch, steps = checkpoint.get("epoch", 0), checkpoint.get("global_step", 0)
        return _place("between", {"epoch": epoch, "global_step": steps, "updates": steps, "micro_batches": 0})
    fit = checkpoint["loops"]["fit_loop"]
    epochs, batches = fit["epoch_progress"]["current"], fit["epoch_loop.batch_progress"]
    now = batches["current"]
    clocks = {
        "epoch": epochs["processed"],
        "batch_idx": max(now["ready"] - 1, 0),
        "micro_batches": batches["total"]["ready"],
        "updates": fit["epoch_loop.state_dict"].get("_batches_that_stepped", checkpoint["global_step"]),
        "global_step": _global_step(fit),
    }
    if epochs["processed"] >= epochs["ready"] or now["ready"] == 0:
        return _place("between", clocks)
    if now["processed"] < now["ready"]:
        phase = "batch"
    else:
        phase = "batch_end" if now["completed"] < now["ready"] else "validated"
    is_last = batches.get("is_last_batch", False)
    closes = is_last or now["ready"] % window_size == 0
    return _place(phase, clocks, batches=now["ready"], is_last=is_last, closes=closes, window_size=window_size)


def check_format(checkpoint: Mapping[str, Any], name: str = "") -> None:
    """Refuse what a later version of leyden has written; ``name`` is the file's, for the text.

    Raises:
        CheckpointError: that is so (``checkpoint-format``).
    """
    own = checkpoint.get("leyden", {"format": FORMAT})
    found = own.get("format") if isinstance(own, Mapping) else None
    if not isinstance(found, int) or found > FORMAT:
        raise CheckpointError(
            f"the checkpoint {name!r} has format {found!r} and this version of leyden reads up to {FORMAT}; update "
            "leyden, or delete its key 'leyden' to resume as from Lightning's file",
            code="checkpoint-format",
        )


def _place(phase: str, clocks: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"phase": phase, "clocks": clocks, "batches": 0, "is_last": False, "closes": False, **more}


def _global_step(fit: Mapping[str, Any]) -> int:
    """Optimizer steps, in automatic or in manual mode; 1.6 to 1.9 have other names."""
    steps = 0
    for names in (
        ("automatic_optimization.optim_progress", "manual_optimization.optim_step_progress"),
        ("batch_loop.optimizer_loop.optim_progress", "batch_loop.manual_loop.optim_step_progress"),
    ):
        automatic, manual = (fit.get(f"epoch_loop.{name}") for name in names)
        if automatic is not None:
            steps += automatic["optimizer"]["step"]["total"]["completed"]
        if manual is not None:
            steps += manual["total"]["completed"]
    return steps
