"""``leyden migrate``: what a repository uses of Lightning, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leyden.cli import main
from leyden.compat.survey import ABSENT, DIFFERENT, SAME, survey

TRAIN = """\
import argparse
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, ModelPruning, ModelCheckpont
from pytorch_lightning.strategies import DDPStrategy
import lightning.pytorch.utilities.nothing


class Model(pl.LightningModule):
    def training_step(self, batch, batch_idx, optimizer_idx):
        return batch

    def training_epoch_end(self, outputs):
        pass

    def not_a_hook(self):
        return self.trainer.callback_metrics, self.trainer.nothing_of_ours


class Watch(pl.callbacks.Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        trainer.logger.experiment


class Loader:
    def on_train_batch_end(self):
        pass


def main(options):
    trainer = pl.Trainer(gpus=2, max_epochs=3, weights_summary=None, amp_level="O2", bogus=1, **options)
    trainer.fit(Model())
    return pl.TrainResult
"""
#: line, what, name, verdict, and a part of the reason.
FOUND = [
    (2, "import", "pytorch_lightning", SAME, ""),
    (3, "import", "pytorch_lightning.callbacks.ModelCheckpoint", SAME, ""),
    (3, "import", "pytorch_lightning.callbacks.ModelCheckpont", ABSENT, "did you mean 'ModelCheckpoint'?"),
    (3, "import", "pytorch_lightning.callbacks.ModelPruning", ABSENT, "torch.nn.utils.prune"),
    (4, "import", "pytorch_lightning.strategies.DDPStrategy", DIFFERENT, "one device"),
    (5, "import", "lightning.pytorch.utilities.nothing", ABSENT, "nothing"),
    (9, "method", "training_step(optimizer_idx)", SAME, ""),
    (12, "method", "training_epoch_end", DIFFERENT, "R66"),
    (16, "Trainer attribute", "trainer.callback_metrics", SAME, ""),
    (16, "Trainer attribute", "trainer.nothing_of_ours", ABSENT, "no such attribute"),
    (20, "method", "on_train_batch_end", SAME, ""),
    (21, "Trainer attribute", "trainer.logger", SAME, ""),
    (30, "Trainer argument", "amp_level", DIFFERENT, "no effect"),
    (30, "Trainer argument", "bogus", ABSENT, "no such argument"),
    (30, "Trainer argument", "gpus", ABSENT, "one device"),
    (30, "Trainer argument", "max_epochs", SAME, ""),
    (30, "Trainer argument", "weights_summary", DIFFERENT, "write enable_model_summary=False"),
    (31, "Trainer attribute", "trainer.fit", SAME, ""),
    (32, "import", "pytorch_lightning.TrainResult", ABSENT, "removed it in 1.0"),
]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A file that uses Lightning, one that does not, one of Python 2, and what is not the repository's own."""
    (tmp_path / "train.py").write_text(TRAIN)
    for name, text in (("plain", "import torch"), ("old", "print 'Python 2'")):
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / f"{name}.py").write_text(text)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "other.py").write_text("import pytorch_lightning")
    return tmp_path


def test_every_use_is_found(repository: Path) -> None:
    """With its line, what becomes of it, and why; nothing is imported or run."""
    found = survey(repository)
    assert [(use.line, use.what, use.name, use.verdict) for use in found.uses] == [use[:4] for use in FOUND]
    for use, (*_, reason) in zip(found.uses, FOUND, strict=True):
        assert reason in use.reason and bool(use.reason) == (use.verdict != SAME)
    assert {use.file for use in found.uses} == {"train.py"}
    assert list(found.unread) == ["part/old.py"]


