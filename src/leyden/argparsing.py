"""Command lines by ``argparse``, as Lightning 1.x made them from the arguments of a class."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any, Final, TypeVar

T = TypeVar("T")

_WORDS: Final[dict[str, Any]] = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}


def parse_value(text: str) -> Any:
    """A number, True, False or None where a text is one; else the text.

    >>> [parse_value(text) for text in ("2", "0.5", "1e-3", "True", "none", "0,1", "bf16")]
    [2, 0.5, 0.001, True, None, '0,1', 'bf16']
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return _WORDS.get(text.lower(), text)


def parameters_of(cls: type, former: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a class's ``__init__``, its bases' included.

    Args:
        cls: the class.
        former: arguments that are taken by other names too, with their defaults.
    """
    named = inspect.Parameter.KEYWORD_ONLY
    found = {name: inspect.Parameter(name, named, default=default) for name, default in former.items()}
    for base in reversed(cls.__mro__):
        initialise = vars(base).get("__init__")
        if initialise is not None and base is not object:
            for name, one in inspect.signature(initialise).parameters.items():
                if name != "self" and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                    found[name] = one
    return found


def add_arguments(
    cls: type, parser: ArgumentParser, *, former: Mapping[str, Any], use_argument_group: bool = True
) -> ArgumentParser:
    """Add ``--name`` for each argument that ``parser`` does not have yet; returns a parser as 1.x does.

    An argument whose default or annotation has a bool is switched on by its name alone.

    Args:
        cls: whose arguments.
        parser: the program's.
        former: see :func:`parameters_of`.
        use_argument_group: whether they stand in a group of their own in ``--help``.
    """
    group = parser.add_argument_group(f"pl.{cls.__qualname__}") if use_argument_group else parser
    taken = {action.dest for action in parser._actions}
    for name, one in parameters_of(cls, former).items():
        if name in taken:
            continue
        is_flag = isinstance(one.default, bool) or re.search(r"\bbool\b", str(one.annotation))
        flag: dict[str, Any] = {"nargs": "?", "const": True} if is_flag else {}
        known = None if one.default is one.empty else one.default
        group.add_argument(f"--{name}", type=parse_value, default=known, **flag)
    return parser


def from_arguments(cls: type[T], args: Any, *, former: Mapping[str, Any], **changes: Any) -> T:
    """Build an object from parsed arguments; others than the class's are left out.

    Args:
        cls: what to build.
        args: a namespace, or a parser, which then parses this process's arguments.
        former: see :func:`parameters_of`.
        **changes: take the place of what was parsed.
    """
    given = vars(args.parse_args() if isinstance(args, ArgumentParser) else args)
    chosen = {name: given[name] for name in parameters_of(cls, former) if name in given}
    kept = {name: value for name, value in chosen.items() if name not in former or value != former[name]}
    return cls(**{**kept, **changes})


def as_namespace(args: ArgumentParser | Namespace) -> Namespace:
    """Parsed arguments; of a parser those of this process that it knows."""
    return args.parse_known_args()[0] if isinstance(args, ArgumentParser) else args
