"""The table that ``validate`` and ``test`` print."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Final

from leyden.results.options import LOADER_SUFFIX

_TITLES: Final = {"validate": "Validate metric", "test": "Test metric"}


def results_table(results: Sequence[dict[str, float]], stage: str) -> str:
    """Metrics in rows, dataloaders in columns.

    Args:
        results: what ``validate`` or ``test`` returns: one dict per dataloader.
        stage: "validate" or "test".

    Returns:
        The table without a trailing newline; empty if nothing was logged. Long names are folded so that it is
        no wider than the terminal.

    >>> print(results_table([{"acc": 0.5}], "test"))
    Test metric      DataLoader 0
    -------------  --------------
    acc                       0.5
    """
    from tabulate import tabulate  # only here, so that importing leyden stays light

    rows: dict[str, list[float | None]] = {}
    for index, metrics in enumerate(results):
        for key, value in metrics.items():
            name = key.split(LOADER_SUFFIX)[0]
            rows.setdefault(name, [None] * len(results))[index] = value
    if not rows:
        return ""
    columns = (f"DataLoader {index}" for index in range(len(results)))
    headers = [_TITLES.get(stage, f"{stage} metric"), *columns]
    widest = max(shutil.get_terminal_size(fallback=(120, 30)).columns - 18 * len(results), 16)
    body = [[_fold(name, widest), *rows[name]] for name in sorted(rows)]
    return tabulate(body, headers=headers, floatfmt=".7g", missingval="", disable_numparse=[0])


def _fold(text: str, width: int) -> str:
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))
