"""Puts back what training changes, in place, so that everybody who holds a tensor or an object sees it."""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leyden.data.generators import set_state, state_of
from leyden.optimization.joint import members_of

_PLAIN: Final = (bool, int, float, complex, str, bytes, tuple, frozenset, type(None))
_CONTAINERS: Final = (list, dict, set, deque)


class Undo:
    """Remembers the state of a training; calling it puts that state back, as often as needed.

    Covered are parameters, their gradients and ``requires_grad``, buffers, attributes of the module and its parts that
    are tensors, plain values or containers (whose items are put back as they are, not what is inside of them), modes,
    states of optimizers, schedulers, loss scaler and generators. Parameters without a shape yet are left alone.

    Args:
        module: the module that is trained.
        optimizers: its optimizers; a Joint counts as its members.
        stateful: anything else with ``state_dict`` and ``load_state_dict``: schedulers, a scaler.
        generators: torch's, Python's or NumPy's that somebody draws from, beside the global ones.
        holders: any other objects, whose attributes are put back; what is inside of these only as far as above.

    >>> layer = nn.Linear(2, 1)
    >>> before = layer.weight.detach().clone()
    >>> undo = Undo(layer)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> undo()
    >>> torch.equal(layer.weight, before)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        optimizers: Iterable[Any] = (),
        stateful: Iterable[Any] = (),
        generators: Iterable[Any] = (),
        holders: Iterable[Any] = (),
    ) -> None:
        self._steps: list[Callable[[], Any]] = []
        for parameter in module.parameters():
            if not is_lazy(parameter):
                self._remember_parameter(parameter)
        for part in module.modules():
            for owner in (part.__dict__, part._buffers):
                self._remember_items(owner)
        for other in holders:
            self._steps.append(functools.partial(other.__dict__.update, other.__dict__.copy()))
            self._remember_items(other.__dict__)
        members = [member for optimizer in optimizers for member in members_of(optimizer)]
        for holder in (*members, *stateful):
            self._steps.append(_loader(holder, copy.deepcopy(holder.state_dict())))
        for generator in generators:
            self._steps.append(functools.partial(set_state, generator, state_of(generator)))

    def __call__(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for step in self._steps:
                step()

    def _remember_parameter(self, parameter: nn.Parameter) -> None:
        values, gradient, requires_grad = _copy(parameter), parameter.grad, parameter.requires_grad
        slopes = None if gradient is None else _copy(gradient)

        def put_back() -> None:
            parameter.copy_(values)
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
            if gradient is not None and slopes is not None:
                gradient.copy_(slopes)

        self._steps.append(put_back)

    def _remember_items(self, owner: dict[str, Any]) -> None:
        known = set(owner)
        self._steps.append(functools.partial(_drop_others, owner, known))
        for name in known - _STRUCTURE:
            value = owner[name]
            if isinstance(value, Tensor):
                self._steps.append(functools.partial(_put_tensor, owner, name, value, _copy(value)))
            elif isinstance(value, _CONTAINERS):
                self._steps.append(functools.partial(_put_items, owner, name, value, copy.copy(value)))
            elif isinstance(value, _PLAIN):
                self._steps.append(functools.partial(owner.__setitem__, name, value))


#: The module's own bookkeeping of parameters, buffers, hooks: these change only if its structure does.
_STRUCTURE: Final = frozenset(vars(nn.Module())) - {"training"}


def _copy(tensor: Tensor) -> Tensor:
    """In the host's memory: that of a device is what a trial may want to measure."""
    return tensor.detach().to("cpu", copy=True)


def _drop_others(owner: dict[str, Any], known: set[str]) -> None:
    for name in set(owner) - known:
        del owner[name]


def _put_tensor(owner: dict[str, Any], name: str, tensor: Tensor, values: Tensor) -> None:
    tensor.detach().copy_(values)
    owner[name] = tensor


def _put_items(owner: dict[str, Any], name: str, container: Any, items: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(items)
    owner[name] = container


def _loader(holder: Any, state: Any) -> Callable[[], Any]:
    # load_state_dict may keep what it is given, so each call gets a copy of its own
    return lambda: holder.load_state_dict(copy.deepcopy(state))
