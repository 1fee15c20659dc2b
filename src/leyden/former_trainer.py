"""What the Trainer had in Lightning 1.x, and has here still."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from leyden import callbacks as parts  # each is imported when it is used
from leyden.signals import slurm_job
from leyden.trials import Trials

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    import torch

    from leyden.module import LightningModule
    from leyden.strategies import Strategy
    from leyden.tuner import Tuner


#: Parts of Lightning's Trainer, whose names have an underscore in front since 1.7.
_CONNECTORS: Final = frozenset(
    f"{part}_connector" for part in ("accelerator", "callback", "checkpoint", "data", "logger")
)
#: What cannot be read, and why.
GONE: Final = {
    "call_hook": "call the method of the module or the callback itself",
    "lightning_optimizers": "self.optimizers() has them",
    "request_dataloader": "trainer.reset_train_dataloader() asks for the loader anew",
    "reset_predict_dataloader": "trainer.predict asks for its loaders each time",
    "reset_test_dataloader": "trainer.test asks for its loaders each time",
    "run_evaluation": "trainer.validate evaluates after a fit; in one, val_check_interval says when",
}


class Connector:
    """A part of Lightning's Trainer; what users read from it is the Trainer's own here.

    Args:
        trainer: the Trainer.
    """

    def __init__(self, trainer: FormerTrainer) -> None:
        self.trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    @property
    def is_distributed(self) -> bool:
        """Whether there can be several processes."""
        return self.trainer.strategy.distributed

    @property
    def _parallel_devices(self) -> list[torch.device]:
        return [self.trainer.strategy.root_device]

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row to all loggers, at the update in hand unless ``step`` says another."""
        self.trainer._write_row(metrics, self.trainer.num_updates if step is None else step)


def _same_as(path: str) -> Any:
    """An attribute of 1.x that has another name today."""
    return property(attrgetter(path), doc=f"``trainer.{path}``.")


def _file_of(run: str) -> Any:
    """The checkpoint of a run, while no other has followed it."""
    return property(lambda self: self.ckpt_path if self._state.run == run else None, doc=f"What {run} has read.")


