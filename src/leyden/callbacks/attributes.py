"""Attributes that a callback tunes: a learning rate, a batch size, wherever the user keeps them."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


def holders_of(trainer: Trainer, pl_module: LightningModule, name: str) -> list[Any]:
    """Whatever has the attribute: the module, the datamodule, the hyper-parameters of both."""
    owners = [owner for owner in (pl_module, trainer.datamodule) if owner is not None]
    candidates: list[Any] = [*owners, *(owner.hparams for owner in owners)]
    return [holder for holder in candidates if (name in holder if _is_mapping(holder) else hasattr(holder, name))]


def set_attribute(trainer: Trainer, pl_module: LightningModule, name: str, value: Any) -> None:
    """Set the attribute wherever it is."""
    for holder in holders_of(trainer, pl_module, name):
        if _is_mapping(holder):
            holder[name] = value
        else:
            setattr(holder, name, value)


def get_attribute(trainer: Trainer, pl_module: LightningModule, name: str) -> Any:
    """The attribute's value where it is found first."""
    holder = holders_of(trainer, pl_module, name)[0]
    return holder[name] if _is_mapping(holder) else getattr(holder, name)


def _is_mapping(holder: Any) -> bool:
    return isinstance(holder, MutableMapping)
