"""A plugin for pytest that switches the aliases on: ``pytest -p leyden.compat.pytest``.

A library's own tests so run on leyden. ``LEYDEN_COMPAT_VERSION`` sets the version that it sees.
"""

from __future__ import annotations

import os

from leyden import compat


def pytest_load_initial_conftests() -> None:
    """Switch them on before anything of the library is imported."""
    compat.install(os.environ.get("LEYDEN_COMPAT_VERSION"))
