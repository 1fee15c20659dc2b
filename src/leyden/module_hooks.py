"""The hooks that a module may override, one line each saying when they run."""

from __future__ import annotations

import importlib
import os
from typing import Any, BinaryIO, ClassVar, TypeVar

import torch
from torch import nn

from leyden import checkpoint
from leyden.errors import MisconfigurationException
from leyden.hooks.dialects import also_first_era
from leyden.hparams import HyperparametersMixin, class_only
from leyden.tree import move_to_device

M = TypeVar("M", bound="ModuleHooks")


class ModuleHooks(HyperparametersMixin, nn.Module):
    """Everything that a run calls on the user's module. ``LightningModule`` adds what the module may call."""

    #: What torch's compiler leaves out of a script module.
    __jit_ignored_attributes__: ClassVar[list[str]] = ["_trainer", "_fabric", "_probe", "example_input_array"]

    # -- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch: ``training_step(self, batch, batch_idx)``.

        Where several optimizers take turns, a third argument ``optimizer_idx`` says whose turn it is.

        Returns:
            A tensor of one element with a graph; or a mapping with it under "loss", optionally the number of tokens
            or samples that it is a mean of under "weight", and anything else for ``on_train_batch_end``; or None to
            skip the batch.
        """
        raise _not_overridden(self, "training_step")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one validation batch: ``(self, batch, batch_idx, dataloader_idx=0)``."""
        raise _not_overridden(self, "validation_step")

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one test batch: ``(self, batch, batch_idx, dataloader_idx=0)``."""
        raise _not_overridden(self, "test_step")

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict for one batch; by default ``self(batch)``."""
        return self(args[0] if args else kwargs["batch"])

    # -- configuration --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return the optimizers and schedulers of a fit; None trains without one."""
        raise _not_overridden(self, "configure_optimizers")

    def configure_callbacks(self) -> Any:
        """Return callbacks that the module brings along: one or a list."""
        return []

    def configure_model(self) -> None:
        """Build layers when the run starts, before the optimizers."""

    def configure_sharded_model(self) -> None:
        """The name of ``configure_model`` before 2.0."""

    # -- data -----------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download or preprocess, once per machine, before anything else."""

    def train_dataloader(self) -> Any:
        """Return what yields the training batches: one loader, or a collection of them, whose batches come together."""
        raise _not_overridden(self, "train_dataloader")

    def val_dataloader(self) -> Any:
        """Return what yields the validation batches: one loader or a collection."""
        raise _not_overridden(self, "val_dataloader")

    def test_dataloader(self) -> Any:
        """Return what yields the test batches: one loader or a list."""
        raise _not_overridden(self, "test_dataloader")

    def predict_dataloader(self) -> Any:
        """Return what yields the batches to predict for: one loader or a list."""
        raise _not_overridden(self, "predict_dataloader")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Bring a batch to the device; override it for containers of your own."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch when it is on the device."""
        return batch

    # -- the run --------------------------------------------------------------------------------------------------

    @also_first_era
    def setup(self, stage: str) -> None:
        """Before fit, validate, test or predict; ``stage`` says which."""

    @also_first_era
    def teardown(self, stage: str) -> None:
        """At the very end of fit, validate, test or predict."""

    def on_fit_start(self) -> None:
        """When fit begins: optimizers exist, the module is on its device."""

    def on_fit_end(self) -> None:
        """When fit ends."""

    def on_train_start(self) -> None:
        """Before the first epoch, after the sanity check."""

    def on_train_end(self) -> None:
        """After the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Before the first batch of an epoch."""

    def on_train_epoch_end(self) -> None:
        """After the last batch of an epoch and its validation."""

    @also_first_era
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Before a training batch; returning -1 skips the rest of the epoch."""
        return None

    @also_first_era
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a training batch, its updates and its schedulers, before its validation."""

    def on_validation_start(self) -> None:
        """Before a validation, all loaders."""

    def on_validation_end(self) -> None:
        """After a validation, all loaders."""

    def on_validation_epoch_start(self) -> None:
        """Before the first validation batch."""

    def on_validation_epoch_end(self) -> None:
        """After the last validation batch; the place to log values over the whole validation."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before a validation batch."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After a validation batch."""

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation inside of fit that does not fall into an open window: clear gradients to save memory."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Switch to evaluation for a validation."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """After a validation. Unless it is overridden, every submodule gets back the mode that it had."""
        self.train()

    def on_test_start(self) -> None:
        """Before a test, all loaders."""

    def on_test_end(self) -> None:
        """After a test, all loaders."""

    def on_test_epoch_start(self) -> None:
        """Before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """After the last test batch."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before a test batch."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After a test batch."""

    def on_test_model_eval(self) -> None:
        """Switch to evaluation for a test."""
        self.eval()

    def on_test_model_train(self) -> None:
        """After a test. Unless it is overridden, every submodule gets back the mode that it had."""
        self.train()

    def on_predict_start(self) -> None:
        """Before a prediction, all loaders."""

    def on_predict_end(self) -> None:
        """After a prediction, all loaders."""

    def on_predict_epoch_start(self) -> None:
        """Before the first batch of a prediction."""

    @also_first_era
    def on_predict_epoch_end(self) -> None:
        """After the last batch of a prediction; 1.x takes ``results``."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before a batch of a prediction."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After a batch of a prediction."""

    def on_predict_model_eval(self) -> None:
        """Switch to evaluation for a prediction."""
        self.eval()

    # -- optimization ---------------------------------------------------------------------------------------------

    def on_before_zero_grad(self, optimizer: Any) -> None:
        """Before gradients are cleared, on the first micro-batch of a window."""

    def on_before_backward(self, loss: Any) -> None:
        """Before backward, with the loss that it gets: divided by accumulation, scaled under float16."""

    def on_after_backward(self) -> None:
        """After backward; under float16 gradients are still scaled."""

    @also_first_era
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Before an update: gradients are complete, unscaled, not yet clipped."""

    # -- checkpoints ----------------------------------------------------------------------------------------------

    #: Whether the weights of a checkpoint must have the names of this module's, all of them; False takes what fits.
    strict_loading: bool = True

    @class_only
    def load_from_checkpoint(
        cls: type[M],
        checkpoint_path: str | os.PathLike[str] | BinaryIO,
        map_location: Any = None,
        hparams_file: str | os.PathLike[str] | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> M:
        """Build a module from a checkpoint: its hyper-parameters, then its weights.

        Args:
            checkpoint_path: a file, an open one, or a URL.
            map_location: where the module goes; None means the device that its weights were on, if it is here.
            hparams_file: a YAML file with hyper-parameters to use in place of the checkpoint's.
            strict: whether weights must have the module's names, all of them; None asks ``strict_loading``.
            weights_only: None and True read the file as plain data; False trusts it.
            trust: True lets code in the file run, if plain data is not all that it holds.
            **kwargs: arguments of ``__init__``, in place of those that were saved.

        Raises:
            CheckpointError: the file cannot be read, or its weights do not fit.
        """
        data = checkpoint.as_data(weights_only, trust)
        options = {"map_location": map_location, "hparams_file": hparams_file, "weights_only": data}
        return checkpoint.load_module(cls, checkpoint_path, **options, strict=strict, overrides=kwargs)  # type: ignore

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a checkpoint is written; may change it."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """After a checkpoint was read, before anything is restored from it."""

    # -- exports --------------------------------------------------------------------------------------------------

    def freeze(self: M) -> M:
        """Stop all parameters from being trained, and switch to evaluation."""
        return self.requires_grad_(False).eval()

    def unfreeze(self: M) -> M:
        """Let all parameters be trained, and switch to training."""
        return self.requires_grad_(True).train()

    def to_torchscript(
        self, file_path: Any = None, method: str = "script", example_inputs: Any = None, **kwargs: Any
    ) -> Any:
        """Compile ``forward`` for programs without Python, in evaluation mode; this module stays as it is.

        Args:
            file_path: where to save it, a path or an open file; None saves nothing.
            method: "script" compiles the code, "trace" records what it does with ``example_inputs``.
            example_inputs: an input of ``forward``, a tuple or a dict of several; None: ``example_input_array``.
            **kwargs: passed on to ``torch.jit.script`` or ``torch.jit.trace``.

        Returns:
            The script module.
        """
        export: Any = importlib.import_module("leyden.exporting").to_torchscript
        return export(self, file_path, method, example_inputs, kwargs)

    def to_onnx(self, file_path: Any = None, input_sample: Any = None, **kwargs: Any) -> Any:
        """Write ``forward`` as ONNX, in evaluation mode; this module stays as it is.

        Args:
            file_path: where to; None only returns the program.
            input_sample: an input of ``forward``, a tuple or a dict of several; None: ``example_input_array``.
            **kwargs: passed on to ``torch.onnx.export``, such as ``input_names`` or ``dynamo=False``.

        Returns:
            What ``torch.onnx.export`` returns.
        """
        export: Any = importlib.import_module("leyden.exporting").to_onnx
        return export(self, file_path, input_sample, kwargs)


def _not_overridden(owner: Any, name: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"{type(owner).__qualname__} does not define {name}(), which this run needs", code="hook-missing"
    )
