"""When each learning-rate scheduler steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from leyden.errors import MisconfigurationException, warn
from leyden.optimization.clocks import Clocks, Verdict
from leyden.optimization.turns import Turn, Turns


@dataclass(eq=False)
class LRSchedulerConfig:
    """A scheduler and when it steps; answers ``config.interval`` and ``config["interval"]`` alike.

    Attributes:
        scheduler: the user's object.
        name: what a learning-rate monitor calls it; None lets the monitor choose.
        interval: "epoch" or "step".
        frequency: every how many epochs, or batches of an epoch, it steps.
        reduce_on_plateau: whether ``step`` wants the monitored value.
        monitor: name of the logged value that it wants.
        strict: whether a missing value is an error; else the scheduler is left out this time, with a warning.
        opt_idx: index of its optimizer, None if it belongs to none.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True
    opt_idx: int | None = None

    def __getitem__(self, key: str) -> Any:
        return dict(self.items())[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a field by name, as a dict would answer."""
        return getattr(self, key) if key in self else default

    def keys(self) -> list[str]:
        """Names of the fields."""
        return [field.name for field in fields(self)]

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of the fields."""
        return [(key, getattr(self, key)) for key in self.keys()]

    def __eq__(self, other: object) -> bool:
        """Compare with a config or a plain dict, without ``opt_idx``, which not every version had."""
        if not isinstance(other, LRSchedulerConfig | Mapping):
            return NotImplemented
        mine, theirs = dict(self.items()), dict(other.items())
        mine.pop("opt_idx")
        theirs.pop("opt_idx", None)
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]


def is_plateau(scheduler: Any) -> bool:
    """Whether a scheduler is torch's ``ReduceLROnPlateau``."""
    return isinstance(scheduler, ReduceLROnPlateau)


@final
class Schedulers:
    """Steps the schedulers of automatic optimization.

    ::

        after a batch:                  interval "step", then on the epoch's last batch interval "epoch"
        after the batch's validation:   metric-driven ones of interval "step"
        after on_train_epoch_end:       metric-driven ones of interval "epoch"

    Args:
        configs: all schedulers, in configured order.
        turns: the optimizers; a scheduler rests while its optimizer does.
        clocks: tells epoch and batch.
        metrics: returns the values that metric-driven schedulers may ask for.
        lr_scheduler_step: the user's override ``(scheduler, metric)``, or None.
    """

    def __init__(
        self,
        configs: Sequence[LRSchedulerConfig],
        *,
        turns: Turns,
        clocks: Clocks,
        metrics: Callable[[], Mapping[str, Tensor]],
        lr_scheduler_step: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self._turns = turns
        self._clocks = clocks
        self._metrics = metrics
        self._step = lr_scheduler_step or default_lr_scheduler_step
        self._by_step = [c for c in configs if c.interval == "step" and not c.reduce_on_plateau]
        self._by_epoch = [c for c in configs if c.interval == "epoch" and not c.reduce_on_plateau]
        self._plateau_by_step = [c for c in configs if c.interval == "step" and c.reduce_on_plateau]
        self._plateau_by_epoch = [c for c in configs if c.interval == "epoch" and c.reduce_on_plateau]
        self.after_every_batch = bool(self._by_step)
        self.after_every_validation = bool(self._plateau_by_step)

    def after_batch(self, batch_idx: int, *, closes: bool, is_last: bool) -> None:
        """Step what a batch steps. ``closes``: its window closed; ``is_last``: the epoch's batches are at an end."""
        if closes:
            for config in self._due(self._by_step, batch_idx):
                if not self._was_skipped(config):
                    self._step(config.scheduler, None)
        if is_last:
            for config in self._due(self._by_epoch, self._clocks.epoch):
                self._step(config.scheduler, None)

    def plateau_after_batch(self, batch_idx: int) -> None:
        """Step the metric-driven schedulers of interval "step"; called on batches that close a window."""
        for config in self._due(self._plateau_by_step, batch_idx):
            if not self._was_skipped(config):
                self._step_on_metric(config)

    def plateau_after_epoch(self, *, is_complete: bool) -> None:
        """Step the metric-driven schedulers of interval "epoch", unless the epoch was left early."""
        if is_complete:
            for config in self._due(self._plateau_by_epoch, self._clocks.epoch):
                self._step_on_metric(config)

    def _due(self, configs: Sequence[LRSchedulerConfig], count: int) -> Iterator[LRSchedulerConfig]:
        if not configs:
            return
        active = {turn.index for turn in self._turns.on_batch(max(self._clocks.micro_batches - 1, 0))}
        for config in configs:
            if (count + 1) % config.frequency == 0 and (config.opt_idx is None or config.opt_idx in active):
                yield config

    def _was_skipped(self, config: LRSchedulerConfig) -> bool:
        if config.opt_idx is None:
            return False
        turn: Turn = self._turns[config.opt_idx]
        return turn.verdict in (Verdict.NON_FINITE, Verdict.NO_LOSS)

    def _step_on_metric(self, config: LRSchedulerConfig) -> None:
        values = self._metrics()
        if config.monitor is not None and config.monitor in values:
            self._step(config.scheduler, values[config.monitor])
            return
        known = ", ".join(map(repr, values)) or "nothing was logged"
        name = type(config.scheduler).__name__
        text = f"{name} wants the value {config.monitor!r}, which was not logged; available: {known}"
        if config.strict:
            raise MisconfigurationException(
                f"{text}. Log it with self.log({config.monitor!r}, ...), or set 'strict': False in the scheduler's "
                "dict, or a 'frequency' that matches the validations",
                code="scheduler-monitor",
            )
        warn(f"{text}; the scheduler is left out this time", code="scheduler-monitor", category=RuntimeWarning)


def default_lr_scheduler_step(scheduler: Any, metric: Any) -> None:
    """Step a scheduler, with its metric if it wants one."""
    if metric is None:
        scheduler.step()
    else:
        scheduler.step(metric)
