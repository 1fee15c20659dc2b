"""``Callback``: every hook, one line each saying when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leyden.hooks.dialects import also_first_era

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class Callback:
    """Base of callbacks: override the hooks you need; a hook that nobody overrides costs nothing.

    Callbacks are called in the order of ``Trainer(callbacks=[...])`` and before the module's own hook; monitors such
    as early stopping and checkpoints see ``on_train_epoch_end`` last.

    >>> class Count(Callback):
    ...     batches = 0
    ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
    ...         self.batches += 1
    """

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint; make it unique if several of one class are used."""
        return type(self).__qualname__

    @also_first_era
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before fit, validate, test or predict; ``stage`` says which."""

    @also_first_era
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """At the very end of fit, validate, test or predict."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When fit begins: optimizers exist, the model is on its device."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When fit ends."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the few validation batches that fit begins with."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the few validation batches that fit begins with."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first epoch, after the sanity check."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch of an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch of an epoch and its validation; epoch values are in ``trainer.callback_metrics``."""

    @also_first_era
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before a training batch; it is on the device already."""

    @also_first_era
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a training batch, its updates and its schedulers, before its validation."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation, all loaders."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a validation, all loaders; its values are in ``trainer.callback_metrics``."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first validation batch."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last validation batch; the place to log values over the whole validation."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a validation batch."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After a validation batch."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a test, all loaders."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a test, all loaders."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first test batch."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last test batch."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a test batch."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After a test batch."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a prediction, all loaders."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a prediction, all loaders."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch of a prediction."""

    @also_first_era
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch of a prediction."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a batch of a prediction."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After a batch of a prediction."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Before gradients are cleared, on the first micro-batch of a window."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Before backward, with the loss that it gets: divided by accumulation, scaled under float16."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After backward; under float16 gradients are still scaled."""

    @also_first_era
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Before an update: gradients are complete, unscaled, not yet clipped."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """When an exception leaves the run, Ctrl-C included."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before a checkpoint is written; may change it."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """After a checkpoint was read, before anything is restored from it."""
