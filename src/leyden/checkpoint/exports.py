"""Files for Lightning 1.5."""

from __future__ import annotations

import os
from typing import Any, Final

from leyden.checkpoint.files import read_checkpoint
from leyden.checkpoint.layout import SCALERS
from leyden.checkpoint.progress import place_of
from leyden.checkpoint.writing import write_encoded
from leyden.errors import InvalidValueError, warn

#: What 1.5 does not read, or reads as something else.
_LEFT_OUT: Final = ("epoch", "global_step", "pytorch-lightning_version", "loops", "leyden", *SCALERS)
_AS_1_5: Final = "1.5.10"


def export(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    version: str = "1.5",
    weights_only: bool | None = None,
) -> None:
    """Write a checkpoint, of leyden or of Lightning from 1.5 on, as Lightning 1.5 would have written it.

    1.5 goes on with whole epochs only, so what is left of an epoch in progress is left out: a warning says so.

    Args:
        path_in: the file to read.
        path_out: the file to write.
        version: "1.5"; later versions read leyden's files as they are.
        weights_only: None and True read data and run no code in the file; False trusts it.

    Raises:
        InvalidValueError: another version (``export-version``).
        CheckpointError: the file cannot be read or written.
    """
    if version != "1.5":
        raise InvalidValueError(
            f"export(version={version!r}): only '1.5' needs an export; Lightning from 1.6 on reads leyden's files",
            code="export-version",
        )
    checkpoint = read_checkpoint(path_in, weights_only=weights_only)
    place = place_of(checkpoint)
    clocks, phase = place["clocks"], place["phase"]
    uncounted = phase in ("batch_end", "validation", "validated") and place["closes"]
    if phase not in ("between", "epoch_end") and not place["is_last"]:
        warn(
            f"{os.fspath(path_in)!r} is from the middle of epoch {clocks['epoch']}; Lightning 1.5 goes on with the "
            "next epoch. Export a file from the end of an epoch to leave nothing out",
            code="export-mid-epoch",
        )
    exported: dict[str, Any] = {
        "epoch": clocks["epoch"] + (phase != "between"),
        "global_step": clocks["updates"] + uncounted,
        "pytorch-lightning_version": _AS_1_5,
        **{key: value for key, value in checkpoint.items() if key not in _LEFT_OUT},
    }
    if "callbacks" in checkpoint:
        exported["callbacks"] = {_key_of(key): state for key, state in (checkpoint["callbacks"] or {}).items()}
    scale = next((checkpoint[key] for key in SCALERS if key in checkpoint), None)
    if scale is not None:
        exported["native_amp_scaling_state"] = scale
    write_encoded(exported, path_out)


def _key_of(key: Any) -> Any:
    """The key of a callback's state; 1.5 named one argument more in a ModelCheckpoint's."""
    is_writer = isinstance(key, str) and key.startswith("ModelCheckpoint{") and "save_on_train_epoch_end" not in key
    return f"{key[:-1]}, 'save_on_train_epoch_end': None}}" if is_writer else key
