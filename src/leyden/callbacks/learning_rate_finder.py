"""``LearningRateFinder``: raises the learning rate from update to update and suggests one from the losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from leyden.callback import Callback
from leyden.callbacks.attributes import holders_of, set_attribute
from leyden.errors import InvalidValueError, MisconfigurationException, MissingExtraError, warn
from leyden.optimization.coverage import group_names
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import unwrap

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.optimization.plan import Plan
    from leyden.trainer import Trainer

_ATTRIBUTES: Final = ("lr", "learning_rate")
_SMOOTHING: Final = 0.98


class LearningRateCurve:
    """What a sweep over learning rates has found.

    Attributes:
        mode: "exponential" or "linear".
        lr_min: the first learning rate.
        lr_max: the last one, if the sweep did not end early.
        num_training: updates that the sweep was to have.
        results: ``{"lr": [...], "loss": [...]}``; the losses are smoothed.
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode = mode
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.num_training = num_training
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}
        self._average = 0.0
        self._optimal_idx: int | None = None

    def rate(self, index: int) -> float:
        """The learning rate of an update."""
        part = (index + 1) / self.num_training if index else 0.0
        if self.mode == "linear":
            return self.lr_min + (self.lr_max - self.lr_min) * part
        return self.lr_min * math.pow(self.lr_max / self.lr_min, part)

    def add(self, loss: float) -> float:
        """Take in the loss of the next update; returns it smoothed: a weighted mean of all so far."""
        index = len(self.results["loss"])
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        smoothed = self._average / (1 - _SMOOTHING ** (index + 2))
        self.results["lr"].append(self.rate(index))
        self.results["loss"].append(smoothed)
        return smoothed

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The learning rate at which the loss falls fastest.

        Args:
            skip_begin: updates to leave out at the beginning, where the mean still settles.
            skip_end: updates to leave out at the end, where the loss explodes.

        Returns:
            None, with a warning, if fewer than two finite losses are left.
        """
        end = max(len(self.results["loss"]) - skip_end, 0)
        points = list(zip(self.results["lr"], self.results["loss"], strict=True))[skip_begin:end]
        kept = [(place, *point) for place, point in enumerate(points, skip_begin) if math.isfinite(point[1])]
        if len(kept) < 2:
            warn(
                f"no learning rate can be suggested from {len(kept)} points: the loss exploded early, or the sweep was "
                "short. Raise num_training_steps, or lower max_lr",
                code="lr-finder-short",
            )
            self._optimal_idx = None
            return None
        places, rates, losses = zip(*kept, strict=True)
        slopes = torch.gradient(torch.tensor(losses), spacing=(torch.tensor(rates),))[0]
        self._optimal_idx = places[int(slopes.argmin())]
        return self.results["lr"][self._optimal_idx]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw the losses over the learning rates; needs matplotlib.

        Args:
            suggest: whether to mark the suggestion.
            show: whether to open a window.
            ax: axes to draw on; None makes a figure.

        Returns:
            The figure.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            raise MissingExtraError("matplotlib", extra="examples") from None
        figure, ax = pyplot.subplots() if ax is None else (ax.get_figure(), ax)
        ax.plot(self.results["lr"], self.results["loss"])
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        if suggest and self.suggestion() is not None:
            assert self._optimal_idx is not None
            ax.plot(*(self.results[axis][self._optimal_idx] for axis in ("lr", "loss")), "ro")
        if show:
            pyplot.show()
        return figure


class LearningRateFinder(Callback):
    """Tries out learning rates when a fit begins, and sets the one at which the loss falls fastest.

    The learning rate of one optimizer rises from update to update (Smith, "Cyclical Learning Rates for Training Neural
    Networks", 2017, section 3.3); its groups all get the same. Everything that this changes is put back: see
    :meth:`~leyden.trials.Trials.trial`.

    Args:
        min_lr: the first learning rate.
        max_lr: the last one.
        num_training_steps: updates from the first to the last; when the data ends, it begins anew.
        mode: "exponential" (default: orders of magnitude) or "linear".
        early_stop_threshold: a loss so many times the best one ends the sweep; None never does.
        update_attr: whether to set what was found: the module's attribute, after which ``configure_optimizers`` is
            called again.
        attr_name: name of the attribute, also of ``hparams``; "" takes ``lr`` or ``learning_rate``.
        optimizer: which one of several: its index, "0.1" for a member of a Joint, its class's name, or the part of the
            module whose parameters it has, as "generator". Without ``attr_name`` its groups are set directly.

    Attributes:
        optimal_lr: the curve; its ``suggestion()`` is the learning rate.

    Raises:
        InvalidValueError: rates or number out of range, or an unknown mode.
        MisconfigurationException: no such attribute, or several optimizers and none was named; before any update.

    >>> LearningRateFinder(min_lr=1e-5, num_training_steps=50).optimal_lr is None
    True
    """

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
        *,
        optimizer: int | str | None = None,
    ) -> None:
        if mode not in ("exponential", "linear"):
            raise InvalidValueError(
                f"LearningRateFinder(mode={mode!r}) must be 'exponential' or 'linear'", code="lr-finder-mode"
            )
        if not 0 < min_lr < max_lr or num_training_steps < 1:
            raise InvalidValueError(
                f"LearningRateFinder(min_lr={min_lr}, max_lr={max_lr}, num_training_steps={num_training_steps}): "
                "expected 0 < min_lr < max_lr and at least one step",
                code="lr-finder-range",
            )
        self._curve = (mode, min_lr, max_lr, num_training_steps)
        self._num_training_steps = num_training_steps
        self._early_stop_threshold = early_stop_threshold
        self._update_attr = update_attr
        self._attr_name = attr_name
        self._optimizer = optimizer
        self.optimal_lr: LearningRateCurve | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the learning rate, unless the run only looks for mistakes, or goes on with that of a checkpoint."""
        if not trainer.fast_dev_run and trainer.ckpt_path is None:
            self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the learning rate and set it."""
        place, optimizer = chosen_optimizer(trainer.plan, self._optimizer)
        attribute = self._attribute(trainer, pl_module) if self._update_attr else None
        curve = self.optimal_lr = LearningRateCurve(*self._curve)
        trainer.trial(self._num_training_steps, [_Sweep(curve, optimizer, self._early_stop_threshold)])
        rate = curve.suggestion()
        if not self._update_attr or rate is None:
            return
        if attribute is not None:
            set_attribute(trainer, pl_module, attribute, rate)
            trainer.reconfigure_optimizers()
            optimizer = chosen_optimizer(trainer.plan, place)[1]
        if not any(group.get("initial_lr", group["lr"]) == rate for group in optimizer.param_groups):
            _set_rate(optimizer, rate, [config.scheduler for config in trainer.lr_scheduler_configs])
        pl_module.print(f"LearningRateFinder: the learning rate of optimizer {place} is {rate:.3g} from now on")

    def _attribute(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """The attribute to set; None where one of several optimizers is set directly."""
        names = (self._attr_name,) if self._attr_name else _ATTRIBUTES
        found = [name for name in names if holders_of(trainer, pl_module, name)]
        if found and (self._attr_name or self._optimizer is None):
            return found[0]
        if self._optimizer is not None and not self._attr_name:
            return None
        raise MisconfigurationException(
            f"LearningRateFinder sets what it finds, but neither {type(pl_module).__qualname__} nor its hparams have "
            f"{' or '.join(map(repr, names))}: make it an attribute that configure_optimizers reads, name another by "
            "attr_name=..., or pass update_attr=False",
            code="lr-finder-attribute",
        )


class _Sweep(Callback):
    """Raises one optimizer's learning rate and collects the losses before its updates."""

    def __init__(self, curve: LearningRateCurve, optimizer: Any, threshold: float | None) -> None:
        self._curve = curve
        self._optimizer = optimizer
        self._threshold = threshold
        self._loss: Tensor | None = None
        self._best = math.inf

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        scale = 1.0 if trainer.scaler is None else trainer.scaler.get_scale()
        self._loss = loss.detach() / scale

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        owner = unwrap(optimizer)
        if self._loss is None or not (owner is self._optimizer or self._optimizer in members_of(owner)):
            return
        for group in self._optimizer.param_groups:
            group["lr"] = self._curve.rate(len(self._curve.results["lr"]))
        smoothed = self._curve.add(float(self._loss))
        count = len(self._curve.results["lr"])
        if self._threshold is not None and count > 1 and not smoothed <= self._threshold * self._best:
            trainer.should_stop = True
        self._best = min(self._best, smoothed)


def chosen_optimizer(plan: Plan, given: int | str | None) -> tuple[str, Any]:
    """Find an optimizer by index, label, class name, or the part of the module that it has.

    Returns:
        Its label in the plan's table, and the optimizer.

    Raises:
        MisconfigurationException: none or several fit, with a list of all there are.
    """
    known = list(_labelled(plan))
    if given is None:
        fitting = known
    else:
        fitting = [entry for entry in known if str(given) == entry[0]]
        fitting = fitting or [entry for entry in known if given in (entry[2], entry[2].split(".")[0])]
        fitting = fitting or [entry for entry in known if given == type(entry[1]).__name__]
    if len(fitting) == 1 and hasattr(fitting[0][1], "param_groups"):
        return fitting[0][:2]
    shown = ", ".join(f"{label} ({type(optimizer).__name__} of {part or '*'})" for label, optimizer, part in known)
    wanted = "is not told which" if given is None else f"was given optimizer={given!r}, which fits {len(fitting)}"
    raise MisconfigurationException(
        f"LearningRateFinder works on one optimizer and {wanted}; there are: {shown or 'none'}. Pass optimizer=..., an "
        "index or a name of these",
        code="lr-finder-optimizer",
    )


def _labelled(plan: Plan) -> Iterator[tuple[str, Any, str]]:
    for index, optimizer in enumerate(plan.optimizers):
        members = members_of(optimizer)
        for place, member in enumerate(members):
            label = f"{index}.{place}" if len(members) > 1 else str(index)
            names = [name for group in group_names([member], plan.module)[0] for name in group]
            yield label, member, _common_part(names)


def _common_part(names: list[str]) -> str:
    """The part of the module that all parameters are in, as "generator.head"; "" if they have none in common."""
    common: list[str] = []
    for components in zip(*(name.split(".") for name in names), strict=False):
        if len(set(components)) > 1:
            break
        common.append(components[0])
    return ".".join(common)


def _set_rate(optimizer: Any, rate: float, schedulers: list[Any]) -> None:
    """Make ``rate`` the learning rate that schedules start from, where a warm-up keeps its share of it."""
    for group in optimizer.param_groups:
        share = group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
        group["lr"] = rate * float(share)
        if "initial_lr" in group:
            group["initial_lr"] = rate
    for scheduler in schedulers:
        if unwrap(getattr(scheduler, "optimizer", None)) is optimizer and hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate] * len(scheduler.base_lrs)
