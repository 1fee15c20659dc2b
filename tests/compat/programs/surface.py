"""A program that uses what real code uses, and prints what did not work; ``leyden run`` starts it for test_surface.py.

Each table has a name and what must be true where it is used; what is not, or raises, is printed.
"""

import argparse
import importlib
import json
import operator
import pickle
import sys
import tempfile
import warnings
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Optional, get_type_hints

import pytorch_lightning as pl
import torch
from lightning_utilities.core.imports import RequirementCache, compare_version
from packaging.version import Version
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from pytorch_lightning.callbacks.timer import Interval
from pytorch_lightning.core import saving
from pytorch_lightning.core.decorators import auto_move_data
from pytorch_lightning.loggers import CSVLogger, LightningLoggerBase, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.base import rank_zero_experiment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import imports, migration
from pytorch_lightning.utilities.cloud_io import load as pl_load
from pytorch_lightning.utilities.seed import reset_seed
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch.utils.data import DataLoader, TensorDataset

OF_1X = pl.__version__.startswith("1.")
warnings.simplefilter("ignore")
folder = tempfile.mkdtemp()
#: Sections of surface.md, with what did not work by name.
facts = {}
called = {"module": set(), "callback": set(), "datamodule": set()}


def check(section, table, *given):
    """Call each entry of a table; note those that raise or are not true."""
    for name, entry in table.items():
        try:
            result = entry(*given)
            text = "" if result is None or bool(result) else f"not true: {result!r}"
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        facts.setdefault(section, {})[name] = text


def loader(size=8, batch_size=2):
    return DataLoader(TensorDataset(torch.arange(3.0 * size).reshape(size, 3)), batch_size=batch_size)


def trainer_with(**arguments):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{**quiet, "default_root_dir": folder, "max_epochs": 1, **arguments})


# -- imports -----------------------------------------------------------------------------------------------------------


