"""Whatever fails in a save, a good file is left at every moment, and "last" goes on from it to the same end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import faults

#: How much of `python tests/faults.py` is tried here: a fault, arguments of the callback, and every which event.
TRIALS = [(faults.ONCE, 0, 2), (faults.ONCE, 4, 5), (faults.FULL, 1, 4), (faults.READ_ONLY, 3, 6), (faults.FULL, 2, 6)]


@pytest.mark.parametrize(("fault", "given", "every"), TRIALS)
def test_events_of_a_fit_fail(fault: str, given: int, every: int, tmp_path: Path) -> None:
    """One after the other; the run itself trains on where it has begun to train, and fails at its end if at all."""
    assert list(faults.at_events(fault, tmp_path, every=every, **faults.GIVEN[given])) == []


def test_kills_and_bytes() -> None:
    """In a process of its own, which may be forked, and to which the system refuses to make a file larger."""
    arguments = ["--faults", faults.KILL, "--every", "16", "--offsets", "2"]
    done = subprocess.run([sys.executable, faults.__file__, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as it should be") == 2 * len(faults.GIVEN)
