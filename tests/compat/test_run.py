"""``leyden run``: a program's arguments, and what is seen of an error that ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leyden import LightningModule, Trainer
from leyden.cli import main
from leyden.cli.run import shorten_tracebacks
from leyden.errors import MisconfigurationException
from leyden.loops.fit import FitLoop

PROGRAM = """\
import sys
import torch
from pytorch_lightning import LightningModule, Trainer


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        self.log("loss", 1.0)
        self.log("loss", 1.0, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    print("called with", sys.argv[1:])
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False)
    if sys.argv[1] == "--absent":
        from pytorch_lightning.callbacks import ModelPruning
    if sys.argv[1] == "--exit":
        sys.exit(7)
    trainer.fit(Model(), [torch.ones(1, 2)])
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "leyden", "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_mistake_is_shown_where_the_program_makes_it(tmp_path: Path) -> None:
    """As Python shows an error, without a frame that is not the program's; the exit code is Python's."""
    done = run(tmp_path, "program.py", "--fit", "-m", "it")
    assert done.returncode == 1 and "called with ['--fit', '-m', 'it']" in done.stdout
    lines = done.stderr[done.stderr.index("Traceback") :].splitlines()
    assert lines[1::2][:2] == [
        f'  File "{tmp_path}/program.py", line 26, in <module>',
        f'  File "{tmp_path}/program.py", line 13, in training_step',
    ]
    assert lines[5].startswith("leyden.errors.MisconfigurationException: self.log('loss', ...)")


def test_a_module_takes_arguments(tmp_path: Path) -> None:
    """As after ``python -m``, options included; the program says how it ends."""
    done = run(tmp_path, "--version", "1.9.5", "-m", "program", "--exit", "-m", "it")
    assert done.returncode == 7 and "called with ['--exit', '-m', 'it']" in done.stdout and not done.stderr


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    """The import is the place; nothing of the aliases themselves is in the traceback."""
    lines = run(tmp_path, "-m", "program", "--absent").stderr.splitlines()
    assert [line for line in lines if "File" in line] == [f'  File "{tmp_path}/program.py", line 23, in <module>']
    assert "ModuleNotFoundError: leyden has no 'ModelPruning' in 'pytorch_lightning.callbacks'" in lines[-1]


def test_there_must_be_a_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert [main(["run"]), main(["run", "-m"]), main(["run", "nothing.py"])] == [2, 2, 2]
    assert capsys.readouterr().err.count("[run-what]") == 3
    done = run(tmp_path, "-m", "leyden.hooks")
    assert done.returncode == 1 and "there is no module 'leyden.hooks' that can be run [run-what]" in done.stderr


#: Tells how it is run, and uses its own classes in other processes and after its last line.
MAIN = """
import atexit, inspect, multiprocessing, os, pickle, signal, sys, threading


class Own:
    pass


def double(value):
    return 2 * value


def after(when):
    print(when, type(pickle.loads(pickle.dumps(Own()))) is Own)


def wait():
    threading.main_thread().join()
    after("thread")


if __name__ == "__main__":
    print(__file__, __cached__, __package__, __spec__ and __spec__.name, type(__loader__), type(__builtins__), __doc__)
    print(sys.argv, sys.path[0], vars(sys.modules["__main__"]) is globals())
    os.chdir("/")
    print(os.path.exists(__file__), inspect.getsource(double))
    if not __file__.endswith("__main__.py"):  # which multiprocessing does not import anew
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(double, [2]))
    atexit.register(after, "at exit")
    threading.Thread(target=wait).start()
    if sys.argv[1:] == ["interrupt"]:
        signal.raise_signal(signal.SIGINT)
    sys.exit("over" if sys.argv[1:] == ["text"] else 3)
"""


@pytest.mark.parametrize("how", [["package/main.py", "text"], ["-m", "package.main"], ["-m", "package"]])
def test_a_program_is_the_main_module_as_under_python(how: list[str], tmp_path: Path) -> None:
    """What it sees of itself, its exit code, and its classes after its last line and in spawned processes."""
    (tmp_path / "package").mkdir()
    for name in ("__init__", "__main__", "main"):
        (tmp_path / "package" / f"{name}.py").write_text("" if name == "__init__" else MAIN)
    python = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    ours = run(tmp_path, *how)
    assert python.stdout.endswith("thread True\nat exit True\n"), python.stderr
    assert ("[4]" in ours.stdout) == (how[-1] != "package")
    assert (ours.stdout, ours.stderr, ours.returncode) == (python.stdout, python.stderr, python.returncode)


def test_ctrl_c_outside_of_a_fit(tmp_path: Path) -> None:
    """The exit code of a shell, and no frame that is not the program's."""
    (tmp_path / "main.py").write_text(MAIN)
    done = run(tmp_path, "main.py", "interrupt")
    lines = [line for line in done.stderr.splitlines() if line.startswith("  File")]
    assert done.returncode == 130 and lines == [f'  File "{tmp_path}/main.py", line 33, in <module>']
    assert done.stderr.endswith("KeyboardInterrupt\n") and done.stdout.endswith("at exit True\n")


def test_a_program_that_cannot_be_compiled(tmp_path: Path) -> None:
    """Shown as Python shows it."""
    (tmp_path / "main.py").write_text("a = (\n")
    done = run(tmp_path, "main.py")
    python = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-3:] == python.stderr.splitlines()[-3:]
    assert "leyden" not in done.stderr and "importlib" not in done.stderr


class Failing(LightningModule):
    def __init__(self, fail: Callable[[], Any]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.fail = fail

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.fail()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def shortened(fail: Callable[[], Any]) -> list[list[str]]:
    """The packages or functions on the way to an error and to those that led to it, outermost first."""
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        trainer.fit(Failing(fail), [torch.ones(1, 2)])
    shorten_tracebacks(caught.value)
    found, error = [], caught.value
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        packages = [str(frame.f_globals["__name__"]).partition(".")[0] for frame in frames]
        here = zip(packages, frames, strict=True)
        found.append([name if name in ("leyden", "torch") else frame.f_code.co_name for name, frame in here])
        error = error.__cause__ or error.__context__
    return found


def test_an_error_of_the_program_s() -> None:
    """leyden is not in between; torch is, where the error is its."""
    assert shortened(lambda: 1 / 0) == [["shortened", "training_step", "<lambda>"]]
    [frames] = shortened(lambda: torch.nn.Linear(2, 1)(torch.ones(3)))
    assert frames == ["shortened", "training_step", "<lambda>", *["torch"] * (len(frames) - 3)] and len(frames) > 3


def test_errors_that_led_to_it() -> None:
    """Each has its own frames."""

    def fail() -> None:
        try:
            {}["nothing"]  # noqa: B018
        except KeyError as error:
            raise MisconfigurationException("expected something") from error

    assert shortened(fail) == [["shortened", "training_step", "fail"], ["fail"]]


def test_a_failure_of_leyden_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its frames are what a report needs."""
    monkeypatch.setattr(FitLoop, "run", lambda self, *args, **kwargs: exec("1 / 0", {"__name__": "leyden.loops.fit"}))
    [frames] = shortened(lambda: None)
    assert frames[0] == "shortened" and frames.count("leyden") > 1
