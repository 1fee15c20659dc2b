"""What all runs of a Trainer have in common: set-up, teardown, exceptions, where batches come from."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from leyden import checkpoint, profilers
from leyden import hooks as checks
from leyden.assembly import BASES, bind_hooks, build_batch_transfer
from leyden.data.transfer import Transfer
from leyden.errors import InvalidTypeError, MisconfigurationException, OrderError, warn
from leyden.hooks.dispatch import Hooks, Profile, each_listener, overrides, where_raised
from leyden.loggers.parameters import merge
from leyden.module import LightningModule
from leyden.rank import rank_zero_info
from leyden.resolve import writers_last
from leyden.saves import Saves
from leyden.signals import slurm_job

if TYPE_CHECKING:
    from leyden.profilers import Profiler


class Source(NamedTuple):
    """The checkpoint that a run is asked to read.

    Attributes:
        path: a path, "best", "last", or None.
        weights_only: False trusts the file, so that code in it may run.
        module_given: whether the call named a module; an evaluation without one takes the best weights.
        resume: of a fit, what is not taken from it.
    """

    path: Any = None
    weights_only: bool | None = None
    module_given: bool = True
    resume: Mapping[str, str] | None = None


class Runs(Saves):
    """Runs one thing from set-up to teardown. ``Evaluations`` and ``Fits`` say what the things are."""

    _optimization: Any
    _detect_anomaly: bool
    _autolog_hparams: bool
    _former: Mapping[str, Any]
    _resumption: checkpoint.Resumption | None = None  # of the checkpoint, until the optimizers are restored from it
    _told_of_log = False
    ckpt_path: str | os.PathLike[str] | None = None
    """The checkpoint that the current or last run has read, or None."""
    resumes_last = False
    """Whether the current or last run was asked for ``ckpt_path="last"``: a file of its own, not one to be kept."""
    profiler: Profiler

    @property
    def _profile(self) -> Profile:
        """What wraps the calls of a run where they are profiled."""
        return profilers.profile_with(self.profiler)

    @property
    def log_dir(self) -> str | None:
        """Folder of the first logger, for what belongs beside its files; ``default_root_dir`` without a logger."""
        if not self.loggers:
            return self.default_root_dir
        return getattr(self.loggers[0], "log_dir", None) or getattr(self.loggers[0], "save_dir", None)

    def _run(self, stage: str, *args: Any) -> Any:
        """Run something, with signals handled meanwhile."""
        with self._signals.handled(
            self._state,
            save=self._save_interrupted,
            can_save=self._can_save_interrupted,
            is_running=self._is_running,
        ):
            return self._run_through(stage, *args)

    def _is_running(self) -> bool:
        """Whether a loop runs."""
        loops = (self.validate_loop, self.test_loop, self.predict_loop)
        return self._parts is not None or any(loop.parts is not None for loop in loops)

    def _run_through(
        self, stage: str, model: Any, datamodule: Any, body: Callable[[Hooks], Any], source: Source
    ) -> Any:
        """What all runs have in common: set-up, the body, teardown, and exceptions told to callbacks."""
        if not isinstance(model, LightningModule):
            raise InvalidTypeError(
                f"trainer.{stage} takes a LightningModule, got {type(model).__name__}", code="not-a-module"
            )
        if self._state.stage is not None:
            raise OrderError(
                f"trainer.{stage}(...) was called inside of another run of this Trainer, which has one run at a time; "
                "call it after that, or use a second Trainer",
                code="run-in-run",
            )
        state, self._module, self.datamodule = self._state, model, datamodule
        model.trainer = self  # type: ignore[assignment]  # a Trainer is the only one there is
        if datamodule is not None:
            datamodule.trainer = self
        self._check_hooks(stage, model, datamodule)
        self.interrupted = False
        state.should_stop = False
        state.stage, state.run, state.status = "train" if stage == "fit" else stage, stage, "running"
        self._views.clear()
        self._eval_rows.clear()
        status = "failed"
        try:
            if self._attach_module_callbacks(model):
                self._check_hooks(stage, model, datamodule)
            hooks = self._bind_hooks()
            self._prepare(stage, hooks, source)
            result = body(hooks)
            self._teardown(stage, hooks)
            self.profiler.describe()
            status = "success"
            return result
        except BaseException as exception:
            self._annotate(exception)
            self._tell_of(exception)
            raise
        finally:
            self._end(stage, status)

    def _tell_of(self, exception: BaseException) -> None:
        """Tell callbacks and datamodule how the run ended."""
        self.interrupted = isinstance(exception, KeyboardInterrupt) or bool(self._signals.received)
        hooks = self._bind_hooks()
        waiting, self._state.deferred = self._state.deferred, None
        calls: list[tuple[str, Callable[[], Any]]] = [("a checkpoint", save) for save in waiting or ()]
        if isinstance(exception, KeyboardInterrupt):
            calls += [("on_keyboard_interrupt", hook) for hook in each_listener(hooks.on_keyboard_interrupt)]
            calls.append(("the profiler", self.profiler.describe))
        for hook in each_listener(hooks.on_exception):
            calls.append(("on_exception", functools.partial(hook, exception)))
        if self.datamodule is not None:
            calls.append(("on_exception", functools.partial(self.datamodule.on_exception, exception)))
        self._call_all(calls, has_failed=True)

    def _end(self, stage: str, status: str) -> None:
        """Let go of everything that the run has held."""
        self._state.status = "interrupted" if status == "failed" else "finished"
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("the profiler", functools.partial(self.profiler.teardown, stage=stage)),
            ("what was logged", self._release),
            ("the checkpoint in the background", self._close_writer),
            ("the CheckpointIO", self.strategy.close_checkpoints),
        ]
        for logger in self.loggers:
            if hasattr(logger, "finalize"):
                calls.append((f"{type(logger).__name__}.finalize", functools.partial(logger.finalize, status)))
        self._call_all(calls, has_failed=status == "failed")

    def _call_all(self, calls: Sequence[tuple[str, Callable[[], Any]]], *, has_failed: bool) -> None:
        """Make every call, whatever becomes of the others.

        The first error is raised in the end. Where the run has failed already, all are only told, because what came
        before them is what the user must see.
        """
        errors: list[tuple[str, Exception]] = []
        for place, call in calls:
            try:
                call()
            except Exception as error:
                errors.append((where_raised(error, BASES) or place, error))
        if errors and not has_failed:
            raise errors[0][1]
        for place, again in errors:
            warn(
                f"{type(again).__name__} in {place}, after the run had failed: {again}. Look at the first error first",
                code="failed-again",
            )

    def _find(self, stage: str, source: Source) -> Any:
        return checkpoint.find_checkpoint(
            source.path,
            stage=stage,
            writers=self.checkpoint_callbacks,
            is_implicit=stage != "fit" and not source.module_given,
            fast_dev_run=bool(self.fast_dev_run),
            interrupted=self._interrupted_path(),
            is_own=checkpoint.is_own(self.strategy.storage),
        )

    def _restore(self, stage: str, source: Source) -> None:
        """Read the checkpoint, and restore what is needed before the optimizers are made."""
        if source.path == "last":  # its callbacks know their folders from `setup` on
            self.ckpt_path = self._find(stage, source)
        if self.ckpt_path is None:
            return
        content = checkpoint.read_with(self.strategy.storage, self.ckpt_path, source.weights_only)
        content = checkpoint.as_checkpoint(content, str(self.ckpt_path))
        module = self._module
        assert module is not None
        what = "goes on from" if stage == "fit" else "uses the weights of"
        rank_zero_info(f"trainer.{stage} {what} {os.fspath(self.ckpt_path)!r}")
        if stage == "fit":
            self._resumption = checkpoint.Resumption(content, str(self.ckpt_path), source.resume)
            place = self._resumption.begin(
                module,
                clocks=self.clocks,
                callbacks=self.callbacks,
                precision=self.precision,
                datamodule=self.datamodule,
            )
            if place is None:  # it is refused, as soon as the optimizers are known and all can be told
                return
            self._state.should_stop = place["should_stop"]
        else:
            module.on_load_checkpoint(content)
        self._precision.convert_module(module)  # before: float32 would cut what a file of "64-true" holds
        with self._resumption.undone() if self._resumption is not None else nullcontext():
            checkpoint.restore_module(
                content,
                module=module,
                datamodule=self.datamodule,
                callbacks=self.callbacks,
                trainer=self,
                in_fit=stage == "fit",
            )

    def _release(self) -> None:
        """Let go of what belongs to the run that ends."""
        self._resumption = None
        state = self._state
        try:
            if state.results is not None:
                state.results.publish()
            self._views.to_cpu()
        finally:  # a metric object of the user's may fail to compute
            state.stage = state.hook = state.results = state.deferred = None
            self._optimization = self._parts = None

    def _prepare(self, stage: str, hooks: Hooks, source: Source) -> None:
        module, datamodule, profile = self._module, self.datamodule, self._profile
        assert module is not None
        requeued = slurm_job() is not None and not self._is_trial and os.path.isfile(self._interrupted_path())
        if stage == "fit" and requeued:
            # The job was requeued: the same script goes on from what it saved, by choices that were made already.
            source = source._replace(path="last", resume=None)
            rank_zero_info("this SLURM job was started again: the fit goes on where it was saved")
        self.resumes_last = source.path == "last"
        self.ckpt_path = None if self.resumes_last else self._find(stage, source)
        if stage == "fit" and source.path == "last":
            checkpoint.take_up_version(
                self.loggers,
                writers=self.checkpoint_callbacks,
                module=module,
                interrupted=self._interrupted_path(),
            )
        for logger in self.loggers:
            _ = getattr(logger, "experiment", None)  # made now: a folder that takes no files shows before all work
        self.strategy.connect(module)
        self.profiler._lightning_module = module
        rank = self.local_rank if self.world_size > 1 else None
        self.profiler.setup(stage=stage, local_rank=rank, log_dir=self.log_dir)
        if datamodule is not None:
            profile(datamodule, "prepare_data", datamodule.prepare_data)()
        profile(module, "prepare_data", module.prepare_data)()
        hooks.call("on_before_accelerator_backend_setup")
        if datamodule is not None:
            profile(datamodule, "setup", datamodule.setup)(stage=stage)
        hooks.call("setup", stage)
        hooks.call("on_configure_sharded_model")
        module.configure_sharded_model()
        profile(module, "configure_model", module.configure_model)()
        self._restore(stage, source)
        self._precision.convert_module(module)
        self.strategy.setup_environment()
        self.strategy.setup(self)
        self._log_hparams()

    def _teardown(self, stage: str, hooks: Hooks) -> None:
        path = self._interrupted_path()
        if stage == "fit" and slurm_job() is not None and self.ckpt_path == path and self.is_global_zero:
            self.strategy.remove_checkpoint(path)  # it has served; another fit of this job must not go on from it
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
        return bind_hooks(
            module=self._module, callbacks=self.callbacks, trainer=self, state=self._state, profile=self._profile
        )

    def _check_hooks(self, stage: str, module: LightningModule, datamodule: Any) -> None:
        """Refuse hooks that cannot be called, and tell of methods that look like hooks and are never called."""
        checks.check_hooks(module, self.callbacks, stage=stage, bases=BASES)
        checks.check_state_keys(self.callbacks, bases=BASES)
        for owner in (module, *self.callbacks, datamodule):
            for found, meant in checks.misspelt_hooks(owner, bases=BASES):
                name, told = f"{type(owner).__qualname__}.{found}", self._views.warned
                if name not in told:
                    told.add(name)
                    warn(
                        f"{name} is the name of no hook, so a run never calls it; is {meant} meant? A name that begins "
                        "with an underscore tells it from hooks",
                        code="hook-misspelt",
                    )

    def _attach_module_callbacks(self, module: LightningModule) -> bool:
        """Callbacks of ``configure_callbacks`` take the place of given ones of their class. Whether there are any."""
        brought = [] if self._is_trial else module.configure_callbacks()
        brought = list(brought) if isinstance(brought, list | tuple) else [brought]
        classes = {type(callback) for callback in brought}
        if classes:
            kept = [callback for callback in self.callbacks if type(callback) not in classes]
            self.callbacks = writers_last([*kept, *brought])
        return bool(classes)

    def _log_hparams(self) -> None:
        owners = [owner for owner in (self._module, self.datamodule) if owner is not None and owner._log_hyperparams]
        if owners and self._autolog_hparams and self.loggers:
            self._tell_loggers("log_hyperparams", merge([owner.hparams_initial for owner in owners]))
        self._tell_loggers("log_graph", self._module)
        self._tell_loggers("save")

    def _tell_loggers(self, method: str, *args: Any) -> None:
        """Call a method of every logger that has it; users' own need no more than ``log_metrics``."""
        for logger in self.loggers:
            call = getattr(logger, method, None)
            if call is not None:
                call(*args)

    def _annotate(self, exception: BaseException) -> None:
        """Note on an exception where it was raised, in words of the run (Python >= 3.11)."""
        place = where_raised(exception, BASES)
        if place is None or not isinstance(exception, Exception) or not hasattr(exception, "add_note"):
            return
        stage, clocks = self._state.stage, self.clocks
        during = "" if stage == "train" else f" ({stage})"
        batch = f", batch {clocks.batch_idx}" if self._parts is not None else ""
        note = f"raised in {place}{during}, epoch {clocks.epoch}{batch}"
        if note not in getattr(exception, "__notes__", ()):
            exception.add_note(note)

    def _warn_of_log(self) -> None:
        """Say, once, that nothing is logged."""
        if not self._told_of_log:
            self._told_of_log = True
            warn("Trainer(barebones=True): self.log has no effect", code="barebones-log")

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
                return self._profile(owner, method, getattr(owner, method))()
        if name == "val" and self._state.stage in ("train", "sanity_check"):
            return None
        run = {"train": "fit", "val": "validate"}.get(name, name)
        raise MisconfigurationException(
            f"trainer.{run} has no data: pass it as an argument, or define {method}() on the module or the datamodule",
            code="no-data",
        )

    def _transfer(self) -> Transfer | None:
        assert self._module is not None
        transfer = build_batch_transfer(
            self._module, self.datamodule, strategy=self.strategy, precision=self._precision
        )
        return transfer and self._profile(self.strategy, "batch_to_device", transfer)

    def _write_row(self, values: Mapping[str, Any], step: int) -> None:
        """Give one row to every logger; a value called "step" is the row's place on the x-axis."""
        row = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
        step = int(row.pop("step", step))
        for logger in self.loggers:
            logger.log_metrics(metrics=row, step=step)
