"""Historical signatures of users' methods, each adapted once, when it is bound.

Inside leyden there is one convention, the 2.x signature. A method written for 1.x is recognised by its own signature,
never by a global mode, and wrapped so that it can be called like a 2.x one:

1. a parameter that only 1.x had (``optimizer_idx``, ``on_tpu``, ...) says 1.x;
2. else the number of positional parameters says which form it is;
3. else (only ``*args``) it is 2.x, unless several optimizers take turns in automatic mode: then it can only be 1.x.

Known values are passed by position, because users name parameters as they like.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from leyden.errors import MisconfigurationException

Method = Callable[..., Any]
Hook = TypeVar("Hook", bound=Method)

FIRST_ERA_NAMES = frozenset(
    {"optimizer_idx", "opt_idx", "on_tpu", "using_native_amp", "using_lbfgs", "hiddens", "callback_state", "unused"}
)


def also_first_era(hook: Hook) -> Hook:
    """Mark an empty hook of a base class: it takes what 1.x passed as well, because overrides hand it to ``super()``.

    Type checkers and ``inspect.signature`` go on seeing the 2.x form, which is how the hook is called.
    """

    @functools.wraps(hook)
    def take_anything(*args: Any, **kwargs: Any) -> None:
        return None

    return take_anything  # type: ignore[return-value]


class OptimizerIndex(Protocol):
    """What an adapter needs to know about the optimizers of the run."""

    def index_of(self, optimizer: Any) -> int:
        """Position of an optimizer, of its handle, or of the Joint that has it as a member."""

    def active(self) -> tuple[Any, int | None]:
        """The optimizer whose turn it is and its index; ``(None, None)`` in manual mode."""


class Signature(NamedTuple):
    """The parameters of a bound method, without ``self``."""

    positional: tuple[str, ...]
    required: int
    keyword_only: frozenset[str]
    has_args: bool
    has_kwargs: bool

    @classmethod
    def of(cls, method: Method) -> Signature:
        """Read a signature through ``functools.wraps``; a callable without one counts as ``(*args, **kwargs)``."""
        try:
            parameters = inspect.signature(method).parameters.values()
        except (TypeError, ValueError):
            return cls((), 0, frozenset(), True, True)
        by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return cls(
            tuple(p.name for p in by_position),
            sum(p.default is p.empty for p in by_position),
            frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
            any(p.kind is p.VAR_POSITIONAL for p in parameters),
            any(p.kind is p.VAR_KEYWORD for p in parameters),
        )

    def names(self, name: str) -> bool:
        """Whether a parameter has this name."""
        return name in self.positional or name in self.keyword_only

    def is_first_era(self, arity: int, *, several: bool) -> bool:
        """Whether the method has the 1.x form that takes ``arity`` values by position."""
        if FIRST_ERA_NAMES.intersection(self.positional) or FIRST_ERA_NAMES & self.keyword_only:
            return True
        if self.positional:
            return len(self.positional) >= arity
        return several and self.has_args


def adapt(method: Method, hook: str, *, several: bool, turns: OptimizerIndex, mixed: bool = False) -> Method:
    """Return ``method`` callable in the 2.x form of ``hook``.

    Args:
        method: the user's bound method; for a callback, with trainer and module already bound.
        hook: name of the hook; one without historical forms is returned unchanged.
        several: whether several optimizers take turns in automatic mode.
        turns: tells the index that a 1.x method wants to know.
        mixed: whether mixed precision is active; 1.x asks by ``using_native_amp``.
    """
    adapter = _ADAPTERS.get(hook)
    if adapter is None:
        return method
    return adapter(method, Signature.of(method), several, turns, mixed)


def _optimizer_step(method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool) -> Method:
    if not signature.is_first_era(5, several=several):
        return method
    flags = {"on_tpu": False, "using_native_amp": mixed}

    def first_era(epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> Any:
        is_lbfgs = any(base.__name__ == "LBFGS" for base in type(optimizer.optimizer).__mro__)
        keywords = _accepted(signature, {**flags, "using_lbfgs": is_lbfgs})
        return method(epoch, batch_idx, optimizer, turns.index_of(optimizer), closure, **keywords)

    return first_era


def _accepted(signature: Signature, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that the method names, or all of them if it takes any and its named parameters say 1.x."""
    takes_any = signature.has_kwargs and bool(signature.positional or signature.keyword_only)
    return {name: value for name, value in keywords.items() if takes_any or signature.names(name)}


def _with_index(arity: int) -> Callable[..., Method]:
    """Adapter of hooks whose 1.x form has the optimizer's index behind the optimizer, the last argument of 2.x."""

    def adapter(method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool) -> Method:
        if not signature.is_first_era(arity, several=several):
            return method
        return lambda *args: method(*args, turns.index_of(args[-1]))

    return adapter


