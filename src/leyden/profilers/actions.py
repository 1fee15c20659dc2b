"""The actions of a run: what they are called, and how a profiler gets to see them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from leyden.callback import Callback
from leyden.datamodule import LightningDataModule
from leyden.hooks.dispatch import Profile, unprofiled
from leyden.module import LightningModule
from leyden.profilers.profiler import PassThroughProfiler, Profiler
from leyden.strategies import Strategy


def profile_with(profiler: Profiler) -> Profile:
    """What wraps the calls of a run; it leaves them alone if the profiler measures nothing."""
    return unprofiled if type(profiler) is PassThroughProfiler else functools.partial(_profiled, profiler)


def _profiled(profiler: Profiler, owner: Any, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    action = action_name(owner, name)

    def in_profile(*args: Any, **kwargs: Any) -> Any:
        with profiler.profile(action):
            return function(*args, **kwargs)

    return in_profile


def action_name(owner: Any, name: str) -> str:
    """The name of an action in Lightning's words; None owns what belongs to the loop itself.

    >>> class Model(LightningModule): ...
    >>> action_name(Model(), "on_fit_start"), action_name(None, "run_training_batch")
    ('[LightningModule]Model.on_fit_start', 'run_training_batch')
    """
    if owner is None:
        return name
    if isinstance(owner, Callback):
        return f"[Callback]{owner.state_key}.{name}"
    kind = next(base for base in (LightningModule, LightningDataModule, Strategy) if isinstance(owner, base))
    return f"[{kind.__name__}]{type(owner).__name__}.{name}"
