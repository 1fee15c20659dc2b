"""What code of 1.x and 2.x reads from a Trainer and its parts, beside what Lightning answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, IterableDataset

import leyden
from leyden import Callback, LightningModule, Trainer
from leyden.compat import former_hooks
from leyden.loggers import CSVLogger, TensorBoardLogger

FOUR = ("ready", "started", "processed", "completed")


def loader(size: int = 6) -> DataLoader[Any]:
    return DataLoader(torch.arange(3.0 * size).reshape(size, 3), batch_size=2)  # type: ignore[arg-type]


def build(package: ModuleType, rows: list[Any]) -> Any:
    """A module of either package that notes where the loops are in each hook."""

    class Module(package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def look(self, hook: str) -> None:
            loop = self.trainer.fit_loop
            batches, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress
            counts = [[getattr(one, name) for name in FOUR] for one in (batches.current, batches.total)]
            counts.append([getattr(epochs.current, name) for name in ("processed", "completed")])
            if hook == "batch start":  # Lightning counts it as started a moment later
                counts[0][1], counts[1][1] = counts[0][0], counts[1][0]
            epoch = loop.epoch_loop
            numbers = [epoch.batch_idx, epoch.total_batch_idx, epoch.global_step, epoch._batches_that_stepped]
            rows.append((hook, counts, numbers, batches.is_last_batch))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.look("step")
            return self.layer(batch).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.look("validation step")

        def on_train_start(self) -> None:
            self.look("train start")

        def on_train_epoch_start(self) -> None:
            self.look("epoch start")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.look("batch start")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.look("batch end")

        def on_train_epoch_end(self) -> None:
            self.look("epoch end")

        def on_train_end(self) -> None:
            self.look("train end")

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    return Module()


def trainer_of(package: ModuleType = leyden, **arguments: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return package.Trainer(**{**quiet, "max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, **arguments})


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2, "val_check_interval": 2}])
def test_progress_is_lightnings(arguments: dict[str, Any]) -> None:
    """``fit_loop.epoch_loop`` and ``fit_loop.epoch_progress`` tell in each hook what Lightning's tell."""
    ours: list[Any] = []
    theirs: list[Any] = []
    for package, rows in ((leyden, ours), (pytorch_lightning, theirs)):
        trainer_of(package, **arguments).fit(build(package, rows), loader(), loader(2))
    assert len(ours) > 20
    assert ours == theirs


def test_the_clock_behind_a_progress_can_be_set() -> None:
    """Programs that go on from a file of their own set where the loggers' x-axis begins."""
    trainer = trainer_of()
    trainer.fit_loop.epoch_loop._batches_that_stepped = 10
    trainer.fit(build(leyden, rows := []), loader())
    assert rows[0][2][-1] == 10 and trainer.num_updates == 16
    trainer.fit_loop.epoch_progress.current.processed = 5
    assert trainer.current_epoch == 5


def test_what_cannot_be_read_says_why() -> None:
    trainer = trainer_of()
    with pytest.raises(AttributeError, match="no 'call_hook': call the method"):
        _ = trainer.call_hook
    with pytest.raises(AttributeError, match="no attribute 'fit_lop'"):
        _ = trainer.fit_lop
    assert not hasattr(trainer, "lightning_optimizers")


def test_an_error_in_a_property_keeps_its_words() -> None:
    class Own(Trainer):
        @property
        def broken(self) -> Any:
            return [].first  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="'list' object has no attribute 'first'"):
        _ = Own(accelerator="cpu").broken


@pytest.mark.parametrize("name", ["val_check_interval", "device_ids", "check_val_every_n_epoch", "overfit_batches"])
def test_defaults_are_lightnings(name: str) -> None:
    assert getattr(trainer_of(), name) == getattr(trainer_of(pytorch_lightning), name)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_batch_end"])
def test_loaders_can_be_asked_for_anew(hook: str) -> None:
    """1.x's ``reset_*_dataloader``: the next epoch and the next validation have what the module returns then.

    An epoch that runs keeps its length: in 1.x ``num_training_batches`` changed at once, and its last batch with it.
    """

    class Growing(build(leyden, []).__class__):  # type: ignore[misc]
        size = 2

        def train_dataloader(self) -> Any:
            return loader(self.size)

        val_dataloader = train_dataloader

        def on_validation_start(self) -> None:
            seen.append((self.trainer.num_training_batches, len(self.trainer.val_dataloaders)))

    def grow(module: Any, *args: Any) -> None:
        if module.trainer.is_last_batch:
            module.size += 2
            module.trainer.reset_train_val_dataloaders(module)

    setattr(Growing, hook, grow)
    seen: list[Any] = []
    trainer_of(max_epochs=3).fit(Growing())
    assert [training for training, _ in seen] == [1, 2, 3]
    assert [validation for _, validation in seen] == ([1, 2, 3] if hook == "on_train_epoch_end" else [2, 3, 4])


