"""Puts the parts of a run together, once, when it starts: every question that cannot change is asked here."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from leyden import loops
from leyden import optimization as lazily
from leyden.callback import Callback
from leyden.data.transfer import Transfer, build_transfer
from leyden.datamodule import LightningDataModule
from leyden.errors import MisconfigurationException, warn
from leyden.hooks.dialects import OptimizerIndex, Signature, adapt, adapt_evaluation_step, adapt_training_step
from leyden.hooks.dispatch import Hook, Hooks, Profile, RunState, overrides, unprofiled
from leyden.loops.evaluate import Modes
from leyden.module import LightningModule
from leyden.optimization.automatic import AutomaticOptimization, Calls
from leyden.optimization.clocks import Clocks
from leyden.optimization.gradients import GradClipAlgorithmType, clip, total_norm
from leyden.optimization.joint import members_of
from leyden.optimization.manual import ManualOptimization
from leyden.optimization.optimizer import LightningOptimizer
from leyden.optimization.plan import Plan
from leyden.optimization.schedulers import Schedulers, default_lr_scheduler_step
from leyden.optimization.toggling import Toggler
from leyden.optimization.turns import Turn, Turns
from leyden.optimization.update import Updates
from leyden.precision import Precision
from leyden.precision.scaling import LossScale
from leyden.strategies import Strategy

if TYPE_CHECKING:
    from leyden.loops.outputs import EpochOutputs

BASES = (LightningModule, LightningDataModule, Callback)


class NoTurns:
    """Stands for the optimizers where there are none: before they are configured, and in evaluations."""

    def index_of(self, optimizer: Any) -> int:
        """Always the first."""
        return 0

    def active(self) -> tuple[Any, int | None]:
        """No optimizer."""
        return None, None


class Engine(NamedTuple):
    """What runs the optimizers of a fit."""

    optimization: AutomaticOptimization | ManualOptimization
    schedulers: Schedulers | None
    hooks: Hooks
    toggler: Toggler
    turns: Turns
    epoch_outputs: EpochOutputs | None
    updates: Updates
    build_clipping: Callable[[Plan], Callable[[Any], None] | None]
    build_schedulers: Callable[[Plan], Schedulers | None]
    loss_scale: LossScale | None

    def release(self) -> bool:
        """Let go of the users' objects at the end of a fit; returns whether a toggle was never undone."""
        for turn in self.turns:
            turn.handle._perform = turn.handle._toggle_model = None
        if self.loss_scale is not None:
            self.loss_scale.forget()
        return self.toggler.restore()


def bind_hooks(
    *,
    module: LightningModule,
    callbacks: Sequence[Callback],
    trainer: Any,
    state: RunState,
    turns: OptimizerIndex | None = None,
    several: bool = False,
    mixed: bool = False,
    profile: Profile = unprofiled,
) -> Hooks:
    """Resolve all hooks of a run. ``trainer`` is only handed on to callbacks."""
    return Hooks(
        module=module,
        callbacks=callbacks,
        trainer=trainer,
        state=state,
        turns=turns or NoTurns(),
        bases=BASES,
        several=several,
        mixed=mixed,
        profile=profile,
    )


