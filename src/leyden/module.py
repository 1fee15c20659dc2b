"""``LightningModule``: the user's model, its training logic, and what it may ask of the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.errors import InvalidTypeError, MisconfigurationException, OrderError, warn
from leyden.hooks.dispatch import RunState
from leyden.module_hooks import ModuleHooks
from leyden.optimization.gradients import check_clip_value, clip, clip_algorithm
from leyden.optimization.optimizer import unwrap
from leyden.optimization.schedulers import default_lr_scheduler_step
from leyden.results.options import check_options, known_options
from leyden.tree import map_tensors

if TYPE_CHECKING:
    from leyden.optimization.manual import Place
    from leyden.trainer import Trainer


#: Tells an argument that was not passed from one that was passed as None.
_UNSET: Any = object()


class LightningModule(ModuleHooks):
    """A torch module that knows how it is trained.

    Override ``training_step`` and ``configure_optimizers``; everything else has a sensible default.

    Attributes:
        automatic_optimization: True lets leyden run backward and the updates. Set it to False in ``__init__``, as a
            class attribute or as a property to drive them yourself.
        example_input_array: an input of ``forward`` for summaries and graphs.

    >>> from torch import nn
    >>> class Regression(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(3, 1)
    ...     def training_step(self, batch, batch_idx):
    ...         x, y = batch
    ...         return nn.functional.mse_loss(self.layer(x), y)
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    """

    automatic_optimization: bool = True
    example_input_array: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Follows .to(), .half() and the like, so that device and dtype are known even without parameters.
        self.__dict__["_probe"] = torch.empty(0)
        self.__dict__.setdefault("_trainer", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.__dict__["_probe"] = fn(self.__dict__["_probe"])
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None, "_fabric": None}

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs this module.

        Raises:
            OrderError: there is none yet; it is attached when ``fit``, ``validate``, ``test`` or ``predict`` starts.
        """
        trainer = self.__dict__.get("_trainer")
        if trainer is None:
            raise OrderError(
                f"{type(self).__qualname__} is not attached to a Trainer; `self.trainer` is there from "
                "`trainer.fit(module)` on",
                code="module-not-attached",
            )
        return trainer  # type: ignore[no-any-return]

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__.update(_trainer=trainer, _fabric=None)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.__dict__["_probe"].device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters."""
        return self.__dict__["_probe"].dtype  # type: ignore[no-any-return]

    @property
    def on_gpu(self) -> bool:
        """Whether the module is on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def use_amp(self) -> bool:
        """Whether the steps run under autocast; what the module has set itself, if it has."""
        precision = getattr(self._runner(), "_precision", None)
        return bool(self.__dict__.get("use_amp", precision is not None and precision.autocasts))

    @use_amp.setter
    def use_amp(self, value: bool) -> None:
        self.__dict__["use_amp"] = value

    @property
    def current_epoch(self) -> int:
        """``trainer.current_epoch``; 0 without a Trainer."""
        trainer = self.__dict__.get("_trainer")
        return trainer.current_epoch if trainer is not None else 0

    @property
    def global_step(self) -> int:
        """``trainer.global_step``: optimizer steps so far, over all optimizers; 0 without a Trainer."""
        trainer = self.__dict__.get("_trainer")
        return trainer.global_step if trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Rank of this process among all; 0 without a Trainer."""
        trainer = self.__dict__.get("_trainer")
        return trainer.global_rank if trainer is not None else 0

    @property
    def local_rank(self) -> int:
        """Rank of this process on its machine; 0 without a Trainer."""
        trainer = self.__dict__.get("_trainer")
        return trainer.local_rank if trainer is not None else 0

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return getattr(self._runner(), "logger", None)

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""
        return getattr(self._runner(), "loggers", [])

    def _runner(self) -> Any:
        """The Trainer or the Fabric that this module is in, or None."""
        return self.__dict__.get("_trainer") or self.__dict__.get("_fabric")

    # -- logging --------------------------------------------------------------------------------------------------

    def log(self, name: str, value: Any, prog_bar: bool = False, logger: bool | None = None, **options: Any) -> None:
        """Log one value.

        Args:
            name: key, e.g. "train/loss".
            value: a number or a tensor of one element; it stays on its device.
            prog_bar: show it in the progress bar.
            logger: send it to the loggers; None means yes.
            **options: ``on_step`` and ``on_epoch`` (default: by step in ``training_step``, by epoch in validation),
                ``reduce_fx`` ("mean", "sum", "min", "max"), ``batch_size`` (weight in the epoch's mean; inferred from
                the batch), ``sync_dist``, ``add_dataloader_idx``, ``rank_zero_only``, ``enable_graph``.

        Raises:
            MisconfigurationException: outside of a hook, or with options that contradict each other.
        """
        trainer, fabric = self.__dict__.get("_trainer"), self.__dict__.get("_fabric")
        if fabric is not None:
            return fabric.log(name, value)  # type: ignore[no-any-return]
        if trainer is None:
            warn(
                f"self.log({name!r}, ...) has no effect: the module is not attached to a Trainer",
                code="log-no-trainer",
            )
            return
        state = trainer._state
        if trainer.barebones:
            trainer._warn_of_log()
            return
        if state.results is None:
            raise OrderError(
                f"self.log({name!r}, ...) cannot be used {_place(state)}, where nothing is collected; call it in a "
                "hook such as training_step, or write to self.logger directly",
                code="log-hook",
            )
        try:
            state.results.log(state.hook, name, value, prog_bar=prog_bar, logger=logger, **known_options(options))
        except TypeError:
            check_options(name, options)
            raise

    def log_dict(self, dictionary: Any, prog_bar: bool = False, logger: bool | None = None, **options: Any) -> None:
        """Log several values with the same options; see :meth:`log`."""
        if not hasattr(dictionary, "items"):
            raise InvalidTypeError(
                f"self.log_dict(...) takes values by name, such as a dict, got {type(dictionary).__name__}",
                code="log-dict",
            )
        for name, value in dictionary.items():
            self.log(name, value, prog_bar, logger, **options)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process, without tearing the progress bar."""
        getattr(self._runner(), "print", print)(*args, **kwargs)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Tensors of all processes, stacked along a new first dimension where there are several."""
        strategy = self.trainer.strategy
        return map_tensors(lambda tensor: strategy.all_gather(tensor, group, sync_grads), data)

    # -- optimization ---------------------------------------------------------------------------------------------

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizers in configured order: one object if there is one, else a list.

        Args:
            use_pl_optimizer: True gives handles (``LightningOptimizer``), False the optimizers themselves.
        """
        handles = self.trainer._handles
        chosen = handles if use_pl_optimizer else [handle.optimizer for handle in handles]
        return chosen[0] if len(chosen) == 1 else list(chosen)

    def lr_schedulers(self) -> Any:
        """The schedulers in configured order: None, one object, or a list."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return (schedulers[0] if len(schedulers) == 1 else schedulers) if schedulers else None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward in manual optimization: with loss scaling, hooks and the share of an ``accumulate`` window.

        Args:
            loss: a tensor of one element with a graph.
            *args: passed on to ``loss.backward``.
            **kwargs: passed on to ``loss.backward``.

        Raises:
            MisconfigurationException: in automatic optimization, where leyden runs backward.
        """
        (self.__dict__.get("_fabric") or self._manual("manual_backward")).backward(loss, *args, **kwargs)

    def accumulate(
        self, optimizer: Any, batches: int, weight: float | Tensor | None = None
    ) -> AbstractContextManager[Place]:
        """One micro-batch of an accumulation window in manual optimization.

        On a window's first micro-batch the gradients are cleared; ``manual_backward`` inside takes the loss's share of
        the window; the last window of an epoch is closed at its true size. The value of the ``with`` says whether
        this micro-batch ``closes`` the window::

            with self.accumulate(optimizer, 4) as window:
                self.manual_backward(self.compute_loss(batch))
            if window.closes:
                self.clip_gradients(optimizer, gradient_clip_val=1.0)
                optimizer.step()

        Call it once per ``training_step`` and optimizer, since it counts batches; several ``manual_backward`` inside of
        one block are parts of one loss. Where the epoch's last batch leaves it out, the window goes on in the next.

        Args:
            optimizer: an optimizer, or a list of those that share the window.
            batches: micro-batches of one update, >= 1.
            weight: number of tokens, samples, ... that the loss is a mean of; None weights all micro-batches alike.

        Raises:
            MisconfigurationException: in automatic optimization: use ``Trainer(accumulate_grad_batches=...)``.
            OrderError: twice on one batch, inside of another block, or a step in the middle of the window.
        """
        optimizers = optimizer if isinstance(optimizer, Sequence) else [optimizer]
        return self._manual("accumulate").accumulate(optimizers, batches, weight)  # type: ignore[no-any-return]

    def _manual(self, name: str) -> Any:
        trainer = self.trainer
        if self.automatic_optimization:
            raise MisconfigurationException(
                f"self.{name}() is for manual optimization, but automatic_optimization is True: set "
                "self.automatic_optimization = False in __init__",
                code="manual-in-automatic",
            )
        if trainer._optimization is None:
            raise OrderError(f"self.{name}() can only be called while trainer.fit runs", code="manual-outside-fit")
        return trainer._optimization

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward; override it to do so in a way of your own. 1.x passes optimizer and index behind the loss."""
        if args and (hasattr(args[0], "param_groups") or _is_none_and_index(args)):
            args = args[2:]
        kwargs = {name: value for name, value in kwargs.items() if name not in ("optimizer", "optimizer_idx")}
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def toggle_optimizer(self, optimizer: Any, optimizer_idx: int | None = None) -> None:
        """Let only the parameters of ``optimizer`` require gradients, until ``untoggle_optimizer``."""
        self.trainer._toggler.toggle(optimizer)

    def untoggle_optimizer(self, optimizer: Any = None, optimizer_idx: int | None = None) -> None:
        """Undo ``toggle_optimizer``; 1.x passes the optimizer's index."""
        toggler, index = self.trainer._toggler, optimizer if isinstance(optimizer, int) else optimizer_idx
        toggler.untoggle(optimizer if index is None else toggler.by_index(index))

    @contextmanager
    def toggle_model(self, optimizer: Any, sync_grad: bool = True) -> Iterator[None]:
        """Toggle inside of a ``with``; what was frozen comes back also after an exception.

        Args:
            optimizer: whose parameters may require gradients inside.
            sync_grad: False leaves out the reduction of gradients over processes inside.
        """
        with nullcontext() if sync_grad else self.trainer.strategy.no_sync():
            if len(self.trainer.optimizers) == 1:
                yield
                return
            self.toggle_optimizer(optimizer)
            try:
                yield
            finally:
                self.untoggle_optimizer(optimizer)

    def toggled_optimizer(self, optimizer: Any, sync_grad: bool = True) -> AbstractContextManager[None]:
        """The 2.x name of :meth:`toggle_model`."""
        return self.toggle_model(optimizer, sync_grad)

    def clip_gradients(
        self,
        optimizer: Any,
        gradient_clip_val: Any = _UNSET,
        gradient_clip_algorithm: Any = _UNSET,
    ) -> None:
        """Clip the gradients of one optimizer in place; of a Joint, member by member.

        Args:
            optimizer: the optimizer or its handle.
            gradient_clip_val: greatest norm or absolute value; None takes the Trainer's, or clips nothing.
            gradient_clip_algorithm: "norm" or "value"; None takes the Trainer's, or "norm".

        Raises:
            InvalidTypeError: the value is no number.
            MisconfigurationException: an unknown algorithm; one argument that contradicts the Trainer's (inside
                ``configure_gradient_clipping`` a call with both arguments is complete and wins); or a call in
                automatic optimization outside of that hook, where clipping cannot act.
        """
        trainer = self.trainer
        hook = trainer._state.hook
        complete = _UNSET not in (gradient_clip_val, gradient_clip_algorithm) and hook == "configure_gradient_clipping"
        value = None if gradient_clip_val is _UNSET else gradient_clip_val
        check_clip_value(value)
        algorithm = clip_algorithm(None if gradient_clip_algorithm is _UNSET else gradient_clip_algorithm)
        if self.automatic_optimization and hook == "training_step":
            raise OrderError(
                "clip_gradients in training_step acts on nothing: in automatic optimization backward comes after it. "
                "Clip in configure_gradient_clipping, or set Trainer(gradient_clip_val=...)",
                code="clip-too-early",
            )
        if not complete:
            value = _agreed("gradient_clip_val", value, trainer.gradient_clip_val)
            algorithm = _agreed("gradient_clip_algorithm", algorithm, trainer.gradient_clip_algorithm)
        if trainer._optimization is not None:
            trainer._optimization.make_clippable(optimizer)
        clip(unwrap(optimizer), value, algorithm)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        *args: Any,
        optimizer_idx: int | None = None,
        gradient_clip_val: Any = _UNSET,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """Clip before an update; override it to clip in a way of your own.

        Called in automatic optimization for every update, for a Joint once per member, also if nothing is to be
        clipped: then both values are None. 2.x passes value and algorithm behind the optimizer, 1.x its index first.
        """
        values = list(args)
        if gradient_clip_val is not _UNSET:
            values = [gradient_clip_val]
        elif len(values) == 3 or (len(values) == 2 and isinstance(values[1], int | float)):
            values = values[1:]
        value = values[0] if values else None
        algorithm = values[1] if len(values) > 1 else gradient_clip_algorithm
        self.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Update: ``optimizer.step(closure=optimizer_closure)``; override it to do so in a way of your own.

        Args:
            epoch: index of the epoch.
            batch_idx: index of the batch in it.
            optimizer: the handle.
            *args: ``optimizer_closure``, which runs training_step, zero_grad and backward, and must be called. 1.x
                passes the optimizer's index before it, and flags behind it.
            **kwargs: the same by name.
        """
        closure = kwargs.get("optimizer_closure") or next((value for value in args if callable(value)), None)
        optimizer.step(closure=closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clear gradients: ``optimizer.zero_grad()``; override it to do so in a way of your own."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """Step a scheduler, with ``metric`` if it wants one. 1.x passes the optimizer's index before the metric."""
        default_lr_scheduler_step(scheduler, args[-1] if args else kwargs.get("metric"))


#: Properties that torch's compiler leaves alone, also where a subclass has one in an attribute's place.
LightningModule.__jit_unused_properties__ = [
    name for name in dir(LightningModule) if not callable(inspect.getattr_static(LightningModule, name))
]


def _place(state: RunState) -> str:
    """Where a run is, in words."""
    if state.stage is None:
        return "outside of a run"
    if state.hook is not None:
        return f"in {state.hook}"
    return "in a prediction" if state.stage == "predict" else "outside of a hook"


def _agreed(name: str, given: Any, trainers: Any) -> Any:
    """The value to use, given what the call and the Trainer say."""
    if given is not None and trainers is not None and given != trainers:
        raise MisconfigurationException(
            f"clip_gradients({name}={given!r}) contradicts Trainer({name}={trainers!r}); leave one of them out, or "
            "pass both gradient_clip_val and gradient_clip_algorithm in configure_gradient_clipping",
            code="clip-contradiction",
        )
    return trainers if given is None else given


def _is_none_and_index(args: tuple[Any, ...]) -> bool:
    return len(args) >= 2 and args[0] is None and isinstance(args[1], int | None)
