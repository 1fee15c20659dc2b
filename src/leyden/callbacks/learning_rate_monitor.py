"""``LearningRateMonitor``: learning rates as rows of the loggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from leyden.callback import Callback
from leyden.callbacks.rows import is_row_due, write_row
from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import unwrap
from leyden.rank import rank_zero_warn

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class _Watched(NamedTuple):
    """An optimizer, what its groups are called, and the interval of its scheduler (None without one)."""

    optimizer: Any
    names: list[str]
    interval: str | None


class LearningRateMonitor(Callback):
    """Writes the learning rate of every parameter group to the loggers.

    A rate is called "lr-SGD"; a second optimizer of a class "lr-SGD-1"; several groups of an optimizer
    "lr-SGD/pg1", "lr-SGD/pg2", or by the key "name" of the groups. The "name" of a scheduler dict takes the place of
    "lr-SGD". Each member of a ``Joint`` counts as an optimizer.

    Args:
        logging_interval: "step" writes on the batches that have a row, "epoch" at the start of every epoch. None
            (default) writes a rate as often as its scheduler steps, and both without a scheduler.
        log_momentum: whether momenta (the first of the betas) are written too.
        log_weight_decay: whether weight decays are written too.

    Attributes:
        lrs: all rates written so far, by name.
        last_momentum_values: the last momenta, by name.
        last_weight_decay_values: the last weight decays, by name.

    Raises:
        InvalidValueError: another interval (``lr-monitor-interval``).

    >>> monitor = LearningRateMonitor(logging_interval="step", log_momentum=True)
    """

    def __init__(
        self, logging_interval: str | None = None, log_momentum: bool = False, log_weight_decay: bool = False
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise InvalidValueError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): expected 'step', 'epoch' or None",
                code="lr-monitor-interval",
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the names.

        Raises:
            MisconfigurationException: there is no logger to write to (``lr-monitor-logger``), or two groups of an
                optimizer have one name (``lr-monitor-name``).
        """
        if not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationException(
                "LearningRateMonitor has nothing to write to: give the Trainer a logger, or leave the callback out",
                code="lr-monitor-logger",
            )
        watched = list(_watched(trainer))
        if self.log_momentum and not all(_has_momentum(item.optimizer) for item in watched):
            rank_zero_warn(
                "LearningRateMonitor(log_momentum=True): an optimizer has neither momentum nor betas; 0 is written",
                RuntimeWarning,
                code="lr-monitor-momentum",
            )
        names = [name for item in watched for name in item.names]
        self.lrs = {name: [] for name in names}
        self.last_momentum_values = {f"{name}-momentum": None for name in names}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in names}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is written by epoch."""
        if self.logging_interval != "step":
            self._write(trainer, "epoch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write what is written by step, on batches that have a row."""
        if self.logging_interval != "epoch" and is_row_due(trainer):
            self._write(trainer, "step")

    def _write(self, trainer: Trainer, interval: str) -> None:
        values: dict[str, float] = {}
        for item in _watched(trainer):
            if self.logging_interval is not None or item.interval in (None, interval):
                for group, name in zip(item.optimizer.param_groups, item.names, strict=True):
                    values.update(self._values(group, name))
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({k: torch.full((), v, device=device) for k, v in values.items()})
        write_row(trainer, values, trainer.num_updates)

    def _values(self, group: dict[str, Any], name: str) -> dict[str, float]:
        if "lr" not in group:
            return {}
        rate = float(group["lr"])
        if name not in self.lrs:  # a group was added: "lr-SGD" has become "lr-SGD/pg1"
            self.lrs[name] = self.lrs.pop(name.removesuffix("/pg1"), []) if name.endswith("/pg1") else []
        self.lrs[name].append(rate)
        values = {name: rate}
        if self.log_momentum:
            momentum = float(group["betas"][0] if "betas" in group else group.get("momentum", 0))
            values[f"{name}-momentum"] = self.last_momentum_values[f"{name}-momentum"] = momentum
        if self.log_weight_decay:
            decay = float(group.get("weight_decay", 0))
            values[f"{name}-weight_decay"] = self.last_weight_decay_values[f"{name}-weight_decay"] = decay
        return values


def _watched(trainer: Trainer) -> Iterator[_Watched]:
    """Optimizers with schedulers in the schedulers' order, then the others; groups may have been added."""
    seen: set[int] = set()
    classes: Counter[type] = Counter()

    def names_of(optimizer: Any, given: str | None = None) -> list[str]:
        name = given if given is not None else f"lr-{type(optimizer).__name__}"
        if given is None:
            classes[type(optimizer)] += 1
            if classes[type(optimizer)] > 1:
                name += f"-{classes[type(optimizer)] - 1}"
        return [name + suffix for suffix in _suffixes(optimizer, name)]

    for config in trainer.lr_scheduler_configs:
        optimizer = unwrap(getattr(config.scheduler, "optimizer", None))
        if optimizer is not None:
            seen.update(id(part) for part in (optimizer, *members_of(optimizer)))
            yield _Watched(optimizer, names_of(optimizer, config.name), config.interval)
    for optimizer in trainer.optimizers:
        for member in members_of(optimizer):
            if id(member) not in seen and id(optimizer) not in seen:
                yield _Watched(member, names_of(member), None)


def _suffixes(optimizer: Any, name: str) -> list[str]:
    """What is put behind the name of an optimizer for each of its groups."""
    groups = optimizer.param_groups
    if len(groups) == 1:
        return [f"/{groups[0]['name']}" if groups[0].get("name") else ""]
    labels = [group.get("name", f"pg{place}") for place, group in enumerate(groups, start=1)]
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        raise MisconfigurationException(
            f"LearningRateMonitor: parameter groups of {name} have the same 'name': {', '.join(twice)}; "
            "give each its own",
            code="lr-monitor-name",
        )
    return [f"/{label}" for label in labels]


def _has_momentum(optimizer: Any) -> bool:
    return all("momentum" in group or "betas" in group for group in optimizer.param_groups)
