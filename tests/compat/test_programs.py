"""Programs as people wrote them for Lightning 1.5 to 2.x run by ``leyden run``, with no line changed.

Those of 2.x run under Lightning 2.6 too, and print the same: metrics, and a digest of the trained weights.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
#: Runs several programs one after the other, each in its folder, with Lightning imported once.
ONE_AFTER_THE_OTHER = """
import contextlib, os, runpy, sys
for given in list(sys.argv[1:]):
    script, folder, *sys.argv[1:] = given.split()
    os.makedirs(folder)
    os.chdir(folder)
    with open("out", "w") as out, contextlib.redirect_stdout(out):
        runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class Program:
    """What somebody who runs a program looks at.

    Attributes:
        arguments: of its command line.
        learns: two figures that it prints as "... before -> after": the second is less than this part of the first, or
            more by this factor.
        prints: lines that it prints.
        writes: files that it leaves: a pattern, and how many.
        warns: codes of leyden's advice.
        era: of ``leyden run --era``.
        tells: its last lines, which are the same under Lightning 2.6; 0: it does not run there.
    """

    arguments: str
    learns: float
    prints: Sequence[str] = ()
    writes: Mapping[str, int] = field(default_factory=dict)
    warns: frozenset[str] = frozenset()
    era: str = "2.6"
    tells: int = 0


FORMER = frozenset({"trainer-argument-1x"})
TABLE = {
    "gan_1_5.py": Program(
        "-t --name try --gpus 0 --max_epochs 20 --progress_bar_refresh_rate 0 --weights_summary full",
        learns=0.2,
        prints=[
            "Trainer from the command line: gpus max_epochs progress_bar_refresh_rate weights_summary",
            "turns: 134 266",  # one batch for the generator, two for the discriminator
            "steps: 400",
        ],
        writes={"logs/*_try/testtube/version_0/events.*": 1, "logs/*_try/checkpoints/last.ckpt": 1},
        warns=FORMER | {"test-tube"},
        era="1.5",
    ),
    "vqgan_1_5.py": Program(
        "--gpus 0 --max_epochs 4 --progress_bar_refresh_rate 20",
        learns=0.7,
        prints=["d_weight: True", "best: logs/checkpoints/epoch=000003.ckpt"],
        writes={"logs/checkpoints/*.ckpt": 4, "logs/checkpoints/config.txt": 1, "logs/tb/version_0/events.*": 2},
        warns=FORMER,
        era="1.5",
    ),
    "ddpm_1_6.py": Program(
        "--max_epochs 6 --gpus 0 --num_sanity_val_steps 1",
        learns=0.5,
        prints=["ema updates: 120", "learning rate at the end: 0.443", "resumed: 140 140 True"],
        writes={"final.ckpt": 1, "lightning_logs/version_*/checkpoints/*.ckpt": 2},
        warns=FORMER | {"checkpoint-dirpath"},
    ),
    "wgan_gp_1_5.py": Program(
        "--max_epochs 11 --gpus 0 --progress_bar_refresh_rate 5 --weights_summary top --lr 0.03",
        learns=0.3,
        prints=["critic evaluations: 528 steps: 176", "hparams: 3 32"],
        writes={"lightning_logs/version_0/events.*": 1, "lightning_logs/version_0/hparams.yaml": 1},
        warns=FORMER,
        era="1.5",
    ),
    "sac_1_9.py": Program(
        "--max_steps 450",
        learns=0.3,
        prints=["steps: 450 epochs: 15"],
        writes={"lightning_logs/version_0/checkpoints/*.ckpt": 1},
    ),
    "simclr_1_5.py": Program(
        "--max_epochs 6",
        learns=1.3,
        prints=["learning rate at the end: 0.0000", "last: 5"],
        writes={"logs/simclr/version_0/checkpoints/*.ckpt": 2, "logs/simclr/version_0/metrics.csv": 1},
        warns=FORMER,
        era="1.5",
    ),
    "bptt_1_5.py": Program(
        "",
        learns=0.1,
        prints=["6/6 ['train_loss']", "pieces: 120 steps: 30", "gradient norms: True"],
        writes={"**/*.ckpt": 0},
        warns=FORMER,
        era="1.5",
    ),
    "forecasting_2_0.py": Program(
        "--accelerator cpu",
        learns=0.1,
        writes={"checkpoints/*.ckpt": 2, "logs/forecaster/version_0/metrics.csv": 1},
        tells=5,
    ),
    "gan_manual_2_0.py": Program(
        "--max_epochs 6",
        learns=0.2,
        writes={"logs/gan/version_0/checkpoints/*.ckpt": 2, "logs/gan/version_0/events.*": 1},
        tells=4,
    ),
    "datamodule_2_2.py": Program(
        "--epochs 5",
        learns=1.8,
        writes={"logs/moons/version_0/checkpoints/*.ckpt": 1},
        tells=5,
    ),
    "lightning_2_4.py": Program(
        "--max_epochs 8",
        learns=0.1,
        prints=["suggested rate is taken: True", "state: finished fit", "scripted: True"],
        writes={"logs/lightning_logs/version_0/checkpoints/*.ckpt": 1},
    ),
    "fabric_2_1.py": Program(
        "--epochs 8 --precision bf16-mixed",
        learns=0.8,
        writes={"checkpoints/state.ckpt": 1, "logs/fabric/version_0/metrics.csv": 1},
        tells=12,
    ),
    "cli_2_0.py": Program(
        f"fit --config {PROGRAMS}/cli_2_0.yaml --note hello --count.every 2",
        learns=0.1,
        prints=["note: hello"],
        writes={"logs/cli/version_0/config.yaml": 1, "logs/cli/version_0/checkpoints/*.ckpt": 1},
        tells=5,
    ),
}


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}


@pytest.fixture(scope="module")
def on_lightning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the programs that Lightning 2.6 has run; each has an "out"."""
    root = tmp_path_factory.mktemp("lightning")
    given = [f"{PROGRAMS / name} {root / name} {program.arguments}" for name, program in TABLE.items() if program.tells]
    command = [sys.executable, "-W", "ignore", "-c", ONE_AFTER_THE_OTHER, *given]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", TABLE)
def test_it_runs_and_learns(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """R1: nothing asks which version a program is from; its own signatures say it."""
    program = TABLE[name]
    command = [sys.executable, "-m", "leyden", "run", "--era", program.era, str(PROGRAMS / name)]
    done = subprocess.run(
        [*command, *program.arguments.split()], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [(before, after)] = re.findall(r"^[a-z].*: (-?[\d.]+) -> (-?[\d.]+)$", done.stdout, re.MULTILINE)
    if program.learns < 1:
        assert float(after) < program.learns * float(before)
    else:
        assert float(after) > program.learns * float(before)
    lines = done.stdout.splitlines()
    assert [line for line in program.prints if line not in [*lines, *done.stderr.splitlines()]] == []
    assert {pattern: len(list(tmp_path.glob(pattern))) for pattern in program.writes} == program.writes
    advice = re.findall(r"^.+:\d+: (\w*Warning): (?:.*\[([\w-]+)\])?", done.stderr, re.MULTILINE)
    assert set(advice) == {("LeydenWarning", code) for code in program.warns}
    if program.tells:
        there = request.getfixturevalue("on_lightning") / name / "out"
        assert lines[-program.tells :] == there.read_text().splitlines()[-program.tells :]
