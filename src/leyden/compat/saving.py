"""Helpers of ``pytorch_lightning.core.saving`` and ``pytorch_lightning.utilities.cloud_io``."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from leyden.checkpoint.files import read_file
from leyden.errors import MissingExtraError
from leyden.loggers.parameters import write_yaml

__all__ = [
    "load",
    "load_hparams_from_yaml",
    "migrate_checkpoint",
    "pl_legacy_patch",
    "save_hparams_to_yaml",
    "update_hparams",
]

_AnyPath = str | os.PathLike[str]

#: Old checkpoints are read as they are, so nothing needs to be patched around it.
pl_legacy_patch = nullcontext


def load(path_or_url: _AnyPath, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """What a file or an address holds, objects included; ``weights_only=False`` lets code in it run, as in torch."""
    return read_file(path_or_url, map_location=map_location, weights_only=weights_only)


def migrate_checkpoint(checkpoint: dict[str, Any], target_version: str | None = None) -> tuple[dict[str, Any], Any]:
    """A checkpoint as it is: leyden reads those of 1.5 to 2.6. With it come the migrations that were made, none."""
    return checkpoint, {}


def load_hparams_from_yaml(config_yaml: _AnyPath, use_omegaconf: bool = True) -> dict[str, Any]:
    """Hyper-parameters of a YAML file of plain values; none if there is no file."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", extra="yaml") from None
    file = Path(config_yaml)
    return yaml.safe_load(file.read_text()) or {} if file.exists() else {}


def save_hparams_to_yaml(config_yaml: _AnyPath, hparams: Any, use_omegaconf: bool = True) -> None:
    """Write hyper-parameters to a YAML file; what is no plain value is written as text."""
    write_yaml(os.fspath(config_yaml), hparams)


def update_hparams(hparams: MutableMapping[str, Any], updates: Mapping[str, Any]) -> None:
    """Set values in nested mappings, in place."""
    for key, value in updates.items():
        if isinstance(value, Mapping) and isinstance(hparams.get(key), MutableMapping):
            update_hparams(hparams[key], value)
        else:
            hparams[key] = value