@pytest.fixture
def of_1x() -> Iterator[None]:
    """What programs see that are shown a version of 1.x."""
    former_hooks.provide("1.5.10")
    yield
    former_hooks.withdraw()


@pytest.mark.usefixtures("of_1x")
def test_loaders_of_1x() -> None:
    """The training data in what 1.5 put around them; those of an evaluation in a list."""
    first, second = loader(4), loader(6)
    trainer = trainer_of(max_epochs=1)
    assert trainer.train_dataloader is None
    trainer.fit(build(leyden, []), first, second)
    data = trainer.train_dataloader
    assert data.loaders is first and data.dataset.datasets is first.dataset and data.batch_size == 2
    assert len(data) == 2 and len(list(data)) == 2 and torch.equal(data.dataset[1], first.dataset[1])
    assert trainer.val_dataloaders == [second]

    class Pair(build(leyden, []).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch["a"] + batch["b"]).mean()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            """Both loaders."""

    trainer = trainer_of(max_epochs=1)
    trainer.fit(Pair(), {"a": first, "b": second}, {"c": first, "d": second})
    data = trainer.train_dataloader
    assert data.loaders["b"] is second and data.dataset.datasets == {"a": first.dataset, "b": second.dataset}
    assert trainer.val_dataloaders == [first, second]


@pytest.mark.usefixtures("of_1x")
def test_a_stream_of_1x() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(torch.ones(4, 3))

    trainer = trainer_of(max_epochs=1)
    stream = Stream()
    trainer.fit(build(leyden, []), DataLoader(stream, batch_size=2))
    assert trainer.train_dataloader.dataset.datasets is stream


def test_the_hook_before_anything_is_set_up() -> None:
    """R45: ``on_before_accelerator_backend_setup`` of 1.x comes between prepare_data and setup."""

    class Notes(Callback):
        def on_before_accelerator_backend_setup(self, trainer: Trainer, pl_module: LightningModule) -> None:
            events.append("before")

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            events.append("setup")

    class Prepares(build(leyden, []).__class__):  # type: ignore[misc]
        def prepare_data(self) -> None:
            events.append("prepare_data")

    events: list[str] = []
    trainer_of(max_epochs=1, callbacks=Notes()).fit(Prepares(), loader())
    assert events == ["prepare_data", "before", "setup"]


def test_a_connector_is_a_view_of_the_trainer(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="run", version=0)
    trainer = trainer_of(max_epochs=1, logger=logger)
    trainer.fit(build(leyden, []), loader())
    assert trainer.logger_connector.callback_metrics is trainer.callback_metrics
    trainer._logger_connector.log_metrics({"own": 1.5}, step=7)
    logger.save()
    assert (tmp_path / "run/version_0/metrics.csv").read_text().split() == ["own,step", "1.5,7"]
    with pytest.raises(AttributeError, match="no attribute 'eval_loop_results'"):
        _ = trainer.logger_connector.eval_loop_results


def test_a_run_goes_on_with_another_kind_of_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a checkpoint holds of one kind of logger is nothing to another kind."""
    trainer = trainer_of(max_epochs=1, logger=CSVLogger(tmp_path))
    trainer.fit(build(leyden, []), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for logger in (TensorBoardLogger(tmp_path / "other"), CSVLogger(tmp_path / "third")):
        with caplog.at_level(logging.INFO, logger="leyden"):
            again = trainer_of(logger=logger)
            again.fit(build(leyden, []), loader(), ckpt_path=tmp_path / "a.ckpt")
        assert again.global_step == 6


@pytest.mark.parametrize("package", [leyden, pytorch_lightning])
def test_a_program_sets_where_its_fit_begins(package: ModuleType) -> None:
    """As programs do that go on from files of their own: the epochs, the steps and the batches count from there."""
    rows: list[Any] = []

    class Module(type(build(package, rows))):  # type: ignore[misc]
        def look(self, hook: str) -> None:
            if hook == "step":
                total = self.trainer.fit_loop.epoch_loop.total_batch_idx
                rows.append((self.current_epoch, self.global_step, total))

        def on_train_start(self) -> None:
            loop = self.trainer.fit_loop
            for counts in (loop.epoch_progress.current, loop.epoch_progress.total):
                counts.processed = counts.completed = 3
            steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
            steps.total.completed = loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = 9
            loop.epoch_loop.batch_progress.total.ready = loop.epoch_loop.batch_progress.total.completed = 9

    trainer_of(package, max_epochs=5).fit(Module(), loader())
    assert rows == [(3 + batch // 3, 9 + batch, 9 + batch) for batch in range(6)]


@pytest.mark.usefixtures("of_1x")
def test_several_loggers_are_one_in_1x(tmp_path: Path) -> None:
    """As in 1.5: a list, whose methods are called on each; what leyden itself keeps goes to the first one's folder."""
    loggers = [CSVLogger(tmp_path, name="a", version=0), CSVLogger(tmp_path, name="b", version=1)]
    trainer = trainer_of(max_epochs=1, logger=loggers, enable_checkpointing=True)
    module = build(leyden, [])
    trainer.fit(module, loader())
    both = module.logger
    assert list(both) == loggers and both[1] is loggers[1] and both.experiment == [one.experiment for one in loggers]
    assert (both.name, both.version, both.save_dir) == ("a_b", "0_1", None)
    both.log_metrics({"own": 1.5}, step=7)
    both.save()
    for one in loggers:
        assert (Path(one.log_dir) / "metrics.csv").read_text().split() == ["own,step", "1.5,7"]
    assert not hasattr(both, "log_dir") and not hasattr(both, "log_imag")
    assert trainer.log_dir == loggers[0].log_dir
    assert Path(trainer.checkpoint_callback.dirpath) == tmp_path / "a/version_0/checkpoints"
    assert trainer_of(logger=loggers[:1]).logger is loggers[0] and trainer_of().logger is None


