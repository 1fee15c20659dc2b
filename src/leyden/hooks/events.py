"""The table of hooks: who may listen, and what ``self.log`` may do inside.

A hook is an event of a run. Every name below is a method that users override on their module, on a callback or on
both; callbacks are always called before the module, except for monitors (early stopping, checkpoints), which see
``on_train_epoch_end`` last, when the module has logged what they watch.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class LogRule(NamedTuple):
    """What ``self.log`` does inside of one hook.

    Attributes:
        on_step: default of ``on_step``.
        on_epoch: default of ``on_epoch``.
        allowed: subset of ``{"step", "epoch"}``; an epoch-level hook has no step to log.
    """

    on_step: bool
    on_epoch: bool
    allowed: frozenset[str]


_ANY = frozenset({"step", "epoch"})
_BY_STEP = LogRule(True, False, _ANY)
_BY_EPOCH = LogRule(False, True, _ANY)
_EPOCH_ONLY = LogRule(False, True, frozenset({"epoch"}))

#: Hooks of module and callbacks, in the order in which a fit meets them for the first time.
SHARED: Final = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "on_test_start",
    "on_test_epoch_start",
    "on_test_batch_start",
    "on_test_batch_end",
    "on_test_epoch_end",
    "on_test_end",
    "on_predict_start",
    "on_predict_epoch_start",
    "on_predict_batch_start",
    "on_predict_batch_end",
    "on_predict_epoch_end",
    "on_predict_end",
    "teardown",
)

CALLBACK_ONLY: Final = ("on_sanity_check_start", "on_sanity_check_end", "on_exception")

#: Hooks in which callbacks with an attribute come after the module: what watches an epoch's values, and what saves
#: what the module's own hook has done.
LAST: Final[dict[str, str]] = {
    "on_train_epoch_end": "is_monitor",
    "on_train_batch_end": "writes_checkpoints",
    "on_validation_end": "writes_checkpoints",
}

MODULE_ONLY: Final = (
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_test_model_eval",
    "on_test_model_train",
    "on_predict_model_eval",
    "on_predict_model_train",
)

#: Hooks of 1.x that no base class defines; called where a user's class has them.
HISTORICAL: Final = (
    "on_before_accelerator_backend_setup",
    "on_configure_sharded_model",
    "on_pretrain_routine_start",
    "on_pretrain_routine_end",
    "on_epoch_start",
    "on_epoch_end",
    "on_batch_start",
    "on_batch_end",
    "on_keyboard_interrupt",
    "on_train_dataloader",
    "on_val_dataloader",
    "on_test_dataloader",
    "on_predict_dataloader",
)

#: Where ``self.log`` may be called, and with which defaults. A hook that is not listed may not log.
LOGGING: Final[dict[str, LogRule]] = {
    **dict.fromkeys(
        (
            "training_step",
            "training_step_end",
            "backward",
            "on_before_backward",
            "on_after_backward",
            "on_before_optimizer_step",
            "optimizer_step",
            "configure_gradient_clipping",
            "on_before_zero_grad",
            "optimizer_zero_grad",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_batch_start",
            "on_batch_end",
        ),
        _BY_STEP,
    ),
    **dict.fromkeys(
        (
            "validation_step",
            "validation_step_end",
            "test_step",
            "test_step_end",
            "on_validation_batch_start",
            "on_validation_batch_end",
            "on_test_batch_start",
            "on_test_batch_end",
        ),
        _BY_EPOCH,
    ),
    **dict.fromkeys(
        (
            "on_train_start",
            "on_validation_start",
            "on_test_start",
            "on_train_epoch_start",
            "on_train_epoch_end",
            "on_validation_epoch_start",
            "on_validation_epoch_end",
            "on_test_epoch_start",
            "on_test_epoch_end",
            "on_epoch_start",
            "on_epoch_end",
            "training_epoch_end",
            "validation_epoch_end",
            "test_epoch_end",
            "on_validation_model_eval",
            "on_validation_model_train",
            "on_test_model_eval",
            "on_test_model_train",
        ),
        _EPOCH_ONLY,
    ),
}
