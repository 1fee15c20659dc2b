"""``Fabric``: modules, optimizers and loaders set up, computed with, saved and restored."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from leyden import checkpoint, seed
from leyden.data.workers import prepare_workers
from leyden.errors import InvalidTypeError, InvalidValueError, MissingKeyError, OrderError
from leyden.fabric.surroundings import Surroundings
from leyden.fabric.wrappers import FabricDataLoader, is_wrapped, unwrapped, wrap
from leyden.module import LightningModule
from leyden.optimization.optimizer import LightningOptimizer, parameters_of
from leyden.precision import Precision
from leyden.resolve import resolve_loggers, resolve_precision
from leyden.strategies import Strategy, build_strategy, resolve_device, resolve_plugins
from leyden.tree import map_tensors

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class Fabric(Surroundings):
    """Runs modules, optimizers and loaders of a loop of your own on a device and in a precision.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda" or "mps".
        strategy: "auto" or a ``Strategy``.
        devices: "auto", a number, or a list of indices; this version runs on one device.
        num_nodes: number of machines; this version runs on one.
        precision: as for the Trainer, e.g. "bf16-mixed"; None is "32-true".
        plugins: as for the Trainer.
        callbacks: an object or a list of such, whose methods :meth:`call` calls. ``on_after_setup(fabric, module)`` and
            ``on_after_optimizer_step(strategy, optimizer)`` are called by themselves.
        loggers: a logger or a list.

    Raises:
        MisconfigurationException: several devices or machines, or what is not here; as for the Trainer.

    >>> fabric = Fabric(accelerator="cpu")
    >>> layer = nn.Linear(2, 1)
    >>> model, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    >>> fabric.backward(model(torch.ones(1, 2)).sum())
    >>> optimizer.step()
    >>> isinstance(model, nn.Linear), isinstance(optimizer, torch.optim.SGD), list(model.state_dict())
    (True, True, ['weight', 'bias'])
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | Sequence[int] = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        plugins: Any = None,
        callbacks: Any = None,
        loggers: Any = None,
    ) -> None:
        self.accelerator, found = resolve_device(accelerator, devices)
        chosen = resolve_plugins(plugins, strategy)
        self.strategy = build_strategy(chosen.strategy or strategy, found, num_nodes=num_nodes, accelerator=accelerator)
        self.strategy.checkpoint_io = chosen.checkpoint_io or checkpoint.TorchCheckpointIO()
        self.strategy.setup_environment()
        self._precision = resolve_precision(precision, chosen.precisions, device_type=self.device.type)
        self._callbacks = (
            [] if callbacks is None else list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        )
        self.loggers: list[Any] = resolve_loggers(loggers or False)
        self._optimizers: list[Any] = []
        self._finite: dict[int, bool] = {}
        self._in_backward = False

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Override it, if your loop is a subclass's, and call it."""

    def launch(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(fabric, *args, **kwargs)``, in every process; one process needs no launch.

        Raises:
            InvalidTypeError: it cannot be called with a Fabric (``fabric-launch``).
        """
        if function is None:
            return None
        if not callable(function) or not inspect.signature(function).parameters:
            raise InvalidTypeError(
                f"Fabric.launch({function!r}): expected a function whose first argument takes the Fabric; pass the "
                "function, not what it returns",
                code="fabric-launch",
            )
        return function(self, *args, **kwargs)

    # -- setting up -----------------------------------------------------------------------------------------------

    def setup(self, module: nn.Module, *optimizers: Any, scheduler: Any = None, move_to_device: bool = True) -> Any:
        """Set a module up, with its optimizers.

        Args:
            module: it gets its type and device in place, so that optimizers keep their parameters.
            *optimizers: its optimizers.
            scheduler: returned as it is, behind them.
            move_to_device: whether the module goes to the device.

        Returns:
            The module, or a tuple with what was given.
        """
        model = self.setup_module(module, move_to_device)
        last = () if scheduler is None else (scheduler,)
        handles = [self._handle(optimizer) for optimizer in optimizers]
        return (model, *handles, *last) if handles or last else model

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> Any:
        """Set a module up: calls of it, and of a LightningModule's steps, run in the Fabric's precision.

        Inside of a LightningModule ``self.log``, ``self.print``, ``self.loggers`` and ``self.manual_backward`` are the
        Fabric's.

        Raises:
            InvalidValueError: it is set up already (``fabric-twice``).
        """
        _refuse_wrapped(module, "setup")
        self._precision.convert_module(module)
        if move_to_device:
            self.strategy.place(module)
        model = wrap(module, self._run)
        if isinstance(module, LightningModule):
            module.trainer = None
            for name in _STEPS:
                model.mark_forward_method(name)
        for part in module.modules():
            if isinstance(part, LightningModule):
                vars(part)["_fabric"] = self
        self.call("on_after_setup", fabric=self, module=model)
        return model

    def setup_optimizers(self, *optimizers: Any) -> Any:
        """Set optimizers up; returns one handle, or a tuple of them.

        Raises:
            InvalidValueError: none, or one that is set up already (``fabric-nothing``, ``fabric-twice``).
        """
        _refuse_nothing(optimizers, "setup_optimizers")
        handles = tuple(self._handle(optimizer) for optimizer in optimizers)
        return handles[0] if len(handles) == 1 else handles

    def _handle(self, optimizer: Any) -> LightningOptimizer:
        _refuse_wrapped(optimizer, "setup_optimizers")
        handle = LightningOptimizer(optimizer)
        handle._perform = lambda closure, **kwargs: self._step(optimizer, closure, **kwargs)
        self._optimizers.append(optimizer)
        return handle

    def setup_dataloaders(
        self, *dataloaders: Any, use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Set loaders up, so that batches come to the device; returns one, or a list of them.

        Args:
            *dataloaders: loaders, or anything else that yields batches.
            use_distributed_sampler: accepted; one process has all samples.
            move_to_device: whether batches go to the device.

        Raises:
            InvalidValueError: none, or one that is set up already (``fabric-nothing``, ``fabric-twice``).
        """
        _refuse_nothing(dataloaders, "setup_dataloaders")
        for loader in dataloaders:
            _refuse_wrapped(loader, "setup_dataloaders")
            prepare_workers(loader, seed.workers_are_seeded())
        wrapped = [FabricDataLoader(loader, self.device if move_to_device else None) for loader in dataloaders]
        return wrapped[0] if len(wrapped) == 1 else wrapped

    # -- computing ------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that a module's forward runs in, for other code."""
        return self._precision.forward_context()

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of a module in the precision: its input converted, its output in torch's default type."""
        precision = self._precision
        if type(precision) is Precision:
            return function(*args, **kwargs)
        convert = precision.convert_input if not precision.autocasts else _to_single
        with precision.forward_context():
            output = function(*convert(args), **convert(kwargs))
        return precision.convert_output(map_tensors(self._converted, output))

    def _converted(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
        if self._precision.loss_scale is not None and tensor.requires_grad:
            tensor.register_hook(self._check_backward)  # type: ignore[no-untyped-call]
        return tensor

    def _check_backward(self, gradient: Tensor) -> None:
        if not self._in_backward:
            raise OrderError(
                f"precision {self._precision.precision!r} scales the loss: call fabric.backward(loss) in place of "
                "loss.backward()",
                code="fabric-backward",
            )

    def backward(self, tensor: Tensor, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """Run backward, with the loss scaled where the precision wants it.

        Args:
            tensor: the loss.
            *args: passed on to ``tensor.backward``.
            model: accepted; strategies that need it are not in this version.
            **kwargs: passed on to ``tensor.backward``.
        """
        scale = self._precision.loss_scale
        if scale is not None:
            tensor = scale.scale(tensor)
            scale.gradients_made(self._optimizers)
        self._in_backward = True
        try:
            tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self._in_backward = False

    def _step(self, optimizer: Any, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        scale = self._precision.loss_scale
        if scale is None:
            result = optimizer.step(**kwargs) if closure is None else optimizer.step(closure=closure, **kwargs)
        else:
            with torch.enable_grad():
                result = None if closure is None else closure()
            self._unscale(optimizer)
            if self._finite.pop(id(optimizer), True):
                optimizer.step(**kwargs)
            scale.update()
        self.call("on_after_optimizer_step", strategy=self.strategy, optimizer=optimizer)
        return result

    def _unscale(self, optimizer: Any) -> None:
        """Take the scale off an optimizer's gradients, unless it is off, and remember whether they are finite."""
        scale = self._precision.loss_scale
        if scale is not None and scale.is_scaled(optimizer):
            self._finite[id(optimizer)] = scale.unscale(optimizer)

    def clip_gradients(
        self,
        module: nn.Module,
        optimizer: Any,
        clip_val: float | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Clip the gradients of an optimizer in place, unscaled.

        Args:
            module: accepted; strategies that need it are not in this version.
            optimizer: whose gradients.
            clip_val: greatest absolute value.
            max_norm: greatest norm of all gradients; one of both is to be given.
            norm_type: order of the norm.
            error_if_nonfinite: whether a norm that is nan or infinite is an error; under loss scaling it is none,
                because the step will be skipped.

        Returns:
            The norm before, if the norm is clipped.

        Raises:
            InvalidValueError: neither or both are given (``clip-which``).
        """
        if (clip_val is None) == (max_norm is None):
            raise InvalidValueError(
                f"clip_gradients(clip_val={clip_val!r}, max_norm={max_norm!r}): expected one of them", code="clip-which"
            )
        own = unwrapped(optimizer)
        self._unscale(own)
        parameters = parameters_of(own)
        if clip_val is not None:
            return clip_grad_value_(parameters, clip_val)
        assert max_norm is not None
        is_error = error_if_nonfinite and self._precision.loss_scale is None
        return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite=is_error)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Around forward and backward of a batch that only accumulates: gradients stay in this process.

        Raises:
            InvalidTypeError: the module is not set up (``fabric-setup``).
        """
        if not is_wrapped(module):
            raise InvalidTypeError(
                f"no_backward_sync({type(module).__name__}) takes what fabric.setup has returned", code="fabric-setup"
            )
        return self.strategy.no_sync() if enabled else nullcontext()

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        state: Mapping[str, Any],
        filter: Mapping[str, Callable[[str, Any], bool]] | None = None,  # noqa: A002
    ) -> None:
        """Write a state to a file, which is there as a whole and durable when this returns.

        Args:
            path: the file, or an address; missing folders are made.
            state: modules, optimizers and whatever has ``state_dict`` by name, and plain data.
            filter: for names of ``state`` a function of key and value: whether it is kept.

        Raises:
            InvalidTypeError: a filter is no function (``fabric-filter``).
            InvalidValueError: a filter for what there is not (``fabric-filter``).
            CheckpointError: the state holds what is no data, or cannot be written.
        """
        filters = {} if filter is None else filter
        if not isinstance(filters, Mapping) or not all(map(callable, filters.values())):
            raise InvalidTypeError(f"save(filter={filter!r}): expected functions by name", code="fabric-filter")
        if unknown := set(filters) - set(state):
            raise InvalidValueError(
                f"save(filter=...) has {sorted(unknown)}, which the state has not: {sorted(state)}",
                code="fabric-filter",
            )
        content = {name: _state_of(unwrapped(value)) for name, value in state.items()}
        for name, keeps in filters.items():
            content[name] = {key: value for key, value in content[name].items() if keeps(key, value)}
        if self.is_global_zero:
            checkpoint.hand_over(self.strategy.storage, content, path)
        self.barrier("save")

    def load(
        self,
        path: str | os.PathLike[str],
        state: Any = None,
        strict: bool = True,
        *,
        weights_only: bool | None = None,
        trust: bool = False,
    ) -> dict[str, Any]:
        """Read a file that :meth:`save`, or Lightning's, has written, and restore a state from it.

        Args:
            path: the file, or an address.
            state: as it was given to ``save``; plain data in it is replaced. None restores nothing; a module or an
                optimizer is restored as by :meth:`load_raw`.
            strict: whether the file must have all of ``state``, and all weights.
            weights_only: None and True read the file as plain data; False trusts it.
            trust: True lets code in the file run, if plain data is not all that it holds.

        Returns:
            What is in the file and not in ``state``.

        Raises:
            MissingKeyError: the file lacks a name (``fabric-state``).
            CheckpointError: the file cannot be read.
        """
        if hasattr(state, "load_state_dict"):
            self.load_raw(path, state, strict, weights_only=weights_only, trust=trust)
            return {}
        data = checkpoint.as_data(weights_only, trust)
        content: dict[str, Any] = checkpoint.read_with(self.strategy.storage, path, data)
        wanted = {} if state is None else state
        missing = set(wanted) - set(content)
        if missing and strict:
            raise MissingKeyError(
                f"{str(path)!r} lacks {sorted(missing)} of the state that is to be restored, it has {sorted(content)}; "
                "strict=False leaves these as they are",
                code="fabric-state",
            )
        for name in [name for name in wanted if name in content]:
            value, target = content.pop(name), unwrapped(wanted[name])
            if hasattr(target, "load_state_dict"):
                _restore(target, value, strict)
            else:
                wanted[name] = value
        self.barrier("load")
        return content

    def load_raw(
        self,
        path: str | os.PathLike[str],
        obj: Any,
        strict: bool = True,
        *,
        weights_only: bool | None = None,
        trust: bool = False,
    ) -> None:
        """Restore a module or an optimizer from a file that holds its ``state_dict`` and nothing else.

        Args:
            path: the file, or an address.
            obj: the module or optimizer.
            strict: whether a module's weights must be there, all of them.
            weights_only: as for :meth:`load`.
            trust: as for :meth:`load`.
        """
        content = checkpoint.read_file(path, weights_only=checkpoint.as_data(weights_only, trust))
        _restore(unwrapped(obj), content, strict)


def _to_single(data: Any) -> Any:
    return map_tensors(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, data)


def _state_of(value: Any) -> Any:
    is_stateful = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    return value.state_dict() if is_stateful else value


def _restore(target: Any, value: Any, strict: bool) -> None:
    options = {"strict": strict} if isinstance(target, nn.Module) else {}
    target.load_state_dict(value, **options)


def _refuse_wrapped(obj: Any, method: str) -> None:
    if is_wrapped(obj):
        raise InvalidValueError(
            f"fabric.{method} was given a {type(obj).__name__} that a Fabric has set up already; set it up once",
            code="fabric-twice",
        )


def _refuse_nothing(given: Sequence[Any], method: str) -> None:
    if not given:
        raise InvalidValueError(f"fabric.{method}() was given nothing; pass at least one", code="fabric-nothing")
