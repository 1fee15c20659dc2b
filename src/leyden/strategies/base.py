"""What a strategy is: where the model lives and how ranks talk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from leyden.tree import move_to_device


class Strategy(ABC):
    """What the loops need to know of the processes of a run. Attributes hold from ``setup_environment`` on.

    ======================  ==================================================================
    ``root_device``         device of this process: the model and every batch go there
    ``world_size``          number of processes in the run
    ``global_rank``         this process among all
    ``local_rank``          this process among those of its machine
    ``node_rank``           this machine among ``num_nodes``
    ``distributed``         class: whether there can be more than one process
    ``reduces_gradients``   class: whether ``gradients_ready`` or backward averages gradients
    ``checkpoint_io``       writes, reads and removes checkpoints; the Trainer's own unless set
    ``accelerator``         the object that the user gave for one, or None
    ``model``               module that ``connect`` has named, or None
    ``transfer``            what ``batch_to_device`` does in a run, if that is overridden
    ======================  ==================================================================

    Of what Lightning calls on its strategies a subclass may override ``connect``, ``setup_environment``, ``setup``,
    ``model_to_device``, ``batch_to_device``, ``save_checkpoint``, ``load_checkpoint``, ``remove_checkpoint``,
    ``teardown`` and what this class has beside them. Other methods of Lightning's are refused
    (:mod:`leyden.strategies.uncalled`), because a run would pass over them.
    """

    distributed: ClassVar[bool]
    reduces_gradients: ClassVar[bool]

    root_device: torch.device
    world_size: int
    global_rank: int
    local_rank: int
    node_rank: int
    num_nodes: int
    checkpoint_io: Any = None
    accelerator: Any = None
    model: Any = None
    transfer: Callable[[Any, int], Any] | None = None

    @property
    @final
    def is_global_zero(self) -> bool:
        """Whether this process is the one that logs, saves and speaks for all."""
        return self.global_rank == 0

    @abstractmethod
    def setup_environment(self) -> None:
        """Make the device current and connect the ranks. Called once per run, before anything is placed."""

    @abstractmethod
    def place(self, module: nn.Module) -> None:
        """Move the parameters and buffers of ``module`` to ``root_device``, in place."""

    def connect(self, model: Any) -> None:
        """Name the module. Called first in every run; before the first, so that ``save_checkpoint`` can write it."""
        self.model = model

    @property
    def lightning_module(self) -> Any:
        """The module."""
        return self.model

    def setup(self, trainer: Any) -> None:
        """Bring the module to its device. Called once per run, after ``setup_environment``.

        Args:
            trainer: for overrides, and for the user's accelerator.
        """
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        self.model_to_device()

    def model_to_device(self) -> None:
        """Bring the module to its device."""
        self.place(self.model)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """The batch on the device, by the hooks for that. Called in a run only if it is overridden."""
        if self.transfer is not None:
            return self.transfer(batch, dataloader_idx)
        return move_to_device(batch, device or self.root_device)

    @abstractmethod
    def no_sync(self) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch that only accumulates: gradients stay on this rank."""

    @abstractmethod
    def gradients_ready(self, parameters: Iterable[Parameter]) -> None:
        """Make the gradients of ``parameters`` those of the whole run.

        Called once per closing window, after its last backward and before anything reads them (unscaling,
        norms, clipping, the step).
        """

    @abstractmethod
    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, same shape and dtype; ``tensor`` itself may be changed."""

    @abstractmethod
    def any(self, flag: Tensor) -> Tensor:
        """Whether the boolean 0-d tensor ``flag`` is true in any rank; the same answer in all of them."""

    @abstractmethod
    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str = "mean") -> Tensor:
        """``"mean"``, ``"sum"``, ``"min"`` or ``"max"`` over the ranks of ``group``; None means all ranks."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all ranks, of shape ``(world_size, *tensor.shape)``.

        Where there is one process only the tensor comes back unchanged, without the additional dimension.

        Args:
            tensor: of the same shape in every rank.
            group: the ranks that take part; None for all.
            sync_grads: whether gradients flow back to the ranks they came from.
        """

    @abstractmethod
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The picklable ``obj`` of rank ``src``, in every rank."""

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until every rank is here. ``name`` says where, for logs."""

    @abstractmethod
    def teardown(self) -> None:
        """Release what ``setup_environment`` took. Called once per run, also after an exception."""

    # -- checkpoints ----------------------------------------------------------------------------------------------

    @property
    @final
    def storage(self) -> Any:
        """What a run writes and reads checkpoints with: this, if it does so in its own way, else ``checkpoint_io``."""
        methods = ("save_checkpoint", "load_checkpoint")
        own = any(getattr(type(self), name) is not getattr(Strategy, name) for name in methods)
        return self if own else self.checkpoint_io

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Let the first process write what ``trainer.dump_checkpoint`` has returned."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a checkpoint, in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Let the first process remove a checkpoint."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)

    def close_checkpoints(self) -> None:
        """Tell the plug-in that a run is over."""
        teardown = getattr(self.checkpoint_io, "teardown", None)
        if teardown is not None:
            teardown()


class Ranks:
    """What a Trainer and a Fabric tell of their process.

    Attributes:
        strategy: which knows it.
    """

    strategy: Strategy

    @property
    def global_rank(self) -> int:
        """Rank of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Rank of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Rank of this machine."""
        return self.strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first of all processes."""
        return self.strategy.is_global_zero
