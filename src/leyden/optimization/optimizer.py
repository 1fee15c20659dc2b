"""``LightningOptimizer``: the handle on an optimizer that users hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

from torch.optim import Optimizer

from leyden.errors import MisconfigurationException, OrderError

Closure = Callable[[], Any]
Step = Callable[..., Any]


class LightningOptimizer:
    """A handle on an optimizer whose ``step`` does what the run needs: precision, hooks, clipping, clocks.

    ``self.optimizers()`` and the ``optimizer_step`` hook hand it out. Reading an attribute reads the optimizer's own,
    so ``handle.param_groups[0]["lr"] = 0.1`` changes it; ``handle.optimizer`` is the optimizer itself. ``isinstance``
    holds for the optimizer's class, and the class name shown is "Lightning" before it.

    Args:
        optimizer: the optimizer; a handle is unwrapped.

    >>> import torch
    >>> handle = LightningOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    >>> isinstance(handle, torch.optim.SGD), handle.__class__.__name__, handle.param_groups[0]["lr"]
    (True, 'LightningSGD', 0.1)
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer.optimizer if is_handle(optimizer) else optimizer
        self._perform: Step | None = None
        self._toggle_model: Callable[[Any, bool], AbstractContextManager[None]] | None = None

    @property
    def optimizer(self) -> Any:
        """The optimizer itself. Stepping it directly bypasses precision, hooks, clipping and clocks."""
        return self._optimizer

    def step(self, closure: Closure | None = None, **kwargs: Any) -> Any:
        """Update the parameters.

        Args:
            closure: computes the loss, zeroes gradients and runs backward; most optimizers call it once, some several
                times. Its value is the loss.
            **kwargs: passed on to the optimizer's own ``step``.

        Returns:
            What the optimizer's ``step`` returned: the closure's value, or None without one. None if the update was
            skipped.

        Raises:
            MisconfigurationException: ``closure`` is not callable.
        """
        if closure is not None and not callable(closure):
            raise MisconfigurationException(
                f"optimizer.step(closure) takes a callable, got {type(closure).__name__}: pass the function, not its "
                "result",
                code="closure-not-callable",
            )
        if self._perform is not None:
            return self._perform(closure, **kwargs)
        return self._optimizer.step(**kwargs) if closure is None else self._optimizer.step(closure=closure, **kwargs)

    def toggle_model(self, sync_grad: bool = True) -> AbstractContextManager[None]:
        """Let only the parameters of this optimizer require gradients inside of a ``with``.

        Args:
            sync_grad: False leaves out the reduction of gradients over processes inside.

        Raises:
            OrderError: the handle belongs to no run, so there are no other optimizers to freeze.
        """
        if self._toggle_model is None:
            raise OrderError(
                "optimizer.toggle_model() can only be called on what self.optimizers() returns, from trainer.fit on",
                code="toggle-outside-fit",
            )
        return self._toggle_model(self, sync_grad)

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":  # while unpickling, before it is there
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """A class that derives from the optimizer's, so that ``isinstance`` holds; looked up, never built, on reads."""
        optimizer = self.__dict__.get("_optimizer")
        if optimizer is None:
            return LightningOptimizer
        kind = type(optimizer)
        if kind not in _CLASSES:
            _CLASSES[kind] = type("Lightning" + kind.__name__, (LightningOptimizer, kind), {})
        return _CLASSES[kind]

    def __reduce__(self) -> Any:
        return LightningOptimizer, (self._optimizer,)

    def __repr__(self) -> str:
        return f"Lightning{self._optimizer!r}"


#: The classes that handles present themselves as. Pure derivations, so sharing them between runs is harmless.
_CLASSES: dict[type, type] = {}


def is_handle(value: Any) -> bool:
    """Whether ``value`` is a ``LightningOptimizer`` (and not only claims to be one)."""
    return type(value) is LightningOptimizer


def unwrap(optimizer: Any) -> Any:
    """The optimizer behind a handle; anything else is returned unchanged."""
    return optimizer.optimizer if is_handle(optimizer) else optimizer


def find_handles(returned: Any) -> dict[int, LightningOptimizer]:
    """The handles in what ``configure_optimizers`` returned, by the identity of their optimizers."""
    if is_handle(returned):
        return {id(returned.optimizer): returned}
    items = returned.values() if isinstance(returned, Mapping) else returned
    if not isinstance(returned, list | tuple | Mapping):
        return {}
    return {key: handle for item in items for key, handle in find_handles(item).items()}


class NoOptimizer(Optimizer):
    """Stands in when ``configure_optimizers`` returns None: runs the closure and updates nothing."""

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        super().__setstate__({"state": {}, "param_groups": []})

    def step(self, closure: Closure | None = None) -> Any:
        """Run the closure and return its value."""
        return closure() if closure is not None else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: gradients pile up, as they do in Lightning."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        return "NoOptimizer()"


def parameters_of(optimizer: Any) -> list[Any]:
    """The parameters of an optimizer, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in cast(list[Any], group["params"])]
