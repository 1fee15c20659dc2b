"""Progress in a notebook: one output that is written over, so that nothing piles up, also in the saved file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Final

#: Characters of a line; also rich thinks that a notebook is so wide.
COLUMNS: Final = 115


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook; that somebody has imported ipykernel does not make it one."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class NotebookOutput:
    """An output of the running cell that shows the latest content, and needs no widgets for it."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._rows: dict[Any, str] = {}

    def show(self, content: Mapping[str, str]) -> None:
        """Show ``content``, texts by MIME type, in place of what is there."""
        if self._handle is not None:
            self._handle.update(content, raw=True)
            return
        ipython = importlib.import_module("IPython.display")
        self._handle = ipython.display(content, raw=True, display_id=True)

    def show_row(self, bar: Any, text: str | None) -> None:
        """Show the row of one bar among those of others; None takes it away."""
        if text is None:
            self._rows.pop(bar, None)
        else:
            self._rows[bar] = text
        self.show({"text/plain": "\n".join(self._rows.values())})
