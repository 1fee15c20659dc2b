"""Hyper-parameters as back ends want them: flat, plain, or as a YAML file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from torch import Tensor, nn

from leyden.errors import InvalidValueError

_BARE_KEY = re.compile(r"[A-Za-z_][\w.-]*")
#: Words that YAML 1.1 takes for something else than a text.
_RESERVED = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def as_mapping(params: Any) -> Mapping[Any, Any]:
    """What holds hyper-parameters as a mapping: a Namespace, a dataclass instance, None for none."""
    if params is None:
        return {}
    if isinstance(params, Namespace):
        return vars(params)
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        return {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return params  # type: ignore[no-any-return]


def merge(sources: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """The hyper-parameters of all sources.

    Raises:
        InvalidValueError: two sources have different values under one name.
    """
    merged: dict[Any, Any] = {}
    for source in sources:
        different = [key for key in source if key in merged and plain(source[key]) != plain(merged[key])]
        if different:
            raise InvalidValueError(
                f"the module and the datamodule have different hyper-parameters of the names {different}; rename "
                "one, or leave it out by save_hyperparameters(ignore=...)",
                code="hparams-conflict",
            )
        merged.update(source)
    return merged


def flatten(params: Any, parent: str = "") -> dict[str, Any]:
    """Nested hyper-parameters under names with slashes.

    >>> flatten({"optimizer": {"lr": 0.1}, "blocks": [{"width": 8}], "sizes": [1, 2]})
    {'optimizer/lr': 0.1, 'blocks/0/width': 8, 'sizes': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for key, value in as_mapping(params).items():
        name = f"{parent}/{key}" if parent else str(key)
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if _is_nested(value):
            flat.update(flatten(value, name))
        else:
            flat[name] = value
    return flat


def plain(value: Any) -> Any:
    """``value`` as numbers, texts, None, lists and dicts; everything else by its name or its text.

    >>> plain({"loss": nn.MSELoss, "sizes": (1, 2), "layer": nn.Linear(2, 2)})
    {'loss': 'torch.nn.modules.loss.MSELoss', 'sizes': [1, 2], 'layer': 'Linear'}
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)  # numpy's own prints differently
    if _is_nested(value):
        return {str(key): plain(item) for key, item in as_mapping(value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, nn.Module):
        return type(value).__name__  # its text would be the whole architecture
    if isinstance(value, Tensor) or hasattr(value, "dtype"):
        return plain(value.item()) if math.prod(value.shape) == 1 else str(value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def write_yaml(path: str, params: Any) -> None:
    """Write hyper-parameters as a YAML file; it is there as a whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _lines(plain(as_mapping(params)), 0))
    os.replace(temporary, path)


def _is_nested(value: Any) -> bool:
    is_instance = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return isinstance(value, Mapping | Namespace) or is_instance


def _lines(params: dict[str, Any], indent: int) -> Iterator[str]:
    for key, value in params.items():
        is_bare = _BARE_KEY.fullmatch(key) and key.lower() not in _RESERVED
        start = " " * indent + (key if is_bare else json.dumps(key, ensure_ascii=False)) + ":"
        if isinstance(value, dict) and value:
            yield start
            yield from _lines(value, indent + 2)
        else:
            yield f"{start} {_inline(value)}"


def _inline(value: Any) -> str:
    """A value on one line. JSON is YAML, except for floats: YAML 1.1 asks for a dot and has names of its own."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        mantissa, exponent, rest = repr(value).partition("e")
        return mantissa + ("" if "." in mantissa else ".0") + exponent + rest
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key, ensure_ascii=False)}: {_inline(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return json.dumps(value, ensure_ascii=False)
