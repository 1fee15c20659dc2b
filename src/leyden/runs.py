"""What a Trainer's runs are made of: set-up, the body of each, teardown."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from leyden.assembly import (
    BASES,
    Engine,
    bind_hooks,
    build_batch_transfer,
    build_engine,
    build_evaluation_step,
    build_modes,
    check_manual,
    warn_of_overrides,
)
from leyden.data.sources import DataLimits, capped, is_empty, load_evaluation, load_training
from leyden.data.transfer import Transfer
from leyden.errors import InvalidTypeError, MisconfigurationException, warn
from leyden.hooks.dialects import Signature, takes_optimizer_idx
from leyden.hooks.dispatch import Hook, Hooks, overrides
from leyden.loops.evaluate import EvaluationParts
from leyden.loops.fit import FitParts, all_limits_reached
from leyden.loops.predict import PredictParts
from leyden.module import LightningModule
from leyden.optimization.optimizer import LightningOptimizer, find_handles
from leyden.optimization.plan import Plan, build_plan, check_optimizer_idx, with_optimizers
from leyden.optimization.toggling import Toggler
from leyden.resolve import monitors_last, resolve_validation_interval
from leyden.results.collect import Results
from leyden.results.table import results_table
from leyden.seed import isolate_rng
from leyden.trainer_properties import TrainerProperties


class Runs(TrainerProperties):
    """The private half of ``Trainer``: how fit, validate, test and predict run."""

    limit_train_batches: int | float
    limit_val_batches: int | float
    overfit_batches: int | float
    num_sanity_val_steps: int
    inference_mode: bool
    val_check_interval: int | float | None
    check_val_every_n_epoch: int | None
    reload_dataloaders_every_n_epochs: int
    log_every_n_steps: int
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: Any
    track_grad_norm: float | None
    fast_dev_run: int
    _accumulation: int | Mapping[int, int] | None
    _toggler: Toggler
    _optimization: Any
    _eval_rows: dict[str, int]
    _detect_anomaly: bool
    _autolog_hparams: bool

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
        model.trainer = self  # type: ignore[assignment]  # a Trainer is the only Runs there is
        if datamodule is not None:
            datamodule.trainer = self
        self.interrupted = False
        state.should_stop = False
        state.stage = "train" if stage == "fit" else stage
        self._views.clear()
        try:
            self._attach_module_callbacks(model)
            hooks = self._bind_hooks()
            self._prepare(stage, hooks)
            result = body(hooks)
            self._teardown(stage, hooks)
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
            if state.results is not None:
                state.results.publish()
            self._views.to_cpu()
            state.stage = state.hook = state.results = None
            self._optimization = self._parts = None

    def _prepare(self, stage: str, hooks: Hooks) -> None:
        module, datamodule = self._module, self.datamodule
        assert module is not None
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

    def _fit(self, hooks: Hooks, *, train: Any, val: Any) -> None:
        module, loop, state = self._module, self.fit_loop, self._state
        assert module is not None
        if loop.limits.is_default:
            warn(
                f"no maximum was given; the fit ends after {loop.max_epochs} epochs. Pass max_epochs=-1 to train "
                "without an end",
                code="trainer-max-epochs",
            )
        self._load_val = functools.partial(self._load_evaluation, "val", val)
        self._val_data, self._val_given = None, val
        loop.connect(
            load=functools.partial(self._load_training, train),
            build_cadence=lambda batches: resolve_validation_interval(
                self.val_check_interval, self.check_val_every_n_epoch, batches
            ),
            reload_every=self.reload_dataloaders_every_n_epochs,
        )
        self._configure_optimizers(module)
        hooks = self._engine.hooks
        results = state.results = Results(training=True, views=self._views)
        hooks.call("on_fit_start")
        module.zero_grad()
        hooks.call("on_pretrain_routine_start")
        hooks.call("on_pretrain_routine_end")
        self._sanity_check(hooks)
        reason = all_limits_reached(loop)
        if reason is not None and self.clocks.micro_batches:
            warn(f"this fit has nothing left to do: {reason}", code="fit-nothing-to-do")
        if loop.max_epochs != 0 and loop.max_steps != 0 and self.limit_train_batches != 0:
            loop.load()
            self.clocks.started = time.monotonic()
            parts = self._parts = FitParts(
                **self._engine_parts(),
                state=state,
                results=results,
                window_size=lambda: self.accumulate_grad_batches,
                transfer=self._transfer(),
                validate=self._validate_in_fit(hooks),
                write_row=self._write_row if self.loggers else None,
                log_every=self.log_every_n_steps,
                clear_gradients=self._gradient_clearing(module),
            )
            with self._context():
                loop.run(parts)
        hooks.call("on_fit_end")

    def _configure_optimizers(self, module: LightningModule) -> None:
        accumulation = self._accumulation_schedule()
        self._plan, self._handles = None, []
        returned = module.configure_optimizers()
        plan = build_plan(
            returned,
            module=module,
            automatic=bool(module.automatic_optimization),
            custom_scheduler_step=overrides(module, "lr_scheduler_step", BASES),
            accumulate_grad_batches=accumulation,
            gradient_clip_val=self.gradient_clip_val,
            gradient_clip_algorithm=self.gradient_clip_algorithm,
        )
        step = module.training_step
        check_optimizer_idx(plan, takes_optimizer_idx=takes_optimizer_idx(step), takes_any=Signature.of(step).has_args)
        check_manual(plan, 1 if self._accumulation is None else self._accumulation)
        warn_of_overrides(module, accumulation, plan.frequencies)
        self._drive(plan, find_handles(returned))

    def _drive(self, plan: Plan, known: Mapping[int, LightningOptimizer]) -> None:
        """Build what runs the optimizers of a plan; handles that users made themselves are taken over."""
        module = self._module
        assert module is not None
        self._plan = plan
        self._handles = [known.get(id(optimizer)) or LightningOptimizer(optimizer) for optimizer in plan.optimizers]
        self._engine = build_engine(
            plan,
            handles=self._handles,
            module=module,
            callbacks=self.callbacks,
            trainer=self,
            state=self._state,
            clocks=self.clocks,
            precision=self._precision,
            strategy=self.strategy,
            track_grad_norm=self.track_grad_norm,
            batches_left=lambda: self.fit_loop.batches_left,
        )
        self._optimization, self._toggler = self._engine.optimization, self._engine.toggler

    def _engine_parts(self) -> dict[str, Any]:
        """What of the engine the fit loop calls."""
        engine = self._engine
        modal = [turn.optimizer for turn in engine.turns if turn.contract.has_modes]
        return {
            "optimization": engine.optimization,
            "hooks": engine.hooks,
            "schedulers": engine.schedulers,
            "epoch_outputs": engine.epoch_outputs,
            "switch": functools.partial(_switch_modes, modal) if modal else None,
        }

    @property
    def optimizers(self) -> list[Any]:
        """The users' optimizers in configured order; none outside of a fit.

        Assigning others replaces them, with new handles; in the middle of a fit from the next epoch on.
        """
        return [handle.optimizer for handle in self._handles]

    @optimizers.setter
    def optimizers(self, optimizers: Sequence[Any]) -> None:
        assert self._module is not None
        self._drive(with_optimizers(self.plan, optimizers, self._module), find_handles(list(optimizers)))
        if self._parts is not None:
            for name, part in self._engine_parts().items():
                setattr(self._parts, name, part)

    def _sanity_check(self, hooks: Hooks) -> None:
        """A few validation batches, so that mistakes there show before hours of training. Leaves no trace."""
        if not self.num_sanity_val_steps or not self._validates():
            return
        with isolate_rng():
            self._state.stage = "sanity_check"
            hooks.call("on_sanity_check_start")
            loaders, counts = self._validation_data()
            counts = capped(counts, self.num_sanity_val_steps)
            if not is_empty(counts):
                parts = self._evaluation_parts("validation", loaders, counts, hooks, in_fit=True)
                parts.write_row = None
                self.validate_loop.run(parts)
            hooks.call("on_sanity_check_end")
        self._views.clear()
        self._state.stage = "train"

    def _validate_in_fit(self, hooks: Hooks) -> Callable[[], Any] | None:
        """A validation between training batches, or None if there is nothing to validate."""
        if not self._validates():
            return None
        every = self.check_val_every_n_epoch
        if (every is None or (self.clocks.epoch + 1) % every == 0) and is_empty(self._validation_data()[1]):
            return None

        def validate() -> None:
            self._state.stage = "validate"
            loaders, counts = self._validation_data()
            if not is_empty(counts):
                self.validate_loop.run(self._evaluation_parts("validation", loaders, counts, hooks, in_fit=True))
            self._state.stage = "train"

        return validate

    def _validates(self) -> bool:
        """Whether this fit has something to validate, as far as is known without asking for a loader."""
        owners = (self.datamodule, self._module)
        has_data = self._val_given is not None or any(overrides(o, "val_dataloader", BASES) for o in owners)
        return has_data and self.limit_val_batches != 0 and overrides(self._module, "validation_step", BASES)

    def _validation_data(self) -> tuple[list[Any], list[int | float]]:
        """The validation loaders, asked for once, or again as ``reload_dataloaders_every_n_epochs`` says."""
        every = self.reload_dataloaders_every_n_epochs
        stale = every and self._val_loaded_in is not None and self.clocks.epoch - self._val_loaded_in >= every
        if self._val_data is None or stale:
            self._val_data = self._load_val()
            self._val_loaded_in = self.clocks.epoch
        return self._val_data

    def _evaluate(self, hooks: Hooks, *, stage: str, given: Any, verbose: bool) -> list[dict[str, float]]:
        name = "validation" if stage == "validate" else "test"
        if not overrides(self._module, f"{name}_step", BASES):
            raise MisconfigurationException(
                f"trainer.{stage} needs {name}_step, which {type(self._module).__qualname__} does not define",
                code="hook-missing",
            )
        assert self._module is not None
        self._module.zero_grad()
        loaders, counts = self._load_evaluation("val" if stage == "validate" else "test", given)
        loop = self.validate_loop if stage == "validate" else self.test_loop
        if is_empty(counts):
            warn(f"trainer.{stage} has no batches to run", code="evaluation-empty")
            return []
        with self._context():
            values = loop.run(self._evaluation_parts(name, loaders, counts, hooks, in_fit=False))
        if verbose and self.is_global_zero and any(values):
            print(results_table(values, stage))
        return values

    def _predict(self, hooks: Hooks, *, given: Any, keeps: bool) -> list[Any] | None:
        module = self._module
        assert module is not None
        module.zero_grad()
        loaders, counts = self._load_evaluation("predict", given)
        self._state.results = None
        parts = PredictParts(
            loaders=loaders,
            limits=counts,
            step=build_evaluation_step(
                module, "predict_step", precision=self._precision, several_loaders=len(loaders) > 1
            ),
            hooks=hooks,
            state=self._state,
            modes=build_modes(module, "predict"),
            gradients=self._without_gradients(),
            transfer=self._transfer(),
            keeps=keeps,
        )
        with self._context():
            return self.predict_loop.run(parts)

    def _evaluation_parts(
        self, name: str, loaders: list[Any], counts: list[int | float], hooks: Hooks, *, in_fit: bool
    ) -> EvaluationParts:
        module, state, several = self._module, self._state, len(loaders) > 1
        assert module is not None
        epoch_end = getattr(module, f"{name}_epoch_end", None)
        return EvaluationParts(
            name=name,
            loaders=loaders,
            limits=counts,
            step=build_evaluation_step(module, f"{name}_step", precision=self._precision, several_loaders=several),
            hooks=hooks,
            state=state,
            results=Results(training=False, several_loaders=several, views=self._views),
            modes=build_modes(module, name),
            gradients=torch.no_grad if in_fit else self._without_gradients(),
            transfer=self._transfer(),
            write_row=functools.partial(self._write_evaluation_row, name, in_fit) if self.loggers else None,
            epoch_end=Hook(f"{name}_epoch_end", state, module=epoch_end) if epoch_end is not None else None,
            epoch=self.clocks.epoch,
        )

    # -- data -----------------------------------------------------------------------------------------------------

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

    def _load_training(self, given: Any) -> tuple[Any, int | float]:
        limits = DataLimits(self.limit_train_batches, self.overfit_batches, "limit_train_batches")
        return load_training(functools.partial(self._ask_for, "train", given), limits)

    def _load_evaluation(self, name: str, given: Any) -> tuple[list[Any], list[int | float]]:
        argument = f"limit_{name}_batches"
        overfit = self.overfit_batches if name == "val" and self._state.stage == "train" else 0
        limits = DataLimits(getattr(self, argument), overfit, argument)
        return load_evaluation(functools.partial(self._ask_for, name, given), limits, name=f"{name}_dataloaders")

    def _transfer(self) -> Transfer | None:
        assert self._module is not None
        return build_batch_transfer(
            self._module, self.datamodule, device=self.strategy.root_device, precision=self._precision
        )

    # -- pieces ---------------------------------------------------------------------------------------------------

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
            self.callbacks = monitors_last([*kept, *brought])

    def _gradient_clearing(self, module: LightningModule) -> Callable[[], Any] | None:
        """What clears gradients before a validation; in manual mode only what the user asks for."""
        if module.automatic_optimization or overrides(module, "on_validation_model_zero_grad", BASES):
            return module.on_validation_model_zero_grad
        return None

    def _without_gradients(self) -> Callable[[], AbstractContextManager[Any]]:
        return torch.inference_mode if self.inference_mode else torch.no_grad

    def _context(self) -> AbstractContextManager[Any]:
        return torch.autograd.set_detect_anomaly(True) if self._detect_anomaly else nullcontext()

    def _log_hparams(self) -> None:
        if not self._autolog_hparams:
            return
        for logger in self.loggers:
            if callable(getattr(logger, "log_hyperparams", None)):
                assert self._module is not None
                logger.log_hyperparams(self._module.hparams_initial)

    def _write_row(self, values: Mapping[str, Any], step: int) -> None:
        """Give one row to every logger; a value called "step" is the row's place on the x-axis."""
        row = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
        step = int(row.pop("step", step))
        for logger in self.loggers:
            logger.log_metrics(metrics=row, step=step)

    def _write_evaluation_row(self, name: str, in_fit: bool, values: Mapping[str, Any], by_step: bool) -> None:
        if not values:
            return
        if by_step:
            count = self._eval_rows[name] = self._eval_rows.get(name, -1) + 1
            self._write_row(values, count)
        else:
            step = self.clocks.updates if in_fit else max(self.clocks.updates - 1, 0)
            self._write_row({"epoch": self.clocks.epoch, **values}, step)

    _engine: Engine
    _parts: FitParts | None = None
    _load_val: Callable[[], tuple[list[Any], list[int | float]]]
    _val_data: tuple[list[Any], list[int | float]] | None = None
    _val_loaded_in: int | None = None
    _val_given: Any = None


def _switch_modes(optimizers: list[Any], mode: str) -> None:
    """Put optimizers that have modes into "train" or "eval"."""
    for optimizer in optimizers:
        getattr(optimizer, mode)()
