"""Objects as plain data: what a file may hold that is read without running any code in it.

What ``torch.load(weights_only=True)`` builds stays as it is: numbers, texts, tensors, lists, dicts, sets, dtypes. All
else becomes a dict with the key ``__leyden__``, which says what it was::

    Path("a")                {"__leyden__": "path", "value": "a"}
    Color.RED                {"__leyden__": "enum", "type": "project.colors:Color", "value": ["RED"]}
    nn.ReLU                  {"__leyden__": "name", "value": "torch.nn.modules.activation:ReLU"}
    Config(width=3)          {"__leyden__": "object", "type": "project.config:Config", "fields": {"width": 3}}
    OmegaConf.create([1])    {"__leyden__": "omegaconf", "value": [[1], False, False]}

While code runs that was written for Lightning, which keeps any object, so does leyden (:class:`Pickled`)::

    StandardScaler()         {"__leyden__": "pickle", "type": "sklearn.preprocessing.StandardScaler", "value": b"..."}
"""

from __future__ import annotations

import functools
import importlib
import operator
import pickle
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, ClassVar, Final, NamedTuple
from zoneinfo import ZoneInfo

import torch
from torch import Tensor

from leyden.checkpoint.names import is_buildable, is_nameable, is_registered, look_up, name_of
from leyden.errors import CheckpointError

TAG: Final = "__leyden__"

_NATIVE: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size),
        *(torch.layout, torch.qscheme),
    }
)
_DICTS: Final = (dict, OrderedDict, Counter)
#: Built-in types that a class may derive from and still be data.
_BASES: Final = (dict, OrderedDict, Counter, list, tuple, str, int, float)
_CALLABLES: Final = (type, FunctionType, BuiltinFunctionType, MethodType)

#: What holds something: its key, or the name of its attribute, and the place of that. Made into text for errors only.
Place = tuple[Any, Any] | None


class Pickled:
    """An object that a file holds as a pickle, and that stays closed: to open it may run any code.

    It is no data, and stands where nothing needs it, such as the hyper-parameters of a run that goes on.

    Attributes:
        kept: whether files get such objects; while :func:`leyden.compat.install` holds.
        kind: name of its class.
        content: the pickle.
    """

    kept: ClassVar[bool] = False

    def __init__(self, kind: str, content: bytes) -> None:
        self.kind = kind
        self.content = content

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name!r} here: {self}")

    def __repr__(self) -> str:
        return (
            f"an object of {self.kind}, which its file has as a pickle; trust=True opens it, and runs code in the file"
        )


class _Form(NamedTuple):
    """How values of a type are taken apart and put together."""

    type: type
    take_apart: Callable[[Any], Any]
    put_together: Callable[[Any], Any]


