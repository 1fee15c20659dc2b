"""What a checkpoint holds, under the keys and in the order that Lightning writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from leyden.checkpoint.from_file import call_first_era
from leyden.checkpoint.progress import loops_of
from leyden.optimization.plan import Plan

#: Lightning 2.x reads files of this version as they are; a newer one would make its older versions warn.
LIGHTNING_VERSION: Final = "2.0.0"
SCALER: Final = "MixedPrecision"
#: Keys of the scaler's state in the files of all versions.
SCALERS: Final = (SCALER, "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin", "native_amp_scaling_state")


def dump(
    *,
    module: Any,
    datamodule: Any,
    callbacks: Sequence[Any],
    trainer: Any,
    plan: Plan | None,
    scaler: Any,
    place: Mapping[str, Any],
    weights_only: bool,
    hooks: bool = True,
) -> dict[str, Any]:
    """The state of a run as one dict.

    Args:
        module: the user's module.
        datamodule: the user's datamodule, or None.
        callbacks: their states are kept by ``state_key``.
        trainer: handed on to callbacks.
        plan: optimizers and schedulers; None before there are any.
        scaler: the loss scaler of float16, or None.
        place: where the fit is: what ``capture`` returned.
        weights_only: whether to leave out what only a resumed fit needs.
        hooks: whether to call the module's ``on_save_checkpoint``.
    """
    clocks = place["clocks"]
    checkpoint: dict[str, Any] = {
        "epoch": clocks["epoch"],
        "global_step": clocks["global_step"],
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": module.state_dict(),
        "loops": loops_of(place, automatic=bool(module.automatic_optimization)),
    }
    if not weights_only:
        states = {callback.state_key: callback.state_dict() for callback in callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
        optimizers, schedulers = (plan.optimizers, plan.schedulers) if plan is not None else ((), ())
        checkpoint["optimizer_states"] = [optimizer.state_dict() for optimizer in optimizers]
        checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in schedulers]
        if scaler is not None and scaler.is_enabled():
            checkpoint[SCALER] = scaler.state_dict()
    for owner in (module, datamodule):
        if owner is not None and owner.hparams:
            checkpoint.update(_hyper_parameters(owner))
    if datamodule is not None:
        checkpoint.update(_data_state(datamodule))
        call_first_era(datamodule, "on_save_checkpoint", checkpoint)
    if not weights_only:
        checkpoint["leyden"] = dict(place)
    for callback in callbacks:
        state = callback.on_save_checkpoint(trainer, module, checkpoint)
        if isinstance(state, dict) and state and not weights_only:  # the way of 1.5
            checkpoint["callbacks"].setdefault(callback.state_key, state)
    if hooks:
        module.on_save_checkpoint(checkpoint)
    return checkpoint


def _hyper_parameters(owner: Any) -> dict[str, Any]:
    hparams = dict(owner.hparams) if isinstance(owner.hparams, dict) else owner.hparams  # OmegaConf's stays what it is
    return {owner.CHECKPOINT_HYPER_PARAMS_NAME: owner._hparams_name, owner.CHECKPOINT_HYPER_PARAMS_KEY: hparams}


def _data_state(datamodule: Any) -> dict[str, Any]:
    state = datamodule.state_dict()
    return {type(datamodule).__qualname__: state} if state else {}
