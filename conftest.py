"""What every test, and every example in a docstring, starts from."""

from __future__ import annotations

import signal

import pytest

from leyden import resolve

# A job that a shell starts in the background ignores these, and so would every process that a test starts.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _handler)


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
