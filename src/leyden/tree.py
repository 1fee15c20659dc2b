"""Walking nested data: batches, outputs, anything that holds tensors inside containers.

Containers are mappings, lists, tuples (also named ones) and instances of dataclasses; everything else is a
leaf.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

PLAIN = frozenset({dict, list, tuple, int, float, str, bool, type(None)})  # asked at every batch: no need to look


def map_tensors(function: Callable[[Tensor], Any], data: Any) -> Any:
    """``data`` with ``function`` applied to every tensor in it; other leaves stay the same objects.

    Containers are rebuilt with their own type: a ``defaultdict`` keeps its factory, a named tuple its names,
    a frozen dataclass its class (``__post_init__`` does not run again). The input is never changed.

    >>> map_tensors(lambda tensor: tensor * 2, {"x": torch.tensor([1, 2]), "name": "a"})
    {'x': tensor([2, 4]), 'name': 'a'}
    """
    if isinstance(data, Tensor):
        return function(data)
    return map_children(lambda child: map_tensors(function, child), data)


def move_to_device(data: Any, device: torch.device) -> Any:
    """``data`` with every tensor on ``device``; tensors that are there already stay the same objects.

    An object of another class with a method ``.to(device)`` (a tokenizer's output, a graph, a packed
    sequence) is asked to move itself; if its method returns None it is taken to have moved in place.

    Copies from the CPU to a CUDA device do not block. From pinned memory they overlap with the computation;
    from pageable memory CUDA stages the bytes before it returns, so the source may be reused at once.
    Everything else blocks: a CPU tensor that is still being written could otherwise be read.
    """
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=device.type == "cuda" and data.device.type == "cpu")
    if moves_itself(data):
        moved = data.to(device)
        return data if moved is None else moved
    return map_children(lambda child: move_to_device(child, device), data)


def needs_move(data: Any, device: torch.device) -> bool:
    """Whether :func:`move_to_device` would have work to do.

    Tensors answer by their device. So do other objects with ``.to`` that have an attribute ``device``; those
    without one cannot be asked, which counts as True.

    >>> needs_move((torch.zeros(2), {"n": 1}), torch.device("cpu"))
    False
    """
    if isinstance(data, Tensor):
        return data.device != device
    if moves_itself(data):
        return bool(getattr(data, "device", None) != device)
    for child in children(data):  # noqa: SIM110  a generator would cost more than the question
        if needs_move(child, device):
            return True
    return False


def first_batch_size(data: Any) -> int | None:
    """Size of dimension 0 of the first tensor found depth first.

    A tensor without dimensions counts as 1; where there is no tensor the answer is None.

    >>> first_batch_size({"ids": ["a", "b"], "x": (torch.zeros(3, 5), torch.zeros(7))})
    3
    """
    if isinstance(data, Tensor):
        return int(data.shape[0]) if data.ndim else 1
    for child in children(data):
        size = first_batch_size(child)
        if size is not None:
            return size
    return None


def detach(data: Any) -> Any:
    """``data`` with every tensor cut off its graph; tensors without a graph stay the same objects."""
    return map_tensors(lambda tensor: tensor.detach() if tensor.requires_grad else tensor, data)


def children(data: Any) -> Sequence[Any]:
    """What ``data`` holds directly if it is a container, in order; empty for a leaf."""
    if isinstance(data, (list, tuple)):
        return data
    if isinstance(data, Mapping):
        return list(data.values())
    if _is_dataclass_instance(data):
        return [getattr(data, field.name) for field in dataclasses.fields(data)]
    return ()


def map_children(function: Callable[[Any], Any], data: Any) -> Any:
    """A container like ``data`` with ``function`` applied to each direct child; a leaf stays as it is."""
    kind = type(data)
    if kind is dict:
        return {key: function(value) for key, value in data.items()}
    if kind is list:
        return [function(value) for value in data]
    if kind is tuple:
        return tuple([function(value) for value in data])
    if isinstance(data, tuple):
        values = [function(value) for value in data]
        return kind._make(values) if hasattr(kind, "_make") else kind(values)
    return _map_copy(function, data)


def _map_copy(function: Callable[[Any], Any], data: Any) -> Any:
    """Containers with a class of their own: a shallow copy keeps what else they carry."""
    if isinstance(data, list):
        result: Any = copy.copy(data)
        result[:] = [function(value) for value in data]
        return result
    if isinstance(data, MutableMapping):
        result = copy.copy(data)
        for key, value in data.items():
            result[key] = function(value)
        return result
    if isinstance(data, Mapping):
        return type(data)({key: function(value) for key, value in data.items()})  # type: ignore[call-arg]
    if _is_dataclass_instance(data):
        result = copy.copy(data)
        for field in dataclasses.fields(data):
            object.__setattr__(result, field.name, function(getattr(data, field.name)))  # frozen ones too
        return result
    return data


def moves_itself(data: Any) -> bool:
    """Whether an object has a method ``.to``. Asks the class: a dict with attribute access could have a key ``to``."""
    kind = type(data)
    return kind not in PLAIN and callable(getattr(kind, "to", None))


def _is_dataclass_instance(data: Any) -> bool:
    return dataclasses.is_dataclass(data) and not isinstance(data, type)
