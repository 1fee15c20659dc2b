"""What every test, and every example in a docstring, starts from."""

from __future__ import annotations

import pytest

from leyden import resolve


@pytest.fixture(autouse=True)
def _calm_trainers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No logger, checkpoints or summary unless a test asks for them: it would write files, and be slower.

    A test marked ``defaults`` has them as users do, and a directory of its own to write to.
    """
    if request.node.get_closest_marker("defaults") is not None:
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))
        return
    for name in ("logger", "enable_checkpointing", "enable_model_summary"):
        monkeypatch.setitem(resolve.DEFAULTS, name, False)
