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
        The table without a trailing newline; empty if nothing was logged. It is no wider than the terminal: long names
        are folded, and dataloaders that do not fit beside each other stand below.

    >>> print(results_table([{"acc": 0.5}], "test"))
    Test metric      DataLoader 0
    -------------  --------------
    acc                       0.5
    """
    loaders = [{key.split(LOADER_SUFFIX)[0]: value for key, value in metrics.items()} for metrics in results]
    names = sorted({name for metrics in loaders for name in metrics})
    if not names:
        return ""
    title, columns = _TITLES.get(stage, f"{stage} metric"), shutil.get_terminal_size(fallback=(120, 30)).columns
    longest = max(map(len, [title, *names]))
    for abreast in range(len(loaders), 0, -1):
        room = columns - 16 * abreast  # a column of numbers takes 16 characters, seldom more
        if abreast > 1 and room < min(longest, columns // 2):
            continue
        starts = range(0, len(loaders), abreast)
        tables = [_table(loaders[start : start + abreast], start, names, title, max(room, 16)) for start in starts]
        if max(len(line) for table in tables for line in table.splitlines()) <= columns:
            break
    return "\n\n".join(tables)


def _table(loaders: Sequence[dict[str, float]], first: int, names: Sequence[str], title: str, room: int) -> str:
    """The table of some dataloaders, numbered from ``first`` on; with names at most ``room`` characters wide."""
    from tabulate import tabulate  # only here, so that importing leyden stays light

    headers = [title, *(f"DataLoader {index}" for index in range(first, first + len(loaders)))]
    body = [[_fold(name, room), *(metrics.get(name) for metrics in loaders)] for name in names]
    body = [row for row in body if any(value is not None for value in row[1:])]
    return tabulate(body, headers=headers, floatfmt=".7g", missingval="", disable_numparse=[0])


def _fold(text: str, width: int) -> str:
    """Lines of a name, broken behind a slash or an underscore where there is one."""
    lines = []
    while len(text) > width:
        end = max(text.rfind(mark, 0, width) for mark in "/_") + 1
        lines.append(text[: end or width])
        text = text[end or width :]
    return "\n".join([*lines, text])
