"""What ``Fabric`` puts around modules and loaders: they stay what they are, and run as the Fabric says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from leyden.data.loaders import set_epoch
from leyden.errors import InvalidValueError
from leyden.optimization.optimizer import is_handle, unwrap
from leyden.tree import move_to_device

__all__ = ["FabricDataLoader", "FabricModule", "is_wrapped", "unwrapped"]

#: ``(function, args, kwargs)`` -> what it returns, computed in the Fabric's precision.
Run = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class FabricModule:
    """A module whose calls run in a Fabric's precision.

    It shares all attributes, parameters and names with the module it is made from, and is an instance of its class;
    :func:`wrap` builds it. Inside of ``forward``, ``self`` is the module itself. ``module`` is that, too, unless the
    class has something of that name.
    """

    __slots__ = ("_fabric_module", "_fabric_run")

    _fabric_module: Any
    _fabric_run: Run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        return self._fabric_run(self._fabric_module, args, kwargs)

    forward = __call__

    def mark_forward_method(self, method: str | Callable[..., Any]) -> None:
        """Let another method run in the Fabric's precision, too.

        Args:
            method: its name, or the method.

        Raises:
            InvalidValueError: there is none (``forward-method``).
        """
        name = method if isinstance(method, str) else method.__name__
        if not callable(getattr(self._fabric_module, name, None)):
            raise InvalidValueError(
                f"mark_forward_method({name!r}): {type(self._fabric_module).__qualname__} has no such method",
                code="forward-method",
            )

        def run(facade: FabricModule, *args: Any, **kwargs: Any) -> Any:
            return facade._fabric_run(getattr(facade._fabric_module, name), args, kwargs)

        setattr(type(self), name, run)  # the class is this object's own

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy in the same Fabric, as an average of weights is one."""
        facade = wrap(copy.deepcopy(self._fabric_module, memo), self._fabric_run)
        for name in vars(type(self)):
            if not name.startswith("__") and name != "module":
                facade.mark_forward_method(name)
        return facade

    def __reduce_ex__(self, protocol: Any) -> Any:
        return unwrapped, (self._fabric_module,)  # whoever reads it has no Fabric, or another one


def wrap(module: nn.Module, run: Run) -> Any:
    """A :class:`FabricModule` around a module."""
    kind: Any = type(module)
    namespace = {} if hasattr(module, "module") else {"module": property(unwrapped)}
    facade = object.__new__(type(kind)(f"Fabric{kind.__name__}", (FabricModule, kind), namespace))
    for name, value in (("__dict__", vars(module)), ("_fabric_module", module), ("_fabric_run", run)):
        object.__setattr__(facade, name, value)  # not nn.Module's, which would register the module as its own child
    return facade


class FabricDataLoader:
    """A loader whose batches come to a device; each pass tells samplers its number.

    Args:
        dataloader: the loader; its attributes are this object's.
        device: where batches go; None leaves them.
    """

    def __init__(self, dataloader: Any, device: torch.device | None) -> None:
        self._dataloader = dataloader
        self._num_passes = 0
        self.device = device

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        set_epoch(self._dataloader, self._num_passes)
        self._num_passes += 1
        for batch in self._dataloader:
            yield batch if self.device is None else move_to_device(batch, self.device)

    def __getattr__(self, name: str) -> Any:
        if name == "_dataloader":  # while unpickling, before it is there
            raise AttributeError(name)
        return getattr(self._dataloader, name)


def is_wrapped(obj: object) -> bool:
    """Whether an object was set up by a Fabric."""
    return isinstance(obj, FabricModule | FabricDataLoader) or is_handle(obj)


def unwrapped(obj: Any) -> Any:
    """What a Fabric was given; anything else as it is."""
    if isinstance(obj, FabricModule):
        return obj._fabric_module
    return obj._dataloader if isinstance(obj, FabricDataLoader) else unwrap(obj)
