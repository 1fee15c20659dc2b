"""Forms: what a value in a file must look like, written down in the way of the value itself.

::

    form = {"count": is_count, "names": [str], "loss?": (None, Tensor), "views": Each(float)}
    faults({"count": -1, "names": "a", "views": {}}, form, "place")    place.count is -1, place.names is 'a'

=============  =====================================================================================================
a type         the value is an instance of it
a function     says whether the value can be
a list         the value is a list or tuple, and its items have the form in it
a dict         the value is a mapping with these keys, where a "?" marks one that may be missing; others are left alone
``Each(...)``  the value is a mapping whose values have the form
``(None, x)``  the value is None, or has the form x
=============  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Each(NamedTuple):
    """A mapping with any keys, whose values have a form."""

    form: Any


def faults(value: Any, form: Any, place: str) -> Iterator[str]:
    """Say where a value has not its form.

    Args:
        value: whatever a file holds.
        form: what it must look like.
        place: where it is, for the text.

    >>> list(faults({"count": -1, "names": "ab"}, {"count": is_count, "names": [str], "sum": float}, "place"))
    ['place.count is -1', "place.names is 'ab'", "place has no 'sum'"]
    """
    if isinstance(form, Each | dict) and not isinstance(value, Mapping):
        yield f"{place} is {shown(value)}"
    elif isinstance(form, Each):
        for key, item in value.items():
            yield from faults(item, form.form, f"{place}.{key}")
    elif isinstance(form, dict):
        for key, inner in form.items():
            name = key.rstrip("?")
            if name in value:
                yield from faults(value[name], inner, f"{place}.{name}".lstrip("."))
            elif name == key:
                yield f"{place or 'the file'} has no {name!r}"
    elif isinstance(form, list) and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from faults(item, form[0], f"{place}.{index}")
    elif isinstance(form, tuple):
        yield from faults(value, form[1], place) if value is not None else ()
    elif not _has(value, form):
        yield f"{place} is {shown(value)}"


def _has(value: Any, form: Any) -> bool:
    if isinstance(form, type):
        return isinstance(value, form)
    try:
        return not isinstance(form, list) and bool(form(value))
    except Exception:  # whatever Python says of something that is not what it should be
        return False


def shown(value: Any) -> str:
    """A value for a text, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{type(value).__name__} {text[:60]}..."


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def is_count(value: Any) -> bool:
    """Whether a value is an integer that is not negative."""
    return isinstance(value, int) and is_number(value)


def is_size(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return is_count(value) and value > 0