class FormerTrainer(Trials):
    """Names of 1.x; today's are in :class:`leyden.Trainer`."""

    accelerator: str

    batch_idx = _same_as("fit_loop.epoch_loop.batch_idx")
    devices = _same_as("num_devices")
    early_stop_callback = _same_as("early_stopping_callback")
    running_sanity_check = _same_as("sanity_checking")
    tuning = _same_as("_is_trial")
    total_batch_idx = _same_as("fit_loop.epoch_loop.total_batch_idx")
    train_loop = _same_as("fit_loop")
    use_amp = _same_as("precision_plugin.autocasts")
    predicted_ckpt_path, tested_ckpt_path, validated_ckpt_path = map(_file_of, ("predict", "test", "validate"))
    use_ddp = use_ddp2 = use_dp = use_horovod = use_tpu = False
    tpu_cores = ipus = None

    if not TYPE_CHECKING:  # a checker would take every name

        def __getattr__(self, name: str) -> Any:
            if name.removeprefix("_") in _CONNECTORS:
                return Connector(self)
            if name in GONE:
                raise AttributeError(f"leyden's Trainer has no {name!r}: {GONE[name]}", name=name, obj=self)
            return self.__getattribute__(name)  # raises what it has raised, in the words of whoever did

    @property
    def amp_backend(self) -> str | None:
        """Who makes mixed precision: "native", which is torch; None without it."""
        return "native" if self.use_amp else None

    @property
    def slurm_job_id(self) -> int | None:
        """Number of the SLURM job that this process is in; None where there is none, or one that somebody types in."""
        job = slurm_job()
        return int(job) if job is not None and job.isdecimal() else None

    def get_model(self) -> LightningModule | None:
        """``trainer.lightning_module``, as before 1.4."""
        return self.lightning_module

    @property
    def on_gpu(self) -> bool:
        """Whether this process has a GPU."""
        return self.root_gpu is not None

    @property
    def device_ids(self) -> list[int]:
        """Index of this process's device."""
        return [self.root_gpu or 0]

    @property
    def weights_summary(self) -> str | None:
        """How much the summary tells that a fit begins with: "top" for one level, "full" for more; None without one."""
        depths = [callback._max_depth for callback in self.callbacks if isinstance(callback, parts.ModelSummary)]
        return None if not any(depths) else "top" if depths[0] == 1 else "full"

    @property
    def progress_bar_dict(self) -> dict[str, Any]:
        """What stands behind the progress bar; without one what was logged for it."""
        bar, module = self.progress_bar_callback, self.lightning_module
        return dict(self.progress_bar_metrics if bar is None or module is None else bar.get_metrics(self, module))  # type: ignore[arg-type]

    @property
    def resume_from_checkpoint(self) -> Any:
        """The file that a fit goes on from where it is not told another."""
        return self._former.get("ckpt_path")

    def reset_train_dataloader(self, model: LightningModule | None = None) -> None:
        """Ask for the training loader anew; an epoch that runs goes on with its own."""
        if self.fit_loop.phase in ("batches", "validation"):
            self.fit_loop.data.loaded_in = None  # asked for when the next epoch begins
        else:
            self.fit_loop.data.reload()

    def reset_val_dataloader(self, model: LightningModule | None = None) -> None:
        """Ask for the validation loaders anew when the fit next validates."""
        self.validate_loop.loaded_in = None

    def reset_train_val_dataloaders(self, model: LightningModule | None = None) -> None:
        """Both."""
        self.reset_train_dataloader()
        self.reset_val_dataloader()

    @property
    def training_type_plugin(self) -> Strategy:
        """The strategy, as 1.5 calls it."""
        return self.strategy

    @property
    def gpus(self) -> Any:
        """The number of GPUs, or None."""
        return self.num_gpus or None

    @property
    def num_gpus(self) -> int:
        """GPUs of this run."""
        return 0 if self.accelerator == "cpu" else self.num_devices

    @property
    def num_processes(self) -> int:
        """Processes of this run on this machine."""
        return self.num_devices

    @property
    def root_gpu(self) -> int | None:
        """Index of this process's GPU; None on the CPU."""
        device = self.strategy.root_device
        return None if device.type == "cpu" else device.index or 0

    @property
    def weights_save_path(self) -> str:
        """Folder of checkpoints where a ModelCheckpoint names none, and a logger has none if it is the usual one."""
        return os.fspath(self._former.get("weights_save_path") or self.default_root_dir)

    @property
    def tuner(self) -> Tuner:
        """Looks for a learning rate or a batch size; its ``lr_find`` sets nothing unless it is told to."""
        return importlib.import_module("leyden.tuner").Tuner(self, update_attr=False)  # type: ignore[no-any-return]

    def tune(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        scale_batch_size_kwargs: Mapping[str, Any] | None = None,
        lr_find_kwargs: Mapping[str, Any] | None = None,
        method: str = "fit",
        *,
        train_dataloader: Any = None,
    ) -> dict[str, Any]:
        """Set the batch size and the learning rate, as ``auto_scale_batch_size`` and ``auto_lr_find`` say.

        Returns:
            What was found: the size under "scale_batch_size", the curve under "lr_find".
        """
        return importlib.import_module("leyden.tuner").tune(  # type: ignore[no-any-return]
            self,
            model,
            train_dataloaders=train_dataloaders if train_dataloaders is not None else train_dataloader,
            val_dataloaders=val_dataloaders,
            dataloaders=dataloaders,
            datamodule=datamodule,
            scale_batch_size_kwargs=scale_batch_size_kwargs,
            lr_find_kwargs=lr_find_kwargs,
            method=method,
        )

    def lr_find(self, model: LightningModule, *args: Any, **kwargs: Any) -> Any:
        """``tuner.lr_find``, as before 1.0."""
        return self.tuner.lr_find(model, *args, **kwargs)

    def scale_batch_size(self, model: LightningModule, *args: Any, **kwargs: Any) -> int | None:
        """``tuner.scale_batch_size``, as before 1.0."""
        return self.tuner.scale_batch_size(model, *args, **kwargs)

    @classmethod
    def add_argparse_args(cls, parent_parser: ArgumentParser, use_argument_group: bool = True) -> ArgumentParser:
        """Add the Trainer's arguments, those of 1.x included, to a parser of ``argparse``."""
        add: Any = importlib.import_module("leyden.former").add_trainer_arguments
        return add(cls, parent_parser, use_argument_group)  # type: ignore[no-any-return]

    @classmethod
    def from_argparse_args(cls, args: Namespace | ArgumentParser, **kwargs: Any) -> Any:
        """Build a Trainer from parsed arguments; ``kwargs`` take their place."""
        return importlib.import_module("leyden.former").trainer_from(cls, args, **kwargs)

    @classmethod
    def parse_argparser(cls, arg_parser: ArgumentParser | Namespace) -> Namespace:
        """Parse this process's arguments, as far as the parser knows them."""
        return importlib.import_module("leyden.argparsing").as_namespace(arg_parser)  # type: ignore[no-any-return]
