"""``fit``: optimizers configured, the engine built, the loop run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leyden.assembly import BASES, Engine, build_engine, check_manual, warn_of_overrides
from leyden.data.sources import DataLimits, capped, is_empty, load_training
from leyden.errors import OrderError, warn
from leyden.evaluations import Evaluations
from leyden.hooks.dialects import Signature, takes_optimizer_idx
from leyden.hooks.dispatch import Hooks, overrides
from leyden.loops.cadence import ValidationCadence
from leyden.loops.fit import FitParts, all_limits_reached
from leyden.module import LightningModule
from leyden.optimization.gradients import GradClipAlgorithmType, check_clip_value, clip_algorithm
from leyden.optimization.optimizer import LightningOptimizer, find_handles
from leyden.optimization.plan import Plan, build_plan, check_optimizer_idx, with_optimizers
from leyden.optimization.toggling import Toggler
from leyden.resolve import resolve_validation_interval
from leyden.results.collect import Results
from leyden.seed import isolate_rng


class Fits(Evaluations):
    """Runs fits."""

    limit_train_batches: int | float
    limit_val_batches: int | float
    num_sanity_val_steps: int
    val_check_interval: int | float | None
    reload_dataloaders_every_n_epochs: int
    log_every_n_steps: int
    track_grad_norm: float | None
    _accumulation: int | Mapping[int, int] | None
    _engine: Engine | None = None
    _bound: list[Any]
    _check_val_every_n_epoch: int | None
    _gradient_clip_val: int | float | None = None
    _gradient_clip_algorithm: GradClipAlgorithmType | None = None
    _toggler: Toggler
    _load_val: Callable[[], tuple[list[Any], list[int | float]]]
    _val_data: tuple[list[Any], list[int | float]] | None = None
    _val_loaded_in: int | None = None
    _val_given: Any = None

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
            build_cadence=self._build_cadence,
            reload_every=self.reload_dataloaders_every_n_epochs,
        )
        hooks = self._configure_optimizers(module).hooks
        results = state.results = Results(training=True, views=self._views)
        hooks.call("on_fit_start")
        if self._bound != self.callbacks:  # a callback has brought others along
            hooks = self._drive(self.plan, {id(handle.optimizer): handle for handle in self._handles}).hooks
        module.zero_grad()
        hooks.call("on_pretrain_routine_start")
        hooks.call("on_pretrain_routine_end")
        self._sanity_check(hooks)
        reason = all_limits_reached(loop)
        if reason is not None and self.clocks.micro_batches:
            warn(f"this fit has nothing left to do: {reason}", code="fit-nothing-to-do")
        if not loop.is_over(state) and self._has_training_batches():
            self.clocks.started = time.monotonic()
            parts = self._parts = FitParts(
                **self._engine_parts(),
                state=state,
                results=results,
                transfer=self._transfer(),
                validate=self._validate_in_fit(hooks),
                write_row=self._write_row if self.loggers else None,
                log_every=self.log_every_n_steps,
                check=self._check_mode,
                clear_gradients=self._gradient_clearing(module),
            )
            with self._context():
                loop.run(parts)
        hooks.call("on_fit_end")

    def _configure_optimizers(self, module: LightningModule) -> Engine:
        accumulation = self._accumulation_schedule()
        self._plan, self._handles = None, []
        self._state.hook = "configure_optimizers"
        returned = module.configure_optimizers()
        self._state.hook = None
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
        return self._drive(plan, find_handles(returned))

    def _drive(self, plan: Plan, known: Mapping[int, LightningOptimizer]) -> Engine:
        """Build what runs the optimizers of a plan; handles that users made themselves are taken over."""
        module = self._module
        assert module is not None
        self._plan, self._bound = plan, list(self.callbacks)
        self._handles = [known.get(id(optimizer)) or LightningOptimizer(optimizer) for optimizer in plan.optimizers]
        engine = self._engine = build_engine(
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
            batches_left=functools.partial(getattr, self.fit_loop, "batches_left"),
        )
        self._optimization, self._toggler = engine.optimization, engine.toggler
        return engine

    def _engine_parts(self) -> dict[str, Any]:
        """What of the engine the fit loop calls."""
        engine = self._engine
        assert engine is not None
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
        plan, module = self.plan, self._module
        assert module is not None
        self._drive(with_optimizers(plan, optimizers, module), find_handles(list(optimizers)))
        if self._parts is not None:
            for name, part in self._engine_parts().items():
                setattr(self._parts, name, part)

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """Epochs between validations; None counts batches across epochs. Setting it acts at once."""
        return self._check_val_every_n_epoch

    @check_val_every_n_epoch.setter
    def check_val_every_n_epoch(self, value: int | None) -> None:
        self._check_val_every_n_epoch = value
        if self._parts is not None:
            self.fit_loop.cadence = self._build_cadence(self.fit_loop.num_batches)

    @property
    def gradient_clip_val(self) -> int | float | None:
        """Greatest norm or value of an optimizer's gradients; setting it acts from the next update on."""
        return self._gradient_clip_val

    @gradient_clip_val.setter
    def gradient_clip_val(self, value: int | float | None) -> None:
        check_clip_value(value)
        self._gradient_clip_val = value
        self._clip_anew()

    @property
    def gradient_clip_algorithm(self) -> GradClipAlgorithmType | None:
        """How gradients are clipped; None means by norm. Setting it acts from the next update on."""
        return self._gradient_clip_algorithm

    @gradient_clip_algorithm.setter
    def gradient_clip_algorithm(self, value: str | None) -> None:
        self._gradient_clip_algorithm = clip_algorithm(value)
        self._clip_anew()

    def _clip_anew(self) -> None:
        """Let changed values act on the running fit."""
        if self._plan is None or self._engine is None:
            return
        self._plan = replace(
            self._plan,
            gradient_clip_val=self._gradient_clip_val,
            gradient_clip_algorithm=self._gradient_clip_algorithm,
        )
        self._engine.updates.clip = self._engine.build_clipping(self._plan)

    def _build_cadence(self, num_batches: int | float) -> ValidationCadence:
        return resolve_validation_interval(self.val_check_interval, self.check_val_every_n_epoch, num_batches)

    def _has_training_batches(self) -> bool:
        """Ask for the training loader, and whether there is anything to train on."""
        if self.limit_train_batches == 0:
            return False
        self.fit_loop.load()
        if self.fit_loop.num_batches == 0:
            warn("the training loader has no batches, so there is nothing to train on", code="no-batches")
        return self.fit_loop.num_batches != 0

    def _check_mode(self) -> None:
        """Refuse a change of mode after the engine was built for the other one."""
        assert self._module is not None
        if bool(self._module.automatic_optimization) != self.plan.automatic:
            raise OrderError(
                f"automatic_optimization was {self.plan.automatic} when the fit began and is "
                f"{self._module.automatic_optimization} now; set it in __init__, before trainer.fit",
                code="mode-changed",
            )

    def _release(self) -> None:
        """Let go of what belongs to the fit that ends."""
        super()._release()
        self.fit_loop.disconnect()
        engine, self._engine = self._engine, None
        if engine is not None and engine.release():
            warn(
                "toggle_optimizer was called without untoggle_optimizer; what it froze was given back now, at the end "
                "of the fit. Use `with optimizer.toggle_model():`, which cannot forget",
                code="toggle-left-on",
            )

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

    def _load_training(self, given: Any) -> tuple[Any, int | float]:
        limits = DataLimits(self.limit_train_batches, self.overfit_batches, "limit_train_batches")
        return load_training(functools.partial(self._ask_for, "train", given), limits)

    def _gradient_clearing(self, module: LightningModule) -> Callable[[], Any] | None:
        """What clears gradients before a validation; in manual mode only what the user asks for."""
        if module.automatic_optimization or overrides(module, "on_validation_model_zero_grad", BASES):
            return module.on_validation_model_zero_grad
        return None


def _switch_modes(optimizers: list[Any], mode: str) -> None:
    """Put optimizers that have modes into "train" or "eval"."""
    for optimizer in optimizers:
        getattr(optimizer, mode)()
