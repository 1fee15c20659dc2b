"""``configure_optimizers() -> Plan``: every legal form, every error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from leyden import optimization as lazily
from leyden.errors import (
    InvalidTypeError,
    InvalidValueError,
    MisconfigurationException,
    MissingKeyError,
    OptimizerIdxError,
    warn,
)
from leyden.optimization.coverage import Coverage, GroupNames, coverage_of, group_names
from leyden.optimization.joint import Joint, members_of
from leyden.optimization.optimizer import NoOptimizer, is_handle, unwrap
from leyden.optimization.schedulers import LRSchedulerConfig, is_plateau

_FORMS = """configure_optimizers may return
  - an optimizer
  - a list or tuple of optimizers, which take turns on every batch
  - ([optimizer, ...], [scheduler or scheduler dict, ...]), where the second item may also be one scheduler or dict
  - {"optimizer": optimizer, "lr_scheduler": scheduler or scheduler dict, "monitor": name, "frequency": n}
  - a list or tuple of such dicts
  - Joint([optimizer, ...]) in place of any optimizer: one backward, several steps
  - None, to train without an optimizer"""

_OPTIMIZER_INTERFACE = ("step", "state_dict", "load_state_dict", "param_groups", "state", "defaults")
_OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor", "frequency")
_SCHEDULER_KEYS = tuple(LRSchedulerConfig.__dataclass_fields__)
_KEYS_OF_AUTOMATIC = ("reduce_on_plateau", "monitor", "strict")


@dataclass(frozen=True)
class Plan:
    """What ``configure_optimizers`` means, normalised and checked. ``print(plan)`` shows it as a table.

    Attributes:
        optimizers: the users' optimizers in configured order, Joints included.
        schedulers: all schedulers, in configured order.
        frequencies: batches in a row for each optimizer; empty if all are active on every batch.
        automatic: whether leyden runs the updates.
        module: whose parameters the optimizers have.
        accumulate_grad_batches: micro-batches of a window, or a schedule ``{epoch: micro-batches}``.
        gradient_clip_val: greatest norm or value; None clips nothing.
        gradient_clip_algorithm: "norm" or "value".
    """

    optimizers: tuple[Any, ...] = ()
    schedulers: tuple[LRSchedulerConfig, ...] = ()
    frequencies: tuple[int, ...] = ()
    automatic: bool = True
    module: nn.Module = field(default_factory=nn.Module, repr=False)
    accumulate_grad_batches: int | Mapping[int, int] = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None

    # Read anew each time: add_param_group and freezing change in the middle of a run what they say.

    @property
    def names(self) -> tuple[GroupNames, ...]:
        """For each optimizer the names of its parameters, group by group, as they are now."""
        return group_names(self.optimizers, self.module)

    @property
    def coverage(self) -> Coverage:
        """Which parameters are in no optimizer, in two, frozen, as they are now."""
        return coverage_of(self.optimizers, self.module)

    def __str__(self) -> str:
        return lazily.table_of(self)


def build_plan(
    returned: Any,
    *,
    module: nn.Module,
    automatic: bool = True,
    custom_scheduler_step: bool = False,
    accumulate_grad_batches: int | Mapping[int, int] = 1,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
) -> Plan:
    """Normalise and check what ``configure_optimizers`` returned.

    Args:
        returned: the value.
        module: whose parameters give the names.
        automatic: whether leyden runs the updates; manual mode checks less of the schedulers.
        custom_scheduler_step: whether ``lr_scheduler_step`` is overridden, so that schedulers of any class may come.
        accumulate_grad_batches: shown in the table.
        gradient_clip_val: shown in the table.
        gradient_clip_algorithm: shown in the table.

    Raises:
        MisconfigurationException: naming the offending item; subclasses say which 1.x or 2.x class it stands for.

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> plan = build_plan([torch.optim.SGD(net.parameters(), lr=0.1)], module=net)
    >>> plan.names
    ((('weight', 'bias'),),)
    """
    optimizers, schedulers, frequencies = _parse(returned)
    _check_each_once(optimizers)
    indices = {id(member): i for i, o in enumerate(optimizers) for member in (o, *members_of(o))}
    check = _SchedulerCheck(indices, automatic=automatic, any_class=custom_scheduler_step)
    configs = tuple(check(item, monitor) for item, monitor in schedulers)
    return Plan(
        optimizers=tuple(optimizers),
        schedulers=configs,
        frequencies=tuple(frequencies) if automatic and len(optimizers) > 1 else (),
        automatic=automatic,
        module=module,
        accumulate_grad_batches=accumulate_grad_batches,
        gradient_clip_val=gradient_clip_val,
        gradient_clip_algorithm=gradient_clip_algorithm,
    )


def with_optimizers(plan: Plan, optimizers: Sequence[Any], module: nn.Module) -> Plan:
    """The same plan for other optimizers, as assigned to ``trainer.optimizers`` in the middle of a run."""
    raw = tuple(unwrap(optimizer) for optimizer in optimizers)
    _check_each_once(raw)
    frequencies = plan.frequencies if len(raw) == len(plan.optimizers) else ()
    return replace(plan, optimizers=raw, module=module, frequencies=frequencies)


def _check_each_once(optimizers: Sequence[Any]) -> None:
    places: dict[int, str] = {}
    for index, optimizer in enumerate(optimizers):
        for place, member in enumerate(members_of(optimizer)):
            here = f"{index}, member {place} of a Joint" if isinstance(optimizer, Joint) else str(index)
            before = places.setdefault(id(member), here)
            if before != here:
                raise InvalidValueError(
                    f"{type(member).__name__} is there twice, as optimizer {before} and as optimizer {here}, so "
                    "it would be stepped twice; return it once. Several schedulers of one optimizer are "
                    "returned as ([optimizer], [scheduler, ...])",
                    code="plan-optimizer-twice",
                )


class _Parsed(NamedTuple):
    optimizers: list[Any]
    schedulers: list[tuple[Any, str | None]]  # each with the monitor that the dict around it names
    frequencies: list[int]


def _parse(returned: Any) -> _Parsed:
    if returned is None:
        warn(
            "configure_optimizers returned None: the run goes on without an optimizer and updates nothing",
            code="plan-no-optimizer",
        )
        return _Parsed([NoOptimizer()], [], [])
    if _is_optimizer(returned):
        return _Parsed([unwrap(returned)], [], [])
    if _is_pair(returned):
        optimizers, schedulers = returned
        return _Parsed([unwrap(o) for o in optimizers], [(s, None) for s in _scheduler_list(schedulers)], [])
    if isinstance(returned, Mapping):
        single = _from_dict(returned)
        return _Parsed(single.optimizers, single.schedulers, [])
    if isinstance(returned, list | tuple) and returned:
        if all(isinstance(item, Mapping) for item in returned):
            return _from_dicts(returned)
        if all(_is_optimizer(item) for item in returned):
            return _Parsed([unwrap(item) for item in returned], [], [])
    raise MisconfigurationException(f"{_offence(returned)}. {_FORMS}", code="plan-form")


def _is_optimizer(value: Any) -> bool:
    return is_handle(value) or all(hasattr(value, name) for name in _OPTIMIZER_INTERFACE)


def _is_pair(returned: Any) -> bool:
    """Whether this is ``([optimizers], schedulers)``: only a list in first place says so, a tuple does not."""
    if not isinstance(returned, list | tuple) or len(returned) != 2 or not isinstance(returned[0], list):
        return False
    return bool(returned[0]) and all(_is_optimizer(item) for item in returned[0])


def _scheduler_list(schedulers: Any) -> list[Any]:
    if isinstance(schedulers, list | tuple):
        return list(schedulers)
    if schedulers is None:
        raise MisconfigurationException(
            f"configure_optimizers returned None in place of the schedulers; leave it out or return []. {_FORMS}",
            code="plan-form",
        )
    return [schedulers]


def _offence(returned: Any) -> str:
    """The item that makes a return value illegal, in words."""
    if not isinstance(returned, list | tuple):
        return f"configure_optimizers returned {type(returned).__name__} {returned!r}"
    if not returned:
        return f"configure_optimizers returned an empty {type(returned).__name__}"
    kinds = [type(item).__name__ for item in returned]
    for place, item in enumerate(returned):
        if isinstance(item, list | tuple):
            bad = [type(part).__name__ for part in item if not _is_optimizer(part)]
            what = f"holds {bad[0]}" if bad else "is a sequence of its own"
            return f"item {place} of what configure_optimizers returned ({type(item).__name__}) {what}"
        if not _is_optimizer(item) and not isinstance(item, Mapping):
            return f"item {place} of what configure_optimizers returned is {type(item).__name__}, not an optimizer"
    return f"configure_optimizers returned a mix: {', '.join(kinds)}"


def _from_dict(config: Mapping[str, Any], place: str = "the dict") -> _Parsed:
    _warn_of_unknown_keys(f"{place} that configure_optimizers returned", config, _OPTIMIZER_KEYS)
    if "optimizer" not in config:
        raise MissingKeyError(
            f"{place} that configure_optimizers returned has no key 'optimizer'; its keys are {list(config)}",
            code="plan-no-optimizer-key",
        )
    optimizer = config["optimizer"]
    if isinstance(optimizer, list | tuple) and optimizer and all(_is_optimizer(item) for item in optimizer):
        optimizer = optimizer[0] if len(optimizer) == 1 else Joint(optimizer)
    if not _is_optimizer(optimizer):
        raise MisconfigurationException(
            f"{place} that configure_optimizers returned has {type(optimizer).__name__} under 'optimizer', not an "
            f"optimizer. {_FORMS}",
            code="plan-form",
        )
    scheduler = config.get("lr_scheduler")
    if isinstance(scheduler, list | tuple):
        raise MisconfigurationException(
            f"{place} that configure_optimizers returned has a {type(scheduler).__name__} under 'lr_scheduler'; it "
            "takes one scheduler or one scheduler dict. Several are returned as ([optimizer], [scheduler, ...])",
            code="plan-form",
        )
    schedulers = [] if scheduler is None else [(scheduler, config.get("monitor"))]
    return _Parsed([unwrap(optimizer)], schedulers, [])


def _warn_of_unknown_keys(what: str, config: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [key for key in config if key not in known]
    if not unknown:
        return
    hints = ""
    for key in unknown:
        for meant in difflib.get_close_matches(str(key), [name for name in known if name not in config], n=1):
            thing = "the scheduler under " if meant == "lr_scheduler" else ""
            hints += f"; {thing}{key!r} is not used: did you mean {meant!r}?"
    warn(
        f"{what} has keys that mean nothing there: {unknown}; known are {list(known)}{hints}",
        code="plan-unknown-key",
        category=RuntimeWarning,
    )


def _from_dicts(configs: Sequence[Mapping[str, Any]]) -> _Parsed:
    parsed = [_from_dict(config, f"dict {place}") for place, config in enumerate(configs)]
    given = [config["frequency"] for config in configs if config.get("frequency") is not None]
    if given and len(given) != len(configs):
        raise InvalidValueError(
            f"{len(given)} of the {len(configs)} dicts that configure_optimizers returned have a 'frequency'; give "
            "it to all of them or to none",
            code="plan-frequency",
        )
    for place, frequency in enumerate(given):
        _check_frequency(frequency, f"the 'frequency' of dict {place}")
    # A bare ReduceLROnPlateau takes its monitor from the dict around it only where that dict stands alone.
    schedulers: list[tuple[Any, str | None]] = [(s, None) for part in parsed for s, _ in part.schedulers]
    return _Parsed([part.optimizers[0] for part in parsed], schedulers, given)


def _check_frequency(frequency: Any, what: str) -> None:
    if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 1:
        raise MisconfigurationException(f"{what} is {frequency!r}; it must be an int >= 1", code="plan-frequency")


class _SchedulerCheck:
    """Turns one returned scheduler or scheduler dict into a checked config."""

    def __init__(self, indices: Mapping[int, int], *, automatic: bool, any_class: bool) -> None:
        self._indices = indices
        self._automatic = automatic
        self._any_class = any_class

    def __call__(self, item: Any, monitor: str | None) -> LRSchedulerConfig:
        if isinstance(item, Mapping):
            config = self._from_dict(item)
        else:
            config = LRSchedulerConfig(item, reduce_on_plateau=is_plateau(item), monitor=monitor)
        self._check_class(config.scheduler)
        _check_frequency(config.frequency, f"the 'frequency' of the scheduler {type(config.scheduler).__name__}")
        if self._automatic:
            self._check_automatic(config)
        config.opt_idx = self._owner(config)
        return config

    def _from_dict(self, item: Mapping[str, Any]) -> LRSchedulerConfig:
        _warn_of_unknown_keys("a scheduler dict", item, _SCHEDULER_KEYS)
        if item.get("scheduler") is None:
            raise MissingKeyError(
                f"a scheduler dict must have the key 'scheduler' with a scheduler; its keys are {list(item)}",
                code="plan-no-scheduler-key",
            )
        ignored = () if self._automatic else tuple(key for key in _KEYS_OF_AUTOMATIC if key in item)
        if ignored:
            warn(
                f"the keys {list(ignored)} of a scheduler dict are ignored in manual optimization, where you step the "
                "scheduler yourself",
                code="plan-manual-scheduler",
                category=RuntimeWarning,
            )
        known = {key: value for key, value in item.items() if key in _SCHEDULER_KEYS and key not in ignored}
        return LRSchedulerConfig(**{"reduce_on_plateau": is_plateau(item["scheduler"]), **known})

    def _check_class(self, scheduler: Any) -> None:
        name = type(scheduler).__name__
        if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
            raise InvalidTypeError(
                f"{name} is no scheduler: it has no state_dict and load_state_dict", code="plan-scheduler-class"
            )
        if not self._automatic or self._any_class or isinstance(scheduler, LRScheduler) or is_plateau(scheduler):
            return
        raise MisconfigurationException(
            f"{name} is not one of torch's schedulers, so how to step it is not known; override lr_scheduler_step",
            code="plan-scheduler-class",
        )

    def _check_automatic(self, config: LRSchedulerConfig) -> None:
        name = type(config.scheduler).__name__
        if config.interval not in ("step", "epoch"):
            raise MisconfigurationException(
                f"the 'interval' of {name} is {config.interval!r}; it must be 'step' or 'epoch'", code="plan-interval"
            )
        if config.reduce_on_plateau and config.monitor is None:
            raise MisconfigurationException(
                f"{name} must know which value to watch: return it as "
                '{"scheduler": scheduler, "monitor": "name of a logged value"}',
                code="plan-monitor",
            )
        if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch":
            warn(
                "OneCycleLR counts updates but is stepped once per epoch here; give it as "
                '{"scheduler": scheduler, "interval": "step"}',
                code="plan-one-cycle",
                category=RuntimeWarning,
            )

    def _owner(self, config: LRSchedulerConfig) -> int | None:
        optimizer = getattr(config.scheduler, "optimizer", None)
        if optimizer is None:
            return config.opt_idx
        index = self._indices.get(id(unwrap(optimizer)))
        name = type(config.scheduler).__name__
        if index is None:
            raise MisconfigurationException(
                f"{name} belongs to an optimizer ({type(unwrap(optimizer)).__name__}) that configure_optimizers did "
                "not return; build it on one that is returned",
                code="plan-foreign-scheduler",
            )
        if config.opt_idx not in (None, index):
            raise MisconfigurationException(
                f"{name} was given opt_idx {config.opt_idx}, but it was built on optimizer {index}",
                code="plan-opt-idx",
            )
        return index


def check_optimizer_idx(plan: Plan, *, takes_optimizer_idx: bool, takes_any: bool) -> None:
    """Refuse a ``training_step`` that does not fit the number of optimizers.

    Args:
        plan: the optimizers.
        takes_optimizer_idx: ``training_step`` names ``optimizer_idx``.
        takes_any: ``training_step`` has ``*args``, so it takes whatever comes.

    Raises:
        OptimizerIdxError: naming the remedies.
    """
    count = len(plan.optimizers)
    if plan.automatic and count > 1 and not takes_optimizer_idx and not takes_any:
        raise OptimizerIdxError(
            f"configure_optimizers returned {count} optimizers, and training_step does not say what to do with them. "
            "Either let them take turns: training_step(self, batch, batch_idx, optimizer_idx). Or update them "
            "together after one backward: return Joint([...]) from configure_optimizers. Or step them yourself: set "
            "self.automatic_optimization = False in __init__",
            code="optimizer-idx-missing",
        )
    if not plan.automatic and count > 1 and takes_optimizer_idx:
        raise OptimizerIdxError(
            "training_step takes optimizer_idx, but automatic_optimization is False: in manual optimization it runs "
            "once per batch. Remove the argument, or set automatic_optimization = True",
            code="optimizer-idx-manual",
        )