def _configure_gradient_clipping(
    method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool
) -> Method:
    named = {"gradient_clip_val", "gradient_clip_algorithm"} <= {*signature.positional, *signature.keyword_only}
    by_name = named or (signature.has_kwargs and len(signature.positional) <= 2)
    first_era = signature.is_first_era(4, several=several)

    def call(optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> Any:
        known = (optimizer, turns.index_of(optimizer)) if first_era else (optimizer,)
        if by_name:
            return method(*known, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm)
        return method(*known, gradient_clip_val, gradient_clip_algorithm)

    return call


def _backward(method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool) -> Method:
    if not signature.is_first_era(3, several=several):
        return method
    return lambda loss, *args, **kwargs: method(loss, *turns.active(), *args, **kwargs)


def _lr_scheduler_step(
    method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool
) -> Method:
    if not signature.is_first_era(3, several=several):
        return method

    def first_era(scheduler: Any, metric: Any) -> Any:
        owner = getattr(scheduler, "optimizer", None)  # a scheduler of the user's own need not have one
        return method(scheduler, None if owner is None else turns.index_of(owner), metric)

    return first_era


def _train_batch(arity: int) -> Callable[..., Method]:
    """Adapter of ``on_train_batch_start/end``: 1.x had one more value, always 0."""

    def adapter(method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool) -> Method:
        wants_more = "unused" in signature.positional or "dataloader_idx" in signature.positional
        if not wants_more and signature.required <= arity:
            return method
        return lambda *args: method(*args, 0)

    return adapter


def _evaluation_batch(arity: int) -> Callable[..., Method]:
    """Adapter of the evaluation's batch hooks: 2.x omits ``dataloader_idx`` when there is only one loader."""

    def adapter(method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool) -> Method:
        if signature.required <= arity:
            return method
        return lambda *args: method(*args, 0) if len(args) == arity else method(*args)

    return adapter


def _stage(method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool) -> Method:
    if signature.names("stage") or signature.has_kwargs:
        return lambda stage: method(stage=stage)
    if signature.positional or signature.has_args:
        return method
    return lambda stage: method()


def _predict_epoch_end(
    method: Method, signature: Signature, several: bool, turns: OptimizerIndex, mixed: bool
) -> Method:
    """Inside, the results are always passed; the 2.x form does not want them."""
    if signature.positional:
        return method
    return lambda results: method()


_ADAPTERS: dict[str, Callable[[Method, Signature, bool, OptimizerIndex, bool], Method]] = {
    "optimizer_step": _optimizer_step,
    "optimizer_zero_grad": _with_index(4),
    "on_before_optimizer_step": _with_index(2),
    "configure_gradient_clipping": _configure_gradient_clipping,
    "backward": _backward,
    "lr_scheduler_step": _lr_scheduler_step,
    "toggle_optimizer": _with_index(2),
    "on_train_batch_start": _train_batch(2),
    "on_train_batch_end": _train_batch(3),
    **{
        f"on_{stage}_batch_{edge}": _evaluation_batch(arity)
        for stage in ("validation", "test", "predict")
        for edge, arity in (("start", 2), ("end", 3))
    },
    "setup": _stage,
    "teardown": _stage,
    "on_predict_epoch_end": _predict_epoch_end,
}


def adapt_training_step(method: Method, *, several: bool) -> tuple[Method, bool]:
    """Return ``training_step`` and whether it takes ``(batch, batch_idx, optimizer_idx)`` or ``(batch, batch_idx)``.

    Args:
        method: the user's bound method.
        several: whether several optimizers take turns in automatic mode.

    Raises:
        MisconfigurationException: it wants to draw from the loader's iterator by itself.
    """
    signature = Signature.of(method)
    _refuse_iterator(signature)
    if takes_optimizer_idx(method) or (several and signature.has_args):
        return method, True
    if "batch_idx" in signature.positional or len(signature.positional) >= 2 or signature.has_args:
        return method, False
    return functools.wraps(method)(lambda batch, batch_idx: method(batch)), False


def takes_optimizer_idx(method: Method) -> bool:
    """Whether a ``training_step`` names ``optimizer_idx`` among its positional parameters."""
    return "optimizer_idx" in Signature.of(method).positional


def adapt_evaluation_step(method: Method, *, several_loaders: bool) -> Method:
    """Return an evaluation step callable as ``(batch, batch_idx, dataloader_idx)``.

    Raises:
        MisconfigurationException: there are several loaders and it does not take ``dataloader_idx``, or it wants to
            draw from the loader's iterator by itself.
    """
    signature = Signature.of(method)
    _refuse_iterator(signature)
    count = 3 if signature.has_args else len(signature.positional)
    wants_loader = signature.required >= 3 or (several_loaders and count >= 3)
    if wants_loader:
        return method
    if several_loaders and (signature.has_kwargs or "dataloader_idx" in signature.keyword_only):
        return lambda batch, batch_idx, dataloader_idx: method(batch, batch_idx, dataloader_idx=dataloader_idx)
    if several_loaders:
        raise MisconfigurationException(
            f"there are several loaders, and {method.__name__} does not take the index of the one that a batch is "
            f"from; define {method.__name__}(self, batch, batch_idx, dataloader_idx=0)",
            code="dataloader-idx-missing",
        )
    if count >= 2:
        return lambda batch, batch_idx, dataloader_idx: method(batch, batch_idx)
    return lambda batch, batch_idx, dataloader_idx: method(batch)


def _refuse_iterator(signature: Signature) -> None:
    if "dataloader_iter" in signature.positional:
        raise MisconfigurationException(
            "a step method with the parameter 'dataloader_iter' draws its batches by itself, which this version does "
            "not offer; take (self, batch, batch_idx)",
            code="not-yet",
        )
