"""What users pass as data: one loader, several loaders, or something that is neither.

A *loader* is anything that can be iterated once per epoch. A list (or tuple) may be a loader itself or a
collection of loaders. Its items decide, by what :func:`kind_of` says of them:

- no item is a ``DataLoader`` or another iterable object: the list is **one loader**, its items are the
  batches;
- some are, and the others are lists: **several loaders**, each such list being one of them;
- every item is a list that holds containers only, as ``[(x, y), (x, y)]``: each could be a batch as well as a
  loader, which is an error that names both ways out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leyden import errors
from leyden.rank import rank_zero_warn

Loader: TypeAlias = Iterable[Any]
"""Anything that can be iterated once per epoch; most often a ``torch.utils.data.DataLoader``."""

Kind = Literal["batch", "loader", "either", "nested"]


def train_loader(value: Any, *, name: str = "train_dataloaders") -> Loader:
    """The one loader that ``value`` is.

    Args:
        value: what the user passed or what ``train_dataloader()`` returned.
        name: how the user calls the place it came from, for error texts.

    Raises:
        MisconfigurationException: several loaders (code ``several-train-loaders``), or a list that could mean
            one loader as well as several (``ambiguous-loaders``).
        InvalidTypeError: nothing that can be iterated (``not-a-loader``).

    >>> import torch
    >>> batches = [(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2))]
    >>> train_loader(batches) is batches
    True
    """
    loaders = listed_loaders(value, name=name)
    if loaders is not None:
        raise errors.MisconfigurationException(
            f"expected one training loader in {name}, got {_describe(value)} with {len(loaders)} of them: "
            "this version trains on one loader at a time (CombinedLoader, which joins several, is coming). "
            "Pass the loader itself; to draw from several datasets, join them with "
            "torch.utils.data.ConcatDataset or StackDataset",
            code="several-train-loaders",
        )
    check_validity(value, name=name)
    return value  # type: ignore[no-any-return]  # just checked


def eval_loaders(value: Any, *, name: str = "val_dataloaders") -> list[Loader]:
    """The loaders that ``value`` holds, in order: the position of each is its ``dataloader_idx`` in hooks.

    Args:
        value: one loader, a list, tuple or mapping of loaders (keys are not used), or None for none at all.
        name: how the user calls the place it came from, for error texts.

    Raises:
        MisconfigurationException: a list that could mean one loader as well as several
            (``ambiguous-loaders``).
        InvalidTypeError: nothing that can be iterated (``not-a-loader``).

    >>> import torch
    >>> len(eval_loaders([torch.zeros(2, 3), torch.zeros(2, 3)])), len(eval_loaders([range(3), range(4)]))
    (1, 2)
    """
    if value is None:
        return []
    loaders = listed_loaders(value, name=name)
    if loaders is None:
        check_validity(value, name=name)
        return [value]
    for position, loader in enumerate(loaders):
        check_validity(loader, name=f"{name}[{position}]")
    return loaders


def listed_loaders(value: Any, *, name: str) -> list[Loader] | None:
    """The loaders in a collection of them; None if ``value`` has to be one loader."""
    if isinstance(value, Mapping):
        items = list(value.values())
        kinds = [kind_of(item) for item in items]
        return items if _are_loaders(kinds, items) else None
    if not isinstance(value, (list, tuple)):
        return None
    kinds = [kind_of(item) for item in value]
    if _are_loaders(kinds, value):
        return list(value)
    if "loader" in kinds or "nested" in kinds:
        shown = ", ".join(_describe(item) for item in value[:4]) + (", ..." if len(value) > 4 else "")
        raise errors.MisconfigurationException(
            f"expected {name} to hold batches only or loaders only, without nesting, got {_describe(value)} "
            f"of {shown}: pass one flat list of loaders, with each list of batches wrapped as "
            "DataLoader(batches, batch_size=None)",
            code="ambiguous-loaders",
        )
    if kinds and all(kind == "either" for kind in kinds):
        raise errors.MisconfigurationException(
            f"expected {name} to be a list of batches or a list of loaders, got {_describe(value)} of lists "
            "that hold containers only and could be both. If the whole is one loader, pass "
            "DataLoader(batches, batch_size=None) or make each batch a tuple; if each item is a loader, pass "
            "[DataLoader(item, batch_size=None) for item in loaders]",
            code="ambiguous-loaders",
        )
    return None


def kind_of(item: Any) -> Kind:
    """What an item of a list given as data can be.

    - ``"loader"``: a ``DataLoader``, a dataset, an iterator, any iterable object that is none of the
      following.
    - ``"batch"``: tensors, arrays, strings, numbers, None, tuples, mappings, dataclass instances, objects
      with ``.to``; a list with at least one item that is no container, as ``[x, y]`` or ``[x, {"mask": m}]``.
    - ``"either"``: an empty list, or one whose items are all lists, tuples or mappings.
    - ``"nested"``: a list, tuple or mapping with a loader inside.
    """
    if isinstance(item, (Tensor, str, bytes)):
        return "batch"
    if isinstance(item, (DataLoader, Iterator)):
        return "loader"
    if isinstance(item, (list, tuple, Mapping)):
        inside = list(item.values()) if isinstance(item, Mapping) else item
        if any(not isinstance(child, (list, tuple, Mapping)) and kind_of(child) == "loader" for child in inside):
            return "nested"
        containers_only = all(isinstance(child, (list, tuple, Mapping)) for child in inside)
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
        remedy = "iterating a mapping yields its keys; if it is one batch, pass [batch]"
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
        stacklevel=4,
    )


def _are_loaders(kinds: list[Kind], items: Any) -> bool:
    if "loader" not in kinds:
        return False
    return all(
        kind == "loader" or (isinstance(item, list) and kind != "nested")
        for kind, item in zip(kinds, items, strict=True)
    )


def _has(item: Any, method: str) -> bool:
    return callable(getattr(type(item), method, None))


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
