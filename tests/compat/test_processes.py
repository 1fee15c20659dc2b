"""Python processes that a program starts have the aliases, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHILD = """
import os, sys

is_early = "torch" in sys.modules
import pytorch_lightning as pl
import lightning, leyden
from leyden.optimization.clocks import Clocks

is_one = pl.Trainer is leyden.Trainer is lightning.Trainer
print(is_early, sys.mine == os.getpid(), is_one, pl.__version__, Clocks.batches_are_steps)
"""

#: Asks for what is provided before it imports anything of Lightning's.
ASKING = """
import sys
import torch._six
from torch._six import inf
from torch.utils.data._utils.collate import container_abcs, string_classes

is_early = "leyden" in sys.modules
import importlib.metadata

print(is_early, importlib.metadata.version("pytorch_lightning"), inf)
"""

#: Of a Python that has no leyden, and another Lightning.
ELSEWHERE = """
import sys
sys.modules["leyden"] = None
sys.path.insert(0, "elsewhere")
import pytorch_lightning, torch

print(pytorch_lightning.mine, hasattr(torch, "_six"))
"""

PROGRAM = """
import multiprocessing, os, subprocess, sys
import pytorch_lightning as pl

def kind(queue):
    queue.put(pl.Trainer.__module__)

if __name__ == "__main__":
    for child in ("child.py", "asking.py", "other.py"):
        subprocess.run([sys.executable, child], check=True)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=kind, args=(queue,))
    process.start()
    print(queue.get(timeout=60))
    process.join()
    import leyden.compat

    leyden.compat.uninstall()
    print(os.environ["PYTHONPATH"], "LEYDEN_COMPAT" in os.environ)
"""


def test_processes_that_a_program_starts(tmp_path: Path) -> None:
    """Scripts, and spawned workers, which import the program anew; nothing is imported there before it is used.

    The ``sitecustomize`` that the user has is run as ever, and nothing is left when the aliases are off.
    """
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "asking.py").write_text(ASKING)
    (tmp_path / "other.py").write_text(ELSEWHERE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pytorch_lightning.py").write_text("mine = True")
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nsys.mine = os.getpid()\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2] / "src")])
    command = [sys.executable, "-m", "leyden", "run", "--era", "1.5", "--version", "1.5.9", "program.py"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    children = ["False True True 1.5.9 True", "False 1.5.9 inf", "True False"]
    assert done.stdout.splitlines() == [*children, "leyden.trainer", f"{paths} False"], done.stderr
