"""``StochasticWeightAveraging``: the mean of the last epochs' weights, at a learning rate held high."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from leyden.callback import Callback
from leyden.errors import InvalidValueError, MisconfigurationException, warn
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import unwrap
from leyden.optimization.schedulers import LRSchedulerConfig

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer

Average = Callable[[Tensor, Tensor, Tensor], Tensor]


class StochasticWeightAveraging(Callback):
    """Averages the weights of the last epochs (Izmailov et al., 2018); the module has the average after the fit.

    From its first epoch on torch's ``SWALR`` takes the place of all schedulers, and each epoch begins with adding the
    weights to the average. A module with batch norms then goes through the training data once more, in one more epoch
    that updates nothing: it makes the statistics that fit the average, and its validation is the average's. A fit
    that ends before keeps the weights that it has trained.

    In manual optimization your ``self.lr_schedulers()`` are ``SWALR`` from then on: step them once an epoch. One whose
    optimizer has no scheduler steps by itself.

    Args:
        swa_lrs: learning rate that all optimizers come to, a float > 0; or a list with one for each parameter group,
            for several optimizers with one for each. The members of a ``Joint`` count one by one. None, the default as
            in 1.x: each parameter group keeps the one that it has when the averaging begins.
        swa_epoch_start: first averaged epoch: its number, counted from 1, or a float for that part of ``max_epochs``.
        annealing_epochs: epochs in which the learning rate comes there; 0 sets it at once.
        annealing_strategy: "cos" or "linear".
        avg_fn: ``(average, weight, number of weights so far) -> average``; None counts all epochs the same.
        device: where the average lives; None means with the module.

    Attributes:
        n_averaged: epochs in the average, a tensor of shape ``()``; None as long as there is no average.
        momenta: what the batch norms' ``momentum`` was, while there is none.

    Raises:
        InvalidValueError: an argument out of its range or of another type (``swa-option``).

    >>> callback = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.75)
    """

    def __init__(
        self,
        swa_lrs: float | list[float] | None = None,
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: str = "cos",
        avg_fn: Average | None = None,
        device: torch.device | str | None = torch.device("cpu"),  # noqa: B008  immutable
    ) -> None:
        rates = swa_lrs if isinstance(swa_lrs, list) else [] if swa_lrs is None else [swa_lrs]
        is_part = isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1
        checks = {
            "swa_lrs": (swa_lrs, all(isinstance(rate, float) and rate > 0 for rate in rates), "a float > 0 or a list"),
            "swa_epoch_start": (swa_epoch_start, is_part or _is_int(swa_epoch_start, 1), "an int > 0 or a part of 1.0"),
            "annealing_epochs": (annealing_epochs, _is_int(annealing_epochs, 0), "an int >= 0"),
            "annealing_strategy": (annealing_strategy, annealing_strategy in ("cos", "linear"), "'cos' or 'linear'"),
            "avg_fn": (avg_fn, avg_fn is None or callable(avg_fn), "a function or None"),
            "device": (device, device is None or isinstance(device, torch.device | str), "a torch.device, str or None"),
        }
        for name, (value, is_valid, expected) in checks.items():
            if not is_valid:
                raise InvalidValueError(
                    f"StochasticWeightAveraging({name}={value!r}): expected {expected}", code="swa-option"
                )
        self.n_averaged: Tensor | None = None
        self.momenta: dict[BatchNorm, float | None] = {}
        self._start = swa_epoch_start
        self._rates = swa_lrs
        self._annealing: dict[str, Any] = {"anneal_epochs": annealing_epochs, "anneal_strategy": annealing_strategy}
        self._average = avg_fn or self.avg_fn
        self._device = device
        self._restored: dict[str, Any] | None = None  # the state of a checkpoint that was read
        self._reset()

    def _reset(self) -> None:
        self.n_averaged = None
        self._max_epochs = 0  # as given, of the fit that runs
        self._has_extra_epoch = False
        self._window_size: int | None = None  # before the extra epoch
        self._latest_update_epoch = -1
        self._average_model: LightningModule | None = None
        self._schedulers: list[Any] = []
        self._stepped_here: list[Any] = []
        self._is_complete = False  # the module has the average

    @property
    def swa_start(self) -> int:
        """First epoch (0-based) that is averaged."""
        epochs = int(self._max_epochs * self._start) if isinstance(self._start, float) else self._start
        return max(epochs - 1, 0)

    @property
    def swa_end(self) -> int:
        """Last epoch (0-based) that is averaged."""
        return self._max_epochs - 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the epochs; go on where a checkpoint left off.

        Raises:
            MisconfigurationException: ``max_epochs`` or the number of learning rates does not fit (``swa-epochs``,
                ``swa-rates``).
        """
        self._reset()
        if trainer.max_epochs == -1 or trainer.max_epochs < self._start:
            raise MisconfigurationException(
                f"StochasticWeightAveraging(swa_epoch_start={self._start}) averages the last epochs, but "
                f"Trainer(max_epochs={trainer.max_epochs}) has none from there on; give a max_epochs that is larger",
                code="swa-epochs",
            )
        self._check_number_of_rates([member for _, member in _members(trainer)])
        self._max_epochs = trainer.max_epochs
        if self._restored is not None:
            self._begin(trainer, pl_module)
        goes_on = self._average_model is not None or trainer.current_epoch <= self.swa_end
        if goes_on and self.pl_module_contains_batch_norm(pl_module):
            trainer.fit_loop.max_epochs += 1
            self._has_extra_epoch = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In an epoch that a checkpoint was written in, go on with the average or with the pass for batch norms."""
        self._average_if_due(trainer, pl_module)
        if self._has_extra_epoch and trainer.current_epoch > self.swa_end:
            self._is_complete = True
            self._stop_updates(trainer)
            self._save_momenta(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average; after the last epoch make the statistics of batch norms anew."""
        self._average_if_due(trainer, pl_module)
        if trainer.current_epoch == self.swa_end + 1:
            self._complete(pl_module)
            self._stop_updates(trainer)
            self.reset_batch_norm_and_save_state(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step the schedulers that nobody else steps."""
        for scheduler in self._stepped_here:
            scheduler.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the average to a module without batch norms."""
        if not self._has_extra_epoch and trainer.current_epoch > self.swa_end:
            self._complete(pl_module)
        if not self._is_complete:
            warn(
                f"the fit ended after {trainer.current_epoch} of {trainer.max_epochs} epochs, before the average of "
                "StochasticWeightAveraging was complete; the module keeps the weights that were trained",
                code="swa-incomplete",
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back what was changed for this fit."""
        if self._has_extra_epoch:
            trainer.fit_loop.max_epochs -= 1
        if self._window_size is not None:
            trainer.accumulate_grad_batches = self._window_size
        self._has_extra_epoch, self._window_size = False, None
        self.reset_momenta()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give back what was changed for this fit."""
        self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average and its schedulers; of several schedulers a list."""
        states = [scheduler.state_dict() for scheduler in self._schedulers]
        average = self._average_model
        return {
            "n_averaged": 0 if self.n_averaged is None else self.n_averaged.item(),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": (states[0] if len(states) == 1 else states) if states else None,
            "average_model_state": None if average is None else average.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned, when the next fit starts."""
        self._restored = state_dict if state_dict["scheduler_state"] is not None else None

    def _average_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once in each epoch: a checkpoint's, which has begun before, counts in it already."""
        epoch = trainer.current_epoch
        if self.swa_start <= epoch <= self.swa_end and epoch > self._latest_update_epoch:
            if self._average_model is None:
                self._begin(trainer, pl_module)
            assert self._average_model is not None and self.n_averaged is not None
            self.update_parameters(self._average_model, pl_module, self.n_averaged, self._average)
            self._latest_update_epoch = epoch

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the average and let ``SWALR`` take the place of the schedulers."""
        from torch.optim.swa_utils import SWALR  # slow to import

        device = pl_module.device if self._device is None else self._device
        self._average_model = copy.deepcopy(pl_module).to(device)
        self.n_averaged = torch.tensor(0, dtype=torch.long, device=device)
        members = _members(trainer)
        rates: Any = self._rates
        each = rates if isinstance(rates, list) and len(members) > 1 else [rates] * len(members)
        self._schedulers = [
            SWALR(optimizer, _own_rates(optimizer) if rate is None else rate, **self._annealing)
            for (_, optimizer), rate in zip(members, each, strict=True)
        ]
        if trainer.plan.automatic:
            trainer.lr_scheduler_configs = [
                LRSchedulerConfig(scheduler, opt_idx=index)
                for (index, _), scheduler in zip(members, self._schedulers, strict=True)
            ]
        else:
            self._replace_where_stepped_by_hand(trainer)
        state, self._restored = self._restored, None
        if state is not None:
            self._average_model.load_state_dict(state["average_model_state"])
            self.n_averaged.fill_(state["n_averaged"])
            self._latest_update_epoch = state["latest_update_epoch"]
            states = state["scheduler_state"]
            for scheduler, one in zip(self._schedulers, states if isinstance(states, list) else [states], strict=True):
                scheduler.load_state_dict(one)

    def _replace_where_stepped_by_hand(self, trainer: Trainer) -> None:
        """Keep the places of the user's schedulers: ``training_step`` may name them one by one."""
        ours = {id(scheduler.optimizer): scheduler for scheduler in self._schedulers}
        configs = trainer.lr_scheduler_configs
        owners = [id(unwrap(getattr(config.scheduler, "optimizer", None))) for config in configs]
        trainer.lr_scheduler_configs = [
            replace(config, scheduler=ours.get(owner, config.scheduler))
            for config, owner in zip(configs, owners, strict=True)
        ]
        self._stepped_here = [scheduler for owner, scheduler in ours.items() if owner not in owners]

    def _complete(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self.transfer_weights(self._average_model, pl_module)
        self._is_complete = True

    def _stop_updates(self, trainer: Trainer) -> None:
        trainer.stop_updates()
        if self._window_size is None:
            self._window_size = trainer.accumulate_grad_batches
            # nothing is stepped, so the whole epoch counts as one window on the loggers' axis
            trainer.accumulate_grad_batches = int(min(trainer.num_training_batches, sys.maxsize))

    def _save_momenta(self, pl_module: nn.Module) -> None:
        for module in pl_module.modules():
            if isinstance(module, BatchNorm) and module.training and module.track_running_stats:
                self.momenta.setdefault(module, module.momentum)
                module.momentum = None

    def _check_number_of_rates(self, optimizers: list[Any]) -> None:
        several = len(optimizers) > 1
        places = len(optimizers) if several else len(optimizers[0].param_groups)
        given = len(self._rates) if isinstance(self._rates, list) else places
        if given < places or (several and given > places):  # groups may still be added before the first epoch
            raise MisconfigurationException(
                f"StochasticWeightAveraging(swa_lrs={self._rates}) has {given} learning rates for {places} "
                f"{'optimizers' if several else 'parameter groups'}; give one for each, or a float for all",
                code="swa-rates",
            )

    @staticmethod
    def avg_fn(averaged_model_parameter: Tensor, model_parameter: Tensor, num_averaged: Tensor) -> Tensor:
        """The mean of ``num_averaged`` weights, whose mean is known, and one more."""
        return averaged_model_parameter + (model_parameter - averaged_model_parameter) / (num_averaged + 1)

    @staticmethod
    def update_parameters(average_model: nn.Module, model: nn.Module, n_averaged: Tensor, avg_fn: Average) -> None:
        """Add the parameters of ``model`` to the average of ``n_averaged``, which counts one more."""
        is_first = n_averaged.item() == 0
        with torch.no_grad():
            for average, parameter in _pairs(average_model, model):
                weight = parameter.to(average.device)
                average.copy_(weight if is_first else avg_fn(average, weight, n_averaged.to(average.device)))
        n_averaged += 1

    @staticmethod
    def transfer_weights(src_pl_module: nn.Module, dst_pl_module: nn.Module) -> None:
        """Copy the parameters of one module into another."""
        with torch.no_grad():
            for source, destination in _pairs(src_pl_module, dst_pl_module):
                destination.copy_(source)

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: nn.Module) -> bool:
        """Whether a module has batch norms."""
        return any(isinstance(module, BatchNorm) for module in pl_module.modules())

    def reset_batch_norm_and_save_state(self, pl_module: nn.Module) -> None:
        """Let batch norms begin anew and weigh all batches the same; frozen ones stay as they are."""
        self._save_momenta(pl_module)
        for module in self.momenta:
            module.reset_running_stats()

    def reset_momenta(self) -> None:
        """Give batch norms back their momentum."""
        for module, momentum in self.momenta.items():
            module.momentum = momentum
        self.momenta.clear()


def _members(trainer: Trainer) -> list[tuple[int, Any]]:
    """Each optimizer with its index, members of Joints one by one."""
    return [(index, member) for index, o in enumerate(trainer.optimizers) for member in members_of(o)]


def _pairs(first: nn.Module, second: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(first.parameters(), second.parameters(), strict=True)


def _own_rates(optimizer: Any) -> Any:  # a list, which SWALR takes
    return [group["lr"] for group in optimizer.param_groups]  # a checkpoint's are put in their place later


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
