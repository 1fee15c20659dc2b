"""The random generators that objects hold, and the state of one as plain data.

A transform may have a generator of its own, as may a sampler or a ``collate_fn``; what goes on without them draws other
numbers. So they are looked for in attributes, containers and closures of what a loader is made of.
"""

from __future__ import annotations

import ctypes
import functools
import random
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from leyden.data.loaders import parts_of
from leyden.seed import rng_state, set_rng_state

#: How deep objects are searched, how many of them at most, and how many items of a container.
_DEPTH, _OBJECTS, _ITEMS = 8, 3000, 100
#: States of torch's generators on other devices are so short, in bytes.
_DEVICE_STATE: Final = 64
_PLAIN: Final = (Tensor, str, bytes, int, float, type, ModuleType)


def generators_of(loader: Any) -> list[Any]:
    """The random generators of its own that a loader draws from, or its samplers and data set do, each once."""
    values: list[Any] = []
    for part in parts_of(loader):
        is_torchs = isinstance(part, DataLoader)
        names = ("generator", "sampler", "batch_sampler", "dataset", "collate_fn")
        values += [getattr(part, name) for name in names] if is_torchs else [part]
    return generators_in(values)


def generators_in(values: Iterable[Any]) -> list[Any]:
    """The random generators in some objects, each once: torch's, Python's and NumPy's.

    >>> class Transform:
    ...     random = random.Random(1)
    ...
    ...     def __init__(self) -> None:
    ...         self.random = random.Random(1)
    >>> [type(found).__name__ for found in generators_in([{"transforms": [Transform()]}])]
    ['Random']
    """
    numpy = sys.modules.get("numpy.random")
    kinds = (torch.Generator, random.Random, *((numpy.Generator, numpy.RandomState) if numpy is not None else ()))
    found, level, seen = list[Any](), list(values), dict[int, Any]()
    for _ in range(_DEPTH):
        below: list[Any] = []
        for item in level:
            if id(item) in seen or item is None or isinstance(item, _PLAIN):
                continue
            seen[id(item)] = item  # kept, so that no other object gets its id
            if isinstance(item, kinds):
                found += [] if isinstance(item, random.SystemRandom) else [item]
            elif len(seen) <= _OBJECTS:
                below += _inside(item)
        level = below
    return found


def _inside(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(islice(item.values(), _ITEMS))
    if isinstance(item, list | tuple | set | frozenset):
        return list(islice(item, _ITEMS))
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__self__]
    if isinstance(item, FunctionType):
        return [value for cell in item.__closure__ or () if (value := _content(cell)) is not None]
    return list(islice(getattr(item, "__dict__", {}).values(), _ITEMS))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def state_of(generator: Any) -> Any:
    """The state of a generator, or of an object with a ``state_dict``, as plain data.

    Args:
        generator: torch's; Python's, or its module ``random``; NumPy's ``Generator`` or ``RandomState``, or its module
            ``numpy.random``.
    """
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return ctypes.string_at(state.data_ptr(), state.numel())  # .numpy() would want NumPy
    if hasattr(generator, "state_dict"):
        return generator.state_dict()
    if hasattr(generator, "getstate"):
        version, words, gauss = generator.getstate()
        return [version, array("I", words).tobytes(), gauss]
    return generator.get_state(legacy=False) if hasattr(generator, "get_state") else generator.bit_generator.state


def set_state(generator: Any, state: Any) -> None:
    """Set the state of a generator to what :func:`state_of` returned.

    >>> generator = random.Random(1)
    >>> before = state_of(generator)
    >>> first = generator.random()
    >>> set_state(generator, before)
    >>> generator.random() == first
    True
    """
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif hasattr(generator, "load_state_dict"):
        generator.load_state_dict(state)
    elif hasattr(generator, "setstate"):
        version, words, gauss = state
        generator.setstate((version, tuple(array("I", words)), gauss))
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def is_state(value: Any) -> bool:
    """Whether a value can be the state of some generator; raises whatever its setter does."""
    if isinstance(value, bytes):
        if len(value) > _DEVICE_STATE:
            set_state(torch.Generator(), value)
        return True
    if isinstance(value, list):
        set_state(random.Random(), value)
    return isinstance(value, list | Mapping)


def set_states(generators: Sequence[Any], states: Sequence[Any]) -> bool:
    """Set the states of several; returns whether there are as many. If not, they keep theirs."""
    if len(generators) != len(states):
        return False
    for generator, state in zip(generators, states, strict=True):
        set_state(generator, state)
    return True


def mark(loader: Any) -> dict[str, Any]:
    """States of the global generators, and of those that a loader holds."""
    return {"global": rng_state(), "own": list(map(state_of, generators_of(loader)))}


def restore(loader: Any, state: Mapping[str, Any]) -> None:
    """Set all generators to what :func:`mark` returned; a loader with other generators keeps its own."""
    set_states(generators_of(loader), state["own"])
    set_rng_state(state["global"])
