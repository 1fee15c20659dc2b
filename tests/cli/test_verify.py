"""``leyden verify-resume``: a script that resumes exactly is told from one that does not, and what differs is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.cli import main
from leyden.cli.probe import digest
from leyden.cli.verify import Report, compare
from leyden.errors import InvalidValueError, LeydenError

#: A training with a choice of mistakes.
SCRIPT = """
import random, sys
import torch
from torch.utils.data import DataLoader, Dataset
from leyden import LightningModule, Trainer, seed_everything
from leyden.callbacks import ModelCheckpoint

MISTAKE, FOLDER = sys.argv[1:]

class Noisy(Dataset):
    own = random.Random(3)

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.randn(3) + index + (self.own if MISTAKE == "data" else random).random()

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.steps = torch.nn.Linear(3, 1), 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        loss = self.layer(torch.nn.functional.dropout(batch, 0.2)).pow(2).mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss / self.steps if MISTAKE == "state" else loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.layer(batch).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

assert __name__ == "__main__"
if MISTAKE == "script":
    raise ValueError("this script is broken")
if MISTAKE == "left":
    sys.exit(0)
if MISTAKE != "seed":
    seed_everything(1)
if MISTAKE != "no fit":
    trainer = Trainer(
        max_epochs=100, accelerator="cpu", log_every_n_steps=1, accumulate_grad_batches=2,
        callbacks=[ModelCheckpoint(FOLDER, every_n_train_steps=1)],
    )
    trainer.fit(Model(), DataLoader(Noisy(), 2, shuffle=True), DataLoader(Noisy(), 2))
    sys.exit("the rest of the script must not run")
"""


#: Imports what all starts of the script need, and forks a child for each.
SERVER = """
import json, os, sys
import leyden
from leyden.cli import probe
import numpy.random, torch._dynamo
_ = leyden.Trainer, leyden.LightningModule, leyden.callbacks.ModelCheckpoint, leyden.checkpoint.dump

for line in sys.stdin:
    arguments = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.close(read)
            os.close(write)
            sys.argv = ["probe", *arguments]
            probe.main()
        except SystemExit as left:
            code = left.code or 0 if isinstance(left.code, int | None) else print(left.code) or 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    with open(read, errors="replace") as output:
        text = output.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, text]), flush=True)
"""


@pytest.fixture(scope="module")
def quick_starts() -> Iterator[None]:
    """Starts of the script without the seconds that the imports take."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            stdin.write(json.dumps(command[3:]) + "\n")
            stdin.flush()
            code, text = json.loads(stdout.readline())
            return subprocess.CompletedProcess(command, code, text)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leyden.cli.verify.subprocess, "run", run)
            yield
        stdin.close()


def verify(tmp_path: Path, mistake: str, *points: str) -> Report:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    arguments = [mistake, str(tmp_path / "users-own-folder")]
    return leyden.verify_resume(script, arguments, points=points or ["in an epoch"], batches=5)


@pytest.mark.usefixtures("quick_starts")
def test_a_script_that_resumes_exactly(tmp_path: Path) -> None:
    report = verify(tmp_path, "", "in a window", "in a save")
    assert str(report).splitlines() == [
        "whole run: 10 batches",
        "killed in a window      equal",
        "killed in a save        equal",
    ]
    assert report.is_equal
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]  # nothing in the user's folders


@pytest.mark.usefixtures("quick_starts")
def test_data_that_no_checkpoint_knows(tmp_path: Path) -> None:
    report = verify(tmp_path, "data")
    assert not report.is_equal
    cause, first, *_ = report.findings["in an epoch"]
    assert "no checkpoint knows it: Model.steps, Noisy.own; keep it" in cause
    assert first.startswith("from epoch 1, batch 2 on: the batch. DataLoader over Noisy gives other samples, or draws")
    assert max(map(len, str(report).splitlines())) < 80


