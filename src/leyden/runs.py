"""What all runs of a Trainer have in common: set-up, teardown, exceptions, where batches come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from leyden.assembly import BASES, bind_hooks, build_batch_transfer
from leyden.data.transfer import Transfer
from leyden.errors import InvalidTypeError, MisconfigurationException
from leyden.hooks.dispatch import Hooks, overrides
from leyden.loggers.parameters import merge
from leyden.loops.fit import FitParts
from leyden.module import LightningModule
from leyden.resolve import writers_last
from leyden.trainer_properties import TrainerProperties


class Runs(TrainerProperties):
    """Runs one thing from set-up to teardown. ``Evaluations`` and ``Fits`` say what the things are."""

    _optimization: Any
    _parts: FitParts | None = None
    _detect_anomaly: bool
    _autolog_hparams: bool
    _eval_rows: dict[str, int]  # batches that the current run has evaluated, by loader
    default_root_dir: str

    @property
    def log_dir(self) -> str | None:
        """Folder of the first logger, for what belongs beside its files; ``default_root_dir`` without a logger."""
        if not self.loggers:
            return self.default_root_dir
        return getattr(self.logger, "log_dir", None) or getattr(self.logger, "save_dir", None)

    def _run(self, stage: str, model: Any, datamodule: Any, body: Callable[[Hooks], Any], ckpt_path: Any) -> Any:
        """What all runs have in common: set-up, the body, teardown, and exceptions told to callbacks."""
        if ckpt_path is not None:
            raise MisconfigurationException(
                f"ckpt_path={ckpt_path!r}: this version reads no checkpoints; leave it out", code="not-yet"
            )
        if not isinstance(model, LightningModule):
            raise InvalidTypeError(
                f"trainer.{stage} takes a LightningModule, got {type(model).__name__}", code="not-a-module"
            )
        state, self._module, self.datamodule = self._state, model, datamodule
        model.trainer = self  # type: ignore[assignment]  # a Trainer is the only one there is
        if datamodule is not None:
            datamodule.trainer = self
        self.interrupted = False
        state.should_stop = False
        state.stage = "train" if stage == "fit" else stage
        self._views.clear()
        self._eval_rows.clear()
        status = "failed"
        try:
            self._attach_module_callbacks(model)
            hooks = self._bind_hooks()
            self._prepare(stage, hooks)
            result = body(hooks)
            self._teardown(stage, hooks)
            status = "success"
            return result
        except BaseException as exception:
            self.interrupted = isinstance(exception, KeyboardInterrupt)
            hooks = self._bind_hooks()
            if self.interrupted:
                hooks.call("on_keyboard_interrupt")
            hooks.call("on_exception", exception)
            if datamodule is not None:
                datamodule.on_exception(exception)
            raise
        finally:
            self._release()
            self._tell_loggers("finalize", status)

    def _release(self) -> None:
        """Let go of what belongs to the run that ends."""
        state = self._state
        if state.results is not None:
            state.results.publish()
        self._views.to_cpu()
        state.stage = state.hook = state.results = None
        self._optimization = self._parts = None

    def _prepare(self, stage: str, hooks: Hooks) -> None:
        module, datamodule = self._module, self.datamodule
        assert module is not None
        for logger in self.loggers:
            _ = getattr(logger, "experiment", None)  # made now: a folder that takes no files shows before all work
        if datamodule is not None:
            datamodule.prepare_data()
        module.prepare_data()
        if datamodule is not None:
            datamodule.setup(stage=stage)
        hooks.call("setup", stage)
        module.configure_sharded_model()
        module.configure_model()
        self._precision.convert_module(module)
        self.strategy.setup_environment()
        self.strategy.place(module)
        self._log_hparams()

    def _teardown(self, stage: str, hooks: Hooks) -> None:
        if self.datamodule is not None:
            self.datamodule.teardown(stage=stage)
        hooks.call("teardown", stage)
        self.strategy.teardown()

    def _chosen(self, model: LightningModule | None) -> LightningModule:
        if model is None and self._module is None:
            raise MisconfigurationException("there is no module yet: pass one, or call fit before", code="no-module")
        return model if model is not None else self._module  # type: ignore[return-value]

    def _bind_hooks(self) -> Hooks:
        assert self._module is not None
        return bind_hooks(module=self._module, callbacks=self.callbacks, trainer=self, state=self._state)

    def _attach_module_callbacks(self, module: LightningModule) -> None:
        """Callbacks of ``configure_callbacks`` take the place of given ones of the same class."""
        brought = module.configure_callbacks()
        brought = list(brought) if isinstance(brought, list | tuple) else [brought]
        classes = {type(callback) for callback in brought}
        if classes:
            kept = [callback for callback in self.callbacks if type(callback) not in classes]
            self.callbacks = writers_last([*kept, *brought])

    def _log_hparams(self) -> None:
        owners = [owner for owner in (self._module, self.datamodule) if owner is not None and owner._log_hyperparams]
        if owners and self._autolog_hparams:
            self._tell_loggers("log_hyperparams", merge([owner.hparams_initial for owner in owners]))
        self._tell_loggers("log_graph", self._module)
        self._tell_loggers("save")

    def _tell_loggers(self, method: str, *args: Any) -> None:
        """Call a method of every logger that has it; users' own need no more than ``log_metrics``."""
        for logger in self.loggers:
            call = getattr(logger, method, None)
            if call is not None:
                call(*args)

    def _context(self) -> AbstractContextManager[Any]:
        return torch.autograd.set_detect_anomaly(True) if self._detect_anomaly else nullcontext()

    def _ask_for(self, name: str, given: Any) -> Any:
        """What yields the batches of ``name``: what was passed, the datamodule's, or the module's."""
        if given is not None:
            return given
        method = f"{name}_dataloader"
        for owner in (self.datamodule, self._module):
            if overrides(owner, method, BASES):
                self._bind_hooks().call(f"on_{method}")
                return getattr(owner, method)()
        if name == "val" and self._state.stage in ("train", "sanity_check"):
            return None
        run = {"train": "fit", "val": "validate"}.get(name, name)
        raise MisconfigurationException(
            f"trainer.{run} has no data: pass it as an argument, or define {method}() on the module or the datamodule",
            code="no-data",
        )

    def _transfer(self) -> Transfer | None:
        assert self._module is not None
        return build_batch_transfer(
            self._module, self.datamodule, device=self.strategy.root_device, precision=self._precision
        )

    def _write_row(self, values: Mapping[str, Any], step: int) -> None:
        """Give one row to every logger; a value called "step" is the row's place on the x-axis."""
        row = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
        step = int(row.pop("step", step))
        for logger in self.loggers:
            logger.log_metrics(metrics=row, step=step)