def build_engine(
    plan: Plan,
    *,
    handles: Sequence[LightningOptimizer],
    module: LightningModule,
    callbacks: Sequence[Callback],
    trainer: Any,
    state: RunState,
    clocks: Clocks,
    precision: Precision,
    strategy: Strategy,
    track_grad_norm: float | None = None,
    batches_left: Callable[[], float] = lambda: math.inf,
    profile: Profile = unprofiled,
) -> Engine:
    """Build what runs the optimizers of a fit from its plan."""
    count = len(handles)
    several = plan.automatic and count > 1
    turns = Turns(handles, clocks.for_optimizers(count), frequencies=plan.frequencies, automatic=plan.automatic)
    dialect: dict[str, Any] = {"several": several, "turns": turns, "mixed": precision.is_mixed, "profile": profile}
    hooks = bind_hooks(module=module, callbacks=callbacks, trainer=trainer, state=state, **dialect)

    def bind(name: str) -> Hook | None:
        return _bind(module, name, state=state, **dialect)

    cuts = getattr(module, "truncated_bptt_steps", None)
    truncated = lazily.build_truncated(module, state, automatic=plan.automatic) if cuts else None
    wrap = truncated and truncated.adapt
    calls = _bind_calls(module, bind, hooks, turns, precision, several=several, automatic=plan.automatic, wrap=wrap)
    if profile is not unprofiled:
        calls = _profile_calls(calls, turns, module, strategy, profile)
    updates = Updates(
        automatic=plan.automatic,
        state=state,
        before_step=hooks.on_before_optimizer_step,
        clip=build_clipping(plan, module, bind, profile),
        measure=_norm_logger(track_grad_norm, state, count),
        loss_scale=precision.loss_scale,
        reduce=strategy.gradients_ready if strategy.reduces_gradients else None,
    )
    no_sync = strategy.no_sync if strategy.reduces_gradients else None
    shared: dict[str, Any] = {"clocks": clocks, "state": state, "no_sync": no_sync}
    toggler = Toggler([handle.optimizer for handle in handles])
    outputs_hook = own_hook(module, "training_epoch_end")
    optimization: AutomaticOptimization | ManualOptimization
    if plan.automatic:
        optimization = AutomaticOptimization(
            turns,
            updates,
            calls,
            toggler=toggler if several else None,
            loss_scale=precision.loss_scale,
            wants_outputs=hooks.on_train_batch_end is not None or outputs_hook is not None,
            **shared,
        )
        if truncated is not None:
            truncated.attach(optimization)
        perform: Callable[..., Any] = updates.perform
        if calls.optimizer_step is None:  # an override is profiled itself
            perform = profile(module, "optimizer_step", perform)
    else:
        optimization = ManualOptimization(
            turns, updates, calls, precision=precision, batches_left=batches_left, **shared
        )
        perform = profile(None, "optimizer_step", optimization.step)
    for turn in turns:
        turn.handle._perform = functools.partial(perform, turn)
        turn.handle._toggle_model = module.toggle_model
    step = bind("lr_scheduler_step") or profile(module, "lr_scheduler_step", default_lr_scheduler_step)
    schedule = functools.partial(_build_schedulers, turns=turns, clocks=clocks, state=state, step=step)
    outputs = _epoch_outputs(module, profile, state, optimization, count if several else 1)
    clipping, scale = functools.partial(build_clipping, module=module, bind=bind, profile=profile), precision.loss_scale
    return Engine(
        optimization, schedule(plan), hooks, toggler, turns, outputs, updates, clipping, schedule, loss_scale=scale
    )


def _bind_calls(
    module: LightningModule,
    bind: Callable[[str], Hook | None],
    hooks: Hooks,
    turns: Turns,
    precision: Precision,
    *,
    several: bool,
    automatic: bool,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None,
) -> Calls:
    step, takes_index = adapt_training_step(_with_step_end(module, "training_step"), several=several)
    if wrap is not None:
        step = wrap(step)
    for turn in turns:
        turn.arguments = (turn.index,) if takes_index and automatic else ()
    return Calls(
        training_step=_in_context(precision, step),
        optimizer_step=bind("optimizer_step"),
        optimizer_zero_grad=bind("optimizer_zero_grad"),
        backward=bind("backward"),
        toggle=bind("toggle_optimizer"),
        untoggle=_bind_untoggle(module, turns),
        on_before_zero_grad=hooks.on_before_zero_grad,
        on_before_backward=hooks.on_before_backward,
        on_after_backward=hooks.on_after_backward,
    )


def _profile_calls(calls: Calls, turns: Turns, module: LightningModule, strategy: Strategy, profile: Profile) -> Calls:
    """The calls of a batch, profiled also where nobody overrides them."""
    for turn in turns:
        zero_grad = profile(module, "optimizer_zero_grad", turn.contract.zero_grad)
        turn.contract = turn.contract._replace(zero_grad=zero_grad)
    return calls._replace(
        training_step=profile(strategy, "training_step", calls.training_step),
        backward=profile(strategy, "backward", calls.backward or module.backward),
    )


