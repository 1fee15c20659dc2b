"""Mistakes in users' hooks that show before anything runs: parameters that do not fit, and names that are no hook's.

Whether parameters fit is not looked up in a table of forms: the adapters of ``dialects`` are asked, with a stand-in
that has the method's signature and does nothing. So a check allows what a run can call, and nothing else.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Final

from leyden.errors import MisconfigurationException
from leyden.hooks import events
from leyden.hooks.dialects import adapt, adapt_evaluation_step, adapt_training_step
from leyden.hooks.dispatch import overrides

#: What a run passes to methods of a module whose base takes anything, or that have no base.
_PASSED: Final[dict[str, tuple[str, ...]]] = {
    "optimizer_step": ("epoch", "batch_idx", "optimizer", "optimizer_closure"),
    "optimizer_zero_grad": ("epoch", "batch_idx", "optimizer"),
    "configure_gradient_clipping": ("optimizer", "gradient_clip_val", "gradient_clip_algorithm"),
    "backward": ("loss",),
    "lr_scheduler_step": ("scheduler", "metric"),
    "on_predict_epoch_end": ("results",),
    **dict.fromkeys(("training_epoch_end", "validation_epoch_end", "test_epoch_end"), ("outputs",)),
    **dict.fromkeys(("training_step_end", "validation_step_end", "test_step_end"), ("output",)),
}
_STEPS: Final = ("training_step", "validation_step", "test_step", "predict_step")
_LOADERS: Final = tuple(f"{name}_dataloader" for name in ("train", "val", "test", "predict"))
_TRANSFERS: Final = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_CONFIGURES: Final = ("configure_optimizers", "configure_callbacks", "configure_model")
_BY_CALLBACKS: Final = (
    *(*events.SHARED, *events.CALLBACK_ONLY, *events.HISTORICAL),
    *("on_save_checkpoint", "on_load_checkpoint"),
)
_BY_MODULES: Final = (
    *(*events.SHARED, *events.MODULE_ONLY, *events.HISTORICAL, *_LOADERS, *_TRANSFERS, *_CONFIGURES, "prepare_data"),
    *(*("on_save_checkpoint", "on_load_checkpoint"), *(name for name in _PASSED if name not in events.SHARED)),
)

#: Parts of the names of hooks that only other runs call.
_FOREIGN: Final = {
    "fit": ("test", "predict"),
    "validate": ("train", "test", "predict"),
    "test": ("train", "validation", "predict"),
    "predict": ("train", "validation", "test"),
}
_NO_TURNS: Any = SimpleNamespace(index_of=lambda optimizer: 0, active=lambda: (None, None))
_VALUE: Any = SimpleNamespace(optimizer=None)  # stands for anything; an adapter asks a handle for its optimizer


class _StandIn:
    """Has the signature of a method, by which adapters go, and fails where calling the method would fail."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.__signature__ = inspect.signature(method)
        self.__name__ = getattr(method, "__name__", "")
        # What a decorator takes is what counts: it may pass on something else to the method that it wraps.
        self._takes = inspect.signature(method, follow_wrapped=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._takes.bind(*args, **kwargs)


def check_hooks(module: Any, callbacks: Iterable[Any], *, stage: str, bases: tuple[type, ...]) -> None:
    """Refuse hooks whose parameters do not fit what a run passes.

    Args:
        module: the user's module.
        callbacks: the user's callbacks.
        stage: "fit", "validate", "test" or "predict"; hooks that only other runs call are left alone.
        bases: the classes whose own methods need no check.

    Raises:
        MisconfigurationException: naming class, hook, what was found and what fits (``hook-signature``).
    """
    for owner in (*callbacks, module):
        for name in _BY_MODULES if owner is module else _BY_CALLBACKS:
            if not any(other in name for other in _FOREIGN[stage]):
                _check_hook(owner, name, bases)
    check_step(module, {"fit": "training", "validate": "validation"}.get(stage, stage) + "_step", bases=bases)


def check_state_keys(callbacks: Iterable[Any], *, bases: tuple[type, ...]) -> None:
    """Refuse callbacks whose states would overwrite each other in a checkpoint.

    Raises:
        MisconfigurationException: two callbacks with state have one ``state_key`` (``callback-state-key``).
    """
    known: dict[str, str] = {}
    for callback in callbacks:
        if not any(overrides(callback, name, bases) for name in ("state_dict", "on_save_checkpoint")):
            continue
        key, name = callback.state_key, type(callback).__qualname__
        if key in known:
            raise MisconfigurationException(
                f"two callbacks, {known[key]} and {name}, keep their states in checkpoints under one key, {key!r}, so "
                "one would overwrite the other; give them different arguments, or a state_key of their own",
                code="callback-state-key",
            )
        known[key] = name


def check_batch_hooks(module: Any, callbacks: Iterable[Any], name: str, *, bases: tuple[type, ...]) -> None:
    """Refuse batch hooks of an evaluation ("validation", "test", "predict") over several loaders that cannot tell them.

    Raises:
        MisconfigurationException: likewise (``hook-signature``).
    """
    for owner in (*callbacks, module):
        for edge in ("start", "end"):
            _check_hook(owner, f"on_{name}_batch_{edge}", bases, "dataloader_idx=0")


def check_step(module: Any, name: str, *, bases: tuple[type, ...]) -> None:
    """Refuse a step method whose parameters do not fit.

    Raises:
        MisconfigurationException: likewise (``hook-signature``).
    """
    if not overrides(module, name, bases):
        return
    if name == "training_step":
        hiddens = ("hiddens",) if getattr(module, "truncated_bptt_steps", None) else ()
        _check(module, name, ("batch", "batch_idx", *hiddens), functools.partial(_call_training_step, *hiddens))
    else:
        _check(module, name, ("batch", "batch_idx"), _call_evaluation_step)


def _check_hook(owner: Any, name: str, bases: tuple[type, ...], *more: str) -> None:
    """Check one hook, if it is there and not the library's own; ``more`` is passed behind the values of its base."""
    if not overrides(owner, name, bases) or str(getattr(getattr(owner, name), "__module__", "")).startswith("leyden."):
        return
    base = next(base for base in bases if isinstance(owner, base))
    context = ("trainer", "pl_module") if hasattr(base, "state_key") else ()
    values = (*context, *(_PASSED.get(name) or _passed_to(base, name)[len(context) :]), *more)
    _check(owner, name, values, functools.partial(_call_hook, name, len(context)))


def _check(owner: Any, name: str, values: tuple[str, ...], call: Callable[..., Any]) -> None:
    method = getattr(owner, name)
    own = ["self"] if inspect.ismethod(method) else []
    try:
        call(_StandIn(method), values)
        return
    except ValueError:  # no signature: written in C, or a method without self
        if not own:
            return
        found, reason = "", "it has no self"
    except TypeError as error:
        parameters = inspect.signature(method).parameters.values()
        found, reason = ", ".join(own + [str(p.replace(annotation=p.empty)) for p in parameters]), str(error)
    raise MisconfigurationException(
        f"{type(owner).__qualname__}.{name}({found}) does not take what a run passes: {reason}. "
        f"Define {name}({', '.join((*own, *values))}){_more(name, found, values)}",
        code="hook-signature",
    )


def _more(name: str, found: str, values: tuple[str, ...]) -> str:
    """What else the method may take in other modules."""
    if name != "training_step":
        return ""
    more = "; with optimizer_idx behind batch_idx where several optimizers take turns"
    if "hiddens" in found and "hiddens" not in values:
        more += ", and hiddens as the last where the module has truncated_bptt_steps"
    return more


def _call_hook(name: str, num_context: int, stand_in: _StandIn, values: tuple[str, ...]) -> None:
    method = functools.partial(stand_in, *[_VALUE] * num_context) if num_context else stand_in
    adapt(method, name, several=False, turns=_NO_TURNS)(*[_VALUE] * (len(values) - num_context))


def _call_training_step(*given: Any) -> None:
    *hiddens, stand_in, _ = given
    step, takes_index = adapt_training_step(stand_in, several=False)
    step(_VALUE, 0, *[0] * takes_index, *hiddens)


def _call_evaluation_step(stand_in: _StandIn, values: tuple[str, ...]) -> None:
    adapt_evaluation_step(stand_in, several_loaders=False)(_VALUE, 0, 0)


def _passed_to(base: type, name: str) -> tuple[str, ...]:
    """What a run passes to a hook of a base class; nothing to those that only 1.x had."""
    method = getattr(base, name, None)
    if method is None:
        return ()
    _, *parameters = inspect.signature(method).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)


