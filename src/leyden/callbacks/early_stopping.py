"""``EarlyStopping``: ends a fit when a logged value no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.callback import Callback
from leyden.callbacks.monitored import describe_missing, validation_ends_epochs
from leyden.errors import InvalidValueError, OrderError
from leyden.rank import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class EarlyStoppingReason(Enum):
    """Why a fit was stopped; the numbers are what checkpoints hold."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Ends a fit when a logged value no longer improves.

    Args:
        monitor: name of the value in ``trainer.callback_metrics``.
        min_delta: an improvement must be greater than this; 0 by default.
        patience: checks without an improvement after which the fit ends.
        verbose: whether improvements and the end are printed.
        mode: "min" if smaller is better, "max" if greater is.
        strict: whether a missing value is an error; else the check is left out.
        check_finite: whether nan and infinity end the fit.
        stopping_threshold: a value better than this ends the fit at once; None has no such limit.
        divergence_threshold: a value worse than this ends the fit at once; None has no such limit.
        check_on_train_epoch_end: True checks at the end of every training epoch, False after every validation. None
            (default) is True where a validation ends every epoch, so that values of both are there.
        log_rank_zero_only: whether only the first of several processes prints.

    Attributes:
        wait_count: checks since the last improvement.
        best_score: the best value, a tensor of shape ``()`` on the CPU.
        stopped_epoch: epoch that the fit was stopped in; 0 if it was not.
        stopping_reason: why, as an ``EarlyStoppingReason``.
        stopping_reason_message: the same in words, or None.

    Raises:
        InvalidValueError: a mode that is neither "min" nor "max" (``early-stopping-mode``).

    >>> EarlyStopping("val_loss", patience=5).state_key
    "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"
    """

    #: Called last at the end of an epoch, when the module has logged what is watched.
    is_monitor = True

    mode_dict = {"min": torch.lt, "max": torch.gt}
    order_dict = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if mode not in self.mode_dict:
            raise InvalidValueError(
                f"EarlyStopping(mode={mode!r}): expected 'min' (smaller is better) or 'max'", code="early-stopping-mode"
            )
        self.monitor = monitor
        self.min_delta = min_delta if mode == "max" else -min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self.best_score = torch.tensor(torch.inf if mode == "min" else -torch.inf)
        self._asked = check_on_train_epoch_end
        self._checks_epochs = True
        self._in_fit = False
        self._had_stopped = False  # the run that is resumed

    @property
    def state_key(self) -> str:
        """The class, what is watched, and how."""
        return f"{type(self).__qualname__}{ {'monitor': self.monitor, 'mode': self.mode}!r}"

    @property
    def monitor_op(self) -> Any:
        """The comparison that says "is better": ``torch.lt`` or ``torch.gt``."""
        return self.mode_dict[self.mode]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out when to check: at the end of epochs, unless validations come at other times."""
        self._in_fit = stage == "fit"
        self._checks_epochs = validation_ends_epochs(trainer) if self._asked is None else self._asked

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train on where a checkpoint says that the fit was stopped, unless other arguments are given now."""
        if self._had_stopped:
            self._had_stopped = False
            reasons = [one.stopping_reason for one in trainer.early_stopping_callbacks]
            trainer.should_stop = any(reason is not EarlyStoppingReason.NOT_STOPPED for reason in reasons)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if epochs are checked.

        Raises:
            OrderError: the value is not there, and ``strict`` (``early-stopping-monitor``).
        """
        if self._checks_epochs:
            self._check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, if validations are checked.

        Raises:
            OrderError: the value is not there, and ``strict`` (``early-stopping-monitor``).
        """
        if not self._checks_epochs and self._in_fit and not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The counts, the best value, and why the fit was stopped."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; Lightning before 2.6 kept no reason.

        The arguments stay those of this object, also ``patience``, so that a stopped fit goes on where it is raised.
        """
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = torch.as_tensor(state_dict["best_score"]).cpu()
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        self._had_stopped = self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        if self._had_stopped and not self._still_stops():
            self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None
            self.stopped_epoch = 0
        if state_dict["patience"] != self.patience:
            rank_zero_info(
                f"EarlyStopping: patience was {state_dict['patience']} in the checkpoint and is {self.patience} now, "
                f"which counts; {self.wait_count} checks without an improvement so far"
            )

    def _still_stops(self) -> bool:
        """Whether the reason for which a fit was stopped is one with this object's arguments too."""
        return {
            EarlyStoppingReason.PATIENCE_EXHAUSTED: self.wait_count >= self.patience,
            EarlyStoppingReason.STOPPING_THRESHOLD: self.stopping_threshold is not None,
            EarlyStoppingReason.DIVERGENCE_THRESHOLD: self.divergence_threshold is not None,
            EarlyStoppingReason.NON_FINITE_METRIC: self.check_finite,
        }[self.stopping_reason]

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            self._miss(metrics)
            return
        reason, message = self._judge(metrics[self.monitor].detach().squeeze().cpu())
        stops = torch.tensor(reason is not None, device=trainer.strategy.root_device)
        if bool(trainer.strategy.any(stops)):  # one process stops all
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = message
        if reason is not None:
            self.stopping_reason = reason
        if message is not None and self.verbose:
            self._say(trainer, pl_module, message)

    def _judge(self, current: Tensor) -> tuple[EarlyStoppingReason | None, str | None]:
        """Why the fit must end, or None; and what there is to say."""
        better, name, sign = self.monitor_op, self.monitor, self.order_dict[self.mode]
        if self.check_finite and not torch.isfinite(current):
            message = f"{name} = {current:g} is not finite; the best value was {self.best_score:g}. The fit ends."
            return EarlyStoppingReason.NON_FINITE_METRIC, message
        if self.stopping_threshold is not None and better(current, self.stopping_threshold):
            message = f"{name} = {current:g} {sign} {self.stopping_threshold:g}, which was to be reached. The fit ends."
            return EarlyStoppingReason.STOPPING_THRESHOLD, message
        if self.divergence_threshold is not None and better(-current, -self.divergence_threshold):
            message = f"{name} = {current:g} is worse than {self.divergence_threshold:g}: it diverges. The fit ends."
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, message
        if better(current - self.min_delta, self.best_score):
            before, self.best_score = self.best_score, current.clone()
            self.wait_count = 0
            return None, f"{name} has improved from {before:g} to {current:g}."
        self.wait_count += 1
        if self.wait_count < self.patience:
            return None, None
        message = f"{name} has not improved in {self.wait_count} checks; its best is {self.best_score:g}. The fit ends."
        return EarlyStoppingReason.PATIENCE_EXHAUSTED, message

    def _miss(self, metrics: Mapping[str, Tensor]) -> None:
        message = describe_missing(self, self.monitor, metrics)
        if self.strict:
            raise OrderError(message, code="early-stopping-monitor")
        if self.verbose:
            rank_zero_warn(message, RuntimeWarning, code="early-stopping-monitor")

    def _say(self, trainer: Trainer, pl_module: LightningModule, message: str) -> None:
        if trainer.world_size == 1 or self.log_rank_zero_only:
            pl_module.print(message)
        else:
            print(f"[rank {trainer.global_rank}] {message}")
