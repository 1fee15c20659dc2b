"""What loggers have in common."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden.loggers
from leyden.loggers import DummyLogger
from leyden.loggers.base import DummyExperiment, Logger, prepare_row, rank_zero_experiment
from leyden.loggers.uploads import CheckpointUploads
from leyden.rank import rank_zero_only


def test_all_names_are_there_and_no_others() -> None:
    assert all(getattr(leyden.loggers, name) is not None for name in leyden.loggers.__all__)
    assert dir(leyden.loggers) == sorted(leyden.loggers.__all__)
    with pytest.raises(AttributeError, match="SomeLogger"):
        _ = leyden.loggers.SomeLogger


def test_a_dummy_takes_everything() -> None:
    logger = DummyLogger()
    logger.experiment.add_image("x", None)
    logger.experiment["a"] = logger.experiment["b"]
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_hyperparams({})
    logger.watch(None)
    logger[0].save()
    assert (logger.name, logger.version, logger.save_dir) == ("", "", None)
    assert isinstance(pickle.loads(pickle.dumps(copy.deepcopy(logger))), DummyLogger)


def test_only_the_first_process_has_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Logger):
        name = version = None

        @property
        @rank_zero_experiment
        def experiment(self) -> str:
            return "real"

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            pass

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            pass

    assert Mine().experiment == "real"
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert isinstance(Mine().experiment, DummyExperiment)


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    for make in (leyden.loggers.CSVLogger, leyden.loggers.TensorBoardLogger):
        logger = make(tmp_path)
        logger.log_hyperparams({"a": 1})
        logger.log_metrics({"a": 1.0}, 0)
        logger.save()
        logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_rows_hold_numbers() -> None:
    assert prepare_row({"a": torch.tensor([2]), "b": 1.5}, "") == {"a": 2, "b": 1.5}


class Saved:
    """A callback that has written checkpoints."""

    def __init__(self, folder: Path, save_top_k: int) -> None:
        self.save_top_k = save_top_k
        self.folder = folder
        self.last_model_path, self.current_score = "", None
        self.best_model_path, self.best_model_score = self.write("best"), 0.1
        self.best_k_models = {self.best_model_path: 0.1, str(folder / "deleted"): 0.2}

    def write(self, name: str) -> str:
        (self.folder / name).write_text(name)
        return str(self.folder / name)


@pytest.mark.parametrize(
    ("when", "save_top_k", "during", "after"),
    [(False, 1, 0, 0), (True, 1, 0, 2), (True, -1, 2, 2), ("all", 1, 2, 2)],
)
def test_checkpoints_are_sent_once(when: Any, save_top_k: int, during: int, after: int, tmp_path: Path) -> None:
    sent: list[tuple[str, float | None, list[str]]] = []
    uploads = CheckpointUploads(when, lambda *args: sent.append(args))
    callback = Saved(tmp_path, save_top_k)
    uploads.after_save(callback)
    callback.last_model_path, callback.current_score = callback.write("last"), torch.tensor(0.5)
    uploads.after_save(callback)
    assert len(sent) == during
    uploads.at_end()
    uploads.at_end()
    assert len(sent) == after
    if sent:
        best, last = sent
        assert best == (callback.best_model_path, 0.1, ["latest", "best"])
        assert last == (callback.last_model_path, 0.5, ["latest"])


def test_a_wrong_log_model_is_refused() -> None:
    with pytest.raises(ValueError, match="'some'.*logger-log-model"):
        CheckpointUploads("some", print)
