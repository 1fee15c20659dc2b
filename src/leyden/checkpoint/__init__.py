"""Checkpoints: the file, what is in it, and how a run goes on from one. Loaded when the first one is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.checkpoint.background import Writer
    from leyden.checkpoint.choices import Choices
    from leyden.checkpoint.exports import export
    from leyden.checkpoint.files import as_checkpoint, as_data, read_checkpoint
    from leyden.checkpoint.find import find_checkpoint
    from leyden.checkpoint.from_file import load_datamodule, load_module
    from leyden.checkpoint.layout import dump
    from leyden.checkpoint.plugins import (
        AsyncCheckpointIO,
        CheckpointIO,
        TorchCheckpointIO,
        check_plugin,
        hand_over,
        is_asynchronous,
        is_own,
        read_with,
    )
    from leyden.checkpoint.position import mark, restore_own
    from leyden.checkpoint.progress import place_of
    from leyden.checkpoint.restore import restore_module
    from leyden.checkpoint.resume import Running, capture, check_limits, is_mid_step, restore_place, set_clocks
    from leyden.checkpoint.resumption import Resumption
    from leyden.checkpoint.structure import options_of, outline
    from leyden.checkpoint.switches import Switches, look_at
    from leyden.checkpoint.versions import describe, rewind, take_up_version
    from leyden.checkpoint.writing import copy_checkpoint, partial_file, rehearse, write_checkpoint

__all__ = [
    "AsyncCheckpointIO",
    "CheckpointIO",
    "Choices",
    "Resumption",
    "Running",
    "Switches",
    "TorchCheckpointIO",
    "Writer",
    "as_checkpoint",
    "as_data",
    "capture",
    "check_limits",
    "check_plugin",
    "copy_checkpoint",
    "describe",
    "dump",
    "export",
    "find_checkpoint",
    "hand_over",
    "is_asynchronous",
    "is_mid_step",
    "is_own",
    "load_datamodule",
    "load_module",
    "look_at",
    "mark",
    "options_of",
    "outline",
    "partial_file",
    "place_of",
    "read_checkpoint",
    "read_file",
    "read_with",
    "rehearse",
    "restore_module",
    "restore_own",
    "restore_place",
    "rewind",
    "set_clocks",
    "take_up_version",
    "write_checkpoint",
]

_HOMES = {
    "AsyncCheckpointIO": "leyden.checkpoint.plugins",
    "CheckpointIO": "leyden.checkpoint.plugins",
    "Choices": "leyden.checkpoint.choices",
    "Resumption": "leyden.checkpoint.resumption",
    "Running": "leyden.checkpoint.resume",
    "Switches": "leyden.checkpoint.switches",
    "TorchCheckpointIO": "leyden.checkpoint.plugins",
    "Writer": "leyden.checkpoint.background",
    "as_checkpoint": "leyden.checkpoint.files",
    "as_data": "leyden.checkpoint.files",
    "capture": "leyden.checkpoint.resume",
    "check_limits": "leyden.checkpoint.resume",
    "check_plugin": "leyden.checkpoint.plugins",
    "copy_checkpoint": "leyden.checkpoint.writing",
    "describe": "leyden.checkpoint.versions",
    "dump": "leyden.checkpoint.layout",
    "export": "leyden.checkpoint.exports",
    "find_checkpoint": "leyden.checkpoint.find",
    "hand_over": "leyden.checkpoint.plugins",
    "is_asynchronous": "leyden.checkpoint.plugins",
    "is_mid_step": "leyden.checkpoint.resume",
    "is_own": "leyden.checkpoint.plugins",
    "load_datamodule": "leyden.checkpoint.from_file",
    "load_module": "leyden.checkpoint.from_file",
    "look_at": "leyden.checkpoint.switches",
    "mark": "leyden.checkpoint.position",
    "restore_own": "leyden.checkpoint.position",
    "options_of": "leyden.checkpoint.structure",
    "outline": "leyden.checkpoint.structure",
    "partial_file": "leyden.checkpoint.writing",
    "place_of": "leyden.checkpoint.progress",
    "read_checkpoint": "leyden.checkpoint.files",
    "read_file": "leyden.checkpoint.files",
    "read_with": "leyden.checkpoint.plugins",
    "rehearse": "leyden.checkpoint.writing",
    "restore_module": "leyden.checkpoint.restore",
    "rewind": "leyden.checkpoint.versions",
    "set_clocks": "leyden.checkpoint.resume",
    "take_up_version": "leyden.checkpoint.versions",
    "restore_place": "leyden.checkpoint.resume",
    "write_checkpoint": "leyden.checkpoint.writing",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
