"""The options of ``self.log``: their defaults by hook, what is refused, and the errors for bad values."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from torch import Tensor

from leyden.errors import InvalidTypeError, InvalidValueError, MisconfigurationException, warn
from leyden.hooks.events import LogRule
from leyden.results.reduce import Number, reduction_name

LOADER_SUFFIX: Final = "/dataloader_idx_"


class Options(NamedTuple):
    """The options of one key, in the order in which ``Results.log`` packs them.

    As the user gave them, then with their defaults filled in.
    """

    prog_bar: bool
    logger: bool | None
    on_step: bool | None
    on_epoch: bool | None
    reduce_fx: Any
    enable_graph: bool
    sync_dist: bool
    sync_dist_group: Any
    add_dataloader_idx: bool
    metric_attribute: str | None
    rank_zero_only: bool


_FIRST_ERA_OPTIONS: Final = frozenset({"tbptt_reduce_fx", "tbptt_pad_token", "sync_dist_op"})
_OPTIONAL: Final = frozenset({"logger", "on_step", "on_epoch"})
_BOOLEAN: Final = frozenset({"prog_bar", "enable_graph", "sync_dist", "add_dataloader_idx", "rank_zero_only"})


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of ``log`` as this version knows them; those of 1.5 are dropped with a warning."""
    if not options or not _FIRST_ERA_OPTIONS.intersection(options):
        return options
    options = dict(options)
    for name in _FIRST_ERA_OPTIONS.intersection(options):
        value = options.pop(name)
        warn(
            f"self.log(..., {name}=...) is an option of 1.5 and has no effect",
            code="log-old-option",
            category=DeprecationWarning,
        )
        if name == "sync_dist_op" and value is not None:
            options.setdefault("reduce_fx", value)
    return options


def check_options(name: str, options: dict[str, Any]) -> None:
    """Say which option of ``log`` there is not.

    Raises:
        InvalidTypeError: naming it, and those that there are (``log-option``).
    """
    known = {*Options._fields, "batch_size"}
    for option in options.keys() - known - _FIRST_ERA_OPTIONS:
        raise InvalidTypeError(
            f"self.log({name!r}, ...) has no option {option!r}; it has {', '.join(sorted(known))}", code="log-option"
        )


def resolve_options(hook: str, name: str, given: Options, rule: LogRule) -> Options:
    """Check the options of a call and fill in the defaults of its hook.

    Raises:
        InvalidTypeError: an option is not a bool (``log-option``).
        MisconfigurationException: a level that the hook has not (``log-level``), no level at all
            (``log-nowhere``), an unknown reduction (``log-reduce-fx``).
    """
    for option, value in zip(Options._fields, given, strict=True):
        checked = option in _BOOLEAN or (option in _OPTIONAL and value is not None)
        if checked and not isinstance(value, int):  # a bool is an int; 0 and 1 are seen in the wild
            expected = "True, False or None" if option in _OPTIONAL else "True or False"
            raise InvalidTypeError(
                f"self.log({name!r}, ..., {option}={value!r}): expected {expected}", code="log-option"
            )
    on_step = rule.on_step if given.on_step is None else bool(given.on_step)
    on_epoch = rule.on_epoch if given.on_epoch is None else bool(given.on_epoch)
    _check_levels(hook, name, on_step, on_epoch, rule)
    return given._replace(
        prog_bar=bool(given.prog_bar),
        logger=True if given.logger is None else bool(given.logger),
        on_step=on_step,
        on_epoch=on_epoch,
        reduce_fx=reduction_name(given.reduce_fx),
    )


def _check_levels(hook: str, name: str, on_step: bool, on_epoch: bool, rule: LogRule) -> None:
    for option, wanted, level in (("on_step", on_step, "step"), ("on_epoch", on_epoch, "epoch")):
        if wanted and level not in rule.allowed:
            raise MisconfigurationException(
                f"self.log({name!r}, ..., {option}=True) in {hook}: this hook has no {level}; "
                f"leave {option} out, or log in a hook that runs once per {level}",
                code="log-level",
            )
    if not on_step and not on_epoch:
        raise MisconfigurationException(
            f"self.log({name!r}, ..., on_step={on_step}, on_epoch={on_epoch}) in {hook} would log nothing; "
            f"set {' or '.join(f'on_{level}' for level in sorted(rule.allowed))} to True",
            code="log-nowhere",
        )


def check_same(hook: str, name: str, before: Options, now: Options) -> None:
    """Two calls with one name in one hook must agree, or their values could not be reduced together (R133).

    Raises:
        MisconfigurationException: they do not (``log-options``).
    """
    for field, first, second in zip(Options._fields, before, now, strict=True):
        if first is not second and first != second:
            raise MisconfigurationException(
                f"self.log({name!r}, ...) was called in {hook} with {field}={first!r} and now with "
                f"{field}={second!r}; use the same options for one name in one hook, or another name",
                code="log-options",
            )


def check_name(name: str, options: Options) -> None:
    """A name is a str, and leaves the dataloader's suffix to us (R135).

    Raises:
        InvalidTypeError: the name is not a str (``log-name``).
        MisconfigurationException: it has the suffix already (``log-name``).
    """
    if not isinstance(name, str):
        raise InvalidTypeError(
            f"self.log({name!r}, ...): expected a str as the name, got {type(name).__name__}", code="log-name"
        )
    if options.add_dataloader_idx and LOADER_SUFFIX in name:
        raise MisconfigurationException(
            f"self.log({name!r}, ...): {LOADER_SUFFIX!r} is added by itself where there are several "
            "dataloaders; leave it out, or pass add_dataloader_idx=False",
            code="log-name",
        )


def check_batch_size(name: str, batch_size: Any) -> Number:
    """The weight that a user gave, as a number; a tensor that lives on a device stays there.

    Raises:
        InvalidValueError: not a number >= 0 (``log-batch-size``).
    """
    if isinstance(batch_size, Tensor) and batch_size.numel() == 1:
        if batch_size.is_cpu:
            batch_size = batch_size.item()
        else:
            return batch_size.detach().reshape(()).clone()
    if isinstance(batch_size, int | float) and batch_size >= 0:
        return batch_size
    raise InvalidValueError(
        f"self.log({name!r}, ..., batch_size={batch_size!r}): expected the number of samples, an int >= 0",
        code="log-batch-size",
    )


def unloggable(name: str, value: object) -> InvalidValueError:
    """The error for a value that ``self.log`` cannot take (R134)."""
    if hasattr(value, "items"):
        return InvalidValueError(
            f"self.log({name!r}, ...) got a {type(value).__name__}; log several values with "
            "self.log_dict(...), and flatten nested ones",
            code="log-dict",
        )
    got = f"a tensor of dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    return InvalidValueError(
        f"self.log({name!r}, ...) expects a number, a tensor with one element or a torchmetrics.Metric; got {got}",
        code="log-value",
    )


def wrong_shape(name: str, value: Tensor) -> InvalidValueError:
    """The error for a tensor with more or fewer elements than one (R134)."""
    return InvalidValueError(
        f"self.log({name!r}, ...) expects one element; got a tensor of shape {tuple(value.shape)}: "
        "reduce it first, for example with .mean()",
        code="log-shape",
    )
