"""Bringing back what a checkpoint holds."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leyden.checkpoint.from_file import call_first_era, load_weights
from leyden.checkpoint.layout import SCALERS
from leyden.errors import CheckpointError, MissingKeyError, warn
from leyden.hooks.dialects import Signature
from leyden.optimization.plan import Plan


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
        checkpoint: the file's content; the module's hook may change it.
        module: gets the weights.
        datamodule: gets its state, or None.
        callbacks: get their states.
        trainer: handed on to callbacks.
        in_fit: whether a fit goes on. Else callbacks that write checkpoints keep what they know of later ones.

    Raises:
        CheckpointError: the weights do not fit (``checkpoint-weights``).
    """
    module.on_load_checkpoint(checkpoint)
    load_weights(module, checkpoint["state_dict"], strict=bool(module.strict_loading))
    if datamodule is not None:
        call_first_era(datamodule, "on_load_checkpoint", checkpoint)
        if type(datamodule).__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    states = _by_key(checkpoint.get("callbacks") or {})
    for callback in callbacks:
        _tell(callback, trainer, module, checkpoint, states)
    loaded = _load_states([c for c in callbacks if in_fit or not getattr(c, "writes_checkpoints", False)], states)
    left = [str(key) for key in states if key not in loaded]
    if in_fit and left:
        warn(
            f"the checkpoint has states of callbacks that this Trainer does not have: {', '.join(left)}. Pass the "
            "same callbacks to go on with them",
            code="resume-callbacks",
            stacklevel=6,
        )


def _by_key(states: Mapping[Any, Any]) -> dict[Any, Any]:
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


def _load_states(callbacks: Sequence[Any], states: Mapping[Any, Any]) -> set[Any]:
    """Load a copy of its state into each callback that has one; returns the keys."""
    taken: set[Any] = set()
    for callback in callbacks:
        state = _state_of(callback, states)
        if state is not None:
            taken.update({callback.state_key, type(callback)})
            callback.load_state_dict(copy.deepcopy(state))
    return taken


def restore_optimizers(checkpoint: Mapping[str, Any], *, plan: Plan, scaler: Any) -> None:
    """Restore optimizers, schedulers and the loss scaler, by position.

    Args:
        checkpoint: the file's content.
        plan: the optimizers and schedulers of this run.
        scaler: the loss scaler, or None.

    Raises:
        MissingKeyError: the file holds weights only (``resume-weights-only``).
        CheckpointError: it holds another number of them, or a state does not fit (``resume-optimizers``).
    """
    if "optimizer_states" not in checkpoint:
        raise MissingKeyError(
            "the checkpoint holds weights only, without optimizers to go on with: it was saved with "
            "weights_only=True. Start a new fit from its weights: Module.load_from_checkpoint(path)",
            code="resume-weights-only",
        )
    schedulers = [config.scheduler for config in plan.schedulers]
    for what, states, owners in (
        ("optimizer", checkpoint["optimizer_states"], list(plan.optimizers)),
        ("scheduler", checkpoint.get("lr_schedulers", []), schedulers),
    ):
        if len(states) != len(owners):
            raise CheckpointError(
                f"the checkpoint has the states of {len(states)} {what}s, and configure_optimizers returned "
                f"{len(owners)}; return as many, in the same order",
                code="resume-optimizers",
            )
        for index, (owner, state) in enumerate(zip(owners, states, strict=True)):
            _load_state(owner, state, f"{what} {index}")
    state = next((checkpoint[key] for key in SCALERS if key in checkpoint), None)
    if scaler is not None and state:
        scaler.load_state_dict(state)


def _load_state(owner: Any, state: Any, what: str) -> None:
    try:
        owner.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as cause:
        raise CheckpointError(
            f"the state of {what} in the checkpoint does not fit this run's {type(owner).__name__}: {cause}",
            code="resume-optimizers",
        ) from cause
