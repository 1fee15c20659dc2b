"""What users read from a Trainer while it runs and afterwards."""

from __future__ import annotations

import importlib
import math
import signal
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden import callbacks as parts  # each is imported when it is used
from leyden import precision as precisions
from leyden.callback import Callback
from leyden.data.combined import given_by_user
from leyden.data.sources import capped
from leyden.datamodule import LightningDataModule
from leyden.errors import InvalidValueError, OrderError
from leyden.hooks.dispatch import RunState
from leyden.loops.evaluate import EvaluationLoop
from leyden.loops.fit import FitLoop
from leyden.loops.ledger import Ledger
from leyden.module import LightningModule
from leyden.optimization.clocks import Clocks
from leyden.optimization.optimizer import LightningOptimizer
from leyden.optimization.plan import Plan, with_optimizers
from leyden.precision import Precision
from leyden.results.views import Views
from leyden.signals import Signals
from leyden.strategies.base import Ranks
from leyden.units import Duration, Every

if TYPE_CHECKING:
    from leyden.callbacks import GradientAccumulationScheduler, ProgressBar
    from leyden.states import TrainerState


class TrainerProperties(Ranks):
    """Views over the state of a run. ``Trainer`` adds the arguments and the runs themselves.

    Attributes:
        callbacks: in calling order.
        loggers: all loggers.
        strategy: where the model lives.
        fit_loop: runs the epochs; ``fit_loop.max_epochs`` may be raised to go on with a finished fit.
        clocks: all counters of the run.
        datamodule: the datamodule of the current or last run, or None.
        interrupted: whether Ctrl-C or another signal ended the last run.
        log_every_n_steps: windows between two rows of the loggers; 50 where the interval is on another clock.
        schedules: intervals on other clocks, by the argument that gave them.
    """

    callbacks: list[Callback]
    loggers: list[Any]
    fit_loop: FitLoop
    validate_loop: EvaluationLoop
    test_loop: EvaluationLoop
    predict_loop: EvaluationLoop
    clocks: Clocks
    datamodule: LightningDataModule | None
    interrupted: bool
    log_every_n_steps: int
    num_sanity_val_steps: int
    schedules: dict[str, Every]
    _state: RunState
    _views: Views
    _precision: Precision
    _module: LightningModule | None
    _handles: list[LightningOptimizer]
    _plan: Plan | None = None
    _signals: Signals

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
        return self.clocks.steps

    @property
    def num_updates(self) -> int:
        """Batches on which a window closed: the loggers' x-axis, and what 1.5 called ``global_step``."""
        return self.clocks.updates

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch in hand is the epoch's last, also where a limit ends the epoch."""
        return self.fit_loop.data.is_last_batch

    @property
    def should_stop(self) -> bool:
        """Set it to True to end the fit after the current batch."""
        return self._state.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self._state.should_stop = value

    @property
    def state(self) -> TrainerState:
        """What the Trainer does: ``state.fn`` which run, ``state.stage`` what its loop does, ``state.status``."""
        now = self._state
        return importlib.import_module("leyden.states").state_of(now.stage, now.run, now.status)  # type: ignore[no-any-return]

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

    @property
    def ledger(self) -> Ledger:
        """Where the time of the current or last fit went, in seconds."""
        return self.fit_loop.ledger

    # -- limits ---------------------------------------------------------------------------------------------------

    @property
    def max_epochs(self) -> int:
        """Epochs at most; -1 for no limit in epochs."""
        return self.fit_loop.max_epochs

    @property
    def min_epochs(self) -> int:
        """Epochs before ``should_stop`` is heeded."""
        return self.fit_loop.limits.min_epochs

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most; -1 for no limit in steps."""
        return self.fit_loop.max_steps

    @property
    def min_steps(self) -> int:
        """Optimizer steps before ``should_stop`` is heeded."""
        return self.fit_loop.limits.min_steps

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch; inf if the loader has no length."""
        return self.fit_loop.data.num_batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        return self.validate_loop.num_batches

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Batches of each validation loader that a fit begins with."""
        return capped(self.num_val_batches, self.num_sanity_val_steps)

    @property
    def val_check_batch(self) -> int | float | None:
        """Training batches between two validations; None before a fit, and where another clock says when."""
        data, cadence = self.fit_loop.data, self.fit_loop.cadence
        if data.loader is None or cadence.every is not None:
            return None
        return data.num_batches if cadence.every_n_batches == math.inf else cadence.every_n_batches

    @property
    def num_test_batches(self) -> list[int | float]:
        """Batches of each test loader."""
        return self.test_loop.num_batches

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Batches of each loader to predict for."""
        return self.predict_loop.num_batches

    @property
    def received_sigterm(self) -> bool:
        """Whether SIGTERM has asked the current or last run to end."""
        return signal.SIGTERM in self._signals.received

    @property
    def accumulate_grad_batches(self) -> int:
        """Micro-batches of a window; setting it acts from the next batch on."""
        return self._state.window_size

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidValueError(
                f"trainer.accumulate_grad_batches = {value!r}: expected an int >= 1", code="trainer-accumulation"
            )
        self._state.window_size = value

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Batches on which a window will close in the whole fit: the length of a schedule that steps per update.

        Usable in ``configure_optimizers``: it asks for the training loader, if a limit in epochs or batches needs its
        length, but draws nothing from it. ``inf`` if nothing limits the fit but time or samples, whose number of
        updates nobody knows; ``max_steps`` if the loader has no length.
        """
        return min((self._windows_until(limit) for limit in self.fit_loop.limits.maxima().values()), default=math.inf)

    def _windows_until(self, limit: Duration) -> int | float:
        """Windows that close before a limit is reached; inf if that cannot be known."""
        count, clock = limit
        if clock in ("steps", "updates"):
            return count
        if clock not in ("epochs", "batches"):
            return math.inf
        self.fit_loop.data.load()
        batches = self.fit_loop.data.num_batches
        if batches == math.inf:
            return count // self._accumulation_in(0) if clock == "batches" else math.inf
        epochs, rest = (int(count), 0) if clock == "epochs" else divmod(int(count), int(batches) or 1)
        whole = sum(math.ceil(batches / self._accumulation_in(epoch)) for epoch in range(epochs))
        return whole + rest // self._accumulation_in(epochs)

    def _accumulation_in(self, epoch: int) -> int:
        scheduler = self._accumulation_scheduler()
        return scheduler.get_accumulate_grad_batches(epoch) if scheduler is not None else self.accumulate_grad_batches

    def _accumulation_scheduler(self) -> GradientAccumulationScheduler | None:
        return next((c for c in self.callbacks if isinstance(c, parts.GradientAccumulationScheduler)), None)

    def _accumulation_schedule(self) -> int | dict[int, int]:
        """Micro-batches of a window, or of each epoch's windows from an epoch on."""
        scheduler = self._accumulation_scheduler()
        return dict(scheduler.scheduling) if scheduler is not None else self.accumulate_grad_batches

    @property
    def should_update_logs(self) -> bool:
        """Whether the loggers get a row for the training batch in hand."""
        every = self.schedules.get("log_every_n_steps", self.log_every_n_steps)
        if isinstance(every, Every):
            return every.is_passed(self.clocks) or self.should_stop
        return every > 0 and ((self.num_updates + 1) % every == 0 or self.should_stop)

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
    def optimizer_frequencies(self) -> list[int]:
        """Batches in a row for each optimizer; empty if all are active on every batch."""
        return list(self._plan.frequencies) if self._plan is not None else []

    @property
    def train_dataloader(self) -> Any:
        """The training data as it was given: a loader, or a collection of them. None before a fit asks for it."""
        return given_by_user(self.fit_loop.data.loader)

    @property
    def val_dataloaders(self) -> Any:
        """The validation data as it was given; None before a run asks for it."""
        return self.validate_loop.dataloaders

    @property
    def test_dataloaders(self) -> Any:
        """The test data, likewise."""
        return self.test_loop.dataloaders

    @property
    def predict_dataloaders(self) -> Any:
        """The data to predict for, likewise."""
        return self.predict_loop.dataloaders

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar among the callbacks, or None."""
        return next((callback for callback in self.callbacks if isinstance(callback, parts.ProgressBar)), None)

    @property
    def checkpoint_callbacks(self) -> list[Callback]:
        """The callbacks that write checkpoints."""
        return [callback for callback in self.callbacks if getattr(callback, "writes_checkpoints", False)]

    @property
    def checkpoint_callback(self) -> Any:
        """The first callback that writes checkpoints, or None."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """The callbacks that stop a fit early."""
        return [callback for callback in self.callbacks if isinstance(callback, parts.EarlyStopping)]

    @property
    def early_stopping_callback(self) -> Any:
        """The first callback that stops a fit early, or None."""
        return next(iter(self.early_stopping_callbacks), None)

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

    # -- what users may call --------------------------------------------------------------------------------------

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process, without tearing the progress bar."""
        bar = self.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(*args, **kwargs)
        elif self.is_global_zero:
            print(*args, **kwargs)

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[None]:
        """Inside of a ``with``, new parameters are made on the run's device, in the type that its precision wants.

        Args:
            empty_init: True leaves out what ``torch.nn.init`` does, for weights that are loaded next.
        """
        return precisions.creating(self._precision, self.strategy.root_device, empty=bool(empty_init))

    # -- processes ------------------------------------------------------------------------------------------------

    @property
    def num_devices(self) -> int:
        """Devices of this machine that the run uses."""
        return 1