# -- names ------------------------------------------------------------------------------------------------------------

#: Words that people take for each other.
_SAME: Final = {
    **{"training": "train", "validation": "val", "validate": "val", "testing": "test", "prediction": "predict"},
    **{"begin": "start", "beginning": "start", "finish": "end", "stop": "end"},
}


def misspelt_hooks(owner: Any, *, bases: tuple[type, ...]) -> Iterator[tuple[str, str]]:
    """Public methods of a user's class that no run calls, with the name of the hook that was probably meant.

    A method counts if its name is a hook's but for a synonym, a plural or a slip of the pen in one word, and its class
    does not have that hook.
    """
    base = next((base for base in bases if isinstance(owner, base)), None)
    if base is None:
        return
    known = _BY_CALLBACKS if hasattr(base, "state_key") else (*_LOADERS, *_TRANSFERS, "prepare_data")
    if hasattr(base, "training_step"):
        known = (*_BY_MODULES, *_STEPS)
    meant = {name: name.split("_") for name in known if "_" in name}
    for name in dict.fromkeys(_own_methods(owner, base)):
        if name in known or name.startswith("_") or hasattr(base, name):
            continue
        words = name.lower().split("_")
        for hook, expected in meant.items():
            if _is_close(words, expected) and not overrides(owner, hook, bases):
                yield name, hook
                break


def _own_methods(owner: Any, base: type) -> Iterator[str]:
    for kind in type(owner).__mro__:
        if kind is base:
            return
        if not kind.__module__.startswith(("leyden.", "torch.")):
            yield from (name for name, value in vars(kind).items() if inspect.isfunction(value))


def _is_close(words: list[str], expected: list[str]) -> bool:
    """Whether names are the same but for synonyms, plurals and at most one slip."""
    if len(words) != len(expected):
        return False
    others = [pair for pair in zip(words, expected, strict=True) if _meaning(pair[0]) != _meaning(pair[1])]
    return not others or (len(others) == 1 and _is_slip(*others[0]))


def _meaning(word: str) -> str:
    word = word.removesuffix("s")
    return _SAME.get(word, word)


def _is_slip(found: str, meant: str) -> bool:
    """Letters swapped, or one that is missing, too many or, in a long word, another."""
    is_near = difflib.SequenceMatcher(None, found, meant).ratio() >= 0.8
    return sorted(found) == sorted(meant) or (is_near and abs(len(found) - len(meant)) <= 1)
