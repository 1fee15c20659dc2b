"""Modules as TorchScript and ONNX: what ``LightningModule.to_torchscript`` and ``to_onnx`` do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import torch

from leyden import checkpoint
from leyden.errors import InvalidValueError, MissingExtraError
from leyden.seed import isolate_rng

#: In the Trainer's place meanwhile; what is exported holds none.
_NO_TRAINER: Final = object()


def to_torchscript(
    module: Any,
    file_path: str | os.PathLike[str] | BinaryIO | None,
    method: str,
    example_inputs: Any,
    options: Mapping[str, Any],
) -> Any:
    """See :meth:`leyden.LightningModule.to_torchscript`."""
    if method not in ("script", "trace"):
        raise InvalidValueError(
            f"to_torchscript(method={method!r}): expected 'script' or 'trace'", code="torchscript-method"
        )
    with _in_evaluation(module):
        if method == "script":
            result = torch.jit.script(module, **options)
        else:
            positional, named = _arguments(module, example_inputs, "to_torchscript(method='trace', example_inputs=...)")
            given = {"example_kwarg_inputs": named} if named else {"example_inputs": positional}
            result = torch.jit.trace(module, **given, **options)  # type: ignore[no-untyped-call]
    if isinstance(file_path, str | os.PathLike):
        path = os.path.abspath(os.path.expanduser(file_path))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with checkpoint.partial_file(os.path.dirname(path)) as partial:
            torch.jit.save(result, partial)
            os.replace(partial, path)
    elif file_path is not None:
        torch.jit.save(result, file_path)
    return result


def to_onnx(module: Any, file_path: Any, input_sample: Any, options: Mapping[str, Any]) -> Any:
    """See :meth:`leyden.LightningModule.to_onnx`."""
    for package in ("onnx", "onnxscript") if options.get("dynamo", True) else ("onnx",):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="onnx")
    with _in_evaluation(module):
        positional, named = _arguments(module, input_sample, "to_onnx(input_sample=...)")
        if isinstance(file_path, os.PathLike):
            file_path = os.fspath(file_path)
        export: Any = torch.onnx.export
        return export(module, positional, file_path, **({"kwargs": named} if named else {}), **options)


def _arguments(module: Any, given: Any, asked: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of ``forward``, brought to the device as a batch is: a dict has them by name, a tuple in order."""
    example = module.example_input_array if given is None else given
    if example is None:
        raise InvalidValueError(
            f"{asked} needs an input of forward: pass one, or set self.example_input_array", code="export-input"
        )
    example = module.on_before_batch_transfer(example, 0)
    example = module.transfer_batch_to_device(example, module.device, 0)
    example = module.on_after_batch_transfer(example, 0)
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


@contextmanager
def _in_evaluation(module: Any) -> Iterator[None]:
    """Every part in evaluation mode, without gradients and Trainer; its attributes come back afterwards."""
    before = [(vars(part), dict(vars(part))) for part in module.modules()]
    for attributes, values in before:
        if "_trainer" in values:  # torch reads every property, and `trainer` refuses where there is None
            attributes["_trainer"] = _NO_TRAINER
    module.eval()
    try:
        with torch.no_grad(), isolate_rng():
            yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)
