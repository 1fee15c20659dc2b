"""``fit``: optimizers configured, the engine built, the loop run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leyden import checkpoint
from leyden import hooks as checks
from leyden.assembly import BASES, Engine, build_engine, check_manual, warn_of_overrides
from leyden.data.sources import DataLimits, capped, is_empty, load_training
from leyden.errors import OrderError, warn
from leyden.evaluations import Evaluations
from leyden.hooks.dialects import Signature, takes_optimizer_idx
from leyden.hooks.dispatch import Hooks, overrides, watch_batches
from leyden.loops.cadence import ValidationCadence
from leyden.loops.fit import FitParts
from leyden.module import LightningModule
from leyden.optimization.gradients import GradClipAlgorithmType, check_clip_value, clip_algorithm
from leyden.optimization.optimizer import LightningOptimizer, find_handles
from leyden.optimization.plan import Plan, build_plan, check_optimizer_idx, with_optimizers
from leyden.optimization.schedulers import LRSchedulerConfig
from leyden.optimization.toggling import Toggler
from leyden.rank import rank_zero_info
from leyden.resolve import resolve_validation_interval
from leyden.results.collect import Results
from leyden.results.entry import metric_objects
from leyden.units import Every, build_counter, clocks_of


class Fits(Evaluations):
    """Runs fits."""

    limit_train_batches: int | float
    limit_val_batches: int | float
    num_sanity_val_steps: int
    val_check_interval: Any
    schedules: dict[str, Every]
    reload_dataloaders_every_n_epochs: int
    log_every_n_steps: int
    track_grad_norm: float | None
    _accumulation: int | Mapping[int, int] | None
    _bound: list[Any]
    _check_val_every_n_epoch: int | None
    _gradient_clip_val: int | float | None = None
    _gradient_clip_algorithm: GradClipAlgorithmType | None = None
    _toggler: Toggler
    _load_val: Callable[[], tuple[list[Any], list[int | float]]]
    _val_data: tuple[list[Any], list[int | float]] | None = None
    _val_given: Any = None

    def _fit(self, hooks: Hooks, *, train: Any, val: Any, instead: Callable[[], None] | None = None) -> None:
        module, loop, state = self._module, self.fit_loop, self._state
        assert module is not None
        if loop.limits.is_default and instead is None:
            warn(
                f"no maximum was given; the fit ends after {loop.max_epochs} epochs. max_epochs=-1 trains without end",
                code="trainer-max-epochs",
            )
        self._load_val = functools.partial(self._load_evaluation, "val", val, in_fit=True)
        self._val_data, self._val_given, self.validate_loop.loaded_in = None, val, None
        loop.validation, self.validate_loop.is_defined = self.validate_loop, self._has_validation_data
        if self._validates():
            checks.check_step(module, "validation_step", bases=BASES)
        loop.data.connect(
            functools.partial(self._load_training, train),
            reload_every=self.reload_dataloaders_every_n_epochs,
            mark=checkpoint.mark,
            copier=self._build_copier(),
        )
        hooks = self._configure_optimizers(module).hooks
        self._configured = checkpoint.options_of(self.plan)
        if self._resumption is not None and self._resumption.report.errors:
            self._restore_training()  # which tells the rest as well
        state.results = Results(training=True, views=self._views, metrics=functools.partial(metric_objects, module))
        if instead is not None:
            return instead()
        hooks.call("on_fit_start")
        if self._bound != self.callbacks:  # a callback has brought others along
            self._check_hooks("fit", module, self.datamodule)
            self._drive(self.plan, {id(handle.optimizer): handle for handle in self._handles})
        assert self._engine is not None
        hooks = self._engine.hooks
        in_epoch = self._restore_training()
        module.zero_grad()
        hooks.call("on_pretrain_routine_start")
        hooks.call("on_pretrain_routine_end")
        if not in_epoch:
            self._sanity_check(hooks)
        reason = loop.limits.all_reached(self.clocks)
        if reason is not None and self.clocks.updates and not in_epoch:
            warn(f"this fit has nothing left to do: {reason}", code="fit-nothing-to-do")
        if (in_epoch or not loop.is_over(state)) and self._has_training_batches():
            for schedule in self.schedules.values():
                schedule.start(self.clocks)
            self._tell_what_is_left_out()
            self._train(hooks, validate=self._validate_in_fit(hooks))
            self._say_where_time_went()
        hooks.call("on_fit_end")

    def _restore_training(self) -> bool:
        """Restore optimizers, schedulers and the loop's place from a checkpoint; whether that is within an epoch."""
        resumption, self._resumption = self._resumption, None
        if resumption is None:
            return False
        with resumption.undone():
            if self.limit_train_batches != 0:
                self.fit_loop.data.load()
            place = resumption.finish(
                self.plan,
                here=self._outline() | ({"validation": self._validation_data()[1]} if resumption.in_validation else {}),
                callbacks=self.callbacks,
                clocks=self.clocks,
                scaler=self.scaler,
                window_size=self._accumulation_in(self.clocks.epoch),
                limits=self.fit_loop.limits,  # which a callback may just have raised
                windows_until=self._windows_until,
            )
        checkpoint.restore_place(self._running(), place)
        checkpoint.rewind(self.loggers, place)
        if self._state.should_stop:
            rank_zero_info(
                "the run that wrote the checkpoint was asked to stop, so this fit ends. To train on, leave out the "
                'callback that has asked, or begin it anew: fit(..., resume={"callbacks.EarlyStopping": "reset"})'
            )
        return bool(place["phase"] != "between")

    def _train(self, hooks: Hooks, *, validate: Callable[[], Any] | None) -> None:
        """Run the epochs of the fit loop with the engine that is built."""
        module, state = self._module, self._state
        assert module is not None
        limits, self._began = self.fit_loop.limits, checkpoint.look_at(module)
        self.clocks.start()
        parts = self._parts = FitParts(
            **self._engine_parts(),
            state=state,
            results=state.results,
            transfer=self._transfer(),
            validate=validate,
            write_row=self._write_row if self.loggers else None,
            log_every=self.schedules.get("log_every_n_steps", self.log_every_n_steps),
            count=build_counter(
                self.clocks,
                clocks_of(
                    *self.schedules.values(),
                    *limits.most.values(),
                    *limits.least.values(),
                    *(value for callback in self.callbacks for value in vars(callback).values()),
                ),
            ),
            check=self._check_mode,
            clear_gradients=self._gradient_clearing(module),
            profile=self._profile,
            watch=watch_batches(self._profile, "[_TrainingEpochLoop].train_dataloader_next"),
        )
        with self._context():
            self.fit_loop.run(parts)

    def _say_where_time_went(self) -> None:
        bar = self.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(self.ledger.summary(self.fit_loop.data.loader))

    def _configure_optimizers(self, module: LightningModule) -> Engine:
        accumulation = self._accumulation_schedule()
        self._plan, self._handles = None, []
        self._state.hook = "configure_optimizers"
        returned = self._profile(module, "configure_optimizers", module.configure_optimizers)()
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
            batches_left=functools.partial(getattr, self.fit_loop.data, "batches_left"),
            profile=self._profile,
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
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """All schedulers and when they step, in configured order.

        Assigning others replaces them; in the middle of a fit from the next epoch on. In manual optimization
        ``self.lr_schedulers()`` then returns the new ones.
        """
        return list(self._plan.schedulers) if self._plan is not None else []

    @lr_scheduler_configs.setter
    def lr_scheduler_configs(self, configs: Sequence[LRSchedulerConfig]) -> None:
        plan = self._plan = replace(self.plan, schedulers=tuple(configs))
        if self._engine is not None:
            self._engine = self._engine._replace(schedulers=self._engine.build_schedulers(plan))
        if self._parts is not None:
            self._parts.schedulers = self._engine_parts()["schedulers"]

    @property
    def lr_schedulers(self) -> list[LRSchedulerConfig]:
        """The 1.x name of ``lr_scheduler_configs``; the items answer like dicts as well."""
        return self.lr_scheduler_configs

    def stop_updates(self) -> None:
        """Let the rest of this fit run ``training_step`` without backward and updates, for statistics of the data.

        Called in ``on_train_epoch_start`` it begins with that epoch. Epochs, logging and validations go on.

        Raises:
            OrderError: no fit runs.
        """
        if self._engine is None:
            raise OrderError("trainer.stop_updates() needs a fit that runs; call it in a hook", code="no-fit")
        self._engine.optimization.observe()

    @property
    def enable_validation(self) -> bool:
        """Whether the fit that runs validates."""
        return self._parts is not None and self._parts.validate is not None

    @property
    def check_val_every_n_epoch(self) -> int | None:
        """Epochs between validations; None counts batches across epochs. Setting it acts at once."""
        return self._check_val_every_n_epoch

    @check_val_every_n_epoch.setter
    def check_val_every_n_epoch(self, value: int | None) -> None:
        self._check_val_every_n_epoch = value
        if self._parts is not None:
            self.fit_loop.cadence = self._build_cadence(self.fit_loop.data.num_batches)

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
        every = self.schedules.get("val_check_interval")
        return resolve_validation_interval(self.val_check_interval, self.check_val_every_n_epoch, num_batches, every)

    def _has_training_batches(self) -> bool:
        """Ask for the training loader, and whether there is anything to train on."""
        if self.limit_train_batches == 0:
            return False
        data = self.fit_loop.data
        data.load()
        if data.num_batches == 0:
            warn("the training loader has no batches, so there is nothing to train on", code="no-batches")
        return data.num_batches != 0

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
        self.fit_loop.data.disconnect()
        self.fit_loop.go_on = None
        self.clocks.stop()
        engine, self._engine = self._engine, None
        if engine is not None and engine.release() and self._state.status == "finished":
            warn(
                "toggle_optimizer without untoggle_optimizer; it is undone now. Write `with optimizer.toggle_model():`",
                code="toggle-left-on",
            )

    def _sanity_check(self, hooks: Hooks) -> None:
        """A few validation batches, so that mistakes there show before hours of training. Leaves no trace."""
        if not self.num_sanity_val_steps or not self._validates():
            return
        with self._without_trace():
            self._state.stage = "sanity_check"
            hooks.call("on_sanity_check_start")
            loaders, counts = self._validation_data()
            few = capped(counts, self.num_sanity_val_steps)
            if not is_empty(few):
                parts = self._evaluation_parts("validation", loaders, few, hooks, in_fit=True)
                parts.write_row = None
                self.validate_loop.run(parts)
                self.validate_loop.num_batches = counts
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
        has_step = overrides(self._module, "validation_step", BASES)
        return has_step and self.limit_val_batches != 0 and self._has_validation_data()

    def _has_validation_data(self) -> bool:
        owners = (self.datamodule, self._module)
        return self._val_given is not None or any(overrides(o, "val_dataloader", BASES) for o in owners)

    def _tell_what_is_left_out(self) -> None:
        """Say what a user may believe to happen and what does not."""
        module, data = self._module, self.fit_loop.data
        assert module is not None
        has_step = overrides(module, "validation_step", BASES)
        if self._has_validation_data() != has_step and self.limit_val_batches != 0:
            missing = "validation data" if has_step else "validation_step"
            rank_zero_info(f"this fit does not validate, because there is no {missing}")
        idle = sum(not part.training for part in module.modules())
        if idle:
            rank_zero_info(
                f"{idle} modules are in eval mode and stay so in training; call module.train() to change that"
            )
        every, windows = self.log_every_n_steps, data.num_batches / self.accumulate_grad_batches
        if self.loggers and "log_every_n_steps" not in self.schedules and every > windows and not self.fast_dev_run:
            rank_zero_info(
                f"an epoch has fewer windows ({math.ceil(windows)}) than log_every_n_steps={every}: some have no "
                "row of a step; lower it to see more"
            )

    def _validation_data(self) -> tuple[list[Any], list[int | float]]:
        """The validation loaders, asked for once, or again as ``reload_dataloaders_every_n_epochs`` says."""
        every, loaded_in = self.reload_dataloaders_every_n_epochs, self.validate_loop.loaded_in
        if loaded_in is None or (every and self.clocks.epoch - loaded_in >= every):
            self.validate_loop.own, self.validate_loop.loaded_in, self._val_data = None, self.clocks.epoch, None
        if self._val_data is None:
            self._val_data = self._load_val()
        return self._val_data

    def _load_training(self, given: Any) -> tuple[Any, int | float]:
        mode = self._former.get("multiple_trainloader_mode", "max_size_cycle")
        limits = DataLimits(self.limit_train_batches, self.overfit_batches, mode=mode)
        loader, num_batches = load_training(functools.partial(self._ask_for, "train", given), limits)
        self.fit_loop.cadence = self._build_cadence(num_batches)
        return loader, num_batches

    def _gradient_clearing(self, module: LightningModule) -> Callable[[], Any] | None:
        """What clears gradients before a validation; in manual mode only what the user asks for."""
        if module.automatic_optimization or overrides(module, "on_validation_model_zero_grad", BASES):
            return module.on_validation_model_zero_grad
        return None


def _switch_modes(optimizers: list[Any], mode: str) -> None:
    """Put optimizers that have modes into "train" or "eval"."""
    for optimizer in optimizers:
        getattr(optimizer, mode)()
