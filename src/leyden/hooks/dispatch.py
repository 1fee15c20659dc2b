"""Hooks resolved once, when a run starts.

A run asks at its start who overrides what and keeps the answer as bound callables. A hook that nobody overrides is
``None``: its call site costs one attribute test.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from leyden.hooks import events
from leyden.hooks.dialects import OptimizerIndex, adapt

Listener = Callable[..., Any]

#: ``(owner, name, function)`` -> what is called in place of the function, so that a profiler sees it. None owns what is
#: the loop's own.
Profile = Callable[[Any, str, Callable[..., Any]], Callable[..., Any]]

#: Hands an iterator on, perhaps profiled.
Watch = Callable[[Iterator[Any]], Iterator[Any]]

_END: Any = object()  # what next() gives at the end of a loader


def unprofiled(owner: Any, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: nobody measures."""
    return function


def watch_batches(profile: Profile, name: str) -> Watch:
    """What a loader's iterator is handed through, so that every wait for a batch is the action ``name``.

    >>> watch_batches(unprofiled, "train_dataloader_next") is iter
    True
    """
    if profile is unprofiled:
        return iter  # of an iterator: the iterator itself

    def watched(iterator: Iterator[Any]) -> Iterator[Any]:
        ask = profile(None, name, functools.partial(next, iterator, _END))
        while (batch := ask()) is not _END:
            yield batch

    return watched


class RunState:
    """Where a run is: what ``self.log`` and the Trainer's read-only properties need to know.

    Attributes:
        stage: "train", "validate", "sanity_check", "test", "predict", or None outside of a run.
        run: "fit", "validate", "test" or "predict": the run that is on, or the last one.
        status: "initializing" before the first run, "running", "finished" or "interrupted".
        hook: name of the hook that runs now, or None.
        results: the collector of ``self.log``, or None where nothing is collected.
        should_stop: whether somebody asked the fit to end.
        interrupt: answers a signal that has come, and may leave the run; None as long as none has. Called by the loops
            where nothing is half done.
        deferred: what waits for the end of the step in hand, because nothing exact can be done in the middle of one;
            None where no step ends any more.
        window_size: micro-batches of an accumulation window.
    """

    __slots__ = ("deferred", "hook", "interrupt", "results", "run", "should_stop", "stage", "status", "window_size")

    def __init__(self) -> None:
        self.stage: str | None = None
        self.run: str | None = None
        self.status = "initializing"
        self.hook: str | None = None
        self.results: Any = None
        self.should_stop = False
        self.interrupt: Callable[[], None] | None = None
        self.deferred: list[Callable[[], None]] | None = None
        self.window_size = 1

    def do_deferred(self) -> None:
        """Do what has waited for this: the step is over."""
        if self.deferred:
            waiting, self.deferred = self.deferred, []
            for act in waiting:
                act()


