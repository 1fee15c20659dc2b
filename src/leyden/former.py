"""Arguments that the Trainer had in Lightning 1.x: ``_RULES`` has what each means today.

One warning lists those of a Trainer that were given, each with what to write instead, or, for those of
``_WITHOUT_EFFECT``, that it does nothing and what there is in its place.
"""

from __future__ import annotations

import difflib
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from torch import Tensor

from leyden import callbacks as parts  # each is imported when it is used
from leyden.argparsing import add_arguments, from_arguments
from leyden.callback import Callback
from leyden.errors import InvalidTypeError, MisconfigurationException, NonFiniteError, warn

T = TypeVar("T")

#: What has no effect, with what to do instead.
_WITHOUT_EFFECT: Final = {
    "amp_backend": "torch's own mixed precision is used",
    "amp_level": "torch's own mixed precision is used",
    "auto_select_gpus": "choose one by devices=[...]",
    "flush_logs_every_n_steps": "loggers write by themselves; CSVLogger has the argument",
    "log_gpu_memory": "add DeviceStatsMonitor()",
    "move_metrics_to_cpu": "logged values stay where they are, which costs little",
    "prepare_data_per_node": "set it on the datamodule",
}
#: Names from before 1.0 and 1.5 that no longer work, with today's where that is spelt quite differently.
_OLDEST: Final = {
    "automatic_optimization": "self.automatic_optimization of the module",
    "default_save_path": "default_root_dir",
    "log_save_interval": "CSVLogger(flush_logs_every_n_steps=...)",
    "nb_gpu_nodes": "num_nodes",
    "overfit_pct": "overfit_batches",
    "row_log_interval": "log_every_n_steps",
    "show_progress_bar": "enable_progress_bar",
    "truncated_bptt_steps": "self.truncated_bptt_steps of the module",
    "use_amp": "precision",
    **{f"{stage}_percent_check": f"limit_{stage}_batches" for stage in ("train", "val", "test")},
}


