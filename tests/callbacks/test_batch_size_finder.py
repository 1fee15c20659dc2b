"""``BatchSizeFinder`` beside Lightning's, with a memory that ends at a given number of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import leyden
from leyden import LightningDataModule, Trainer
from leyden.callbacks import BatchSizeFinder
from leyden.errors import InvalidValueError, MisconfigurationException

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "num_sanity_val_steps": 0,
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}
SAMPLES = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))


def limited(memory: int, framework: Any = leyden, *, is_manual: bool = False, **attributes: Any) -> Any:
    """A module whose steps fail on batches larger than the memory."""

    class Limited(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layer = nn.Linear(4, 1)
            self.automatic_optimization = not is_manual
            self.seen: list[int] = []
            self.__dict__.update({"batch_size": 3, **attributes})

        def forward(self, batch: Tensor) -> Tensor:
            if len(batch) > memory:
                raise RuntimeError("CUDA out of memory. Tried to allocate all of it")
            return self.layer(batch).square().mean()  # type: ignore[no-any-return]

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.seen.append(len(batch))
            loss = self(batch)
            if is_manual:
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.seen.append(len(batch))
            self(batch)

        test_step = predict_step = validation_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return DataLoader(SAMPLES, batch_size=self.batch_size)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    return Limited()


CASES: dict[str, tuple[int, dict[str, Any], int]] = {
    "power": (20, {}, 16),
    "power, from 5": (20, {"init_val": 5, "steps_per_trial": 1}, 20),
    "all samples": (1000, {}, 128),
    "all samples, binsearch": (1000, {"mode": "binsearch"}, 121),
    "binsearch": (20, {"mode": "binsearch"}, 19),
    "binsearch without a margin": (20, {"mode": "binsearch", "margin": 0}, 20),
    "few trials": (1000, {"max_trials": 3}, 8),
    "one sample": (1, {}, 1),
    "first size too large": (5, {"init_val": 16}, 4),
    "largest size": (1000, {"max_val": 24}, 24),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_found_in_a_fit(case: str) -> None:
    """The attribute has it, the fit runs with it, and the trials are not in the module's own list."""
    memory, arguments, expected = CASES[case]
    finder, module = BatchSizeFinder(**arguments), limited(memory)
    Trainer(callbacks=[finder], limit_val_batches=0, **QUIET).fit(module)
    assert finder.optimal_batch_size == module.batch_size == expected
    assert set(module.seen) <= {expected, 100 % expected, min(expected, 100)} and sum(module.seen) == 100


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["power", "all samples, binsearch", "binsearch", "few trials"])
def test_lightning_finds_the_same(case: str, tmp_path: Any) -> None:
    """Size, and weights after the fit. Its own first trial runs on a loader of the old size."""
    memory, arguments, expected = CASES[case]
    weights = []
    for framework in (leyden, pytorch_lightning):
        finder, module = framework.callbacks.BatchSizeFinder(**arguments), limited(memory, framework)
        framework.Trainer(callbacks=[finder], default_root_dir=tmp_path, limit_val_batches=0, **QUIET).fit(module)
        assert finder.optimal_batch_size == expected
        weights.append([parameter.detach() for parameter in module.parameters()])
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize("run", ["validate", "test", "predict"])
def test_evaluations_and_predictions(run: str) -> None:
    """The run that follows uses what was found."""
    finder, module = BatchSizeFinder(), limited(20)
    trainer = Trainer(callbacks=[finder], **QUIET)
    getattr(trainer, run)(module)
    assert finder.optimal_batch_size == 16
    assert module.seen == [16] * 6 + [4]


def test_a_validation_inside_of_a_fit_is_left_alone() -> None:
    """One search per run."""
    finder, module = BatchSizeFinder(), limited(20)
    Trainer(callbacks=[finder], **QUIET).fit(module)
    assert module.seen == 2 * ([16] * 6 + [4])


@pytest.mark.parametrize(
    "build",
    [lambda: limited(20, is_manual=True), lambda: limited(20)],
    ids=["manual", "accumulated"],
)
def test_other_modes(build: Callable[[], Any]) -> None:
    """A trial is as many updates as were asked for, whoever makes them."""
    finder, module = BatchSizeFinder(), build()
    arguments = {"accumulate_grad_batches": 2} if module.automatic_optimization else {}
    Trainer(callbacks=[finder], limit_val_batches=0, **QUIET, **arguments).fit(module)
    assert finder.optimal_batch_size == 16 and sum(module.seen) == 100


def test_the_datamodule_may_have_the_attribute() -> None:
    """So may its hyper-parameters."""

    class Data(LightningDataModule):
        def __init__(self, batch_size: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return DataLoader(SAMPLES, batch_size=self.hparams.batch_size)

    data, module = Data(), limited(20)
    del module.batch_size
    Trainer(callbacks=[BatchSizeFinder()], limit_val_batches=0, **QUIET).fit(module, datamodule=data)
    assert data.hparams.batch_size == 16 and module.seen[0] == 16


def test_no_such_attribute() -> None:
    """Said before any batch."""
    module = limited(20)
    with pytest.raises(MisconfigurationException, match="'size_of_batches'"):
        Trainer(callbacks=[BatchSizeFinder(batch_arg_name="size_of_batches")], **QUIET).fit(module)
    assert module.seen == []


def test_a_loader_that_does_not_follow_the_attribute() -> None:
    """One that was passed to the call cannot change."""
    module = limited(20)
    with pytest.raises(MisconfigurationException, match="cannot change"):
        Trainer(callbacks=[BatchSizeFinder()], **QUIET).fit(module, DataLoader(SAMPLES, batch_size=7))
    assert module.batch_size == 3


def test_nothing_fits() -> None:
    """The attribute is put back."""
    module = limited(0)
    with pytest.raises(MisconfigurationException, match="no batch size that fits"):
        Trainer(callbacks=[BatchSizeFinder()], **QUIET).fit(module)
    assert module.batch_size == 3


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    """They go on, and the attribute is put back."""
    module = limited(20)
    module.forward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Trainer(callbacks=[BatchSizeFinder()], **QUIET).fit(module)
    assert module.batch_size == 3


@pytest.mark.parametrize(
    "arguments", [{"mode": "guess"}, {"init_val": 0}, {"max_trials": 0}, {"margin": 1.0}, {"max_val": 1}]
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    """Refused when it is built."""
    with pytest.raises(InvalidValueError, match="BatchSizeFinder"):
        BatchSizeFinder(**arguments)
