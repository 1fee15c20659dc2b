"""Hyper-parameters: the arguments of ``__init__``, collected, kept and handed to loggers and checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from leyden import errors
from leyden.rank import rank_zero_warn

if TYPE_CHECKING:
    class_only = classmethod
else:

    class class_only:
        """A class method that refuses to be called on an instance, whose own state it would not touch."""

        def __init__(self, method: Any) -> None:
            self.__wrapped__ = method

        def __get__(self, instance: Any, owner: Any) -> Any:
            name = f"{owner.__name__}.{self.__wrapped__.__name__}"

            @functools.wraps(self.__wrapped__)
            def call(*args: Any, **kwargs: Any) -> Any:
                if instance is not None:  # told when it is called, not when somebody inspects the instance
                    raise errors.InvalidTypeError(
                        f"{name} builds a new object and leaves this one alone: call it on the class and use what it "
                        f"returns, as in `module = {name}(...)`",
                        code="called-on-instance",
                    )
                return self.__wrapped__(owner, *args, **kwargs)

            return call


class AttributeDict(dict[str, Any]):
    """A dict whose string keys are attributes as well.

    >>> hparams = AttributeDict(lr=0.1)
    >>> hparams.lr, hparams["lr"]
    (0.1, 0.1)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(str(key) for key in self) or "none"
            raise AttributeError(f"there is no hyper-parameter {name!r}; there are: {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"there is no hyper-parameter {name!r}")
        del self[name]

    def __repr__(self) -> str:
        labels = {f'"{key}":': value for key, value in self.items()}
        width = max((len(label) for label in labels), default=0)
        return "\n".join(f"{label:<{width}} {labels[label]}" for label in sorted(labels))


#: A class that a configuration is building, and its arguments as plain data.
_given: ContextVar[tuple[type, Mapping[str, Any]] | None] = ContextVar("given", default=None)


@contextmanager
def given_hyperparameters(owner: type, values: Mapping[str, Any]) -> Iterator[None]:
    """Let an ``owner`` that is built within save ``values``, where its arguments may be objects that they describe."""
    token = _given.set((owner, values))
    try:
        yield
    finally:
        _given.reset(token)


class HyperparametersMixin:
    """Gives a class ``save_hyperparameters`` and ``hparams``.

    It has no ``__init__`` and writes to the instance's ``__dict__`` only, so that an ``nn.Module`` may save
    its hyper-parameters before as well as after ``super().__init__()``.
    """

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "hparams_name"

    __jit_unused_properties__: ClassVar[list[str]] = ["hparams", "hparams_initial"]

    _log_hyperparams: bool = False  # whether loggers get them
    _hparams_name: str | None = None  # argument of __init__ that takes them on loading; "kwargs": each its own

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` in ``self.hparams``; call it there.

        Without ``args`` all arguments are kept, of the whole chain of classes: those of a subclass too if a
        base class calls this, the subclass's value winning where both have the name. ``**kwargs`` are kept
        one by one, ``*args`` not at all. Values are those that the names have at the moment of the call.
        Calling again adds.

        Args:
            args: names of the arguments to keep; or one dict, Namespace, dataclass instance or OmegaConf
                object with the values. None and an empty one save nothing.
            ignore: names to leave out, also if an earlier call has saved them.
            frame: the frame of ``__init__``; default the caller's, or one further up.
            logger: whether the loggers receive them when a run starts.

        Raises:
            MissingKeyError: a name that ``__init__`` has no argument for (code ``hparams-name``).
            InvalidValueError: neither names nor one object that holds values (``hparams-type``).

        Warns:
            LeydenWarning: a value that is an ``nn.Module`` (``hparams-module``), as checkpoints hold its
                weights already; or a call that finds no ``__init__`` (``hparams-outside-init``).

        >>> class Module(HyperparametersMixin):
        ...     def __init__(self, width, lr=0.1, **kwargs):
        ...         self.save_hyperparameters(ignore="width")
        >>> Module(8, depth=2).hparams
        "depth": 2
        "lr":    0.1
        """
        vars(self)["_log_hyperparams"] = logger
        if len(args) == 1 and _is_nothing(args[0]):
            return
        owner, given = _given.get() or (None, {})
        is_given = type(self) is owner and all(isinstance(name, str) for name in args)
        arguments = dict(given) if is_given else _init_arguments(self, frame or sys._getframe(1))
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        kept = {name: value for name, value in (arguments or {}).items() if name not in ignored}
        if arguments is None and not args:
            rank_zero_warn(
                "save_hyperparameters() found no __init__ of this object among its callers, so there is "
                "nothing to save: call it in __init__, or pass a dict",
                code="hparams-outside-init",
            )
        values, name = _select(args, kept)
        self._keep(values, name, ignored)

    @property
    def hparams(self) -> AttributeDict:
        """The hyper-parameters, by key or as attributes. Checkpoints keep what it holds then."""
        hparams: AttributeDict = vars(self).setdefault("_hparams", AttributeDict())
        return hparams

    @hparams.setter
    def hparams(self, values: Any) -> None:
        """Replace all of them: the way before there was ``save_hyperparameters``."""
        arguments = _init_arguments(self, sys._getframe(1)) or {}
        vars(self)["_log_hyperparams"] = True
        vars(self)["_hparams"] = AttributeDict()
        self._keep(_as_mapping(values), _name_of(values, arguments), set())

    @property
    def hparams_initial(self) -> AttributeDict:
        """A deep copy of the hyper-parameters as they were when they were saved."""
        initial: AttributeDict = _deep_copy(vars(self).get("_hparams_initial", AttributeDict()))
        return initial

    def _keep(self, values: MutableMapping[str, Any], name: str | None, ignored: set[str]) -> None:
        state = vars(self)
        modules = [key for key in values if isinstance(values[key], nn.Module) and key not in ignored]
        if isinstance(values, dict) and isinstance(self.hparams, dict):
            self.hparams.update(values)
        else:
            state["_hparams"] = values  # OmegaConf's types stay what they are
        for key in ignored:
            state["_hparams"].pop(key, None)
        state["_hparams_name"] = name
        state["_hparams_initial"] = _deep_copy(state["_hparams"])
        if modules:
            names = ", ".join(repr(key) for key in modules)
            rank_zero_warn(
                f"the hyper-parameters {names} are modules, whose weights checkpoints hold already: leave "
                f"them out with save_hyperparameters(ignore=[{names}])",
                code="hparams-module",
            )


def _select(args: tuple[Any, ...], kept: dict[str, Any]) -> tuple[MutableMapping[str, Any], str | None]:
    """The values to save, and the argument of ``__init__`` that holds all of them, or "kwargs"."""
    if not args:
        return AttributeDict(kept), "kwargs" if kept else None
    names = [name for name in args if isinstance(name, str)]
    missing = [name for name in names if name not in kept]
    if missing:
        wrong, there = ", ".join(map(repr, missing)), ", ".join(kept) or "none"
        raise errors.MissingKeyError(
            f"expected names of arguments of __init__, got {wrong}; there are: {there}. Correct the name, or "
            "call it inside of __init__",
            code="hparams-name",
        )
    named = AttributeDict({name: kept[name] for name in names})
    holders = [value for value in args if not isinstance(value, str)]
    if not holders:
        return named, "kwargs"
    if len(holders) > 1:
        raise _bad_type(tuple(holders))
    values = _as_mapping(holders[0])
    values.update(named)
    return values, "kwargs" if named else _name_of(holders[0], kept)


def _as_mapping(values: Any) -> MutableMapping[str, Any]:
    if isinstance(values, Namespace):
        return AttributeDict(vars(values))
    if isinstance(values, MutableMapping) and not isinstance(values, dict):
        return values
    if isinstance(values, Mapping):
        return AttributeDict(values)
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return AttributeDict({field.name: getattr(values, field.name) for field in dataclasses.fields(values)})
    raise _bad_type(values)


def _bad_type(values: Any) -> errors.InvalidValueError:
    got = ", ".join(type(value).__name__ for value in (values if isinstance(values, tuple) else (values,)))
    return errors.InvalidValueError(
        "expected names of arguments of __init__, or one dict, Namespace, dataclass instance or OmegaConf "
        f"object with hyper-parameters, got {got}: pass names, as save_hyperparameters('lr', 'width')",
        code="hparams-type",
    )


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, Mapping)) and not value)


def _name_of(values: Any, arguments: Mapping[str, Any]) -> str | None:
    return next((name for name, value in arguments.items() if value is values), None)


def _init_arguments(owner: Any, frame: FrameType | None) -> dict[str, Any] | None:
    """Arguments of every running ``__init__`` of ``owner``, from ``frame`` outwards; None if none is running.

    A module that is built inside of another's ``__init__`` has that frame above its own, hence the test for
    ``owner``. The outer frames belong to subclasses: they come last and win.
    """
    found: dict[str, Any] | None = None
    while frame is not None:
        if frame.f_code.co_name == "__init__":
            names, _, keywords, values = inspect.getargvalues(frame)
            if names and values.get(names[0]) is owner:
                found = found or {}
                found.update({name: values[name] for name in names[1:] if name in values})
                found.update(values.get(keywords) or {} if keywords else {})
        frame = frame.f_back
    if dataclasses.is_dataclass(owner):
        # The generated __init__ has placeholders for arguments that a default_factory fills.
        fields = [field.name for field in dataclasses.fields(owner) if field.init and hasattr(owner, field.name)]
        found = {**(found or {}), **{name: getattr(owner, name) for name in fields}}
    return found


def _deep_copy(values: Any) -> Any:
    """Copy of a mapping and of its values, except for modules (their size) and what cannot be copied."""
    if not isinstance(values, dict):
        return copy.deepcopy(values)
    result = AttributeDict()
    for key, value in values.items():
        try:
            result[key] = value if isinstance(value, nn.Module) else copy.deepcopy(value)
        except Exception:  # whatever a user's object raises: a generator, a lock, a handle
            result[key] = value
    return result
