"""What users read from a Trainer while it runs and afterwards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from leyden.callback import Callback
from leyden.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from leyden.callbacks.progress import ProgressBar
from leyden.datamodule import LightningDataModule
from leyden.errors import OrderError
from leyden.hooks.dispatch import RunState
from leyden.loops.evaluate import EvaluationLoop
from leyden.loops.fit import FitLoop
from leyden.loops.predict import PredictLoop
from leyden.module import LightningModule
from leyden.optimization.clocks import Clocks
from leyden.optimization.optimizer import LightningOptimizer
from leyden.optimization.plan import Plan, with_optimizers
from leyden.optimization.schedulers import LRSchedulerConfig
from leyden.precision import Precision
from leyden.results.views import Views
from leyden.strategies import Strategy


class TrainerProperties:
    """Views over the state of a run. ``Trainer`` adds the arguments and the runs themselves.

    Attributes:
        callbacks: in calling order.
        loggers: all loggers.
        strategy: where the model lives.
        fit_loop: runs the epochs; ``fit_loop.max_epochs`` may be raised to go on with a finished fit.
        clocks: all counters of the run.
        datamodule: the datamodule of the current or last run, or None.
        interrupted: whether Ctrl-C ended the last run.
    """

    callbacks: list[Callback]
    loggers: list[Any]
    strategy: Strategy
    fit_loop: FitLoop
    validate_loop: EvaluationLoop
    test_loop: EvaluationLoop
    predict_loop: PredictLoop
    clocks: Clocks
    datamodule: LightningDataModule | None
    interrupted: bool
    _state: RunState
    _views: Views
    _precision: Precision
    _module: LightningModule | None
    _handles: list[LightningOptimizer]
    _plan: Plan | None = None

    # -- where the run is -----------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What ``configure_optimizers`` means; ``print(trainer.plan)`` shows it as a table.

        Raises:
            OrderError: before ``fit`` has configured the optimizers.
        """
        if self._plan is None:
            raise OrderError("trainer.plan is there from trainer.fit(...) on", code="plan-before-fit")
        sizes = [[len(group["params"]) for group in o.param_groups] for o in self._plan.optimizers]
        if self._module is not None and sizes != [[len(names) for names in groups] for groups in self._plan.names]:
            self._plan = with_optimizers(self._plan, self._plan.optimizers, self._module)  # groups were added
        return self._plan

    @property
    def current_epoch(self) -> int:
        """Index of the running epoch; after the fit the number of finished ones."""
        return self.clocks.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps attempted so far, over all optimizers; rises right after each step."""
        return self.clocks.global_step

    @property
    def num_updates(self) -> int:
        """Batches on which a window closed: the loggers' x-axis, and what 1.5 called ``global_step``."""
        return self.clocks.updates

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch in hand is the epoch's last, also where a limit ends the epoch."""
        return self.fit_loop.is_last_batch

    @property
    def should_stop(self) -> bool:
        """Set it to True to end the fit after the current batch."""
        return self._state.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self._state.should_stop = value

    @property
    def training(self) -> bool:
        """Whether a fit trains now, and does not validate."""
        return self._state.stage == "train"

    @property
    def validating(self) -> bool:
        """Whether a validation runs, inside of a fit or by ``trainer.validate``."""
        return self._state.stage == "validate"

    @property
    def sanity_checking(self) -> bool:
        """Whether the validation batches that a fit begins with run."""
        return self._state.stage == "sanity_check"

    @property
    def testing(self) -> bool:
        """Whether ``trainer.test`` runs."""
        return self._state.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether ``trainer.predict`` runs."""
        return self._state.stage == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether a validation or a test runs."""
        return self.validating or self.testing

    # -- limits ---------------------------------------------------------------------------------------------------

    @property
    def max_epochs(self) -> int:
        """Epochs at most; -1 for no limit."""
        return self.fit_loop.max_epochs

    @property
    def min_epochs(self) -> int:
        """Epochs before ``should_stop`` is heeded."""
        return self.fit_loop.limits.min_epochs

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most; -1 for no limit."""
        return self.fit_loop.max_steps

    @property
    def min_steps(self) -> int:
        """Optimizer steps before ``should_stop`` is heeded."""
        return self.fit_loop.limits.min_steps

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch; inf if the loader has no length."""
        return self.fit_loop.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        return self.validate_loop.num_batches

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self.test_loop.num_batches

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each loader to predict for."""
        return self.predict_loop.num_batches

    @property
    def accumulate_grad_batches(self) -> int:
        """Micro-batches of a window; setting it acts from the next batch on."""
        return self._state.window_size

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        self._state.window_size = value

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Batches on which a window will close in the whole fit: the length of a schedule that steps per update.

        Usable in ``configure_optimizers``: it asks for the training loader but draws nothing from it. ``inf`` if
        neither epochs nor steps are limited; ``max_steps`` if the loader has no length.
        """
        loop = self.fit_loop
        max_epochs, max_steps = loop.max_epochs, loop.max_steps
        if max_epochs == -1:
            return math.inf if max_steps == -1 else max_steps
        loop.load()
        if loop.num_batches == math.inf:
            return max_steps if max_steps != -1 else math.inf
        factors = (self._accumulation_in(epoch) for epoch in range(max_epochs))
        total = sum(math.ceil(loop.num_batches / factor) for factor in factors)
        return min(total, max_steps) if max_steps != -1 else total

    def _accumulation_in(self, epoch: int) -> int:
        scheduler = self._accumulation_scheduler()
        return scheduler.get_accumulate_grad_batches(epoch) if scheduler is not None else self.accumulate_grad_batches

    def _accumulation_scheduler(self) -> GradientAccumulationScheduler | None:
        return next((c for c in self.callbacks if isinstance(c, GradientAccumulationScheduler)), None)

    def _accumulation_schedule(self) -> int | dict[int, int]:
        """Micro-batches of a window, or of each epoch's windows from an epoch on."""
        scheduler = self._accumulation_scheduler()
        return dict(scheduler.scheduling) if scheduler is not None else self.accumulate_grad_batches

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def lightning_module(self) -> LightningModule | None:
        """The module of the current or last run."""
        return self._module

    @property
    def model(self) -> LightningModule | None:
        """The module of the current or last run."""
        return self._module

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """All schedulers and when they step, in configured order."""
        return list(self._plan.schedulers) if self._plan is not None else []

    @property
    def lr_schedulers(self) -> list[LRSchedulerConfig]:
        """The 1.x name of ``lr_scheduler_configs``; the items answer like dicts as well."""
        return self.lr_scheduler_configs

    @property
    def optimizer_frequencies(self) -> list[int]:
        """Batches in a row for each optimizer; empty if all are active on every batch."""
        return list(self._plan.frequencies) if self._plan is not None else []

    @property
    def train_dataloader(self) -> Any:
        """The training loader."""
        return self.fit_loop.loader

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar among the callbacks, or None."""
        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    @property
    def precision(self) -> str:
        """The 2.x name of the precision, e.g. "bf16-mixed"."""
        return self._precision.precision

    @property
    def precision_plugin(self) -> Precision:
        """How numbers are represented."""
        return self._precision

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of "16-mixed", or None."""
        scale = self._precision.loss_scale
        return scale.scaler if scale is not None else None

    # -- metrics --------------------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What was logged, for callbacks and schedulers: tensors by name."""
        self._publish()
        return self._views.callback

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What was logged and goes to loggers: tensors by name."""
        self._publish()
        return self._views.logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with ``prog_bar=True``, as floats; reading it waits for the device."""
        self._publish()
        return self._views.progress_bar_metrics()

    @property
    def progress_bar_tensors(self) -> dict[str, Tensor]:
        """The same as tensors on their device, which does not wait."""
        self._publish()
        return self._views.progress_bar

    def _publish(self) -> None:
        if self._state.results is not None:
            self._state.results.publish()

    # -- processes ------------------------------------------------------------------------------------------------

    @property
    def global_rank(self) -> int:
        """Rank of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Rank of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Rank of this machine."""
        return self.strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.strategy.world_size

    @property
    def num_devices(self) -> int:
        """Devices of this machine that the run uses."""
        return 1

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first of all processes."""
        return self.strategy.is_global_zero
