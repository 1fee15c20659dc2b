"""Methods that Lightning calls on strategies and precisions, and leyden does not: whoever has one is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from leyden.errors import MisconfigurationException

_BOTH: Final = {
    "LightningModule.on_before_backward": "pre_backward",
    "LightningModule.on_after_backward": "post_backward",
    "LightningModule.configure_model": "tensor_init_context module_init_context model_sharded_context",
}
_STEPS: Final = "training_step validation_step test_step predict_step training_step_end validation_step_end"
_BEGINNINGS: Final = "on_train_start on_validation_start on_test_start on_predict_start on_train_batch_start"
#: What to write in their place -> the methods of a strategy.
_STRATEGY: Final = _BOTH | {
    "LightningModule.{}": f"backward optimizer_step {_STEPS}",
    "LightningModule.configure_optimizers": "setup_optimizers init_optimizers",
    "LightningModule.on_save_checkpoint": "lightning_module_state_dict optimizer_state",
    "LightningModule.on_load_checkpoint": "load_model_state_dict load_optimizer_state_dict",
    "LightningModule.on_train_batch_end": "post_training_step",
    "LightningModule.train_dataloader and its like": "process_dataloader",
    "Callback.{}": f"{_BEGINNINGS} on_train_end on_validation_end on_test_end on_predict_end on_exception",
    "Precision.convert_module": "setup_precision_plugin",
    "Strategy.any": "reduce_boolean_decision",
    "Strategy.setup": "dispatch pre_dispatch",
    "Trainer.fit(resume=...)": "lightning_restore_optimizer restore_checkpoint_after_setup",
}
#: Likewise, of a precision.
_PRECISION: Final = _BOTH | {
    "LightningModule.{}": "backward optimizer_step",
    "LightningModule.configure_gradient_clipping": "clip_gradients clip_grad_by_norm clip_grad_by_value main_params",
    "LightningModule.on_save_checkpoint": "state_dict on_save_checkpoint",
    "LightningModule.on_load_checkpoint": "load_state_dict on_load_checkpoint",
    "LightningModule.teardown": "teardown",
    "Precision.convert_module": "connect",
    "Precision.forward_context": "train_step_context val_step_context test_step_context predict_step_context",
}


def _by_method(table: Mapping[str, str]) -> dict[str, str]:
    return {name: instead.format(name) for instead, names in table.items() for name in names.split()}


#: By kind, each method and what to write in its place.
UNCALLED: Final = {"strategy": _by_method(_STRATEGY), "precision": _by_method(_PRECISION)}


def refuse_uncalled(part: Any, kind: str) -> None:
    """Refuse a user's strategy or precision whose methods a run would pass over.

    Args:
        part: the object; leyden's own have none of these methods.
        kind: "strategy" or "precision".

    Raises:
        MisconfigurationException: it has such methods (``strategy-method``, ``precision-method``).
    """
    found = {name: instead for name, instead in UNCALLED[kind].items() if hasattr(type(part), name)}
    if found:
        told = ", ".join(f"{name} (write {instead} in its place)" for name, instead in found.items())
        message = f"{type(part).__qualname__} has methods that leyden never calls on a {kind}: {told}"
        raise MisconfigurationException(message, code=f"{kind}-method")
