"""Lightning 2.6.6 is the oracle: the same calls of ``self.log``, the same metrics at the same moments.

A case says what each hook logs. It runs inside of Lightning, then through ``Results``, driven here as the
loops drive it; after every hook both sides note what callbacks, loggers and the progress bar can see.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from leyden.results import Results, Views

Log = Callable[..., None]
Hook = Callable[[Log, Tensor], None]
Case = dict[str, Hook]
Snapshot = tuple[str, dict[str, float], dict[str, float], dict[str, float]]

EPOCHS = 2
TRAIN = torch.arange(5.0).reshape(5, 1)  # batches of 2, 2 and 1
EVALUATION = (torch.arange(3.0).reshape(3, 1), torch.arange(2.0).reshape(2, 1) + 10)
NO_BATCH = torch.zeros(0)


def levels(hook: str) -> Hook:
    """Logs every combination of levels and destinations that the hook allows."""

    def log(log: Log, batch: Tensor) -> None:
        log(f"{hook}/default", batch.mean())
        log(f"{hook}/step", batch.mean(), on_step=True, on_epoch=False, prog_bar=True)
        log(f"{hook}/epoch", batch.mean(), on_step=False, on_epoch=True, prog_bar=True)
        log(f"{hook}/both", batch.mean(), on_step=True, on_epoch=True, prog_bar=True)
        log(f"{hook}/silent", batch.mean(), on_step=True, on_epoch=True, logger=False)

    return log


def epoch_level(hook: str) -> Hook:
    def log(log: Log, batch: Tensor) -> None:
        log(f"{hook}/default", 1.5)
        log(f"{hook}/twice", 1.0, prog_bar=True)
        log(f"{hook}/twice", 4.0, prog_bar=True)

    return log


def reductions(log: Log, batch: Tensor) -> None:
    for reduce_fx in ("mean", "sum", "min", "max"):
        log(reduce_fx, batch.sum(), on_step=True, on_epoch=True, reduce_fx=reduce_fx)
    log("avg", batch.sum(), on_epoch=True, reduce_fx="Avg")
    log("torch", batch.sum(), on_epoch=True, reduce_fx=torch.max)
    log("builtin", batch.sum(), on_epoch=True, reduce_fx=sum)
    log("weighted", batch.sum(), on_epoch=True, batch_size=int(batch.sum()) + 1)


def kinds(log: Log, batch: Tensor) -> None:
    log("int", 3, on_epoch=True)
    log("bool", True, on_epoch=True)
    log("float64", batch.double().mean(), on_epoch=True)
    log("bfloat16", batch.bfloat16().mean(), on_epoch=True)
    log("int64", batch.long().sum(), on_epoch=True)
    log("tensor of bool", (batch > 1).any(), on_epoch=True)
    log("shape (1, 1)", batch[:1], on_epoch=True)
    log("inf", torch.tensor(float("inf")), on_epoch=True)


def often(log: Log, batch: Tensor) -> None:
    for value in batch:
        log("often", value, on_step=True, on_epoch=True)


def seldom(log: Log, batch: Tensor) -> None:
    if batch.sum() == 5:  # the middle one of three batches
        log("seldom", batch.sum(), on_step=True, on_epoch=True)
        log("seldom sum", batch.sum(), on_step=False, on_epoch=True, reduce_fx="sum")


def same(log: Log, batch: Tensor) -> None:
    log("same", batch.sum())


def no_suffix(log: Log, batch: Tensor) -> None:
    log(f"up to {10 if batch.mean() < 10 else 20}", batch.sum(), add_dataloader_idx=False, prog_bar=True)


CASES: dict[str, Case] = {
    "training_step": {"training_step": levels("t")},
    "reductions": {"training_step": reductions, "validation_step": reductions},
    "kinds": {"training_step": kinds, "validation_step": kinds},
    "often": {"training_step": often, "validation_step": often},
    "seldom": {"training_step": seldom, "validation_step": seldom},
    "batch hooks": {
        "on_train_batch_start": levels("start"),
        "on_train_batch_end": levels("end"),
        "on_validation_batch_start": levels("val start"),
        "on_validation_batch_end": levels("val end"),
    },
    "epoch hooks": {
        name: epoch_level(name)
        for name in (
            "on_train_start",
            "on_train_epoch_start",
            "on_train_epoch_end",
            "on_validation_epoch_end",
        )
    },
    "validation_step": {"validation_step": levels("v")},
    "one name in all hooks": {
        "training_step": same,
        "validation_step": same,
        "on_train_epoch_end": lambda log, batch: log("same", -1.0),
        "on_validation_epoch_end": lambda log, batch: log("same", -2.0),
    },
    "no suffix": {"validation_step": no_suffix},
    "everything": {
        "training_step": levels("t"),
        "validation_step": levels("v"),
        "on_train_epoch_start": epoch_level("start"),
        "on_train_epoch_end": epoch_level("end"),
        "on_validation_epoch_end": epoch_level("v end"),
    },
}


def floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


class Rows:
    """Collects what loggers get."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, row: dict[str, Any]) -> None:
        row = {name: value for name, value in floats(row).items() if name != "epoch"}
        if row:
            self.rows.append(row)