@pytest.mark.usefixtures("quick_starts")
def test_state_that_no_checkpoint_knows(tmp_path: Path) -> None:
    report = verify(tmp_path, "state")
    cause, first, *_ = report.findings["in an epoch"]
    assert "no checkpoint knows it: Model.steps; keep it" in cause
    assert first.startswith("from epoch 1, batch 3 on: ")  # where the window closes


@pytest.mark.usefixtures("quick_starts")
def test_a_script_that_does_not_repeat_itself(tmp_path: Path) -> None:
    report = verify(tmp_path, "seed")
    assert not report.is_equal
    assert report.findings == {}
    assert "so nothing can be said of a resume" in str(report)
    assert report.unrepeatable[0].startswith("from epoch 0, batch 0 on: the batch")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("script", "this script is broken"),
        ("no fit", "no trainer.fit has come to its end"),
        ("left", "trained nothing"),
    ],
)
def test_a_script_that_fails(mistake: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LeydenError, match="verify-script") as caught:
        verify(tmp_path, mistake)
    assert said in str(caught.value)


# -- without a process ---------------------------------------------------------------------------------------------


def event(kind: str, place: str = "here", **values: str) -> dict[str, Any]:
    return {"kind": kind, "place": place, "values": values}


FACTS = {"loader": "DataLoader over Samples"}


def test_equal_traces_have_no_differences() -> None:
    assert compare([event("step", a="1")], [event("step", a="1")], FACTS) == []


def test_each_name_is_told_where_it_differs_first() -> None:
    first = [event("step", "one", a="1", b="1"), event("step", "two", a="1", b="1")]
    second = [event("step", "one", a="2", b="1"), event("step", "two", a="2", b="2")]
    assert compare(first, second, FACTS) == ["from one on: a", "from two on: b"]


def test_long_lists_are_cut() -> None:
    names = {f"n{number}": "1" for number in range(9)}
    (line,) = compare([event("step", **names)], [event("step", **dict.fromkeys(names, "2"))], FACTS)
    assert line == "from here on: n0, n1, n2 and 6 more"


@pytest.mark.parametrize(("count", "said"), [(1, "less happens"), (3, "more happens")])
def test_a_trace_of_another_length(count: int, said: str) -> None:
    (line,) = compare([event("row", str(i)) for i in range(2)], [event("row", str(i)) for i in range(count)], FACTS)
    assert line.startswith(said)


def test_another_order_of_events() -> None:
    (line,) = compare([event("batch"), event("row")], [event("batch"), event("validation")], FACTS)
    assert line == "validation (here) comes in place of row (here)"


def test_digests_are_of_bits() -> None:
    """Two nan of the same bits are the same; a zero and a negative zero are not, nor are a float and an int."""
    nan = torch.tensor([float("nan")])
    assert digest({"a": [nan]}) == digest({"a": [nan.clone()]})
    zero = torch.zeros(2)
    different = [zero, -zero, zero.int(), zero.view(2, 1), zero.to(torch.bfloat16), 0.0, 0, [0], "0", None, {}]
    assert len({digest(value) for value in different}) == len(different)


def test_digests_see_into_objects() -> None:
    class Pair:
        def __init__(self, value: Any) -> None:
            self.value = value

    assert digest(Pair(1)) == digest(Pair(1)) != digest(Pair(2))


def test_the_exit_code_of_a_command_that_cannot_be_carried_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", "nowhere.py"]) == 2
    assert "there is no script 'nowhere.py' [verify-arguments]" in capsys.readouterr().err
    for arguments in ([], ["unknown"], ["verify-resume"], ["verify-resume", "--point", "nowhere", "a.py"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


@pytest.mark.parametrize("options", [{"points": ["at noon"]}, {"batches": 1}, {"epochs": 1}])
def test_what_cannot_be_tried_is_refused(options: Any) -> None:
    with pytest.raises(InvalidValueError, match="verify-arguments"):
        leyden.verify_resume("train.py", **options)
