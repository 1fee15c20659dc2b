"""``load_from_checkpoint``: a module or a datamodule built anew from a file."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint.compare import Report, compare_weights, listed, not_finite
from leyden.checkpoint.encoding import Pickled
from leyden.checkpoint.files import read_checkpoint
from leyden.errors import CheckpointError, InvalidValueError, MissingExtraError, warn
from leyden.hparams import AttributeDict
from leyden.instantiation import INSTANTIATOR, INSTANTIATORS, check_described, instantiate_module


def load_module(
    kind: type[Any],
    path: Any,
    *,
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    overrides: Mapping[str, Any],
) -> Any:
    """What ``LightningModule.load_from_checkpoint`` does."""
    checkpoint = _read(path, map_location, weights_only)
    module = _build(kind, checkpoint, hparams_file, overrides, trusted=weights_only is False)
    module.configure_sharded_model()
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    strict = bool(module.strict_loading) if strict is None else strict
    weights = checkpoint["state_dict"]
    told = load_weights(module, weights, strict=strict)
    if told:
        warn(f"strict=False: {'; '.join(told)}", code="checkpoint-keys")
    device = next((value.device for value in weights.values() if isinstance(value, torch.Tensor)), None)
    return module if device is None else module.to(device)


def load_datamodule(
    kind: type[Any],
    path: Any,
    *,
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    weights_only: bool | None = None,
    overrides: Mapping[str, Any],
) -> Any:
    """What ``LightningDataModule.load_from_checkpoint`` does."""
    checkpoint = _read(path, map_location, weights_only)
    datamodule = _build(kind, checkpoint, hparams_file, overrides, trusted=weights_only is False)
    call_first_era(datamodule, "on_load_checkpoint", checkpoint)
    if kind.__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[kind.__qualname__])
    return datamodule


def load_weights(module: Any, weights: Mapping[str, Any], *, strict: bool) -> list[str]:
    """Load weights by name; before the module changes they are compared with its own.

    Returns:
        Which names were left out.

    Raises:
        CheckpointError: with all that is missing, unexpected or of another shape (``checkpoint-weights``).
    """
    report = Report()
    compare_weights(report, module, weights, strict=strict)
    if report.errors:
        raise CheckpointError(
            f"the checkpoint's weights do not fit {type(module).__qualname__}:\n  - " + "\n  - ".join(report.errors),
            code="checkpoint-weights",
        )
    wrong = not_finite(module, weights)
    if wrong:
        warn(f"weights in the checkpoint are not finite (NaN or infinite): {listed(wrong)}", code="checkpoint-finite")
    module.load_state_dict(weights, strict=strict)
    return report.choices


def call_first_era(owner: Any, name: str, checkpoint: dict[str, Any]) -> None:
    """Call a hook that only 1.x had, if the user's class defines it."""
    hook = getattr(owner, name, None)
    if callable(hook):
        hook(checkpoint)


def _read(path: Any, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    """Read a file; without a ``map_location`` its tensors come to where they were, if that device is here."""
    return read_checkpoint(
        path, map_location=_to_what_is_there if map_location is None else map_location, weights_only=weights_only
    )


def _to_what_is_there(storage: Any, location: str) -> Any:
    device = torch.device(location) if location.startswith(("cuda", "mps")) else torch.device("cpu")
    there = {"cuda": torch.cuda.device_count() > (device.index or 0), "mps": torch.backends.mps.is_available()}
    return None if there.get(device.type, False) else storage


def _build(
    kind: type[Any], checkpoint: Mapping[str, Any], hparams_file: Any, overrides: Mapping[str, Any], *, trusted: bool
) -> Any:
    """The object, without its weights; its hyper-parameters are those of the file, or of ``hparams_file``."""
    saved = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_KEY, {})
    if hparams_file is not None:
        saved = _from_file(Path(hparams_file))
    for name in saved:
        if isinstance(saved[name], Pickled) and name not in overrides:
            raise CheckpointError(
                f"the hyper-parameter {name!r} is {saved[name]!r}. Pass trust=True if you trust the file, or "
                f"load_from_checkpoint(..., {name}=...)",
                code="checkpoint-untrusted",
            )
    if saved.get(INSTANTIATOR) in INSTANTIATORS:  # LightningCLI's: objects among the arguments are described
        if not trusted:
            check_described(saved, (kind, torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler))
        config = {name: value for name, value in {**saved, **overrides}.items() if name != INSTANTIATOR}
        return instantiate_module(kind, config)
    return kind(**_arguments(kind, checkpoint, saved, overrides))


def _arguments(
    kind: type[Any], checkpoint: Mapping[str, Any], saved: Any, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of ``__init__``: what was saved, and what the caller says instead."""
    holder = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_NAME)
    parameters = inspect.signature(kind.__init__).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if holder not in (None, "kwargs") and holder in parameters:
        changed = {name: value for name, value in overrides.items() if name not in parameters}
        values = AttributeDict({**saved, **changed}) if isinstance(saved, dict) else saved
        arguments = {holder: values, **{name: overrides[name] for name in overrides if name in parameters}}
        return arguments
    arguments = {**saved, **overrides}
    if takes_any:
        return arguments
    for name in overrides:
        if name not in parameters and name not in saved:
            close = difflib.get_close_matches(name, parameters, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            warn(
                f"{kind.__qualname__}.load_from_checkpoint({name}=...) has no effect: __init__ takes no {name!r}{hint}",
                code="checkpoint-argument",
            )
    return {name: value for name, value in arguments.items() if name in parameters}


def _from_file(path: Path) -> dict[str, Any]:
    """Hyper-parameters from a YAML file, as loggers write them."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", extra="yaml") from None
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as cause:
        raise InvalidValueError(
            f"hparams_file={str(path)!r} is no YAML file of plain values: {' '.join(str(cause).split())}. Write it "
            "without tags like !!python/...",
            code="checkpoint-hparams-file",
        ) from None
    if not isinstance(values, dict | None):
        raise InvalidValueError(
            f"hparams_file={str(path)!r} holds {type(values).__name__}; expected names and values, as in 'lr: 0.1'",
            code="checkpoint-hparams-file",
        )
    return values or {}