def run_lightning(case: Case, loaders: int) -> tuple[list[Snapshot], list[dict[str, float]], list[Any]]:
    with quiet():
        import pytorch_lightning as lightning
        from pytorch_lightning.loggers.logger import DummyLogger

        return run_framework(lightning, DummyLogger, case, loaders)


def run_framework(
    framework: Any, logger_base: Any, case: Case, loaders: int
) -> tuple[list[Snapshot], list[dict[str, float]], list[Any]]:
    snapshots: list[Snapshot] = []
    rows = Rows()

    class Logger(logger_base):  # type: ignore[misc]
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            rows.add(metrics)

    class Module(framework.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def note(self, hook: str, batch: Tensor) -> None:
            if hook in case:
                case[hook](self.log, batch)
            trainer = self.trainer
            snapshots.append(
                (
                    hook,
                    floats(trainer.callback_metrics),
                    floats(trainer.logged_metrics),
                    floats(trainer.progress_bar_metrics),
                )
            )

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.note("training_step", batch[0])
            return self.weight.sum()

        def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
            self.note("validation_step", batch[0])

        def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
            self.note("on_train_batch_start", batch[0])

        def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_idx: int) -> None:
            self.note("on_train_batch_end", batch[0])

        def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.note("on_validation_batch_start", batch[0])

        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.note("on_validation_batch_end", batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def epoch_hook(name: str) -> Callable[[Module], None]:
        return lambda self: self.note(name, NO_BATCH)

    for name in ("train_start", "train_epoch_start", "train_epoch_end", "validation_start"):
        setattr(Module, f"on_{name}", epoch_hook(f"on_{name}"))
    for name in ("validation_epoch_start", "validation_epoch_end", "validation_end"):
        setattr(Module, f"on_{name}", epoch_hook(f"on_{name}"))

    trainer = framework.Trainer(
        max_epochs=EPOCHS,
        logger=Logger(),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    train = DataLoader(TensorDataset(TRAIN), batch_size=2)
    evaluation = [DataLoader(TensorDataset(data), batch_size=2) for data in EVALUATION[:loaders]]
    module = Module()
    trainer.fit(module, train, evaluation)
    results = trainer.validate(module, evaluation, verbose=False)
    snapshots.append(
        (
            "end",
            floats(trainer.callback_metrics),
            floats(trainer.logged_metrics),
            floats(trainer.progress_bar_metrics),
        )
    )
    return snapshots, rows.rows, results


@contextmanager
def quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class Driver:
    """Sets what the loops set, at the moments at which they set it."""

    def __init__(self, case: Case, loaders: int) -> None:
        self.case = case
        self.loaders = loaders
        self.views = Views()
        self.train = Results(training=True, views=self.views)
        self.evaluation = Results(training=False, several_loaders=loaders > 1, views=self.views)
        self.snapshots: list[Snapshot] = []
        self.rows = Rows()

    def note(self, results: Results, hook: str, batch: Tensor = NO_BATCH) -> None:
        if hook in self.case:
            self.case[hook](lambda *args, **options: results.log(hook, *args, **options), batch)
        self.snapshots.append(
            (
                hook,
                floats(results.callback_metrics()),
                floats(results.logged_metrics()),
                results.progress_bar_metrics(),
            )
        )

    def fit(self) -> None:
        results = self.train
        self.note(results, "on_train_start")
        for _ in range(EPOCHS):
            self.note(results, "on_train_epoch_start")
            for batch in TRAIN.split(2):
                results.batch = [batch]
                self.note(results, "on_train_batch_start", batch)
                self.note(results, "training_step", batch)
                self.note(results, "on_train_batch_end", batch)
                self.rows.add(results.step_metrics())
            self.evaluate()
            results.end_epoch()
            self.note(results, "on_train_epoch_end")
            self.rows.add(results.epoch_metrics())
            results.reset()

    def evaluate(self) -> list[dict[str, float]]:
        results = self.evaluation
        self.note(results, "on_validation_start")
        self.note(results, "on_validation_epoch_start")
        for index, data in enumerate(EVALUATION[: self.loaders]):
            for batch in data.split(2):
                results.dataloader_idx = index
                results.batch = [batch]
                self.note(results, "on_validation_batch_start", batch)
                self.note(results, "validation_step", batch)
                self.note(results, "on_validation_batch_end", batch)
                self.rows.add(results.step_metrics())
        results.end_epoch()
        self.note(results, "on_validation_epoch_end")
        returned = results.evaluation_results()
        self.rows.add(results.epoch_metrics())
        self.note(results, "on_validation_end")
        results.reset()
        return returned


def test_start_of_validation_goes_to_the_same_rows() -> None:
    """R126: seen by callbacks at once, where Lightning shows it at once in validate and late in fit."""
    case = {name: epoch_level(name) for name in ("on_validation_start", "on_validation_epoch_start")}
    _, rows, returned = run_lightning(case, 2)
    driver = Driver(case, 2)
    driver.fit()
    assert returned == driver.evaluate()
    assert rows == driver.rows.rows


def assert_same(expected: list[Snapshot], got: list[Snapshot]) -> None:
    assert [snapshot[0] for snapshot in expected] == [snapshot[0] for snapshot in got]
    for theirs, ours in zip(expected, got, strict=True):
        for view, a, b in zip(("callback", "logged", "bar"), theirs[1:], ours[1:], strict=True):
            assert a == pytest.approx(b, rel=1e-6, nan_ok=True), (theirs[0], view)


@pytest.mark.filterwarnings("ignore:.*log-integer")
@pytest.mark.parametrize("loaders", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_views_rows_and_returned_values(name: str, loaders: int) -> None:
    """R96, R126, R127, R129, R132, R133, R138, R139."""
    case = CASES[name]
    snapshots, rows, returned = run_lightning(case, loaders)
    driver = Driver(case, loaders)
    driver.fit()
    driver.views.clear()
    results = driver.evaluate()
    views = driver.views
    driver.snapshots.append(("end", floats(views.callback), floats(views.logged), floats(views.progress_bar)))
    assert_same(snapshots, driver.snapshots)
    assert rows == [pytest.approx(row, rel=1e-6, nan_ok=True) for row in driver.rows.rows]
    assert returned == [pytest.approx(row, rel=1e-6, nan_ok=True) for row in results]


class LoggerBase:
    """What a Trainer asks of a logger."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def save(self) -> None:
        pass

    def finalize(self, status: str) -> None:
        pass


@pytest.mark.filterwarnings("ignore:.*log-integer")
@pytest.mark.parametrize("loaders", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_both_trainers(name: str, loaders: int) -> None:
    """R96, R126, R127, R129, R132, R133, R138, R139: the same module in both."""
    import leyden

    case = CASES[name]
    snapshots, rows, returned = run_lightning(case, loaders)
    ours, our_rows, our_returned = run_framework(leyden, LoggerBase, case, loaders)
    assert_same(snapshots, ours)
    assert rows == [pytest.approx(row, rel=1e-6, nan_ok=True) for row in our_rows]
    assert returned == [pytest.approx(row, rel=1e-6, nan_ok=True) for row in our_returned]
