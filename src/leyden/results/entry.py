"""One logged key: its options, its last value and its reduction."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from leyden.errors import InvalidValueError
from leyden.results.options import Options, unloggable, wrong_shape
from leyden.results.reduce import Number, build_reduction

#: ``reduce(tensor, op, group)`` over processes: a tensor of shape ``()``, op "mean", "sum", "min" or "max".
#: It may work in place, and moves to its own device what it must.
Reduce = Callable[[Tensor, str, Any], Tensor]

#: Counts of calls in a ``torchmetrics.Metric``, which say how values are merged.
_COUNTS = ("_update_count", "_num_vals_seen")


class MetricObject(Protocol):
    """What of a ``torchmetrics.Metric`` is used."""

    def update(self, *args: Any) -> None:
        """Take a batch in."""

    def compute(self) -> Any:
        """The value over all batches, a tensor."""

    def reset(self) -> None:
        """Start anew."""


class Entry:
    """One (hook, name, dataloader) and what was logged under it in this epoch.

    Args:
        hook: name of the hook that logs.
        name: key that the user gave.
        given: options as the user gave them; every call is compared with them. None matches no call.
        options: the same with defaults filled in.
        suffix: of the key, in an evaluation of several dataloaders.
        reduce: reduces over processes; None where this key is not synchronised.

    Attributes:
        source: what the previous value was, if values like it can be read at once: the dtype of a CPU tensor,
            or the type of a Python number. None sends every value the long way.
        last: the last value; None if there is none to be shown.
        fresh: whether anything was logged since the epoch began.
        settled: the epoch's value, once it is fixed.
    """

    __slots__ = (
        "_dtype",
        "_reduce",
        "add",
        "epoch_key",
        "fresh",
        "given",
        "hook",
        "key",
        "last",
        "metric",
        "name",
        "on_epoch",
        "on_step",
        "options",
        "reduction",
        "settled",
        "source",
        "step_key",
        "weighted",
    )

    def __init__(
        self,
        hook: str,
        name: str,
        *,
        given: Options | None,
        options: Options,
        suffix: str = "",
        reduce: Reduce | None = None,
    ) -> None:
        self.hook = hook
        self.name = name
        self.given = given
        self.options = options
        self.on_step = bool(options.on_step)
        self.on_epoch = bool(options.on_epoch)
        self.weighted = self.on_epoch and options.reduce_fx == "mean"
        forked = self.on_step and self.on_epoch
        self.key = name + suffix
        self.step_key = f"{name}_step{suffix}" if forked else self.key
        self.epoch_key = f"{name}_epoch{suffix}" if forked else self.key
        self.reduction = build_reduction(options.reduce_fx)
        self.add = self.reduction.add
        self.source: torch.dtype | type | None = None
        self.last: Number | None = None
        self.fresh = False
        self.settled: Tensor | None = None
        self.metric: MetricObject | None = None
        self._reduce = reduce
        self._dtype: torch.dtype | None = None

    @property
    def is_collective(self) -> bool:
        """Whether all processes must compute the epoch's value at the same time."""
        return self.on_epoch and (self._reduce is not None or self.metric is not None)

    def take(self, value: Any, weight: Number) -> None:
        """Take a value in the long way: check it, convert it, leave it on its device, synchronise the step.

        Raises:
            InvalidValueError: the value cannot be logged (``log-value``, ``log-shape``, ``log-dict``), or a
                metric object and a plain value share a name (``log-mixed``).
        """
        metric = is_metric(value)
        if metric if self.metric is None and self.fresh else not metric and self.metric is not None:
            raise InvalidValueError(
                f"self.log({self.name!r}, ...) was called in {self.hook} with a metric object and with a "
                "plain value; use two names",
                code="log-mixed",
            )
        if metric:
            self._take_metric(value)
            return
        number = self._convert(value)
        self.last = number
        self.fresh = True
        self.settled = None
        if self.options.enable_graph and isinstance(value, Tensor):
            self.last = value.reshape(()).clone()
        if self._reduce is not None and self.on_step:
            self.last = self._over_processes(number)
        if not self.on_epoch:
            return
        if isinstance(number, Tensor):
            self.reduction.add_later(number, weight)
        else:
            self.reduction.add(number, weight)

    def step_value(self) -> Tensor | None:
        """The last value as a tensor of shape ``()``; None if a metric object has none for this step."""
        return None if self.last is None else self._tensor(self.last)

    def step_number(self) -> Number | None:
        """The same for a logger's row: a Python number, where that says the same as the tensor made from it."""
        exact = type(self.last) is float and isinstance(self.source, torch.dtype)
        return self.last if exact else self.step_value()

    def epoch_value(self) -> Tensor:
        """The value of the epoch so far, a tensor of shape ``()``."""
        if self.settled is not None:
            return self.settled
        if self.metric is None:
            sync = None if self._reduce is None else self._over_processes
            return self._tensor(self.reduction.result(sync))
        value = self.metric.compute()
        if not isinstance(value, Tensor):
            raise InvalidValueError(
                f"compute() of the metric logged as {self.name!r} returned {type(value).__name__}; "
                "a logged metric must return a tensor: log its parts one by one",
                code="log-value",
            )
        return value.detach()

    def settle(self) -> None:
        """Fix the epoch's value, on all processes at the same time."""
        if self.settled is None:
            self.settled = self.epoch_value()

    def restart(self) -> None:
        """Begin a new epoch."""
        self.fresh = False
        self.last = None
        self.settled = None
        self.reduction.clear()
        if self.metric is not None:
            self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """What the epoch has so far, in plain types and tensors. A metric object keeps its own state."""
        is_plain = self.metric is None and isinstance(self.last, Tensor)
        return {
            "options": self.options._replace(sync_dist_group=None)._asdict(),
            "dtype": "float64" if self._dtype is torch.float64 else "float32",
            "last": self.last.item() if is_plain else self.last,  # type: ignore[union-attr]
            "reduction": self.reduction.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._dtype = torch.float64 if state["dtype"] == "float64" else torch.float32
        self.last = state["last"]
        self.fresh = True
        self.reduction.load(state["reduction"])

    def _take_metric(self, metric: MetricObject) -> None:
        self.metric = metric
        # what calling the metric returned last; update() alone leaves no value of the step
        value = getattr(metric, "_forward_cache", None)
        self.last = value.detach() if isinstance(value, Tensor) else None
        self.fresh = True
        self.settled = None

    def _convert(self, value: Any) -> Number:
        if isinstance(value, Tensor):
            return self._convert_tensor(value)
        number = _python_number(value)
        if number is None:
            raise unloggable(self.name, value)
        self._widen(_default_dtype())
        if self._reduce is None and type(value) in (float, int, bool):
            self.source = type(value)
        return number

    def _convert_tensor(self, value: Tensor) -> Number:
        if value.numel() != 1:
            raise wrong_shape(self.name, value)
        if value.is_complex():
            raise unloggable(self.name, value)
        self._widen(value.dtype)
        tensor = value.detach()
        if value.is_cpu:
            if type(value) is Tensor and self._reduce is None and not self.options.enable_graph:
                self.source = value.dtype
            number: float = tensor.item()
            return number
        # a copy: the user may go on with `loss += ...`, and buffers and parameters change under their names
        return tensor.reshape(()).to(self._dtype, copy=True)

    def _widen(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            dtype = _default_dtype()
        self._dtype = dtype if self._dtype is None else torch.promote_types(self._dtype, dtype)

    def _tensor(self, number: Number) -> Tensor:
        if isinstance(number, Tensor):
            return number if self.metric is not None else number.to(self._dtype)
        return torch.tensor(number, dtype=self._dtype)

    def _over_processes(self, number: Number) -> Tensor:
        assert self._reduce is not None
        copy = number.clone() if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)
        return self._reduce(copy, self.options.reduce_fx, self.options.sync_dist_group)


def is_metric(value: object) -> TypeGuard[MetricObject]:
    """Whether ``value`` behaves like a ``torchmetrics.Metric``; torchmetrics itself is never imported."""
    if isinstance(value, Tensor | float | int) or hasattr(value, "items"):  # a MetricCollection has items
        return False
    return all(callable(getattr(value, method, None)) for method in ("update", "compute", "reset"))


def metric_objects(module: nn.Module) -> dict[str, nn.Module]:
    """The metric objects that a module holds, by name, those inside of others and of plain lists and dicts included."""
    found = {}
    for name, part in module.named_modules():
        if "_defaults" in vars(part):
            found[name] = part
        for key, value in vars(part).items():
            if key[0] != "_" and isinstance(value, list | tuple | dict):
                for index, item in value.items() if isinstance(value, dict) else enumerate(value):
                    if isinstance(item, nn.Module) and "_defaults" in vars(item):
                        found[f"{name}.{key}[{index!r}]"] = item
    return found


def states_of(metrics: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """What metric objects have accumulated: no part of a module's ``state_dict``."""
    states = {}
    for name, metric in metrics.items():
        values = vars(metric)
        kept = [key for key in values if key in values["_defaults"] or isinstance(values[key], Tensor)]
        states[name] = {key: _copy(values[key]) for key in (*kept, *(key for key in _COUNTS if key in values))}
    return states


def load_states(metrics: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]]) -> None:
    """Give metric objects back what :func:`states_of` has returned, on their devices."""
    for name in states.keys() & metrics.keys():
        for key, value in states[name].items():
            setattr(metrics[name], key, _copy(value, metrics[name].device))


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, list):
        return [_copy(part, device) for part in value]
    return value.detach().to(device or value.device, copy=True) if isinstance(value, Tensor) else value


def _python_number(value: Any) -> float | None:
    """A real number, numpy's scalars included, as int or float; None for anything else."""
    if isinstance(value, float | int):
        return value
    return float(value) if isinstance(value, numbers.Real) else None


def _default_dtype() -> torch.dtype:
    # half precision has too few digits for a sum over an epoch
    dtype = torch.get_default_dtype()
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
