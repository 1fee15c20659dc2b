"""Where a Fabric runs: devices, processes, callbacks and loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from leyden import seed as seeds
from leyden.errors import warn
from leyden.precision import Precision
from leyden.precision.creation import creating
from leyden.strategies.base import Ranks
from leyden.tree import map_tensors, move_to_device


class Surroundings(Ranks):
    """What a loop may ask of its surroundings. ``Fabric`` adds the arguments, and what is computed.

    Attributes:
        accelerator: "cpu", "cuda" or "mps".
        strategy: where modules live.
        loggers: all loggers.
    """

    accelerator: str
    loggers: list[Any]
    _callbacks: list[Any]
    _precision: Precision

    # -- where it runs --------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.strategy.root_device

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    # -- tensors and processes ------------------------------------------------------------------------------------

    def to_device(self, obj: Any) -> Any:
        """A module, in place, or anything with tensors in it, on the device."""
        if isinstance(obj, nn.Module):
            self.strategy.place(obj)
            return obj
        return move_to_device(obj, self.device)

    def init_tensor(self) -> AbstractContextManager[None]:
        """Inside of a ``with``, new tensors are made on the device, in the precision's type."""
        return creating(self._precision, self.device)

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[None]:
        """Likewise for new modules; ``empty_init=True`` leaves out what ``torch.nn.init`` does."""
        return creating(self._precision, self.device, empty=bool(empty_init))

    def sharded_model(self) -> AbstractContextManager[None]:
        """Do nothing: one device holds a whole model."""
        return nullcontext()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print in the first process."""
        if self.is_global_zero:
            print(*args, **kwargs)

    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""
        self.strategy.barrier(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What process ``src`` has, in every process."""
        return self.strategy.broadcast(obj, src)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Tensors of all processes, stacked along a new first dimension where there are several."""
        return map_tensors(lambda tensor: self.strategy.all_gather(tensor, group, sync_grads), data)

    def all_reduce(self, data: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        """The "mean", "sum", "min" or "max" of tensors over all processes."""
        return map_tensors(lambda tensor: self.strategy.reduce(tensor, group, reduce_op), data)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """Let the first process, of each machine if ``local``, run the block before all others."""
        rank = self.local_rank if local else self.global_rank
        if rank > 0:
            self.barrier()
        yield
        if rank == 0:
            self.barrier()
        self.barrier()

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """:func:`leyden.seed_everything`; loaders' workers get seeds of their own, unless ``workers=False``."""
        return seeds.seed_everything(seed, workers is None or workers, verbose)

    # -- callbacks and loggers ------------------------------------------------------------------------------------

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of all callbacks that have it."""
        for callback in self._callbacks:
            hook = getattr(callback, hook_name, None)
            if callable(hook):
                hook(*args, **kwargs)
            elif hook is not None:
                warn(
                    f"{type(callback).__name__}.{hook_name} is no method, so fabric.call({hook_name!r}) leaves it out",
                    code="fabric-call",
                )

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Give one value to all loggers."""
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Give values to all loggers; tensors of one element become numbers, which waits for the device.

        Args:
            metrics: the values by name.
            step: their place on the x-axis.
        """
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(metrics=row, step=step)
