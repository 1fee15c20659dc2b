"""Whether two nested states are the same, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Places at which two nested states are not the same, bit for bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [place]
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{place}: {sorted(map(str, first))} and {sorted(map(str, second))}"]
        return [text for key in first for text in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return [f"{place}: {len(first)} and {len(second)}"]
        return [
            t for i, (a, b) in enumerate(zip(first, second, strict=True)) for t in differences(a, b, f"{place}/{i}")
        ]
    return [] if first == second and type(first) is type(second) else [f"{place}: {first!r} and {second!r}"]