def resolve(path):
    """The object at a dotted path: a module, and attributes from there on."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def same_everywhere(path):
    """Whether a path leads to one object in both packages."""
    places = ["lightning.fabric"] if path.startswith("fabric") else ["pytorch_lightning", "lightning.pytorch"]
    objects = [resolve(path.replace("fabric" if path.startswith("fabric") else "pl", place, 1)) for place in places]
    return isinstance(objects[0], ModuleType) or all(one == objects[0] for one in objects)


# -- runs --------------------------------------------------------------------------------------------------------------


def recorded(kind, names, base):
    """A subclass whose methods of these names note that they are called, and do what the base does."""

    def method(name):
        def call(self, *args, **kwargs):
            called[kind].add(name)
            inherited = getattr(super(made, self), name, None)
            return inherited(*args, **kwargs) if inherited is not None else None

        return call

    made = type(f"Recorded{base.__name__}", (base,), {name: method(name) for name in names})
    return made


class Model(pl.LightningModule):
    def __init__(self, width=1, lr=0.1):
        super().__init__()
        self.save_hyperparameters(ignore=["lr"], logger=True)
        self.layer = torch.nn.Linear(3, width)
        self.example_input_array = torch.ones(1, 3)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        loss = self.forward(batch[0]).square().mean()
        if batch_idx == 0 and self.trainer.current_epoch == 0 and self.trainer.datamodule is not None:
            check("self", OF_SELF, self)
            check("trainer in a fit", OF_TRAINER_IN_FIT, self.trainer)
        check("self.log", LOGS, self, loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch[0]).mean(), sync_dist=True, add_dataloader_idx=False)

    def test_step(self, batch, batch_idx):
        self.log_dict({"test_loss": self(batch[0]).mean()}, batch_size=2)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


class Adversarial(Model):
    """1.x: two optimizers that take turns, and outputs at the end of epochs."""

    def training_step(self, batch, batch_idx, optimizer_idx):
        called["module"].add("training_step(optimizer_idx)")
        return {"loss": self(batch[0]).square().mean() * (optimizer_idx + 1)}

    def validation_step(self, batch, batch_idx):
        return {"x": self(batch[0]).mean()}

    def test_step(self, batch, batch_idx):
        return {"x": self(batch[0]).mean()}

    def training_step_end(self, outputs):
        called["module"].add("training_step_end")
        return outputs

    def validation_step_end(self, outputs):
        called["module"].add("validation_step_end")
        return outputs

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=1e-4) for _ in range(2)], []


class Manual(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()
        self.manual_backward(self(batch[0]).square().mean())
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()
        scheduler.step()


class Data(pl.LightningDataModule):
    def __init__(self, train_transforms=None, val_transforms=None, test_transforms=None):
        super().__init__(train_transforms=train_transforms, val_transforms=val_transforms, test_transforms=None)

    def train_dataloader(self):
        return loader()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def state_dict(self):
        return {"seen": 1}


MODULE_HOOKS = """
training_step configure_optimizers forward validation_step on_validation_epoch_end test_step on_train_epoch_end
on_test_epoch_end on_train_batch_end predict_step on_train_start on_train_epoch_start optimizer_step on_after_backward
on_fit_start on_load_checkpoint on_save_checkpoint lr_scheduler_step on_before_optimizer_step on_fit_end
on_test_epoch_start on_train_end on_validation_batch_end on_validation_epoch_start on_validation_start setup backward
configure_callbacks configure_gradient_clipping on_predict_end on_predict_start on_test_batch_end on_test_end
on_test_start on_train_batch_start on_validation_end on_validation_model_eval on_validation_model_train log
transfer_batch_to_device on_before_batch_transfer
""".split()
MODULE_HOOKS_OF_1X = "training_epoch_end validation_epoch_end test_epoch_end on_epoch_end".split()
CALLBACK_HOOKS = """
on_train_batch_end on_train_epoch_end on_validation_batch_end on_train_epoch_start on_validation_epoch_end
on_pretrain_routine_start on_train_start on_validation_end on_fit_start on_train_batch_start on_fit_end
on_keyboard_interrupt on_train_end on_validation_epoch_start load_state_dict on_exception setup state_dict on_batch_end
on_before_accelerator_backend_setup on_epoch_end on_predict_batch_end on_predict_batch_start on_predict_end
on_predict_start on_pretrain_routine_end on_save_checkpoint on_test_batch_end on_test_epoch_end on_test_epoch_start
on_validation_batch_start teardown on_sanity_check_start on_sanity_check_end
""".split()
DATA_HOOKS = """
train_dataloader setup val_dataloader test_dataloader prepare_data predict_dataloader teardown load_state_dict
on_after_batch_transfer on_before_batch_transfer state_dict
""".split()


def run_everything():
    module = recorded(
        "module", [n for n in MODULE_HOOKS if n not in ("training_step", "load_from_checkpoint")], Model
    )()
    called["module"].add("training_step")
    stateful = type("Stateful", (pl.Callback,), {"state_dict": lambda self: {"x": 1}})
    callback = recorded("callback", CALLBACK_HOOKS, stateful)()
    data = recorded("datamodule", DATA_HOOKS, Data)()
    trainer = trainer_with(callbacks=[callback], logger=CSVLogger(folder, name="run", version="one"))
    trainer.fit(model=module, datamodule=data)
    path = f"{folder}/saved.ckpt"
    trainer.save_checkpoint(path)
    trainer.validate(module, datamodule=data, verbose=False)
    assert len(trainer.predict(module, dataloaders=loader())) == 4
    trainer.predict(module, datamodule=data, ckpt_path=path)
    trainer.test(model=module, dataloaders=loader(), verbose=False)
    trainer.test(datamodule=data, verbose=False)
    again = trainer_with(callbacks=[callback], max_epochs=2)
    again.fit(module, train_dataloaders=loader(), val_dataloaders=loader(), ckpt_path=path)
    again = trainer_with(callbacks=[callback], max_epochs=2)
    again.fit(module, datamodule=data, ckpt_path=path)
    assert isinstance(Model.load_from_checkpoint(path, strict=False), Model)
    stops = type("Stops", (pl.Callback,), {"on_train_batch_end": lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)})
    interrupted = trainer_with(callbacks=[callback, stops()])
    try:
        interrupted.fit(Model(), loader())
    except (KeyboardInterrupt, SystemExit):
        called["trainer"] = {"interrupted"} if interrupted.interrupted else set()
    adversarial = recorded("module", MODULE_HOOKS_OF_1X, Adversarial)()
    gan = trainer_with()
    gan.fit(adversarial, loader(), loader())
    gan.test(adversarial, loader(), verbose=False)
    trainer_with().fit(Manual(), loader())
    return trainer


# -- what is read ------------------------------------------------------------------------------------------------------

OF_SELF = {
    "trainer": lambda m: m.trainer.lightning_module is m,
    "logger": lambda m: m.logger is m.trainer.logger,
    "device": lambda m: m.device == torch.device("cpu"),
    "forward": lambda m: m.forward(torch.ones(1, 3)).shape == (1, 1),
    "global_step": lambda m: m.global_step == 0,
    "current_epoch": lambda m: m.current_epoch == 0,
    "optimizers": lambda m: m.optimizers().param_groups[0]["lr"] == 1e-3,
    "automatic_optimization": lambda m: m.automatic_optimization,
    "hparams": lambda m: m.hparams.width == m.hparams["width"] == 1 and "lr" not in m.hparams,
    "example_input_array": lambda m: m.example_input_array.shape == (1, 3),
    "lr_schedulers": lambda m: m.lr_schedulers().get_last_lr() == [1e-3],
    "all_gather": lambda m: m.all_gather(torch.ones(2)).shape == (2,),
    "dtype": lambda m: m.dtype == torch.float32,
    "global_rank": lambda m: m.global_rank == 0,
    "on_gpu": lambda m: m.on_gpu is False,
    "print": lambda m: m.print("printed"),
    "CHECKPOINT_HYPER_PARAMS_KEY": lambda m: m.CHECKPOINT_HYPER_PARAMS_KEY == "hyper_parameters",
    "use_amp": lambda m: m.use_amp is False,
    "loggers": lambda m: m.loggers == m.trainer.loggers,
    "local_rank": lambda m: m.local_rank == 0,
    "to_torchscript": lambda m: callable(m.to_torchscript),
    "logger.experiment": lambda m: m.logger.experiment is not None,
    "get_progress_bar_dict": lambda m: not OF_1X or isinstance(m.get_progress_bar_dict(), dict),
    "summarize": lambda m: not OF_1X or "Linear" in str(m.summarize(max_depth=1)),
    "grad_norm": lambda m: not OF_1X or m.grad_norm(2) == {},
}
OF_TRAINER_IN_FIT = {
    "callback_metrics": lambda t: "val_loss" not in t.callback_metrics,
    "current_epoch": lambda t: t.current_epoch == 0,
    "global_step": lambda t: t.global_step == 0,
    "state": lambda t: t.state.stage == "train" and t.state.fn == "fit" and t.state.status == "running",
    "state.stage": lambda t: t.state.stage is pl.trainer.states.RunningStage.TRAINING,
    "strategy": lambda t: t.strategy.root_device == torch.device("cpu"),
    "sanity_checking": lambda t: t.sanity_checking is False,
    "running_sanity_check": lambda t: t.running_sanity_check is False,
    "optimizers": lambda t: [type(one) for one in t.optimizers] == [torch.optim.SGD],
    "lr_schedulers": lambda t: t.lr_schedulers[0]["scheduler"].get_last_lr() == [1e-3],
    "lr_schedulers, its keys": lambda t: {"scheduler", "interval", "frequency", "monitor"} < set(t.lr_schedulers[0]),
    "lr_scheduler_configs": lambda t: t.lr_scheduler_configs[0].interval == "epoch",
    "optimizer_frequencies": lambda t: t.optimizer_frequencies == [],
    "accumulate_grad_batches": lambda t: t.accumulate_grad_batches == 1,
    "model": lambda t: t.model is t.lightning_module,
    "get_model": lambda t: t.get_model() is t.lightning_module,
    "should_stop": lambda t: t.should_stop is False,
    "estimated_stepping_batches": lambda t: t.estimated_stepping_batches == 4,
    "num_training_batches": lambda t: t.num_training_batches == 4,
    "train_dataloader": lambda t: len(t.train_dataloader) == 4 and t.train_dataloader.batch_size == 2,
    "train_dataloader.dataset": lambda t: len(t.train_dataloader.dataset) == 8,
    "train_dataloader.dataset.datasets": lambda t: not OF_1X or len(t.train_dataloader.dataset.datasets) == 8,
    "train_dataloader.loaders": lambda t: not OF_1X or t.train_dataloader.loaders.batch_size == 2,
    "val_dataloaders": lambda t: len(t.val_dataloaders[0] if OF_1X else t.val_dataloaders) == 4,
    "reset_train_dataloader": lambda t: t.reset_train_dataloader(),
    "reset_val_dataloader": lambda t: t.reset_val_dataloader(),
    "fit_loop.setup_data": lambda t: t.fit_loop.setup_data(),
    "batch_idx": lambda t: t.batch_idx == 0,
    "total_batch_idx": lambda t: t.total_batch_idx == 0,
    "fit_loop.epoch_loop.batch_progress": lambda t: t.fit_loop.epoch_loop.batch_progress.current.ready == 1,
    "fit_loop.epoch_loop._batches_that_stepped": lambda t: t.fit_loop.epoch_loop._batches_that_stepped == 0,
    "fit_loop.epoch_loop.global_step": lambda t: t.fit_loop.epoch_loop.global_step == 0,
    "fit_loop.epoch_loop.total_batch_idx": lambda t: t.fit_loop.epoch_loop.total_batch_idx == 0,
    "fit_loop.epoch_progress": lambda t: t.fit_loop.epoch_progress.current.completed == 0,
    "fit_loop.current_epoch": lambda t: t.fit_loop.current_epoch == t.fit_loop.global_step == 0,
    "train_loop": lambda t: t.train_loop is t.fit_loop,
    "logger_connector": lambda t: t.logger_connector.callback_metrics is t.callback_metrics,
    "_logger_connector": lambda t: t._logger_connector.logged_metrics is t.logged_metrics,
    "logger_connector.log_metrics": lambda t: t.logger_connector.log_metrics({"by_hand": 1.0}),
    "checkpoint_connector": lambda t: "state_dict" in t.checkpoint_connector.dump_checkpoint(weights_only=True),
    "is_last_batch": lambda t: t.is_last_batch is False,
    "log_dir": lambda t: isinstance(t.log_dir, str),
}
OF_TRAINER = {
    "fit, test, predict, validate": lambda t: all(callable(getattr(t, n)) for n in ("fit", "test", "predict")),
    "callback_metrics": lambda t: isinstance(t.callback_metrics["test_loss"], torch.Tensor),
    "logged_metrics": lambda t: "test_loss" in t.logged_metrics,
    "progress_bar_metrics": lambda t: t.progress_bar_metrics == {},
    "progress_bar_dict": lambda t: t.progress_bar_dict == {},
    "datamodule": lambda t: isinstance(t.datamodule, Data),
    "global_rank": lambda t: t.global_rank == 0,
    "logger": lambda t: t.logger.name == "run",
    "loggers": lambda t: t.loggers == [t.logger],
    "checkpoint_callback": lambda t: t.checkpoint_callback.best_model_path.endswith(".ckpt"),
    "checkpoint_callbacks": lambda t: t.checkpoint_callbacks == [t.checkpoint_callback],
    "max_epochs": lambda t: t.max_epochs == 1,
    "fit_loop": lambda t: t.fit_loop.max_epochs == 1,
    "fit_loop.max_epochs = ...": lambda t: setattr(t.fit_loop, "max_epochs", 3) or t.max_epochs == 3,
    "save_checkpoint": lambda t: t.save_checkpoint(f"{folder}/other.ckpt"),
    "state": lambda t: t.state.finished,
    "interrupted": lambda t: t.interrupted is False and called["trainer"] == {"interrupted"},
    "world_size": lambda t: t.world_size == 1,
    "callbacks": lambda t: len(t.callbacks) > 1,
    "gpus": lambda t: t.gpus is None,
    "is_global_zero": lambda t: t.is_global_zero,
    "log_every_n_steps": lambda t: t.log_every_n_steps == 50,
    "accelerator": lambda t: t.accelerator is not None,
    "devices": lambda t: t.devices == 1,
    "device_ids": lambda t: t.device_ids == [0],
    "early_stopping_callback": lambda t: t.early_stopping_callback is t.early_stop_callback is None,
    "fast_dev_run": lambda t: t.fast_dev_run in (0, False),
    "limit_train_batches": lambda t: t.limit_train_batches == t.limit_val_batches == t.limit_test_batches == 1.0,
    "num_devices": lambda t: t.num_devices == t.num_processes == 1,
    "precision": lambda t: t.precision == "32-true",
    "profiler": lambda t: t.profiler is not None,
    "root_gpu": lambda t: t.root_gpu is None and t.num_gpus == 0 and t.on_gpu is False,
    "training_type_plugin": lambda t: t.training_type_plugin is t.strategy,
    "use_amp, use_ddp, tpu_cores": lambda t: (t.use_amp, t.use_ddp, t.use_dp, t.tpu_cores) == (False,) * 3 + (None,),
    "check_val_every_n_epoch": lambda t: t.check_val_every_n_epoch == 1,
    "default_root_dir": lambda t: t.default_root_dir == t.weights_save_path == folder,
    "lightning_module": lambda t: isinstance(t.lightning_module, Model),
    "predict_dataloaders": lambda t: t.predict_dataloaders is not None,
    "predict_loop": lambda t: t.predict_loop and t.test_loop and t.validate_loop,
    "val_check_interval": lambda t: t.val_check_interval == 1.0,
    "weights_summary": lambda t: t.weights_summary is None,
    "tested_ckpt_path": lambda t: t.tested_ckpt_path == t.ckpt_path == t.checkpoint_callback.best_model_path,
    "predicted_ckpt_path": lambda t: t.predicted_ckpt_path is None,
    "resume_from_checkpoint": lambda t: t.resume_from_checkpoint is None,
    "optimizers = ...": lambda t: setattr(t, "optimizers", t.optimizers),
    "tuner": lambda t: callable(t.tuner.lr_find) and callable(t.tune),
}
LOGS = {
    "prog_bar": lambda m, x: m.log("a", x, prog_bar=True),
    "on_epoch": lambda m, x: m.log("b", x, on_step=True, on_epoch=True),
    "sync_dist": lambda m, x: m.log("c", x, sync_dist=True),
    "logger": lambda m, x: m.log("d", x, logger=False, batch_size=2),
    "add_dataloader_idx": lambda m, x: m.log("e", x, add_dataloader_idx=False),
    "log_dict": lambda m, x: m.log_dict({"f": x, "g": 1.0}, prog_bar=True, on_step=True, on_epoch=False),
}

# -- what is passed ----------------------------------------------------------------------------------------------------

#: Arguments of the Trainer, with a value and what is true then.
ARGUMENTS = {
    "callbacks": ([], lambda t: True),
    "logger": (False, lambda t: t.loggers == []),
    "max_epochs": (2, lambda t: t.max_epochs == 2),
    "accelerator": ("cpu", lambda t: t.strategy.root_device.type == "cpu"),
    "strategy": ("ddp", lambda t: t.world_size == 1),
    "devices": (1, lambda t: t.num_devices == 1),
    "enable_checkpointing": (False, lambda t: t.checkpoint_callback is None),
    "precision": (32, lambda t: t.precision == "32-true"),
    "default_root_dir": (folder, lambda t: t.default_root_dir == folder),
    "gpus": (0, lambda t: t.gpus is None),
    "log_every_n_steps": (3, lambda t: t.log_every_n_steps == 3),
    "enable_progress_bar": (False, lambda t: t.progress_bar_callback is None),
    "num_nodes": (1, lambda t: t.num_nodes == 1),
    "deterministic": (False, lambda t: True),
    "enable_model_summary": (False, lambda t: t.weights_summary is None),
    "fast_dev_run": (True, lambda t: t.fast_dev_run == 1),
    "gradient_clip_val": (0.5, lambda t: t.gradient_clip_val == 0.5),
    "limit_train_batches": (2, lambda t: t.limit_train_batches == 2),
    "resume_from_checkpoint": ("a.ckpt", lambda t: t.resume_from_checkpoint == "a.ckpt"),
    "limit_val_batches": (0.5, lambda t: t.limit_val_batches == 0.5),
    "max_steps": (5, lambda t: t.max_steps == 5),
    "num_sanity_val_steps": (0, lambda t: t.num_sanity_val_steps == 0),
    "use_distributed_sampler": (False, lambda t: True),
    "accumulate_grad_batches": (2, lambda t: t.accumulate_grad_batches == 2),
    "limit_test_batches": (1, lambda t: t.limit_test_batches == 1),
    "min_epochs": (1, lambda t: t.min_epochs == 1),
    "plugins": ([], lambda t: True),
    "reload_dataloaders_every_n_epochs": (1, lambda t: t.reload_dataloaders_every_n_epochs == 1),
    "sync_batchnorm": (True, lambda t: True),
    "val_check_interval": (0.5, lambda t: t.val_check_interval == 0.5),
    "check_val_every_n_epoch": (2, lambda t: t.check_val_every_n_epoch == 2),
    "checkpoint_callback": (True, lambda t: t.checkpoint_callback is not None),
    "early_stop_callback": (EarlyStopping("x"), lambda t: t.early_stopping_callback is not None),
    "inference_mode": (False, lambda t: t.inference_mode is False),
    "max_time": ("00:01:00:00", lambda t: True),
    "overfit_batches": (1, lambda t: t.overfit_batches == 1),
    "profiler": ("simple", lambda t: isinstance(t.profiler, pl.profilers.SimpleProfiler)),
    "progress_bar_refresh_rate": (0, lambda t: t.progress_bar_callback is None),
    "weights_summary": ("full", lambda t: t.weights_summary == "full"),
}


def takes(argument, value, holds):
    others = {"accelerator": "cpu"} if argument != "gpus" else {}
    return lambda: holds(pl.Trainer(**{**others, argument: value}))


PASSED = {
    "ModelCheckpoint(monitor, dirpath, save_top_k, filename, save_last, mode, verbose, every_n_epochs, ...)": lambda: (
        ModelCheckpoint(
            **{"monitor": "val_loss", "dirpath": folder, "save_top_k": 2, "filename": "{epoch}", "save_last": True},
            **{"mode": "min", "verbose": True, "every_n_epochs": 1, "auto_insert_metric_name": False},
        )
    ),
    "ModelCheckpoint(filepath)": lambda: ModelCheckpoint(filepath=f"{folder}/a/{{epoch}}").filename == "{epoch}",
    "ModelCheckpoint(prefix)": lambda: ModelCheckpoint(prefix="net", filename="{step}").filename == "net-{step}",
    "ModelCheckpoint(save_best_only)": lambda: ModelCheckpoint(save_best_only=True).save_top_k == 1,
    "ModelCheckpoint(period)": lambda: ModelCheckpoint(period=3).every_n_epochs == 3,
    "EarlyStopping(monitor, patience, mode, min_delta, verbose, check_finite, ...)": lambda: EarlyStopping(
        **{"monitor": "x", "patience": 2, "mode": "max", "min_delta": 0.1, "verbose": True, "check_finite": True},
        **{"check_on_train_epoch_end": False, "stopping_threshold": 1.0, "strict": False},
    ),
    "TensorBoardLogger(name, save_dir, version, default_hp_metric, log_graph)": lambda: TensorBoardLogger(
        name="x", save_dir=folder, version=1, default_hp_metric=False, log_graph=False
    ),
    "WandbLogger(name, project, id, save_dir, offline, resume, config)": lambda: (
        WandbLogger(name="a", project="b", id="c", save_dir=folder, offline=True, resume="allow", config={}).name
        is not None
    ),
    "CSVLogger(name, version, save_dir)": lambda: CSVLogger(save_dir=folder, name="x", version=2).version == 2,
    "LearningRateMonitor(logging_interval)": lambda: LearningRateMonitor(logging_interval="step"),
    "DDPStrategy(find_unused_parameters, accelerator, static_graph)": lambda: trainer_with(
        strategy=DDPStrategy(find_unused_parameters=False, accelerator="cpu", static_graph=True)
    ),
    "seed_everything(workers, verbose)": lambda: pl.seed_everything(1, workers=True, verbose=False) == 1,
    "Trainer.add_argparse_args, from_argparse_args": lambda: (
        pl.Trainer.from_argparse_args(
            pl.Trainer.add_argparse_args(argparse.ArgumentParser()).parse_args(["--max_epochs", "7"])
        ).max_epochs
        == 7
    ),
    "LightningCLI(seed_everything_default)": lambda: (
        pl.cli.LightningCLI(Model, args=[], run=False, seed_everything_default=3, save_config_callback=None).config[
            "seed_everything"
        ]
        == 3
    ),
}


class Writer(LightningLoggerBase):
    @property
    @rank_zero_experiment
    def experiment(self):
        return self

    name, version = "own", 0

    def log_metrics(self, metrics, step=None):
        self.row = metrics

    def log_hyperparams(self, params, *args, **kwargs):
        self.params = params


class OldParameters(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.hparams = argparse.Namespace(width=2)


def io_of_fabric():
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    io = type("IO", (TorchCheckpointIO,), {})()
    io.save_checkpoint({"a": 1}, f"{folder}/io.ckpt")
    return io.load_checkpoint(f"{folder}/io.ckpt") == {"a": 1}


def subclass(path, *arguments):
    return lambda: type("Own", (resolve(path.replace("pl", "pytorch_lightning", 1)),), {})(*arguments)


SUBCLASSED = {
    "pl.Trainer": subclass("pl.Trainer"),
    "pl.callbacks.Callback": subclass("pl.callbacks.Callback"),
    "pl.callbacks.ModelCheckpoint": subclass("pl.callbacks.ModelCheckpoint"),
    "pl.callbacks.ProgressBar": subclass("pl.callbacks.ProgressBar"),
    "pl.callbacks.BasePredictionWriter": subclass("pl.callbacks.BasePredictionWriter", "batch"),
    "pl.callbacks.progress.tqdm_progress.TQDMProgressBar": subclass("pl.callbacks.progress.TQDMProgressBar"),
    "pl.callbacks.early_stopping.EarlyStopping": subclass("pl.callbacks.early_stopping.EarlyStopping", "loss"),
    "pl.core.mixins.HyperparametersMixin": subclass("pl.core.mixins.HyperparametersMixin"),
    "pl.loggers.TensorBoardLogger": subclass("pl.loggers.TensorBoardLogger", folder),
    "pl.loggers.logger.Logger": lambda: trainer_with(logger=Writer(), limit_val_batches=0).fit(Model(), loader()),
    "pl.tuner.Tuner": lambda: type("Own", (pl.tuner.Tuner,), {})(trainer_with()),
    "pl.metrics.Metric": lambda: type("Own", (pl.metrics.Metric,), {"update": print, "compute": print})(),
    "self.hparams = Namespace": lambda: OldParameters().hparams.width == 2,
    "fabric.plugins.io.torch_io.TorchCheckpointIO": io_of_fabric,
    "SignalConnector._valid_signals": lambda: resolve(
        "pytorch_lightning.trainer.connectors.signal_connector.SignalConnector"
    )._valid_signals(),
    "_AcceleratorConnector": lambda: (
        resolve(
            "pytorch_lightning.trainer.connectors.accelerator_connector._AcceleratorConnector"
        )._choose_auto_accelerator()
        in ("cpu", "cuda", "mps")
    ),
    "DataModule.train_transforms": lambda: (
        (Data(train_transforms=len).train_transforms, Data().val_transforms) == (len, None)
    ),
    "fabric.accelerators.TPUAccelerator.is_available": lambda: (
        resolve("lightning.fabric.accelerators.TPUAccelerator").is_available() is False
    ),
}


def told(statement):
    """What an import says that fails."""
    try:
        exec(statement)
    except ImportError as error:
        return str(error)
    return ""


def annotated(trainer: Optional[pl.Trainer], module: "pl.LightningModule") -> STEP_OUTPUT:
    """Takes what its annotations say."""


PAGE = "leyden migrate"
PICKLED = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n."
PACKAGE = {
    "find_spec": lambda: find_spec("pytorch_lightning.nothing") is find_spec("lightning.app") is None,
    "find_spec of what is there": lambda: find_spec("pytorch_lightning.callbacks") and find_spec("lightning.fabric"),
    "import of an unknown module": lambda: PAGE in told("import pytorch_lightning.nothing"),
    "import of an unknown name": lambda: PAGE in told("from pytorch_lightning.callbacks import Nothing"),
    "import from an unknown module": lambda: PAGE in told("from pytorch_lightning.nothing import anything"),
    "reason: EvalResult": lambda: "removed it in 1.0" in told("from pytorch_lightning import EvalResult"),
    "reason: TrainResult": lambda: "removed it in 1.0" in told("from pytorch_lightning import TrainResult"),
    "reason: data_loader": lambda: "removed it in 0.8" in told("from pytorch_lightning import data_loader"),
    "reason: ClosureResult": lambda: (
        "Lightning's inside" in told("from pytorch_lightning.loops.optimization.optimizer_loop import ClosureResult")
    ),
    "pickle": lambda: pickle.loads(pickle.dumps(pl.Trainer)) is pl.Trainer and pickle.loads(PICKLED) is ModelCheckpoint,
    "typing": lambda: get_type_hints(annotated)["module"] is pl.LightningModule,
    "metadata": lambda: metadata.version("pytorch-lightning") == metadata.version("lightning") == pl.__version__,
    "packages_distributions": lambda: "pytorch-lightning" in metadata.packages_distributions()["pytorch_lightning"],
    "packaging": lambda: Version("1.5") <= Version(pl.__version__) < Version("2.7"),
    "RequirementCache": lambda: RequirementCache("pytorch_lightning>=1.5") and not RequirementCache("lightning>=2.7"),
    "compare_version": lambda: compare_version("pytorch_lightning", operator.ge, "1.5"),
    "flags": lambda: (imports._TORCH_GREATER_EQUAL_2_0, imports._BOLTS_AVAILABLE) == (True, False),
    "_module_available": lambda: imports._module_available("torch.nn") and not imports._module_available("torch_.nn"),
}
#: Helpers that libraries import.
HELPERS = {
    "Interval": lambda: Timer(duration="00:00:01:00", interval=Interval.step),
    "hparams as YAML": lambda: (
        saving.save_hparams_to_yaml(f"{folder}/h.yaml", {"a": 1, "b": {"c": 2.5}})
        or saving.load_hparams_from_yaml(f"{folder}/h.yaml") == {"a": 1, "b": {"c": 2.5}}
    ),
    "update_hparams": lambda: updated({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3},
    "load": lambda: torch.save({"a": 1}, f"{folder}/l.pt") or pl_load(f"{folder}/l.pt", lambda s, _: s) == {"a": 1},
    "pl_legacy_patch": lambda: entered(migration.pl_legacy_patch()),
    "migrate_checkpoint": lambda: migration.migrate_checkpoint({"epoch": 1})[0] == {"epoch": 1},
    "auto_move_data": lambda: auto_move_data(lambda self, x: x.device)(Model(), torch.ones(1)).type == "cpu",
    "reset_seed": lambda: drawn_again(),
    "GPUStatsMonitor": lambda: pl.callbacks.GPUStatsMonitor(memory_utilization=True),
    "find_usable_cuda_devices": lambda: pl.accelerators.find_usable_cuda_devices(0) == [],
}


def updated(hparams, updates):
    saving.update_hparams(hparams, updates)
    return hparams


def entered(context):
    with context:
        return True


def drawn_again():
    pl.seed_everything(7, verbose=False)
    first = torch.rand(1)
    reset_seed()
    return torch.equal(first, torch.rand(1))


given = json.loads(sys.argv[1])
check("package", PACKAGE)
check("helpers", HELPERS)
check("imports", {path: lambda path=path: same_everywhere(path) for path in given})
check("Trainer arguments", {name: takes(name, *entry) for name, entry in ARGUMENTS.items()})
check("callbacks, loggers, helpers", PASSED)
check("trainer", OF_TRAINER, run_everything())
check("subclassed", SUBCLASSED)
wanted = {"module": MODULE_HOOKS + MODULE_HOOKS_OF_1X, "callback": CALLBACK_HOOKS, "datamodule": DATA_HOOKS}
wanted["module"] += ["training_step(optimizer_idx)", "training_step_end", "validation_step_end"]
for kind, names in wanted.items():
    facts[f"hooks of a {kind}"] = {name: "" if name in called[kind] else "never called" for name in names}
print("\n" + json.dumps(facts))
