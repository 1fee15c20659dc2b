"""``CSVLogger``: a file that only grows, whole at any time."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from leyden.errors import LeydenWarning
from leyden.loggers import CSVLogger
from leyden.loggers.parameters import flatten, write_yaml


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]


def test_rows_are_appended_and_the_file_stays_the_same(tmp_path: Path) -> None:
    """Also where rows lack columns; only a new column makes a new file, of which no trace is left."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    path = Path(logger.log_dir) / "metrics.csv"
    logger.log_metrics({"a": 0.1, "b": 1e-9}, 0)
    before, inode = path.read_bytes(), path.stat().st_ino
    logger.log_metrics({"b": float("nan")}, 1)
    assert path.read_bytes() == before + b",nan,1\n"
    assert path.stat().st_ino == inode
    logger.log_metrics({"c": torch.tensor(2)}, 2)
    assert path.read_bytes() == b"a,b,step,c\n0.1,1e-09,0,\n,nan,1,\n,,2,2\n"
    assert path.stat().st_ino != inode
    assert os.listdir(logger.log_dir) == ["metrics.csv"]


def test_rows_wait_until_enough_steps_have_passed(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=100)
    for step in range(49, 250, 50):
        logger.log_metrics({"a": 1.0}, step)
    assert [row["step"] for row in rows(logger)] == ["49", "99", "149", "199"]
    logger.finalize("success")
    assert len(rows(logger)) == 5


def test_rows_wait_no_longer_than_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    assert not (Path(logger.log_dir) / "metrics.csv").exists()
    later = time.monotonic() + 11
    monkeypatch.setattr(time, "monotonic", lambda: later)
    logger.log_metrics({"a": 2.0}, 1)
    assert len(rows(logger)) == 2


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    """Killed in the middle of writing, with columns that keep coming up."""
    script = (
        "import itertools, sys\n"
        "from leyden.loggers import CSVLogger\n"
        f"logger = CSVLogger({str(tmp_path)!r}, flush_logs_every_n_steps=10)\n"
        "for step in itertools.count():\n"
        "    logger.log_metrics({'a': 0.123456789, f'key {step // 500}': 1.0, 'square': float(step) ** 2}, step)\n"
        "    if step % 10 == 9:\n"
        "        print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    flushed = next(int(line) for line in process.stdout if int(line) >= 2000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    logger = CSVLogger(tmp_path, version=0)
    found = rows(logger)
    assert len(found) > flushed
    assert all(float(row["square"]) == int(row["step"]) ** 2 == step**2 for step, row in enumerate(found))


def test_a_version_is_continued_without_its_torn_last_line(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_3"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("a,step\n0.5,0\n0.7")
    logger = CSVLogger(tmp_path, version=3)
    logger.log_metrics({"a": 0.9, "b": 1}, 1)
    logger.save()
    assert (folder / "metrics.csv").read_text() == "a,step,b\n0.5,0,\n0.9,1,1\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is needed")
def test_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    """One warning; rows wait for better times."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    writer = logger.experiment
    good, writer.metrics_file_path = writer.metrics_file_path, "/dev/full"
    with pytest.warns(LeydenWarning, match="/dev/full.*logger-write") as caught:
        logger.log_metrics({"a": 1.0}, 0)
        logger.log_metrics({"a": 2.0}, 1)
    assert len(caught) == 1
    writer.metrics_file_path = good
    logger.save()
    assert len(rows(logger)) == 2


def test_versions_count_up_and_names_are_kept(tmp_path: Path) -> None:
    for name in ("version_1", "version_9", "version_10", "version_x", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    logger = CSVLogger(tmp_path, "runs")
    assert (logger.name, logger.version, logger.save_dir) == ("runs", 11, str(tmp_path))
    assert logger.root_dir == str(tmp_path / "runs")
    assert logger.log_dir == str(tmp_path / "runs" / "version_11")
    assert CSVLogger(tmp_path, None, "mine").log_dir == str(tmp_path / "mine")
    assert CSVLogger(tmp_path / "none").version == 0


def test_a_prefix_stands_before_every_key(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, prefix="gan")
    logger.log_metrics({"loss": 1.0})
    logger.log_metrics({"loss": 2.0})
    logger.save()
    assert rows(logger) == [{"gan-loss": "1.0", "step": "0"}, {"gan-loss": "2.0", "step": "1"}]


def test_a_copy_goes_on_in_the_same_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    copy = pickle.loads(pickle.dumps(logger))
    copy.log_metrics({"a": 2.0}, 1)
    copy.save()
    assert len(rows(logger)) == 2


def test_hyperparameters_are_a_yaml_file(tmp_path: Path) -> None:
    """Read back by YAML's own reader: floats stay floats, texts texts."""
    yaml = pytest.importorskip("yaml")
    given = {
        "lr": 1e-5,
        "huge": 1e20,
        "none": None,
        "flag": True,
        "yes": "no",
        "text": 'a: "b"\n# \u00e4',
        "nan": float("inf"),
        "betas": (0.9, 1e-3),
        "nested": {"deep": {"x": 1}, "empty": {}, "list": [{"a": [1]}]},
        "loss": torch.nn.MSELoss,
        "layer": torch.nn.Linear(2, 2),
        "dtype": torch.float32,
        "scalar": torch.tensor(0.5),
    }
    write_yaml(str(tmp_path / "hparams.yaml"), given)
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text(encoding="utf-8")) == {
        **given,
        "betas": [0.9, 1e-3],
        "loss": "torch.nn.modules.loss.MSELoss",
        "layer": "Linear",
        "dtype": "torch.float32",
        "scalar": 0.5,
    }
    assert flatten(given)["nested/list/0/a"] == [1]


def test_hyperparameters_add_up(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"a": 1})
    logger.log_hyperparams({"b": 2})
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "a: 1\nb: 2\n"