def _build_schedulers(
    plan: Plan, turns: Turns, clocks: Clocks, state: RunState, step: Callable[[Any, Any], Any]
) -> Schedulers | None:
    if not plan.automatic or not plan.schedulers:
        return None
    return Schedulers(
        plan.schedulers,
        turns=turns,
        clocks=clocks,
        metrics=lambda: state.results.callback_metrics(),
        lr_scheduler_step=step,
    )


def _bind(module: LightningModule, name: str, *, state: RunState, profile: Profile, **dialect: Any) -> Hook | None:
    """The module's override of a method as a hook, so that ``self.log`` in it knows where it is; None without one."""
    if not overrides(module, name, BASES):
        return None
    return Hook(name, state, module=profile(module, name, adapt(getattr(module, name), name, **dialect)))


def _bind_untoggle(module: LightningModule, turns: Turns) -> Callable[[Any], Any] | None:
    """The module's override of ``untoggle_optimizer``; 1.x takes an index, 2.x an optimizer."""
    if not overrides(module, "untoggle_optimizer", BASES):
        return None
    untoggle = module.untoggle_optimizer
    if Signature.of(untoggle).names("optimizer_idx"):
        return lambda optimizer: untoggle(turns.index_of(optimizer))
    return untoggle


def own_hook(module: LightningModule, name: str) -> Callable[..., Any] | None:
    """The user's own hook of a name that leyden's bases have not, or have empty (:mod:`leyden.compat.former_hooks`)."""
    return getattr(module, name) if overrides(module, name, BASES) else None


