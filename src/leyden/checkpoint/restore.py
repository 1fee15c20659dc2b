"""Bringing back what a checkpoint holds."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leyden.checkpoint.from_file import call_first_era, load_weights
from leyden.errors import CheckpointError, LeydenError
from leyden.hooks.dialects import Signature


def restore_module(
    checkpoint: dict[str, Any],
    *,
    module: Any,
    datamodule: Any,
    callbacks: Sequence[Any],
    trainer: Any,
    in_fit: bool,
) -> None:
    """Restore weights, the datamodule's state and the callbacks' states, before the run's optimizers are made.

    Args:
        checkpoint: the file's content, which the module's hook has seen.
        module: gets the weights.
        datamodule: gets its state, or None.
        callbacks: get their states.
        trainer: handed on to callbacks.
        in_fit: whether a fit goes on. Else callbacks that write checkpoints keep what they know of later ones.

    Raises:
        CheckpointError: the weights do not fit (``checkpoint-weights``).
    """
    load = functools.partial(load_weights, module) if not in_fit else module.load_state_dict  # which was compared
    load(checkpoint["state_dict"], strict=bool(module.strict_loading))
    if datamodule is not None:
        call_first_era(datamodule, "on_load_checkpoint", checkpoint)
        if type(datamodule).__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    states = by_key(checkpoint.get("callbacks") or {})
    for callback in callbacks:
        _tell(callback, trainer, module, checkpoint, states)
    _load_states([c for c in callbacks if in_fit or not getattr(c, "writes_checkpoints", False)], states)


def by_key(states: Mapping[Any, Any]) -> dict[Any, Any]:
    """States by key; 1.5 to 1.8 named one argument more in a ModelCheckpoint's."""
    return {
        re.sub(r", 'save_on_train_epoch_end': \w+", "", key) if isinstance(key, str) else key: state
        for key, state in states.items()
    }


def _state_of(callback: Any, states: Mapping[Any, Any]) -> Any:
    """The state of a callback, or None; before 1.5 the key was the class."""
    return states.get(callback.state_key, states.get(type(callback)))


def _tell(callback: Any, trainer: Any, module: Any, checkpoint: dict[str, Any], states: Mapping[Any, Any]) -> None:
    """Call ``on_load_checkpoint`` with the checkpoint or, in the form of 1.5, with the callback's own state."""
    hook, state = callback.on_load_checkpoint, _state_of(callback, states)
    named = Signature.of(hook).positional[2:3]
    first_era = named in (("callback_state",), ("state",)) or (
        state is not None and named != ("checkpoint",) and not _keeps_state(callback)
    )
    if not first_era:
        hook(trainer, module, checkpoint)
    elif state is not None:
        hook(trainer, module, copy.deepcopy(state))


def _keeps_state(callback: Any) -> bool:
    """Whether a callback has state in the way of 1.6 and later."""
    base = next(kind for kind in type(callback).__mro__ if kind.__module__ == "leyden.callback")
    return any(getattr(type(callback), name) is not getattr(base, name) for name in ("state_dict", "load_state_dict"))


def _load_states(callbacks: Sequence[Any], states: Mapping[Any, Any]) -> None:
    """Load a copy of its state into each callback that has one."""
    for callback in callbacks:
        state, name = _state_of(callback, states), type(callback).__qualname__
        if state is None:
            continue
        try:
            callback.load_state_dict(copy.deepcopy(state))
        except LeydenError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as cause:
            raise CheckpointError(
                f"{name} cannot load its state: {type(cause).__name__}: {cause}; begin it anew with "
                f'resume={{"callbacks.{name}": "reset"}}',
                code="checkpoint-callback",
            ) from cause
