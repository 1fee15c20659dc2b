"""``leyden replay``: the failing step again, from the command line."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from leyden.cli import main

#: A script that trains as soon as it runs, with hyper-parameters of a class of its own.
SCRIPT = """
import dataclasses
import torch
from leyden import LightningModule, Trainer

@dataclasses.dataclass
class Config:
    width: int

class Model(LightningModule):
    def __init__(self, config):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(config.width, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).pow(2).mean() * torch.rand(())
        if batch_idx == 2:
            raise ValueError("this batch is bad")
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)

class Repaired(Model):
    def training_step(self, batch, batch_idx):
        return self.layer(batch).pow(2).mean() * torch.rand(())

class Other(Model):
    def training_step(self, batch, batch_idx):
        return self.layer(batch).pow(4).mean() * torch.rand(())

class Unsaved(LightningModule):
    def __init__(self, width):
        super().__init__()

torch.manual_seed(1)
trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, record_failures=FOLDER)
trainer.fit(Model(Config(3)), [torch.ones(2, 3)] * 4)
"""


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The record of a failing step; beside it is the script."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("FOLDER", repr(str(tmp_path / "failures"))))
    with pytest.raises(ValueError, match="this batch is bad"):
        runpy.run_path(str(script), run_name="__main__")
    (found,) = (tmp_path / "failures").iterdir()
    return found.rename(tmp_path / "a.failure")


def test_a_step_that_fails_again(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script itself does not train, objects of its classes are found, and the run is the recorded one."""
    before = sys.modules["__main__"]
    assert main(["replay", str(record), f"{record.parent}/train.py:Model"]) == 1
    said = capsys.readouterr()
    assert said.out == "The step fails again.\n"
    assert "ValueError: this batch is bad" in said.err
    assert "bit for bit as recorded: 4 losses and gradients of 3 steps up to here" in said.err
    assert sys.modules["__main__"] is before
    assert not (record.parent / "failures" / "epoch=0-batch=2.failure").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Repaired", "bit for bit as recorded: 6 losses and gradients of 3 steps"),
        ("Other", "another run than the recorded one: 2 steps before the recorded one the loss was 0.0"),
    ],
)
def test_a_step_that_does_not_fail(kind: str, said: str, record: Path, capsys: Any, caplog: Any) -> None:
    """It was repaired, or it is another; the numbers on the way tell."""
    assert main(["replay", str(record), f"{record.parent}/train.py:{kind}", "--accelerator", "cpu"]) == 0
    assert capsys.readouterr().out == "The step does not fail this time.\n"
    assert caplog.messages[-1].startswith(said)


def test_the_user_says_which_code_runs(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file from elsewhere names a class, and that is all it does."""
    assert main(["replay", str(record)]) == 2
    assert f"leyden replay {record} {record.parent}/train.py:Model" in capsys.readouterr().err


def test_a_script_that_empties_the_folder_of_the_record(record: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is written again, and replayed."""
    script, before = record.parent / "train.py", record.read_bytes()
    clear = f"import shutil; shutil.rmtree({str(record.parent)!r})\n"
    script.write_text(clear + script.read_text())
    assert main(["replay", str(record), f"{script}:Repaired"]) == 0
    assert record.read_bytes() == before
    assert f"the script has deleted {str(record)!r}, which is written again" in caplog.messages


@pytest.mark.parametrize("module", [[], ["train.py:Model"]])
def test_no_script_runs_for_what_is_no_record(module: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The record is opened first: one that is not there is missed, and a damaged one is told."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemError('it runs')")
    assert main(["replay", "a.failure", *module]) == 2
    error = capsys.readouterr().err
    assert "there is no record 'a.failure' of a failing step" in error
    assert "[checkpoint-missing]" in error
    (tmp_path / "a.failure").write_bytes(b"PK")
    assert main(["replay", "a.failure", *module]) == 2
    assert "[checkpoint-unreadable]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("nowhere.py:Model", "No such file"),
        ("train.py:Unknown", "no attribute 'Unknown'"),
        ("nowhere:Model", "No module named"),
        ("train.py", "names no class"),
        (":", "names no class"),
        ("train:Model", "to import train trains"),
        ("train.py:Config", "no LightningModule"),
        ("train.py:Unsaved", "missing 1 required positional argument: 'width'"),
    ],
)
def test_what_cannot_be_built(
    module: str, said: str, record: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(record.parent)
    assert main(["replay", str(record), module]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "[replay-module]" in error


def test_a_file_that_is_not_there(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(record) + "x", f"{record.parent}/train.py:Model"]) == 2
    assert "a.failurex" in capsys.readouterr().err
