"""One process, one device."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from leyden.strategies.base import Strategy


@final
class SingleDeviceStrategy(Strategy):
    """Everything on one device; what ranks would tell each other is already known.

    Args:
        device: where the model and the batches go, as ``"cpu"``, ``"cuda:0"`` or a ``torch.device``.
        accelerator: is told of the device, if the user has one of his own.
        checkpoint_io: writes, reads and removes checkpoints; None leaves that to the Trainer.
        precision_plugin: the precision of the run; None leaves that to the Trainer, too.

    >>> strategy = SingleDeviceStrategy("cpu")
    >>> strategy.root_device, strategy.world_size, strategy.is_global_zero
    (device(type='cpu'), 1, True)
    """

    distributed = False
    reduces_gradients = False

    def __init__(
        self, device: Any = "cpu", accelerator: Any = None, checkpoint_io: Any = None, precision_plugin: Any = None
    ) -> None:
        device = torch.device(device)
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, 0)  # tensors name their index, and devices are compared with theirs
        self.root_device = device
        self.world_size = 1
        self.global_rank = 0
        self.local_rank = 0
        self.node_rank = 0
        self.num_nodes = 1
        self.accelerator, self.checkpoint_io, self.precision_plugin = accelerator, checkpoint_io, precision_plugin
        self._nothing: nullcontext[None] = nullcontext()

    def setup_environment(self) -> None:
        """Make a CUDA device the current one: the user's own ``"cuda"`` tensors land beside the model."""
        if self.root_device.type == "cuda":
            torch.cuda.set_device(self.root_device)
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)

    def place(self, module: nn.Module) -> None:
        """Move the module to the device."""
        module.to(self.root_device)

    def no_sync(self) -> AbstractContextManager[Any]:
        """A context that does nothing."""
        return self._nothing

    def gradients_ready(self, parameters: Iterable[Parameter]) -> None:
        """Do nothing: they are."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def any(self, flag: Tensor) -> Tensor:
        """Return the flag."""
        return flag

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str = "mean") -> Tensor:
        """Return the tensor."""
        return tensor

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensor, without an additional dimension."""
        return tensor

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return the object."""
        return obj

    def barrier(self, name: str | None = None) -> None:
        """Do nothing: every rank is here."""

    def teardown(self) -> None:
        """Tell the accelerator; the module stays where it is."""
        if self.accelerator is not None:
            self.accelerator.teardown()
