"""The way of a batch from its loader to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from leyden.tree import move_to_device

Transfer = Callable[[Any, int], Any]


def build_transfer(
    device: torch.device,
    *,
    before: Callable[[Any, int], Any] | None = None,
    move: Callable[[Any, torch.device, int], Any] | None = None,
    after: Callable[[Any, int], Any] | None = None,
    convert: Callable[[Any], Any] | None = None,
) -> Transfer | None:
    """Compose ``transfer(batch, dataloader_idx)``, or return None if there is nothing to do.

    Batches of a loader are made on the CPU, so a run on the CPU that overrides nothing leaves them alone.

    Args:
        device: where the model is.
        before: the user's ``on_before_batch_transfer``.
        move: the user's ``transfer_batch_to_device``.
        after: the user's ``on_after_batch_transfer``.
        convert: gives floating tensors the type that the model wants.
    """
    if before is None and move is None and after is None and convert is None and device.type == "cpu":
        return None

    def transfer(batch: Any, dataloader_idx: int) -> Any:
        if before is not None:
            batch = before(batch, dataloader_idx)
        if convert is not None:
            batch = convert(batch)
        batch = move_to_device(batch, device) if move is None else move(batch, device, dataloader_idx)
        return batch if after is None else after(batch, dataloader_idx)

    return transfer