class Hook:
    """One event and its listeners: callbacks, then the module, then monitors."""

    __slots__ = ("callbacks", "module", "monitors", "name", "state")

    def __init__(
        self,
        name: str,
        state: RunState,
        *,
        callbacks: Sequence[Listener] = (),
        module: Listener | None = None,
        monitors: Sequence[Listener] = (),
    ) -> None:
        self.name = name
        self.state = state
        self.callbacks = callbacks
        self.module = module
        self.monitors = monitors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call every listener in order and return what the module returned (None without a module's listener)."""
        state = self.state
        before, state.hook = state.hook, self.name
        result = None
        try:
            for listener in self.callbacks:
                listener(*args, **kwargs)
            if self.module is not None:
                result = self.module(*args, **kwargs)
            for listener in self.monitors:
                listener(*args, **kwargs)
        finally:
            state.hook = before
        return result


def each_listener(hook: Hook | None) -> list[Hook]:
    """A hook for each listener of one, for where one that fails must not keep the others from being called."""
    if hook is None:
        return []
    own = [Hook(hook.name, hook.state, module=hook.module)] if hook.module is not None else []
    others = (*hook.callbacks, *hook.monitors)
    return [*(Hook(hook.name, hook.state, callbacks=(listener,)) for listener in others), *own]


class Hooks:
    """All hooks of a run as attributes: a ``Hook``, or None if nobody listens.

    Args:
        module: the user's module.
        callbacks: the user's callbacks in calling order.
        trainer: handed to callbacks as their first argument, never used here.
        state: remembers which hook runs.
        turns: tells 1.x listeners the index of an optimizer.
        bases: the classes whose own methods do not count as overridden.
        several: whether several optimizers take turns in automatic mode.
        mixed: whether mixed precision is active.
        profile: wraps every listener.
    """

    on_fit_start: Hook | None
    on_fit_end: Hook | None
    on_sanity_check_start: Hook | None
    on_sanity_check_end: Hook | None
    on_train_start: Hook | None
    on_train_end: Hook | None
    on_train_epoch_start: Hook | None
    on_train_epoch_end: Hook | None
    on_train_batch_start: Hook | None
    on_train_batch_end: Hook | None
    on_before_zero_grad: Hook | None
    on_before_backward: Hook | None
    on_after_backward: Hook | None
    on_before_optimizer_step: Hook | None
    on_exception: Hook | None
    on_pretrain_routine_start: Hook | None
    on_pretrain_routine_end: Hook | None
    on_epoch_start: Hook | None
    on_epoch_end: Hook | None
    on_batch_start: Hook | None
    on_batch_end: Hook | None
    on_keyboard_interrupt: Hook | None

    def __init__(
        self,
        *,
        module: Any,
        callbacks: Sequence[Any],
        trainer: Any,
        state: RunState,
        turns: OptimizerIndex,
        bases: tuple[type, ...],
        several: bool = False,
        mixed: bool = False,
        profile: Profile = unprofiled,
    ) -> None:
        fit = functools.partial(adapt, several=several, turns=turns, mixed=mixed)

        def bind(name: str) -> Hook | None:
            first: list[Listener] = []
            last: list[Listener] = []
            if name not in events.MODULE_ONLY:
                for callback in callbacks:
                    if overrides(callback, name, bases):
                        listener = fit(functools.partial(getattr(callback, name), trainer, module), name)
                        is_last = bool(getattr(callback, events.LAST.get(name, ""), False))
                        (last if is_last else first).append(profile(callback, name, listener))
            own = None
            if name not in events.CALLBACK_ONLY and overrides(module, name, bases):
                own = profile(module, name, fit(getattr(module, name), name))
            if not first and own is None and not last:
                return None
            return Hook(name, state, callbacks=tuple(first), module=own, monitors=tuple(last))

        groups: Iterable[tuple[str, ...]] = (
            events.SHARED,
            events.CALLBACK_ONLY,
            events.MODULE_ONLY,
            events.HISTORICAL,
        )
        for group in groups:
            for name in group:
                setattr(self, name, bind(name))

    def call(self, name: str, *args: Any) -> Any:
        """Call a hook by name; for places where a few nanoseconds do not matter."""
        hook = getattr(self, name)
        return hook(*args) if hook is not None else None


def overrides(owner: Any, name: str, bases: tuple[type, ...]) -> bool:
    """Whether ``owner`` has a method ``name`` that is not one of leyden's own.

    A method patched onto the instance, a mixin's method and a mock count as overridden. A method that has the name of a
    hook of 1.x and does not take what 1.x passed is no hook: code for 2.x, which has no such hooks, calls it itself.
    """
    method = getattr(owner, name, None)
    if not callable(method):
        return False
    function = getattr(method, "__func__", method)
    if any(function is getattr(base, name, None) for base in bases):
        return False
    return name not in events.HISTORICAL or _takes(method, 2 if hasattr(owner, "state_key") else 0)


def _takes(method: Callable[..., Any], num_values: int) -> bool:
    """Whether a method can be called with so many values; True where it does not tell."""
    try:
        inspect.signature(method).bind(*[None] * num_values)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def where_raised(exception: BaseException, bases: tuple[type, ...]) -> str | None:
    """The hook of a callback, module or datamodule that an exception came out of, as "Class.hook"; None if of none.

    Hooks that call others are passed by: the innermost is where the mistake is.
    """
    place: str | None = None
    trace = exception.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        name, first = frame.f_code.co_name, frame.f_code.co_varnames[:1]
        owner: Any = frame.f_locals.get(first[0]) if first else None
        if frame.f_code is Hook.__call__.__code__:
            place = owner.name  # what listens may be no method: a mock, a lambda
        elif not isinstance(owner, bases) or name == "forward":
            continue
        elif any(callable(getattr(base, name, None)) for base in bases) and overrides(owner, name, bases):
            place = f"{type(owner).__name__}.{name}"
    return place
