"""What a strategy is: where the model lives and how ranks talk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter


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
    ======================  ==================================================================
    """

    distributed: ClassVar[bool]
    reduces_gradients: ClassVar[bool]

    root_device: torch.device
    world_size: int
    global_rank: int
    local_rank: int
    node_rank: int
    num_nodes: int

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
