"""What libraries built on Lightning read of a Trainer's inside."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

import leyden
from given import Given, fit, given
from leyden.compat.loops import EvaluationLoopWithReport
from leyden.errors import InvalidValueError


def test_a_strategy_reads_checkpoints(tmp_path: Path) -> None:
    """Libraries that search for a learning rate replace ``strategy.load_checkpoint``, and put it back."""
    trainer = fit(Given(), given(1, 2), logger=False, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    theirs = trainer.strategy.load_checkpoint
    asked: list[Any] = []

    @functools.wraps(theirs)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return theirs(*args, **{**kwargs, "weights_only": False})

    trainer.strategy.load_checkpoint = load_checkpoint  # type: ignore[method-assign]
    content = trainer.strategy.load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(content["state_dict"]["weight"], torch.tensor([-3.0]))
    assert asked == [(tmp_path / "a.ckpt",)]


@pytest.mark.parametrize("name", ["_accelerator_connector", "accelerator_connector"])
def test_whether_there_are_several_processes(name: str) -> None:
    """Pruning of trials asks for it when a fit starts."""
    assert getattr(fit(Given(), given(1)), name).is_distributed is False


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
@pytest.mark.parametrize("val", [None, DataLoader(torch.ones(2, 1))])
def test_whether_a_fit_has_validation_data(framework: Any, val: Any) -> None:
    """A library chooses by it, in ``configure_optimizers``, what its scheduler watches."""
    told: list[bool] = []

    class Asks(framework.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).sum()

        def validation_step(self, batch: torch.Tensor) -> None: ...

        def configure_optimizers(self) -> torch.optim.Optimizer:
            told.append(self.trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())
            return torch.optim.SGD(self.parameters(), 0.1)

    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    framework.Trainer(max_steps=1, accelerator="cpu", **silent).fit(Asks(), DataLoader(torch.ones(2, 1)), val)
    assert told == [val is not None]


def test_the_devices_of_a_trainer_that_has_not_run() -> None:
    """A library moves its own tensors there before there is a run."""
    trainer = leyden.Trainer(accelerator="cpu")
    assert trainer._accelerator_connector._parallel_devices == [torch.device("cpu")]


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
def test_saving_a_module_that_has_not_run(framework: Any, tmp_path: Path) -> None:
    """A library connects a module that needs no training, and saves it."""
    module = type("Fixed", (framework.LightningModule,), {})()
    module.layer = torch.nn.Linear(2, 1)
    trainer = framework.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(content["state_dict"]["layer.weight"], module.layer.weight)


def test_an_evaluation_loop_with_a_report_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A library derives one from Lightning's, and puts it in the place of the Trainer's."""

    class Reports(EvaluationLoopWithReport):
        @staticmethod
        def _print_results(results: Any, stage: str) -> None:
            print(f"{stage}: {results[0]['loss'].item():.1f}")

    class Logs(Given):
        def test_step(self, batch: torch.Tensor) -> None:
            self.log("loss", batch.mean())

    for loop, report in ((Reports, "test: 3.0\n"), (EvaluationLoopWithReport, "loss")):
        trainer = leyden.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        with pytest.raises(InvalidValueError, match=r"inference_mode=False.*\[evaluation-loop\]"):
            loop(trainer, "test", "test", inference_mode=False)
        trainer.test_loop = loop(trainer, "test", "test", inference_mode=True)
        assert trainer.test(Logs(), given(2.0, 4.0)) == [{"loss": 3.0}]
        assert report in capsys.readouterr().out


@pytest.mark.parametrize("name", ["max_steps", "max_epochs"])
def test_a_fit_without_length_is_validated_never(name: str) -> None:
    """Programs take the smaller of two intervals, and one of them is the length of the fit; so in Lightning."""
    length: Any = {"val_check_interval": 0, name: 0, "logger": False, "enable_checkpointing": False}
    theirs = pytorch_lightning.Trainer(**length, accelerator="cpu", enable_progress_bar=False)
    theirs.fit(BoringModel())
    module = Given()
    ours = fit(module, given(1, 2), **{"max_epochs": -1, **length})
    assert (ours.global_step, module.weights) == (theirs.global_step, []) == (0, [])
    with pytest.raises(InvalidValueError, match="val-check-interval"):
        fit(module, given(1, 2), val_check_interval=0, **{name: 1})