def _star(kind: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda parts: kind(*parts)


def _wall_time(kind: Any) -> _Form:
    return _Form(
        kind,
        lambda value: [value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo],
        lambda parts: kind.fromisoformat(parts[0]).replace(fold=parts[1], tzinfo=parts[2]),
    )


_FORMS: Final[dict[str, _Form]] = {
    "set": _Form(set, list, set),
    "frozenset": _Form(frozenset, list, frozenset),
    "deque": _Form(deque, lambda value: [list(value), value.maxlen], _star(deque)),
    "defaultdict": _Form(defaultdict, lambda value: [value.default_factory, list(value.items())], _star(defaultdict)),
    "path": _Form(type(Path()), str, Path),
    "pure_posix_path": _Form(PurePosixPath, str, PurePosixPath),
    "pure_windows_path": _Form(PureWindowsPath, str, PureWindowsPath),
    "timedelta": _Form(timedelta, lambda value: [value.days, value.seconds, value.microseconds], _star(timedelta)),
    "date": _Form(date, date.isoformat, date.fromisoformat),
    "time": _wall_time(time),
    "datetime": _wall_time(datetime),
    "timezone": _Form(timezone, lambda value: [value.utcoffset(None), value.tzname(None)], _star(timezone)),
    "zone": _Form(ZoneInfo, lambda value: value.key, ZoneInfo),
    "decimal": _Form(Decimal, str, Decimal),
    "range": _Form(range, lambda value: [value.start, value.stop, value.step], _star(range)),
    "slice": _Form(slice, lambda value: [value.start, value.stop, value.step], _star(slice)),
    "namespace": _Form(Namespace, lambda value: dict(vars(value)), lambda fields: Namespace(**fields)),
    "simple_namespace": _Form(
        SimpleNamespace, lambda value: dict(vars(value)), lambda fields: SimpleNamespace(**fields)
    ),
    "partial": _Form(
        functools.partial,
        lambda value: [value.func, value.args, value.keywords],
        lambda parts: functools.partial(parts[0], *parts[1], **parts[2]),
    ),
    **{kind.__name__: _Form(kind, lambda value: list(value.items()), kind) for kind in _DICTS},
}
_FORM_OF: Final = {form.type: name for name, form in _FORMS.items()}


def encode(value: Any, keep: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Encode nested objects; the containers are new, so that later changes of ``value`` do not reach them.

    Args:
        value: a checkpoint, or a part of one.
        keep: what is stored for a tensor.

    Raises:
        CheckpointError: it holds something that is no data; the text says where (``checkpoint-object``).

    >>> encode({"folder": Path("runs"), "sizes": (3, 4)})
    {'folder': {'__leyden__': 'path', 'value': 'runs'}, 'sizes': (3, 4)}
    """
    return _Encoder(keep, pickles=Pickled.kept)(value, None)


def is_data(value: Any) -> bool:
    """Whether :func:`encode` takes a value, and needs no pickle for it."""
    try:
        _Encoder(lambda tensor: tensor, pickles=False)(value, None)
    except CheckpointError:
        return False
    return True


def decode(value: Any, *, trusted: bool = False) -> Any:
    """Decode what :func:`encode` returned, in place where that can be.

    Args:
        value: the content of a file, whoever has written it.
        trusted: whether names in it may be any, and their modules are imported.

    Raises:
        CheckpointError: a name in it is not known here, or does not belong into a file (``checkpoint-name``), or the
            content is damaged (``checkpoint-content``).
    """
    try:
        return _Decoder(trusted)(value, None)
    except RecursionError:
        raise CheckpointError("its content is nested too deeply", code="checkpoint-content") from None


class _Encoder:
    def __init__(self, keep: Callable[[Tensor], Tensor], *, pickles: bool) -> None:
        self._keep = keep
        self._pickles = pickles
        self._open: set[int] = set()
        self._done: dict[int, tuple[Any, Any]] = {}  # with the values themselves, so that no id is used again

    def __call__(self, value: Any, place: Place) -> Any:
        if type(value) in _NATIVE:
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:
            raise _refusal(place, "holds itself")
        self._open.add(id(value))
        try:
            encoded = self._encode(value, type(value), place)
        except CheckpointError:
            encoded = _pickle(value) if self._pickles else None
            if encoded is None:
                raise
        self._open.discard(id(value))
        self._done[id(value)] = (value, encoded)
        return encoded

    def _encode(self, value: Any, kind: type, place: Place) -> Any:
        if isinstance(value, Tensor) and (kind in (Tensor, torch.nn.Parameter) or is_registered(kind)):
            return self._keep(value)
        if kind in (list, tuple):
            return kind(self(item, (place, index)) for index, item in enumerate(value))
        if kind in _DICTS and TAG not in value and all(map(_is_plain_key, value)):
            return self._mapping(value, kind, place)
        if kind is bytearray or (kind is set and all(map(_is_plain_key, value))):
            return kind(value)
        if kind in _FORM_OF:
            form = _FORM_OF[kind]
            return {TAG: form, "value": self(_FORMS[form].take_apart(value), (place, ...))}
        if isinstance(value, Enum):
            return {TAG: "enum", "type": _name(kind, place), "value": _members(value)}
        if isinstance(value, _CALLABLES):
            return {TAG: "name", "value": _name(value, place)}
        if kind is Pickled:
            return {TAG: "pickle", "type": value.kind, "value": value.content}
        if is_registered(kind) or isinstance(value, torch.UntypedStorage | torch.storage.TypedStorage):
            return value
        if _is_config(value):
            return {TAG: "omegaconf", "value": self(_settings(value), (place, ...))}
        return _numbers(value, place) or self._object(value, kind, place)

    def _mapping(self, value: Any, kind: type, place: Place) -> Any:
        encoded = kind()
        for key, item in value.items():
            encoded[key] = self(item, (place, key))
        if kind is OrderedDict:  # the state_dict of a module has its versions there
            vars(encoded).update(self._mapping(vars(value), dict, place))
        return encoded

    def _object(self, value: Any, kind: type, place: Place) -> Any:
        name, base = name_of(kind), _base_of(kind)
        if name is None or not is_buildable(kind) or base not in (object, *_BASES):
            raise _refusal(place, f"is {_describe(value)}")
        fields = {slot: getattr(value, slot) for slot in _slots(kind) if hasattr(value, slot)}
        fields.update(getattr(value, "__dict__", {}))
        encoded = {field: self(item, (place, _Attribute(field))) for field, item in fields.items()}
        items = None if base is object else self(base(value), place)
        return {TAG: "object", "type": name, "fields": encoded, "value": items}


class _Decoder:
    def __init__(self, trusted: bool) -> None:
        self._trusted = trusted
        self._look_up = functools.partial(look_up, trusted=trusted)
        self._done: dict[int, tuple[Any, Any]] = {}  # with the values themselves, so that no id is used again

    def __call__(self, value: Any, place: Place) -> Any:
        kind = type(value)
        if kind not in (*_DICTS, list, tuple):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if kind is dict and TAG in value:
            decoded = self._build(value, place)
        elif kind is tuple:
            decoded = tuple(self(item, (place, index)) for index, item in enumerate(value))
        else:
            decoded = value
            self._done[id(value)] = (value, value)
            for key, item in list(enumerate(value) if kind is list else value.items()):
                value[key] = self(item, (place, key))
        self._done[id(value)] = (value, decoded)
        return decoded

    def _build(self, value: dict[str, Any], place: Place) -> Any:
        try:
            form, content = value[TAG], value.get("value")
            if form == "object":
                return self._object(value, place)
            content = self(content, (place, ...))
            if form == "name":
                return self._look_up(content, is_nameable)
            if form == "enum":
                return _member(self._look_up(value["type"], is_nameable), content)
            if form == "omegaconf":
                return _config(*content)
            if form == "pickle":
                return pickle.loads(content) if self._trusted else Pickled(str(value["type"]), content)
            return _array(**value) if form == "numpy" else _FORMS[form].put_together(content)
        except (CheckpointError, RecursionError):
            raise
        except Exception as cause:  # parts that do not belong together raise anything
            raise CheckpointError(
                f"{_text(place)} cannot be built: {type(cause).__name__}: {cause}", code="checkpoint-content"
            ) from cause

    def _object(self, value: dict[str, Any], place: Place) -> Any:
        kind = self._look_up(value["type"], is_buildable)
        items, base, slots = self(value["value"], place), _base_of(kind), _slots(kind)
        built = base.__new__(kind, items) if base in (tuple, str, int, float) else base.__new__(kind)
        if base in (*_DICTS, list):
            base.__init__(built, items)
        for field, item in value["fields"].items():
            decoded = self(item, (place, _Attribute(field)))
            if field in slots:
                object.__setattr__(built, field, decoded)
            else:
                vars(built)[field] = decoded
        return built


class _Attribute(str):
    """A key that is the name of an attribute."""


def _is_plain_key(key: Any) -> bool:
    return type(key) in _NATIVE or (type(key) is tuple and all(map(_is_plain_key, key)))


def _pickle(value: Any) -> Any:
    """An object as a pickle; None if it cannot be pickled."""
    kind = type(value)
    try:
        content = pickle.dumps(value)
    except Exception:  # whatever a user's object raises: a generator, a lock, a handle
        return None
    return {TAG: "pickle", "type": f"{kind.__module__}.{kind.__qualname__}", "value": content}


def _name(value: Any, place: Place) -> str:
    name = name_of(value)
    if name is None or not is_nameable(value):
        raise _refusal(place, f"is {_describe(value)}, which " + ("has no name" if name is None else "is not data"))
    return name


def _members(value: Enum) -> list[str]:
    """Names of the members that a value is; a Flag is any number of them."""
    named = type(value).__members__
    if value.name in named:
        return [str(value.name)]
    return [name for name, member in named.items() if isinstance(value, Flag) and member.value & value.value]


def _member(kind: Any, names: list[str]) -> Any:
    return functools.reduce(operator.or_, [kind.__members__[name] for name in names]) if names else kind(0)


def _numbers(value: Any, place: Place) -> Any:
    """Encode an array, a scalar or a dtype of numpy; None if it is none."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not (isinstance(value, numpy.generic | numpy.dtype) or type(value) is numpy.ndarray):
        return None
    dtype = value if isinstance(value, numpy.dtype) else value.dtype
    spec = dtype.str if dtype.names is None else dtype.descr
    if dtype.hasobject or numpy.dtype(spec) != dtype:
        raise _refusal(place, f"is of numpy's dtype {dtype}")
    if dtype is value:
        return {TAG: "numpy", "dtype": spec}
    shape = list(value.shape) if isinstance(value, numpy.ndarray) else None
    data = torch.frombuffer(bytearray(value.tobytes() or b" "), dtype=torch.uint8)
    return {TAG: "numpy", "dtype": spec, "shape": shape, "value": data}


def _array(dtype: Any, shape: Any = None, value: Any = None, **_: Any) -> Any:
    import numpy

    of = numpy.dtype(dtype)
    if of.hasobject:  # their bytes are addresses
        raise ValueError("an array of objects")
    return of if value is None else numpy.ndarray(shape or (), of, value.numpy())[() if shape is None else ...]


def _is_config(value: Any) -> bool:
    """Whether a value is OmegaConf's."""
    omegaconf = sys.modules.get("omegaconf")
    return omegaconf is not None and omegaconf.OmegaConf.is_config(value)


def _settings(value: Any) -> list[Any]:
    """What a configuration holds, and whether it may be changed; in a part of another one without interpolations."""
    conf, is_part = sys.modules["omegaconf"].OmegaConf, value._get_parent() is not None
    return [conf.to_container(value, resolve=is_part), conf.is_readonly(value), conf.is_struct(value)]


def _config(content: Any, is_readonly: Any, is_struct: Any) -> Any:
    conf = importlib.import_module("omegaconf").OmegaConf
    value = conf.create(content)
    conf.set_readonly(value, is_readonly)
    conf.set_struct(value, is_struct)
    return value


def _base_of(kind: type) -> Any:
    """The built-in type that a class derives from."""
    return next(base for base in kind.__mro__ if base.__module__ in ("builtins", "collections"))


def _slots(kind: type) -> set[str]:
    found = [vars(base).items() for base in kind.__mro__]
    return {name for items in found for name, member in items if isinstance(member, MemberDescriptorType)}


def _refusal(place: Place, what: str) -> CheckpointError:
    return CheckpointError(
        f"{_text(place)} {what}: a checkpoint holds plain data, so that nobody's code runs when it is read. Leave it "
        "out, as with save_hyperparameters(ignore=[...]), keep its name and build it in __init__, or allow it with "
        "torch.serialization.add_safe_globals([...])",
        code="checkpoint-object",
    )


def _describe(value: Any) -> str:
    if not isinstance(value, _CALLABLES):
        return f"an object of {type(value).__module__}.{type(value).__qualname__}"
    what = "the class" if isinstance(value, type) else "the function"
    return f"{what} {value.__module__}.{value.__qualname__}"


def _text(place: Place) -> str:
    """Write a place as ``hyper_parameters['net'].layers[0]``."""
    if place is None:
        return "the checkpoint"
    outer, key = place
    if outer is None:
        return str(key)
    step = "" if key is ... else f".{key}" if isinstance(key, _Attribute) else f"[{key!r}]"
    return _text(outer) + step
