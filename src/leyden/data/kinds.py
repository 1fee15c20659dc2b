"""What users pass as data: one loader, several loaders, or something that is neither.

A *loader* is anything that can be iterated once per epoch. A list (or tuple) may be a loader itself or a
collection of loaders. Its items decide, by what :func:`kind_of` says of them:

- no item is a ``DataLoader`` or another iterable object: the list is **one loader**, its items are the
  batches;
- some are, and the others are lists or hold loaders themselves: **a collection**, each list without a loader
  inside being one of its loaders;
- every item is a list that holds containers only, as ``[(x, y), (x, y)]``: each could be a batch as well as a
  loader, which is an error that names both ways out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Final, Literal, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leyden import errors
from leyden.rank import rank_zero_warn
from leyden.tree import PLAIN, children

Loader: TypeAlias = Iterable[Any]
"""Anything that can be iterated once per epoch; most often a ``torch.utils.data.DataLoader``."""

Kind = Literal["batch", "loader", "either", "nested"]

_CONTAINERS: Final = (list, tuple, Mapping)
_NEVER_LOADERS: Final = PLAIN - {dict, list, tuple}


def is_collection(value: Any, *, name: str) -> bool:
    """Whether ``value`` is a collection of loaders, nested or not; else it has to be one loader.

    Args:
        value: what the user passed or what a dataloader method returned.
        name: how the user calls the place it came from, for error texts.

    Raises:
        MisconfigurationException: a list that could mean one loader as well as several (``ambiguous-loaders``).

    >>> import torch
    >>> is_collection([torch.zeros(2, 3)], name="data"), is_collection({"a": [range(3)], "b": range(4)}, name="data")
    (False, True)
    """
    if isinstance(value, Mapping):
        return _are_loaders(children(value))
    if not isinstance(value, (list, tuple)):
        return False
    if _are_loaders(value):
        return True
    kinds = {kind_of(item) for item in value}
    if "loader" in kinds or "nested" in kinds:
        shown = ", ".join(_describe(item) for item in value[:4]) + (", ..." if len(value) > 4 else "")
        raise errors.MisconfigurationException(
            f"expected {name} to hold batches only or loaders only, got {_describe(value)} of {shown}: wrap a batch "
            "among loaders as [batch], and a tuple of batches as DataLoader(batches, batch_size=None)",
            code="ambiguous-loaders",
        )
    if kinds == {"either"}:
        raise errors.MisconfigurationException(
            f"expected {name} to be a list of batches or a list of loaders, got {_describe(value)} of lists "
            "that hold containers only and could be both. If the whole is one loader, pass "
            "DataLoader(batches, batch_size=None) or make each batch a tuple; if each item is a loader, pass "
            "[DataLoader(item, batch_size=None) for item in loaders]",
            code="ambiguous-loaders",
        )
    return False


def kind_of(item: Any) -> Kind:
    """What an item of a list given as data can be.

    - ``"loader"``: a ``DataLoader``, a dataset, an iterator, any iterable object that is none of the
      following.
    - ``"batch"``: tensors, arrays, strings, numbers, None, tuples, mappings, dataclass instances, objects
      with ``.to``; a list with at least one item that is no container, as ``[x, y]`` or ``[x, {"mask": m}]``.
    - ``"either"``: an empty list, or one whose items are all lists, tuples or mappings.
    - ``"nested"``: a list, tuple or mapping with a loader inside, or inside of the first container in it.
    """
    if isinstance(item, (Tensor, str, bytes)):
        return "batch"
    if isinstance(item, (DataLoader, Iterator)):
        return "loader"
    if isinstance(item, _CONTAINERS):
        inside = children(item)
        if _holds_loader(inside):
            return "nested"
        containers_only = all(isinstance(child, _CONTAINERS) for child in inside)
        return "either" if isinstance(item, list) and containers_only else "batch"
    if is_dataclass(item) or _has(item, "to") or _has(item, "__array__"):
        return "batch"
    return "loader" if _has(item, "__iter__") or isinstance(item, Dataset) else "batch"


def check_validity(loader: Any, *, name: str) -> None:
    """Raise unless ``loader`` can be iterated. Nothing is started: workers begin with the first epoch.

    Args:
        loader: what is to be iterated.
        name: how the user calls the place it came from, for error texts.

    Raises:
        InvalidTypeError: with what came, the place and a remedy (code ``not-a-loader``).

    Warns:
        LeydenWarning: a map-style dataset in place of a loader (``dataset-as-loader``).
    """
    if isinstance(loader, Mapping):
        remedy = (
            "iterating a mapping yields its keys; if it is one batch, pass [batch], if its values are lists of "
            "batches, pass a CombinedLoader"
        )
    elif isinstance(loader, (str, bytes)):
        remedy = "load the file and pass a DataLoader over its content"
    elif isinstance(loader, type):
        remedy = f"pass an instance of {loader.__name__}"
    elif isinstance(loader, Tensor) and loader.ndim == 0:
        remedy = "a tensor without dimensions has no batches"
    elif _has(loader, "train_dataloader"):
        remedy = "pass a LightningDataModule as datamodule=..."
    elif _has(loader, "__iter__"):
        return
    elif _has(loader, "__getitem__"):
        _warn_dataset(loader, name=name)
        return
    elif callable(loader):
        remedy = f"call it: {getattr(loader, '__name__', 'the function')}()"
    else:
        remedy = "pass a torch.utils.data.DataLoader, a list of batches or another iterable"
    message = f"expected {name} to be something that yields batches, got {_describe(loader)}: {remedy}"
    raise errors.InvalidTypeError(message, code="not-a-loader")


def _warn_dataset(dataset: Any, *, name: str) -> None:
    rank_zero_warn(
        f"{name} is {_describe(dataset)} that can only be indexed, so each of its items is a batch. Pass "
        "DataLoader(dataset, batch_size=...), or batch_size=None if the items are batches indeed",
        code="dataset-as-loader",
    )


def _are_loaders(items: Sequence[Any]) -> bool:
    """Whether items are loaders, collections of loaders, or lists; not lists alone."""
    kinds = [kind_of(item) for item in items]
    if "loader" not in kinds and "nested" not in kinds:
        return False
    return all(
        kind == "loader" or (_are_loaders(children(item)) if kind == "nested" else isinstance(item, list))
        for kind, item in zip(kinds, items, strict=True)
    )


def _holds_loader(items: Sequence[Any]) -> bool:
    """Looks into the first container only: batches are many, big, and all alike."""
    containers = []
    for child in items:
        if type(child) is Tensor or type(child) in _NEVER_LOADERS:  # most of what is in batches, known at a glance
            continue
        if isinstance(child, _CONTAINERS):
            containers.append(child)
        elif kind_of(child) == "loader":
            return True
    return bool(containers) and kind_of(containers[0]) == "nested"


def _has(item: Any, method: str) -> bool:
    return callable(getattr(type(item), method, None))


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