def test_of_several_loggers_it_is_the_first_elsewhere(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")]
    assert trainer_of(logger=loggers).logger is loggers[0]


@pytest.mark.usefixtures("of_1x")
def test_a_module_of_1x_has_its_datamodule() -> None:
    """Unless it has set one of its own."""

    class Data(leyden.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

    class Own(type(build(leyden, []))):  # type: ignore[misc]
        def on_train_start(self) -> None:
            seen.append(self.datamodule)

    seen: list[Any] = []
    module, data = Own(), Data()
    assert module.datamodule is None and module.truncated_bptt_steps == 0
    trainer_of(max_epochs=1).fit(module, datamodule=data)
    module.datamodule = "own"
    trainer_of(max_epochs=1).fit(module, datamodule=data)
    assert seen == [data, "own"]


@pytest.mark.parametrize("version", ["1.5.10", "2.6.0"])
def test_what_the_bar_shows_is_asked_of_the_module(version: str) -> None:
    """Programs of 1.5 call ``super().get_progress_bar_dict()``, whatever version they are shown."""

    class Shows(type(build(leyden, []))):  # type: ignore[misc]
        def get_progress_bar_dict(self) -> Any:
            return {**super().get_progress_bar_dict(), "beta": 0.5}

    class Bar(leyden.callbacks.ProgressBar):
        def get_metrics(self, trainer: Any, pl_module: Any) -> Any:
            return {**super().get_metrics(trainer, pl_module), "bar": 1}

    former_hooks.provide(version)
    try:
        trainer = trainer_of(max_epochs=1, callbacks=Bar(), enable_progress_bar=True)
        trainer.fit(Shows(), loader())
        assert trainer.progress_bar_dict == {"beta": 0.5, "bar": 1}
        assert hasattr(LightningModule, "training_epoch_end") == version.startswith("1.")
    finally:
        former_hooks.withdraw()
    assert not hasattr(LightningModule, "get_progress_bar_dict") and not hasattr(LightningModule, "datamodule")


def test_the_hook_before_layers_are_made() -> None:
    """R45: ``on_configure_sharded_model`` of callbacks, until 1.7, comes between setup and the module's own."""

    class Notes(Callback):
        def on_configure_sharded_model(self, trainer: Trainer, pl_module: LightningModule) -> None:
            events.append("callback")

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            events.append("setup")

    class Own(type(build(leyden, []))):  # type: ignore[misc]
        def configure_sharded_model(self) -> None:
            events.append("module")

    events: list[str] = []
    trainer_of(max_epochs=1, callbacks=Notes()).fit(Own(), loader())
    assert events == ["setup", "callback", "module"]


def test_reads_of_1x(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of()
    assert trainer.amp_backend is None and trainer_of(precision="bf16-mixed").amp_backend == "native"
    with pytest.raises(AttributeError, match="keeps no losses: log yours"):
        trainer.fit_loop.running_loss.mean()
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert trainer.slurm_job_id is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert trainer.slurm_job_id == 17
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert trainer.slurm_job_id is None


def test_tuning_is_told() -> None:
    """``trainer.tuning`` while a learning rate is looked for, and not in the fit that follows."""

    class Own(type(build(leyden, []))):  # type: ignore[misc]
        lr = 0.1

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.add((stage, self.trainer.tuning))

    seen: set[Any] = set()
    trainer, module = trainer_of(max_epochs=1), Own()
    stage = "lr_find"
    trainer.lr_find(module, loader(), num_training=20, early_stop_threshold=None)
    stage = "fit"
    trainer.fit(module, loader())
    assert seen == {("lr_find", True), ("fit", False)}