def test_the_report(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The worst first, with file and line, then a summary; what runs as it is on request."""
    assert main(["migrate", str(repository)]) == 1
    text = capsys.readouterr().out
    titles = ["Does not run", "Runs with a difference", "Cannot be read", "19 uses of Lightning in 1 file:"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows if row and row[0].startswith("train.py:")] == [
        f"train.py:{line}" for line in (3, 3, 5, 16, 30, 30, 32, 4, 12, 30, 30)
    ]
    assert "8 run as they are, 4 run with a difference, 7 do not run." in text
    main(["migrate", str(repository), "--all"])
    assert ["train.py:31", "trainer.fit"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_json(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All uses, for programs."""
    assert main(["migrate", str(repository), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(use["line"], use["what"], use["name"], use["verdict"]) for use in told["uses"]] == [
        use[:4] for use in FOUND
    ]
    assert {use["file"] for use in told["uses"]} == {"train.py"} and list(told["unread"]) == ["part/old.py"]


def test_a_repository_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0, of a single file too; and where there is nothing of Lightning, that is said."""
    file = tmp_path / "good.py"
    file.write_text("from lightning import Trainer\nTrainer(max_epochs=1, gpus=0).fit\n")
    assert main(["migrate", str(file)]) == 0
    assert "3 uses of Lightning in 1 file: 2 run as they are, 1 run with a difference" in capsys.readouterr().out
    file.write_text("import torch\n")
    assert main(["migrate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing of Lightning is used here\n"


def test_a_name_of_another_package_is_not_lightning_s(tmp_path: Path) -> None:
    """Where a name stands for something else, too, it is left alone."""
    file = tmp_path / "both.py"
    file.write_text(
        "try:\n    from lightning import Trainer\nexcept ImportError:\n    from transformers import Trainer\n"
    )
    assert [use.name for use in survey(file).uses] == ["lightning.Trainer"]
    file.write_text(file.read_text() + "Trainer(bogus=1)\n")
    assert [use.name for use in survey(file).uses] == ["lightning.Trainer"]


def judged(folder: Path, text: str) -> dict[str, tuple[str, str]]:
    """Verdict and reason of each name that a program uses, but its imports."""
    (folder / "one.py").write_text(text)
    return {use.name: (use.verdict, use.reason) for use in survey(folder).uses if use.what != "import"}


@pytest.mark.parametrize(
    ("argument", "verdict", "reason"),
    [
        ("tpu_cores=8", ABSENT, "leyden runs on the CPU"),
        ("tpu_cores=None", SAME, ""),
        ("gpus=cores", DIFFERENT, "a warning says what to write"),
        ("gpus=1", DIFFERENT, "write accelerator='gpu', devices=1"),
        ("gpus='0,1'", ABSENT, "one device"),
        ("devices='2'", ABSENT, "one device"),
        ("devices=[1]", SAME, ""),
        ("devices='1,'", SAME, ""),
        ("num_nodes=2", ABSENT, "one device"),
        ("accelerator='gpu'", SAME, ""),
        ("accelerator='ddp'", DIFFERENT, "one device"),
        ("accelerator='tpu'", ABSENT, "expected accelerator to be one of"),
        ("distributed_backend='ddp'", DIFFERENT, "one device"),
        ("strategy='nothing'", ABSENT, "no such strategy"),
        ("multiple_trainloader_mode='min_size'", DIFFERENT, "CombinedLoader(loaders, 'min_size')"),
        ("multiple_trainloader_mode='max_size_cycle'", SAME, ""),
        ("multiple_trainloader_mode='longest'", ABSENT, "expected 'max_size_cycle' or 'min_size'"),
        ("max_nb_epochs=3", ABSENT, "did you mean max_epochs?"),
        ("terminate_on_nan=False", SAME, ""),
        ("max_epochs={[]: 1}", SAME, ""),
    ],
)
def test_values_count(tmp_path: Path, argument: str, verdict: str, reason: str) -> None:
    """An argument is judged by its value, where that is written out."""
    found = judged(tmp_path, f"from pytorch_lightning import Trainer\nTrainer({argument})\n")
    told = found.pop(argument.partition("=")[0])
    assert not found and told[0] == verdict and reason in told[1] and bool(told[1]) == bool(reason)


def test_what_is_read_of_a_part_of_the_trainer(tmp_path: Path) -> None:
    """It is judged at any depth, as far as a Trainer tells that has not run."""
    found = judged(
        tmp_path,
        "def f(trainer):\n    trainer.fit_loop.epoch_loop.batch_idx, trainer.fit_loop.epoch_loop.nothing\n"
        "    trainer.fit_loop.nothing, trainer.plan.nothing, trainer.datamodule.anything\n"
        "    trainer.fit_loop.own = 1\n    trainer.fit_loop.own\n",
    )
    absent = {name: reason for name, (verdict, reason) in found.items() if verdict == ABSENT}
    assert absent == {
        "trainer.fit_loop.epoch_loop.nothing": "no such attribute of leyden's EpochLoop",
        "trainer.fit_loop.nothing": "no such attribute of leyden's FitLoop",
    }
    assert set(found) - set(absent) == {"trainer.fit_loop", "trainer.plan", "trainer.datamodule"}


METHODS = """\
import pytorch_lightning as pl


class Module(pl.LightningModule):
    def training_epoch_end(self, outputs): ...
    def on_epoch_end(self, outputs): ...
    def on_epoch_start(self): ...
    def on_batch_start(self, extra=1): ...
    def on_train_dataloader(self): ...


class Watch(pl.Callback):
    def on_epoch_end(self, trainer, pl_module): ...
    def on_epoch_start(self, *args): ...
    def on_batch_end(self): ...
"""


def test_methods_that_are_hooks(tmp_path: Path) -> None:
    """R45, R66: one that does not take what its hook of 1.x was given is the class's own, as when it runs."""
    (tmp_path / "one.py").write_text(METHODS)
    found = [(use.line, use.name, use.verdict) for use in survey(tmp_path).uses if use.what == "method"]
    assert found == [
        (5, "training_epoch_end", SAME),
        (7, "on_epoch_start", SAME),
        (8, "on_batch_start", SAME),
        (9, "on_train_dataloader", SAME),
        (13, "on_epoch_end", SAME),
        (14, "on_epoch_start", SAME),
    ]


def test_what_a_program_sets_on_the_trainer_is_its_own(tmp_path: Path) -> None:
    """It is there, in all files, since the program puts it there."""
    (tmp_path / "main.py").write_text("from lightning import Trainer\ntrainer = Trainer()\ntrainer.logdir = 'logs'\n")
    (tmp_path / "model.py").write_text("def folder(self):\n    return self.trainer.logdir, self.trainer.other\n")
    assert [(use.name, use.verdict) for use in survey(tmp_path).uses] == [
        ("lightning.Trainer", SAME),
        ("trainer.other", ABSENT),
    ]


def test_there_must_be_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "nowhere"]) == 2
    assert capsys.readouterr().err == "leyden migrate: there is no 'nowhere' [migrate-what]\n"


def test_the_programs_of_these_tests_run() -> None:
    """What the report says of them agrees with their tests: nothing in them does not run."""
    found = survey(Path(__file__).parent / "programs")
    assert len(found.uses) > 200 and not found.unread
    assert [(use.file, use.line, use.name) for use in found.uses if use.verdict == ABSENT] == []
