"""``examples/digits_gan.py --fast``, run as a user runs it, in both modes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits_gan.py"

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[subprocess.CompletedProcess[str], Path]]:
    """Both modes: what they printed, and the folder of their pictures."""
    results = {}
    for mode in ("automatic", "manual"):
        folder = tmp_path_factory.mktemp(mode)
        command = [sys.executable, EXAMPLE, "--fast", "--out", "pictures", *["--manual"][: mode == "manual"]]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        results[mode] = process, folder
    return results


@pytest.mark.parametrize("mode", ["automatic", "manual"])
def test_the_demo_runs_and_draws_its_pictures(runs, mode: str) -> None:
    process, folder = runs[mode]
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr
    assert f"{mode} optimization" in process.stdout
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["pictures/samples.png", "pictures/training.png"], "two pictures and nothing else"
    for name in files:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_progress_bar_shows_both_losses(runs) -> None:
    for process, _ in runs.values():
        assert "g_loss=" in process.stdout + process.stderr
        assert "d_loss=" in process.stdout + process.stderr


def test_both_modes_give_the_same_result(runs) -> None:
    verdicts = [process.stdout.partition("The judge looks")[2].partition("Pictures")[0] for process, _ in runs.values()]
    assert "generated" in verdicts[0]
    assert verdicts[0] == verdicts[1]
    pictures = [(folder / "pictures" / "training.png").read_bytes() for _, folder in runs.values()]
    assert pictures[0] == pictures[1], "the same losses and learning rates in every epoch"
