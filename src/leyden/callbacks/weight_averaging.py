"""``WeightAveraging`` and ``EMAWeightAveraging``: averages of the weights over the steps of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leyden.callback import Callback

if TYPE_CHECKING:
    from torch.optim.swa_utils import AveragedModel

    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class WeightAveraging(Callback):
    """Averages the weights while they are trained; validations and the module after the fit have the average.

    The average is torch's ``AveragedModel``. As long as nothing was averaged, the weights are left alone.

    Args:
        device: where the average lives; None (default) means with the module.
        use_buffers: whether buffers are averaged too; True by default, so that batch norms fit the weights.
        **kwargs: for ``AveragedModel``, e.g. ``avg_fn`` or ``multi_avg_fn``. Without them all steps count the same.

    >>> class LastEpochs(WeightAveraging):
    ...     def should_update(self, step_idx=None, epoch_idx=None):
    ...         return epoch_idx is not None and epoch_idx >= 5
    """

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        self._device = device
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        self._average_model: AveragedModel | None = None
        self._restored: dict[str, Any] | None = None  # parts of a checkpoint that was read
        self._has_average = False
        self._is_swapped = False
        self._was_swapped = False  # when a checkpoint was written in the middle of a validation
        self._in_fit = False
        self._asked_step = 0
        self._latest_update_step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to average now; override it. By default after every step.

        Args:
            step_idx: the optimizer step (0-based) that was made; None at the end of an epoch. Steps of several
                optimizers in one batch are asked for one by one and make one average.
            epoch_idx: the epoch that ends; None after a step.
        """
        return step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Outside of a fit there is nothing to average."""
        self._in_fit = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the average, or take it from the checkpoint that was read."""
        from torch.optim.swa_utils import AveragedModel  # slow to import

        device: Any = pl_module.device if self._device is None else self._device
        if isinstance(device, str):
            device = torch.device(device)
        if self._restored is not None:  # the module has the average now; its own weights must be in it to be copied
            pl_module.load_state_dict(self._restored["current_model_state"])
        self._average_model = AveragedModel(pl_module, device=device, use_buffers=self._use_buffers, **self._kwargs)
        self._has_average = self._is_swapped = False
        if self._restored is not None:
            self._load_average(self._restored)
        self._restored = None
        self._in_fit = True
        self._asked_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, if a step was made that is to be averaged."""
        steps = range(self._asked_step, trainer.global_step)
        self._asked_step = trainer.global_step
        if any([self.should_update(step_idx=step) for step in steps]):
            self._update(pl_module)
            self._latest_update_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average, if the epoch is to be averaged."""
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._was_swapped = False
        if self._in_fit and self._has_average:
            self._swap(pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Go on with the average in a validation that goes on."""
        if self._was_swapped:
            self._was_swapped = False
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back the weights that are trained."""
        if self._is_swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give back the weights that are trained, also when a validation fails."""
        if self._is_swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the average."""
        if self._has_average:
            with torch.no_grad():
                for average, current in self._pairs(pl_module):
                    current.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """The step that was averaged last, and whether a validation runs, with the average."""
        swapped = {"is_swapped": True} if self._is_swapped else {}
        return {"latest_update_step": self._latest_update_step, **swapped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self._latest_update_step = state_dict["latest_update_step"]
        self._was_swapped = state_dict.get("is_swapped", False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average in the module's place; the weights that are trained go to "current_model_state"."""
        if self._average_model is None or not self._has_average:
            return
        state = self._average_model.state_dict()
        average = {name.removeprefix("module."): v for name, v in state.items() if name.startswith("module.")}
        current = checkpoint["state_dict"]
        if self._is_swapped:  # in the middle of a validation
            average, current = current, average
        checkpoint["state_dict"], checkpoint["current_model_state"] = average, current
        checkpoint["averaging_state"] = {n: v for n, v in state.items() if not n.startswith("module.")}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the average for the start of the fit; without one it begins with the weights of the checkpoint."""
        names = ("state_dict", "averaging_state", "current_model_state")
        if all(name in checkpoint for name in names):
            self._restored = {name: checkpoint[name] for name in names}

    def _update(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.update_parameters(pl_module)
        self._has_average = True

    def _load_average(self, checkpoint: dict[str, Any]) -> None:
        assert self._average_model is not None
        average = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
        self._average_model.load_state_dict({**average, **checkpoint["averaging_state"]})
        self._has_average = bool(self._average_model.n_averaged > 0)

    def _swap(self, pl_module: LightningModule) -> None:
        with torch.no_grad():
            for average, current in self._pairs(pl_module):
                before = average.clone()
                average.copy_(current)
                current.copy_(before)
        self._is_swapped = not self._is_swapped

    def _pairs(self, pl_module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Each tensor of the average with the module's."""
        assert self._average_model is not None
        average: Any = self._average_model.module
        tensors = chain(average.parameters(), average.buffers())
        return zip(tensors, chain(pl_module.parameters(), pl_module.buffers()), strict=True)


class EMAWeightAveraging(WeightAveraging):
    """An exponential moving average of the weights.

    ::

        average = decay * average + (1 - decay) * weights

    Args:
        device: where the average lives; None (default) means with the module.
        use_buffers: whether buffers are averaged too.
        decay: part of the average that stays at each update; 0.999 by default.
        update_every_n_steps: optimizer steps between two updates.
        update_starting_at_step: first step (0-based) that is averaged; None means the first of all.
        update_starting_at_epoch: from this epoch (0-based) on there is an update at the end of each; None has none.
        **kwargs: for ``AveragedModel``.

    >>> callback = EMAWeightAveraging(decay=0.99, update_starting_at_step=100)
    >>> callback.should_update(step_idx=99), callback.should_update(step_idx=100)
    (False, True)
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        from torch.optim.swa_utils import get_ema_avg_fn  # slow to import

        average: Any = get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(device, use_buffers, **kwargs, avg_fn=average)
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Every so many steps from the first one on, and every epoch from the first one on."""
        if step_idx is not None:
            first, every = self.update_starting_at_step or 0, self.update_every_n_steps
            return step_idx >= first and every > 0 and step_idx % every == 0
        first_epoch = self.update_starting_at_epoch
        return epoch_idx is not None and first_epoch is not None and epoch_idx >= first_epoch