def translate(former: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Today's arguments for those of 1.x.

    Args:
        former: what was given by names that the Trainer has no more.
        known: the Trainer's arguments of today, as they were given.

    Returns:
        Those that change. "callbacks" has the ones that are added at its end; 1.x prefers a bar or a summary that is
        given. "ckpt_path" is for ``fit``, "auto_lr_find" and "auto_scale_batch_size" are for ``trainer.tune``,
        "multiple_trainloader_mode" is for a collection of training loaders, "weights_save_path" for checkpoints.

    Raises:
        InvalidTypeError: a name that no Trainer had (``trainer-argument``).
        MisconfigurationException: it asks for what leyden does not have (``trainer-argument``).
    """
    unknown = [name for name in former if name not in DEFAULTS]
    if unknown:
        close = [f"; {name}: did you mean {hint}?" for name in unknown if (hint := meant(name, known))]
        names = ", ".join(map(repr, unknown))
        raise InvalidTypeError(f"Trainer() has no argument {names}{''.join(close)}", code="trainer-argument")
    settings: dict[str, Any] = {}
    added: list[Callback] = []
    told: list[str] = []
    for name, value in former.items():
        change, text = meaning(name, value)
        settings |= change
        if "callbacks" in change:
            added.append(change["callbacks"]() if isinstance(change["callbacks"], partial) else change["callbacks"])
        if text:
            shown = f"{type(value).__name__}(...)" if isinstance(value, Callback) else repr(value)
            told.append(f"{name}={shown}: {text}")
    if told:  # at the line that makes the Trainer
        warn(f"Trainer() was given arguments of Lightning 1.x. {'. '.join(told)}", code="trainer-argument-1x")
    given = known["callbacks"]
    chosen = [] if given is None else [given] if isinstance(given, Callback) else list(given)
    if any(isinstance(callback, parts.ProgressBar) for callback in chosen):
        settings.pop("enable_progress_bar", None)
    for callback in added:
        kind = next((kind for kind in (parts.ProgressBar, parts.ModelSummary) if isinstance(callback, kind)), None)
        is_off = kind is parts.ProgressBar and known["enable_progress_bar"] is False
        if kind is None or not (is_off or any(isinstance(other, kind) for other in chosen)):
            chosen.append(callback)
    return settings | ({"callbacks": chosen} if added else {})


def meant(name: str, known: Iterable[str]) -> str:
    """The argument that is likely meant by a name that is none; "" if none is alike.

    >>> meant("row_log_interval", ()), meant("max_epoch", ["max_epochs"])
    ('log_every_n_steps', 'max_epochs')
    """
    return _OLDEST.get(name) or "".join(difflib.get_close_matches(name, [*known, *DEFAULTS], n=1))


def meaning(name: str, value: Any) -> tuple[dict[str, Any], str]:
    """Today's arguments for one of 1.x, and what to write or why it has no effect; "" where it asks for nothing.

    Raises:
        MisconfigurationException: it asks for what leyden does not have (``trainer-argument``).

    >>> meaning("gpus", 0), meaning("terminate_on_nan", False)
    (({'accelerator': 'cpu'}, "write accelerator='cpu'"), ({}, ''))
    """
    if value is not None and value not in _CHOICES.get(name, (value,)):
        expected = " or ".join(map(repr, _CHOICES[name]))
        raise MisconfigurationException(f"Trainer({name}={value!r}): expected {expected}", code="trainer-argument")
    if name in _WITHOUT_EFFECT:
        return {}, f"no effect; {_WITHOUT_EFFECT[name]}" if value else ""
    off = {} if value is None else _OFF.get(name, {})
    change = _RULES[name](value) if value or name == "weights_summary" else off
    written = _WRITTEN.get(name) or ", ".join(f"{key}={_shown(today)}" for key, today in change.items())
    return change, f"write {written}" if change else ""


def _shown(value: Any) -> str:
    """A value as one writes it."""
    if isinstance(value, partial):
        return f"[{value.func.__name__}({', '.join(f'{name}={given!r}' for name, given in value.keywords.items())})]"
    return "[...]" if isinstance(value, Callback) else repr(value)


def _gpus(value: Any) -> dict[str, Any]:
    devices = int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value
    return {"accelerator": "gpu", "devices": devices} if devices else _OFF["gpus"]


def _refuse(value: Any) -> dict[str, Any]:
    raise MisconfigurationException(
        "Trainer(tpu_cores=..., ipus=..., hpus=...): leyden runs on the CPU, CUDA and MPS", code="trainer-argument"
    )


def _checkpoint_callback(value: Any) -> dict[str, Any]:
    return {"callbacks": value} if isinstance(value, Callback) else {"enable_checkpointing": True}


def _early_stop_callback(value: Any) -> dict[str, Any]:
    return {"callbacks": value if isinstance(value, Callback) else partial(parts.EarlyStopping, monitor="val_loss")}


def _weights_summary(value: Any) -> dict[str, Any]:
    if value is None:
        return {"enable_model_summary": False}
    return {"callbacks": partial(parts.ModelSummary, max_depth=1 if value == "top" else -1)}


#: What a value that asks for something changes. A callback is added; one that is partial is made then.
_RULES: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "gpus": _gpus,
    "num_processes": lambda value: {"devices": value} if value != 1 else {},
    "tpu_cores": _refuse,
    "ipus": _refuse,
    "hpus": _refuse,
    "distributed_backend": lambda value: {"strategy": value},
    "replace_sampler_ddp": lambda value: {"use_distributed_sampler": True},
    "checkpoint_callback": _checkpoint_callback,
    "early_stop_callback": _early_stop_callback,
    "weights_summary": _weights_summary,
    "progress_bar_refresh_rate": lambda value: {"callbacks": partial(parts.TQDMProgressBar, refresh_rate=value)},
    "process_position": lambda value: {"callbacks": partial(parts.TQDMProgressBar, process_position=value)},
    "resume_from_checkpoint": lambda value: {"ckpt_path": value},
    "weights_save_path": lambda value: {"weights_save_path": value},
    "reload_dataloaders_every_epoch": lambda value: {"reload_dataloaders_every_n_epochs": 1},
    "multiple_trainloader_mode": lambda value: {"multiple_trainloader_mode": value} if value == "min_size" else {},
    "terminate_on_nan": lambda value: {"callbacks": TerminateOnNaN()},
    "stochastic_weight_avg": lambda value: {"callbacks": partial(parts.StochasticWeightAveraging)},
    "auto_lr_find": lambda value: {"auto_lr_find": value},
    "auto_scale_batch_size": lambda value: {"auto_scale_batch_size": value},
}
#: What False, 0 and empty values change, where they are not what happens anyway.
_OFF: Final[dict[str, dict[str, Any]]] = {
    "gpus": {"accelerator": "cpu"},
    "replace_sampler_ddp": {"use_distributed_sampler": False},
    "checkpoint_callback": {"enable_checkpointing": False},
    "progress_bar_refresh_rate": {"enable_progress_bar": False},
}
#: The values that there are, beside None.
_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "weights_summary": ("top", "full"),
    "multiple_trainloader_mode": ("max_size_cycle", "min_size"),
}
#: What to write, where that is no argument of the Trainer.
_WRITTEN: Final = {
    "resume_from_checkpoint": "trainer.fit(..., ckpt_path=...)",
    "weights_save_path": "ModelCheckpoint(dirpath=...)",
    "multiple_trainloader_mode": "CombinedLoader(loaders, 'min_size')",
    "terminate_on_nan": "callbacks=[leyden.former.TerminateOnNaN()]",
    "auto_lr_find": "Tuner(trainer).lr_find(module)",
    "auto_scale_batch_size": "Tuner(trainer).scale_batch_size(module)",
}
#: All names of 1.x, with their defaults, for command lines: those that are a bool are flags there.
DEFAULTS: Final[dict[str, Any]] = {
    **dict.fromkeys((*_WITHOUT_EFFECT, *_RULES)),
    **dict.fromkeys(("auto_lr_find", "auto_scale_batch_size", "auto_select_gpus", "early_stop_callback"), False),
    **dict.fromkeys(("move_metrics_to_cpu", "prepare_data_per_node", "reload_dataloaders_every_epoch"), False),
    **dict.fromkeys(("stochastic_weight_avg", "terminate_on_nan"), False),
    **{"weights_summary": "top", "checkpoint_callback": True, "replace_sampler_ddp": True},
}


class TerminateOnNaN(Callback):
    """Ends a fit whose loss or parameters are not finite, after the batch in which that happens."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the loss and at all parameters, which waits for the device."""
        wrong = [name for name, parameter in pl_module.named_parameters() if not bool(parameter.isfinite().all())]
        if not all(bool(loss.isfinite().all()) for loss in _losses(outputs)):
            wrong = ["the loss", *wrong]
        if wrong:
            raise NonFiniteError(
                f"{', '.join(wrong[:5])} is not finite after batch {batch_idx} of epoch {trainer.current_epoch}",
                code="terminate-on-nan",
            )


def _losses(outputs: Any) -> list[Tensor]:
    """The losses in what training_step returned; several optimizers and truncated BPTT give lists."""
    if isinstance(outputs, list):
        return [loss for output in outputs for loss in _losses(output)]
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return [loss] if isinstance(loss, Tensor) else []


def add_trainer_arguments(cls: type, parser: ArgumentParser, use_argument_group: bool = True) -> ArgumentParser:
    """Add a Trainer's arguments, today's and those of 1.x, to a parser."""
    return add_arguments(cls, parser, former=DEFAULTS, use_argument_group=use_argument_group)


def trainer_from(cls: type[T], args: Any, **changes: Any) -> T:
    """Build a Trainer from parsed arguments."""
    return from_arguments(cls, args, former=DEFAULTS, **changes)
