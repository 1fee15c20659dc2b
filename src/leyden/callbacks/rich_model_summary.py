"""``RichModelSummary``: the layers of a module as a table drawn by rich."""

from __future__ import annotations

import importlib.util
from typing import Any

from leyden.callbacks.model_summary import Columns, ModelSummary, totals
from leyden.errors import MissingExtraError


class RichModelSummary(ModelSummary):
    """``ModelSummary``, drawn by rich: ``pip install 'leyden[rich]'``.

    Args:
        max_depth: levels of layers to show: 1 (default) shows the module's own attributes, -1 all levels, 0 nothing.
        **summarize_kwargs: ``header_style`` is rich's style of the headers, "bold magenta" by default.

    Raises:
        MissingExtraError: rich is not installed.
        InvalidValueError: a depth below -1 (``summary-depth``).
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if importlib.util.find_spec("rich") is None:
            raise MissingExtraError("rich", extra="rich")
        super().__init__(max_depth, **summarize_kwargs)

    @staticmethod
    def summarize(
        summary_data: Columns,
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print the table on rich's console."""
        from rich import get_console
        from rich.markup import escape
        from rich.table import Table

        table = Table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        for header, _ in summary_data:
            is_number = header in ("Params", "FLOPs", "In sizes", "Out sizes")
            table.add_column(header, justify="right" if is_number else "left", no_wrap=header == "Name")
        for row in zip(*(texts for _, texts in summary_data), strict=True):
            table.add_row(*map(escape, row))
        grid = Table.grid(padding=(0, 2))
        for number, what in totals(
            total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        ):
            grid.add_row(f"[bold]{number}[/]", what)
        console = get_console()
        console.print(table)
        console.print(grid)
