"""The ledger of a fit: what its time went to, and the line that says so. Time here is a number that parts advance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from leyden import Callback, LightningModule, Trainer
from leyden.loops import fit, ledger
from leyden.loops.ledger import Ledger


class Time:
    """A clock that stands still unless somebody takes his time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(fit, "perf_counter", time)
    monkeypatch.setattr(ledger, "perf_counter", time)
    return time


class Slow(LightningModule):
    """Every part takes time of its own."""

    def __init__(self, clock: Time) -> None:
        super().__init__()
        self.clock, self.layer = clock, nn.Linear(2, 1)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        self.clock.take(0.25)
        return batch

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.take(2)
        loss: Tensor = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.take(0.5)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.take(4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SlowLoader:
    """Takes 8 seconds before the first batch of an epoch, and 1 before each of the others."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Tensor]:
        for seconds in (8, 1, 1):
            self.clock.take(seconds)
            yield torch.ones(2, 2)


class SlowRows:
    """A logger that needs 3 seconds for a row."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.clock.take(3)


def test_every_second_of_a_fit_is_in_one_entry(clock: Time) -> None:
    """Two epochs of three batches, one row and one validation of a batch each."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=3,
        logger=SlowRows(clock),
    )
    trainer.fit(Slow(clock), SlowLoader(clock), [torch.ones(2, 2)])
    spent = trainer.ledger
    assert spent == Ledger(data=20, start=16, copy=1.5, compute=12, validation=8.5, logging=6, total=51)
    assert spent.callbacks == 3


def test_a_second_fit_has_a_ledger_of_its_own(clock: Time) -> None:
    """What one fit took is not counted again in the next."""
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False, limit_val_batches=0)
    trainer.fit(Slow(clock), SlowLoader(clock))
    first = trainer.ledger
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Slow(clock), SlowLoader(clock))
    assert trainer.ledger == first
    assert trainer.ledger is not first


def test_an_interrupted_fit_leaves_its_ledger(clock: Time) -> None:
    """The total is there also after an exception."""

    class Breaks(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            raise ValueError("broken")

    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False, callbacks=Breaks())
    with pytest.raises(ValueError, match="broken"):
        trainer.fit(Slow(clock), SlowLoader(clock))
    assert trainer.ledger.total == 10.25


def test_one_line_at_the_end_of_fit(clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    """With a progress bar, and only with one, the fit ends with a line that says where the time went."""
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0)
    trainer.fit(Slow(clock), SlowLoader(clock))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("The fit took 18.2 s: 55% waiting for data, 33% computing, 8% in callbacks")
    Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False).fit(Slow(clock), SlowLoader(clock))
    assert "The fit took" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loader", "start", "advice"),
    [
        ([1, 2], 0.0, "a DataLoader with num_workers > 0"),
        (DataLoader([1, 2]), 0.0, "num_workers=2 or more"),
        (DataLoader([1, 2], num_workers=1), 5.0, "persistent_workers=True"),
        (DataLoader([1, 2], num_workers=1, persistent_workers=True), 5.0, "Its workers (1) do not keep up"),
        (DataLoader([1, 2], num_workers=1), 0.0, "Its workers (1) do not keep up"),
    ],
)
def test_a_slow_loader_is_named_with_what_helps(loader: Any, start: float, advice: str) -> None:
    """A loader that a fit has waited for a good part of its time is followed by advice that fits it."""
    assert advice in Ledger(data=6.0, start=start, compute=4.0, total=10.0).summary(loader)


@pytest.mark.parametrize("spent", [Ledger(data=0.6, total=1.0), Ledger(data=1.0, compute=9.0, total=10.0)])
def test_there_is_no_advice_where_nothing_is_to_be_won(spent: Ledger) -> None:
    """A short fit, and one that hardly waits, are told without advice."""
    assert "wait for its data" not in spent.summary([1]) and "try" not in spent.summary(DataLoader([1]))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s."), (75.0, "1 min 15 s"), (7265.0, "2 h 01 min"), (59.94, "59.9 s")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """Seconds below a minute, then minutes, then hours."""
    assert text in Ledger(compute=seconds, total=seconds).summary()
