"""Trials: a few batches that leave no trace, for callbacks that look for a learning rate or a batch size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from leyden import profilers
from leyden.callback import Callback
from leyden.data.generators import generators_of
from leyden.data.loaders import parts_of
from leyden.data.sources import capped
from leyden.errors import OrderError
from leyden.fits import Fits
from leyden.hooks.dispatch import Hooks, RunState
from leyden.loops.cadence import Limits
from leyden.loops.evaluate import EvaluationLoop, EvaluationParts
from leyden.loops.fit import FitLoop
from leyden.optimization.clocks import Clocks
from leyden.optimization.plan import Plan
from leyden.optimization.undo import Undo
from leyden.results.collect import Results
from leyden.results.views import Views
from leyden.runs import Source
from leyden.seed import isolate_rng
from leyden.units import Duration

#: What a trial has of its own; everything else it shares with the run that it is made in.
_OWN = ("callbacks", "loggers", "clocks", "fit_loop", "_views", "_plan", "_handles", "_parts", "_is_trial")
_OWN_STATE = ("hook", "results", "should_stop", "window_size")
#: What is asked for data, and what the loop is called, by the run that is an evaluation.
_EVALUATIONS: Final = {"validate": ("val", "validation"), "test": ("test", "test"), "predict": ("predict", "predict")}


class Trials(Fits):
    """Runs trials."""

    def trial(self, count: int, callbacks: Sequence[Callback] = ()) -> None:
        """Run a little of what is about to run, and put everything back afterwards.

        Of the run's callbacks none takes part, of its loggers none; schedulers stand still and a fit does not validate.
        The module, the optimizers, all clocks, random numbers and what was logged are then as if nothing had been. An
        exception goes on after that. What :class:`~leyden.optimization.undo.Undo` does not cover stays changed.

        Args:
            count: windows of a fit at most; batches of each loader of an evaluation or a prediction.
            callbacks: take part, and nobody else; one may set ``trainer.should_stop`` to end a fit's trial.

        Raises:
            OrderError: anywhere but at the run's beginning: in ``on_fit_start``, or ``on_validation_start`` and such.
        """
        evaluation = self._evaluation()
        if evaluation is not None:
            return self._try_evaluation(evaluation, count, callbacks)
        self._check_place("trial(...)")
        plan, outer = self.plan, self.fit_loop
        outer.data.load()
        known = {id(handle.optimizer): handle for handle in self._handles}
        with self._undone(plan):
            self.callbacks, self.loggers, self._views = list(callbacks), [], Views()
            self._state.results, self._state.should_stop = Results(training=True, views=self._views), False
            self.clocks = Clocks()
            self.fit_loop = FitLoop(Limits(most={"trial": Duration(count, "updates")}), self.clocks)
            self.fit_loop.cadence = outer.cadence
            self.fit_loop.data.connect(lambda: (outer.data.loader, outer.data.num_batches))
            hooks = self._drive(replace(plan, schedulers=()), known).hooks
            if self._has_training_batches():
                self._train(hooks, validate=None)

    def _try_evaluation(self, running: EvaluationParts, count: int, callbacks: Sequence[Callback]) -> None:
        with self._undone(None):
            self.callbacks, self.loggers, self._views = list(callbacks), [], Views()
            limits = capped(list(running.limits), count)
            parts = self._evaluation_parts(
                running.name, list(running.loaders), limits, self._bind_hooks(), in_fit=False
            )
            EvaluationLoop().run(parts)

    def reload_dataloaders(self) -> list[Any]:
        """Ask for the loaders of the run anew, because something that they are made from has changed.

        Returns:
            The loaders, one by one.

        Raises:
            OrderError: anywhere but at the run's beginning.
        """
        evaluation = self._evaluation()
        if evaluation is None:
            self._check_place("reload_dataloaders()")
            self.fit_loop.data.reload()
            return list(parts_of(self.fit_loop.data.loader))
        name = "val" if evaluation.name == "validation" else evaluation.name
        evaluation.loaders, evaluation.limits = self._load_evaluation(name, self._given[name])
        return list(evaluation.loaders)

    def set_up_for(
        self, act: Callable[[], Any], stage: str, model: Any, datamodule: Any, *, train: Any, val: Any, given: Any
    ) -> None:
        """Set a run up, do something in place of it that makes trials, and take it down.

        None of the Trainer's callbacks, of the module's, of the loggers takes part, nor the profiler. Afterwards the
        Trainer and all random numbers are as before.

        Args:
            act: what is done.
            stage: "fit", "validate", "test" or "predict".
            model: the module.
            datamodule: its datamodule, or None.
            train: training data, or None.
            val: validation data of a fit, or None.
            given: data of another run, or None.
        """
        own, state = dict(vars(self)), RunState()
        state.window_size, state.stage = self._state.window_size, self._state.stage  # in a run this is refused
        if stage == "fit":
            body: Any = functools.partial(self._fit, train=train, val=val, instead=act)
        else:
            body = functools.partial(self._act_at_start, act=act, stage=stage, given=given)
        with isolate_rng():
            try:
                self.callbacks, self.loggers, self.profiler = [], [], profilers.PassThroughProfiler()
                self._state, self._views, self._eval_rows, self._given = state, Views(), {}, {}
                self.fit_loop = FitLoop(self.fit_loop.limits, self.clocks)
                self.validate_loop, self.test_loop, self.predict_loop = (EvaluationLoop() for _ in _EVALUATIONS)
                self._is_trial = True
                self._run(stage, model, datamodule, body, Source())
            finally:
                vars(self).clear()
                vars(self).update(own)

    def _act_at_start(self, hooks: Hooks, *, act: Callable[[], Any], stage: str, given: Any) -> None:
        data, name = _EVALUATIONS[stage]
        loaders, counts = self._load_evaluation(data, given)
        loop = {"validate": self.validate_loop, "test": self.test_loop, "predict": self.predict_loop}[stage]
        loop.parts = self._evaluation_parts(name, loaders, counts, hooks, in_fit=False)
        act()

    def _evaluation(self) -> EvaluationParts | None:
        """The evaluation or prediction in progress that is a run of its own."""
        loops = {"validate": self.validate_loop, "test": self.test_loop, "predict": self.predict_loop}
        loop = loops.get(self._state.stage or "")
        return None if loop is None or self._engine is not None else loop.parts

    def reconfigure_optimizers(self) -> None:
        """Call ``configure_optimizers`` again, because something that it reads has changed.

        Raises:
            OrderError: the fit has not begun or its batches run already: ``on_fit_start`` is the place for it.
        """
        self._check_place("reconfigure_optimizers()")
        assert self._module is not None
        self._configure_optimizers(self._module)

    def _check_place(self, call: str) -> None:
        if self._state.stage != "train" or self._engine is None or self._parts is not None:
            raise OrderError(f"trainer.{call} can be called in a callback's on_fit_start only", code="trial-place")

    @contextmanager
    def _undone(self, plan: Plan | None) -> Iterator[None]:
        """Put back what the block changes; ``plan`` is the fit's, if a fit is tried."""
        module, state, scale = self._module, self._state, self._precision.loss_scale
        assert module is not None
        own = {name: getattr(self, name) for name in _OWN}
        own_state = {name: getattr(state, name) for name in _OWN_STATE}
        undo = Undo(
            module,
            optimizers=plan.optimizers if plan is not None else (),
            stateful=[*_schedulers(plan), *([] if scale is None else [scale.scaler])],
            generators=generators_of(self.fit_loop.data.loader),
        )
        self._is_trial = True
        with isolate_rng():
            try:
                yield
            finally:
                if self._engine is not None:
                    self._engine.release()
                for holder, values in ((state, own_state), (self, own)):
                    for name, value in values.items():
                        setattr(holder, name, value)
                undo()
                if plan is not None:
                    self._drive(plan, {id(handle.optimizer): handle for handle in self._handles})


def _schedulers(plan: Plan | None) -> list[Any]:
    return [] if plan is None else [config.scheduler for config in plan.schedulers]