def _with_step_end(module: LightningModule, name: str) -> Callable[..., Any]:
    """A step method, followed by the module's 1.x ``*_step_end`` where it has one.

    As from 1.6 on, one that returns None leaves the step's output as it is.
    """
    step: Callable[..., Any] = getattr(module, name)
    end = getattr(module, name + "_end", None)
    if end is None:
        return step

    @functools.wraps(step)
    def step_and_end(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        replaced = end(output)
        return output if replaced is None else replaced

    return step_and_end


def _in_context(precision: Precision, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step method inside of the precision's context; the method itself where that context does nothing."""
    if type(precision).forward_context is Precision.forward_context:
        return step

    def in_context(*args: Any) -> Any:
        with precision.forward_context():
            return step(*args)

    return in_context


def build_clipping(
    plan: Plan, module: LightningModule, bind: Callable[[str], Hook | None], profile: Profile = unprofiled
) -> Callable[[Any], None] | None:
    """What clips the gradients of an update: the user's hook, the default, or nothing."""
    if not plan.automatic:
        return None
    value = plan.gradient_clip_val
    algorithm = GradClipAlgorithmType(plan.gradient_clip_algorithm) if plan.gradient_clip_algorithm else None
    hook: Callable[..., Any] | None = bind("configure_gradient_clipping")
    if hook is None and overrides(module, "clip_gradients", BASES):
        hook = profile(module, "configure_gradient_clipping", module.configure_gradient_clipping)
    if hook is not None:
        return functools.partial(_each_member, hook, value, algorithm)
    if not value or value <= 0:
        return None
    return profile(module, "configure_gradient_clipping", functools.partial(clip, value=value, algorithm=algorithm))


def _each_member(hook: Callable[..., Any], value: float | None, algorithm: Any, optimizer: Any) -> None:
    for member in members_of(optimizer):
        hook(member, value, algorithm)


def _norm_logger(norm_type: float | None, state: RunState, count: int) -> Callable[[Turn], None] | None:
    """Logs the norms of an update's gradients before they are clipped: one for whatever is clipped by itself.

    The keys end with the label that the optimizer has in the plan's table, unless there is only one.
    """
    if norm_type is None:
        return None

    def log_norm(turn: Turn) -> None:
        members = members_of(turn.optimizer)
        before, state.hook = state.hook, "on_before_optimizer_step"
        for place, member in enumerate(members):
            label = f"/{turn.index}.{place}" if len(members) > 1 else f"/{turn.index}" if count > 1 else ""
            state.results.log(state.hook, f"grad_{norm_type}_norm_total{label}", total_norm(member, norm_type))
        state.hook = before

    return log_norm


def _epoch_outputs(
    module: LightningModule,
    profile: Profile,
    state: RunState,
    optimization: AutomaticOptimization | ManualOptimization,
    num_optimizers: int,
) -> EpochOutputs | None:
    hook = own_hook(module, "training_epoch_end")
    if hook is None:
        return None
    indices: Callable[[], Sequence[int]] = lambda: ()  # noqa: E731
    if isinstance(optimization, AutomaticOptimization):
        indices = functools.partial(getattr, optimization, "output_indices")
    return loops.EpochOutputs(
        Hook("training_epoch_end", state, module=profile(module, "training_epoch_end", hook)),
        num_optimizers=num_optimizers,
        indices=indices,
        by_batch=Signature.of(hook).names("new_format"),
    )


def build_batch_transfer(
    module: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    strategy: Strategy,
    precision: Precision,
) -> Transfer | None:
    """The way of a batch to the device; a datamodule's overrides go before the module's."""
    device = strategy.root_device

    def override(name: str) -> Callable[..., Any] | None:
        for owner in (datamodule, module):
            if owner is not None and overrides(owner, name, BASES):
                return getattr(owner, name)  # type: ignore[no-any-return]
        return None

    move, after = override("transfer_batch_to_device"), override("on_after_batch_transfer")
    if overrides(strategy, "batch_to_device", (Strategy,)):
        strategy.transfer = build_transfer(device, move=move, after=after)
        move, after = strategy.batch_to_device, None
    converts = type(precision).convert_input is not Precision.convert_input
    return build_transfer(
        device,
        before=override("on_before_batch_transfer"),
        move=move,
        after=after,
        convert=precision.convert_input if converts else None,
    )


def build_modes(module: LightningModule, name: str, hooks: Hooks) -> Modes:
    """Switches the module for an evaluation called ``name``: "validation", "test" or "predict"."""
    return Modes(
        module,
        to_eval=getattr(hooks, f"on_{name}_model_eval"),
        to_train=getattr(hooks, f"on_{name}_model_train"),
    )


def build_evaluation_step(
    module: LightningModule, name: str, *, precision: Precision, several_loaders: bool
) -> Callable[[Any, int, int], Any]:
    """``validation_step``, ``test_step`` or ``predict_step`` as ``(batch, batch_idx, dataloader_idx)``."""
    step = adapt_evaluation_step(_with_step_end(module, name), several_loaders=several_loaders)
    return _in_context(precision, step)


def check_manual(plan: Plan, accumulation: Any) -> None:
    """Refuse Trainer arguments that do nothing in manual optimization.

    Raises:
        MisconfigurationException: clipping or accumulation asked of the Trainer.
    """
    if plan.automatic:
        return
    if plan.gradient_clip_val is not None and plan.gradient_clip_val > 0:
        raise MisconfigurationException(
            f"Trainer(gradient_clip_val={plan.gradient_clip_val}) does nothing in manual optimization; call "
            "self.clip_gradients(optimizer, ...) between backward and step",
            code="manual-clip",
        )
    if _most(accumulation) > 1:
        raise MisconfigurationException(
            f"Trainer(accumulate_grad_batches={accumulation}) does nothing in manual optimization; use "
            "`with self.accumulate(optimizer, n) as window:` in training_step",
            code="manual-accumulation",
        )


def _most(accumulation: int | Mapping[int, int]) -> int:
    """The longest window of a fit, in micro-batches."""
    return max(accumulation.values(), default=1) if isinstance(accumulation, Mapping) else accumulation


def warn_of_overrides(module: LightningModule, accumulation: Any, frequencies: Sequence[int]) -> None:
    """Say what is easily misunderstood about accumulation."""
    if _most(accumulation) == 1:
        return
    for name in ("optimizer_step", "optimizer_zero_grad"):
        if overrides(module, name, BASES):
            warn(
                f"{name} is overridden and gradients are accumulated: it is called once per window, not per batch",
                code="accumulation-override",
            )
    if frequencies:
        warn(
            "frequencies and accumulation both count batches: an optimizer whose turn never falls on the last batch "
            "of a window is never stepped",
            code="accumulation-frequency",
        )
