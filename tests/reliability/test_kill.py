"""A run that is killed anywhere, and started again, is the run that nobody killed. See `kill.py` for how that is tried.

Here every kind of moment is tried once in every mode; `make reliability` tries 200 times.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from reliability import kill, program

#: Every mode in every kind of moment; half of them with workers, half with three kills.
TRIALS = [
    kill.Trial(seed=1000 + i, mode=mode, workers=kill.WORKERS[i % 2], kind=kind, kills=kill.KILLS[(i + i // 4) % 2])
    for i, (kind, mode) in enumerate(itertools.product(program.KINDS, program.MODES))
]


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kill.Killer]:
    with kill.Killer(tmp_path_factory.mktemp("kills"), servers=1) as killer:
        yield killer


@pytest.mark.parametrize("kind", program.KINDS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(kind: str, killer: kill.Killer) -> None:
    """Weights, optimizers, schedulers, clocks, metrics, callbacks, random numbers, order of samples, rows, files."""
    trials = [trial for trial in TRIALS if trial.kind == kind]
    assert [str(finding) for finding in killer.run(trials) if not finding.is_exact] == []


def test_a_signal_saves_the_very_batch(killer: kill.Killer) -> None:
    """It ends a run with 128 + n, in any moment, and nothing is trained a second time."""
    trials = [trial for trial in TRIALS if trial.mode == "joint"]
    found = killer.run(trials, signals=kill.SIGNALS)
    assert [str(finding) for finding in found if not finding.is_exact] == []


# -- whether it would be noticed -------------------------------------------------------------------------------------


def edit(name: str, change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """Change the lines of a file."""

    def tamper(folder: Path) -> None:
        (path,) = folder.rglob(name)
        lines = path.read_text().splitlines(keepends=True)
        change(lines)
        path.write_text("".join(lines))

    return tamper


def change_state(name: str, *keys: str) -> Callable[[Path], None]:
    """Change one tensor of a file in the last bit."""

    def tamper(folder: Path) -> None:
        (path,) = folder.rglob(name)
        content = part = torch.load(path)
        for key in keys:
            part = part[key]
        torch.save((part.view(torch.uint8)[..., 0].bitwise_xor_(1), content)[1], path)

    return tamper


def exchange(lines: list[str], start: str = "") -> None:
    """Exchange two lines, of those that begin so."""
    first, second = [index for index, line in enumerate(lines) if line.startswith(start)][5:7]
    lines[first], lines[second] = lines[second], lines[first]


def replace(lines: list[str], index: int, old: str, new: str) -> None:
    assert old in lines[index]
    lines[index] = lines[index].replace(old, new)


def start_over(lines: list[str]) -> None:
    """Two batches are trained a second time, although a checkpoint was there."""
    trained = [index for index, line in enumerate(lines) if line.startswith("trained")]
    first, end = trained[4], trained[6]
    lines[end:end] = ["saved 6\n", "started 4 a.ckpt\n", *(line for line in lines[first:end])]


def twice(lines: list[str]) -> None:
    """The last sample takes the place of the one before."""
    index = max(index for index, line in enumerate(lines) if line.startswith("trained"))
    words = lines[index].split()
    lines[index] = " ".join([*words[:-2], words[-1], words[-1], "\n"])


#: What a resume may do wrong -> how that looks in the folder, and the part of a finding that tells.
FAULTS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "nothing": (lambda folder: None, set()),
    "a row is lost": (edit("metrics.csv", lambda lines: lines.pop(5)), {"lost"}),
    "a row is there twice": (edit("metrics.csv", lambda lines: lines.insert(5, lines[5])), {"doubled"}),
    "a row has another value": (edit("metrics.csv", lambda lines: replace(lines, 5, "0.", "0.0")), {"changed"}),
    "rows have another order": (edit("metrics.csv", exchange), {"changed"}),
    "a sample twice, one never": (edit("journal", twice), {"twice", "never", "reordered"}),
    "batches have another order": (edit("journal", lambda lines: exchange(lines, "trained")), {"reordered"}),
    "a checkpoint was not found": (edit("journal", start_over), {"again"}),
    "a start found a damaged file": (edit("output", lambda lines: lines.append("[checkpoint-fallback]")), {"damaged"}),
    "a file is left": (lambda folder: next(folder.rglob("last.ckpt")).with_name(".a.partial").touch(), {"files"}),
    "a file is missing": (lambda folder: next(folder.rglob("last.ckpt")).unlink(), {"files"}),
    "a checkpoint is damaged": (lambda folder: os.truncate(next(folder.rglob("last.ckpt")), 1000), {"contents"}),
    "a checkpoint differs": (change_state("last.ckpt", "state_dict", "head.weight"), {"contents"}),
    "a weight differs": (change_state("final.pt", "weights", "head.weight"), {"differs"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_finds(fault: str, killer: kill.Killer, tmp_path: Path) -> None:
    whole = killer.whole(TRIALS[0]).result()
    folder, finding = tmp_path / "again", kill.Finding(trial=TRIALS[0])
    shutil.copytree(whole, folder)
    state = torch.load(folder / "final.pt")
    del state["moments"]
    torch.save(state, folder / "final.pt")
    tamper, expected = FAULTS[fault]
    tamper(folder)
    kill.compare(whole, folder, finding)
    assert {name for name in kill.FAULTS if getattr(finding, name)} == expected
