"""``LambdaCallback``: a callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leyden.callback import Callback
from leyden.errors import InvalidTypeError
from leyden.hooks.events import HISTORICAL

_HOOKS = {name for name in vars(Callback) if name.startswith("on_")} | {"setup", "teardown", *HISTORICAL}


class LambdaCallback(Callback):
    """Calls a function for a hook.

    Args:
        **hooks: functions by the hook's name; each gets what the hook of a ``Callback`` gets, from the trainer on.

    Raises:
        InvalidTypeError: a name that is no hook, or something that cannot be called (``lambda-hook``).

    >>> callback = LambdaCallback(on_train_start=lambda trainer, pl_module: print("off we go"))
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in _HOOKS:
                raise InvalidTypeError(
                    f"LambdaCallback({name}=...): callbacks have no such hook; they have {', '.join(sorted(_HOOKS))}",
                    code="lambda-hook",
                )
            if function is not None and not callable(function):
                raise InvalidTypeError(
                    f"LambdaCallback({name}={function!r}): expected a function, got {type(function).__name__}",
                    code="lambda-hook",
                )
            if function is not None:
                setattr(self, name, function)
