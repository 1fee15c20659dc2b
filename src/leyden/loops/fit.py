"""The fit loop: epochs, batches, and what happens between them.

::

    on_train_start
    for epoch in epochs:
        on_train_epoch_start
        for batch in batches:
            on_train_batch_start
            optimization.run(batch)                  see leyden/optimization
            schedulers
            on_train_batch_end
            validation, if due
        on_train_epoch_end
        schedulers that watch an epoch's value
    on_train_end
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, final

from leyden import loops  # its counts are imported when they are read
from leyden.data.loaders import Batches, set_epoch
from leyden.data.transfer import Transfer
from leyden.errors import OrderError, warn
from leyden.hooks.dispatch import Hooks, Profile, RunState, Watch, unprofiled
from leyden.loops.cadence import Limits, ValidationCadence
from leyden.loops.ledger import Aside, Ledger
from leyden.loops.training_data import TrainingData
from leyden.optimization.automatic import AutomaticOptimization
from leyden.optimization.clocks import Clocks
from leyden.optimization.manual import ManualOptimization
from leyden.optimization.schedulers import Schedulers
from leyden.results.collect import Results
from leyden.units import Duration, Every, parse_duration

if TYPE_CHECKING:
    from leyden.loops.counts import EpochLoop, Progress
    from leyden.loops.evaluate import EvaluationLoop
    from leyden.loops.outputs import EpochOutputs

WriteRow = Callable[[Mapping[str, Any], int], None]


@dataclass(kw_only=True)
class FitParts:
    """What a fit is made of.

    Attributes:
        optimization: runs one batch.
        schedulers: steps the schedulers; None in manual mode.
        hooks: the users' hooks.
        state: where the run is.
        results: collects ``self.log``.
        transfer: brings a batch to the device; None if it is there.
        validate: runs a validation; None if there is nothing to validate on.
        write_row: writes values to the loggers; None without loggers.
        log_every: windows between two rows of the loggers, or an interval on another clock.
        count: counts the clocks that are counted only where an interval or a limit names them, or None.
        epoch_outputs: collects outputs for the module's 1.x ``training_epoch_end``, or None.
        check: raises if the module has changed what the engine was built for; asked before every epoch.
        clear_gradients: the module's ``on_validation_model_zero_grad``.
        switch: puts optimizers that have modes into "train" or "eval".
        profile: wraps epochs and batches, once in each epoch.
        watch: hands the loader's iterator on, perhaps profiled.
    """

    optimization: AutomaticOptimization | ManualOptimization
    hooks: Hooks
    state: RunState
    results: Results
    schedulers: Schedulers | None = None
    transfer: Transfer | None = None
    validate: Callable[[], Any] | None = None
    write_row: WriteRow | None = None
    log_every: int | Every = 50
    count: Callable[[Any, bool, bool], None] | None = None
    epoch_outputs: EpochOutputs | None = None
    check: Callable[[], None] | None = None
    clear_gradients: Callable[[], Any] | None = None
    switch: Callable[[str], None] | None = None
    profile: Profile = unprofiled
    watch: Watch = iter


@final
class FitLoop:
    """Runs epochs until a limit is reached; its clocks go on when ``fit`` is called again.

    Args:
        limits: how long to run.
        clocks: counts everything.

    Attributes:
        data: where the batches come from.
        cadence: when to validate.
        validation: runs the fit's validations; None before the first fit.
        ledger: where the time of the current or last fit went.
        phase: "between" epochs, in its "batches", in a "validation" after one, or at "epoch_end".
        done: how many steps of the running epoch are done.
        ended: how many of its batches are through with all that comes after a step.
        is_complete: whether all batches of the epoch that ends ran.
        steps_before: optimizer steps before the running epoch.
        go_on: finishes what a checkpoint was in the middle of; called once, when the next run starts.
    """

    def __init__(self, limits: Limits, clocks: Clocks) -> None:
        self.limits = limits
        self.clocks = clocks
        self.data = TrainingData(clocks)
        self.phase, self.done, self.ended, self.is_complete, self.steps_before = "between", 0, 0, False, 0
        self.go_on: partial[None] | None = None
        self.cadence = ValidationCadence()
        self.validation: EvaluationLoop | None = None
        self.ledger = Ledger()
        self._told: set[str] = set()

    @property
    def max_epochs(self) -> int:
        """Epochs at most; raise it to go on with a finished fit."""
        return self.limits.max_epochs

    @max_epochs.setter
    def max_epochs(self, value: int | str) -> None:
        self._set_most("max_epochs", value)

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most; raise it to go on with a finished fit."""
        return self.limits.max_steps

    @max_steps.setter
    def max_steps(self, value: int | str) -> None:
        self._set_most("max_steps", value)

    @property
    def max_time(self) -> Duration | None:
        """Time at most, or None; set it, in any form that the Trainer takes, to go on with a finished fit."""
        return self.limits.most.get("max_time")

    @max_time.setter
    def max_time(self, value: Any) -> None:
        self._set_most("max_time", value)

    @property
    def epoch_loop(self) -> EpochLoop:
        """Where the running epoch is, as Lightning's loop of that name tells it."""
        return loops.EpochLoop(self)

    @property
    def epoch_progress(self) -> Progress:
        """How many epochs have begun and ended, as Lightning tells it."""
        return loops.epochs_of(self)

    @property
    def running_loss(self) -> Any:
        """Refused: 1.x kept the losses of twenty batches for its bar."""
        raise AttributeError("a fit keeps no losses: log yours with prog_bar=True, and read trainer.callback_metrics")

    @property
    def current_epoch(self) -> int:
        """``trainer.current_epoch``."""
        return self.clocks.epoch

    @property
    def global_step(self) -> int:
        """``trainer.global_step``."""
        return self.clocks.steps

    def setup_data(self) -> None:
        """Ask for the training loader now; ``trainer.train_dataloader`` and ``num_training_batches`` then know it."""
        self.data.load()

    def _set_most(self, name: str, value: Any) -> None:
        is_count = isinstance(value, int)
        self.limits.set_most(name, value if is_count else parse_duration(value, what=f"trainer.fit_loop.{name}"))

    def _stops(self, state: RunState) -> bool:
        return state.should_stop and self.limits.may_stop(self.clocks)

    def is_over(self, state: RunState) -> bool:
        """Whether no further epoch may start."""
        limits, clocks = self.limits, self.clocks
        return self._stops(state) or limits.steps_are_over(clocks) or limits.epochs_are_over(clocks)

    def run(self, parts: FitParts) -> None:
        """Run epochs until a limit is reached."""
        hooks, started = parts.hooks, perf_counter()
        run_epoch = parts.profile(None, "run_training_epoch", self.run_epoch)
        self.ledger, parts.state.deferred = Ledger(), []
        if self.go_on is None:
            self.phase = "between"
        try:
            if parts.switch is not None and self.phase != "validation":
                parts.switch("train")
            if hooks.on_train_start is not None:
                hooks.on_train_start()
            if self.go_on is not None:
                go_on, self.go_on = self.go_on, None
                go_on(parts)
            while not self.is_over(parts.state):
                if parts.state.interrupt is not None:
                    parts.state.interrupt()
                self._start_epoch(parts)
                is_complete = not self._stops(parts.state) and run_epoch(parts)
                self.end_epoch(parts, is_complete)
        finally:
            if parts.switch is not None:
                parts.switch("eval")
            self.ledger.total = perf_counter() - started
        parts.state.deferred = None
        if hooks.on_train_end is not None:
            hooks.on_train_end()

    def _begin(self, watch: Watch) -> Batches:
        """Begin the batches of an epoch."""
        self.phase, self.done, self.ended, self.steps_before = "batches", 0, 0, self.clocks.global_step
        self.clocks.batch_idx = -1
        return self.data.begin(watch)

    def run_epoch(self, parts: FitParts, first: int | None = None) -> bool:
        """Run the batches of one epoch, or those left from the ``first`` on; returns whether all of them ran."""
        clocks, hooks, results, state = self.clocks, parts.hooks, parts.results, parts.state
        run = parts.profile(None, "run_training_batch", parts.optimization.run)
        transfer, schedulers = parts.transfer, parts.schedulers
        ledger, left = self.ledger, perf_counter()
        batches = self._begin(parts.watch) if first is None or self.data.batches is None else self.data.batches
        starts = hooks.on_train_batch_start is not None or hooks.on_batch_start is not None
        batch_idx = (first or 0) - 1
        for batch_idx, batch in enumerate(batches, first or 0):
            arrived = perf_counter()
            ledger.data += arrived - left
            clocks.batch_idx = batch_idx
            clocks.micro_batches += 1
            every, is_last = state.window_size, batches.is_last
            closes = every == 1 or is_last or (batch_idx + 1) % every == 0
            if batch_idx == 0:
                ledger.start += arrived - left
            if transfer is not None:
                batch = transfer(batch, 0)
                copied = perf_counter()
                ledger.copy += copied - arrived
                arrived = copied
            results.batch = batch
            if parts.count is not None:
                parts.count(batch, closes, is_last)
            if batch is None:
                warn("the loader yielded None: this batch is skipped", code="batch-none")
            elif starts and self._is_refused(hooks, batch, batch_idx):
                batches.is_last, clocks.window_closes = True, False
                if schedulers is not None:
                    schedulers.after_batch(batch_idx, closes=True, is_last=True)
                break
            outputs: Any = {}
            if every == 1:
                if batch is not None:
                    outputs = run(batch, batch_idx, clocks.micro_batches, 1, True)
            else:
                outputs = run(batch, batch_idx, *self._window(batch_idx, every), closes)
            if schedulers is not None and (is_last or schedulers.after_every_batch):
                schedulers.after_batch(batch_idx, closes=closes, is_last=is_last)
            self.done = batch_idx + 1
            ledger.compute += perf_counter() - arrived
            if parts.epoch_outputs is not None:
                parts.epoch_outputs.add(outputs)
            if hooks.on_train_batch_end is not None:
                hooks.on_train_batch_end(outputs, batch, batch_idx)
            if hooks.on_batch_end is not None:
                hooks.on_batch_end()
            if self.end_batch(parts, closes=closes, is_last=is_last):
                return is_last
            left = perf_counter()
        if not batches.is_last and batch_idx >= 0:
            self._close_early(parts, batch_idx)
        state.do_deferred()
        self._check_progress(batch_idx + 1, clocks.global_step - self.steps_before)
        return True

    def _close_early(self, parts: FitParts, batch_idx: int) -> None:
        """Do what an epoch's last batch does, for a loader that ended before its length: close an open window."""
        every = parts.state.window_size
        closes = (batch_idx + 1) % every != 0
        if closes:
            parts.optimization.run(None, batch_idx, *self._window(batch_idx, every), True)
            parts.optimization.end_batch(closes)
            self.clocks.updates += 1
        if parts.schedulers is not None:
            parts.schedulers.after_batch(batch_idx, closes=closes, is_last=True)

    def _is_refused(self, hooks: Hooks, batch: Any, batch_idx: int) -> bool:
        """Announce a batch; the module may refuse the rest of the epoch by returning -1."""
        if hooks.on_batch_start is not None:
            hooks.on_batch_start()
        return hooks.on_train_batch_start is not None and hooks.on_train_batch_start(batch, batch_idx) == -1

    def _check_progress(self, num_batches: int, num_steps: int) -> None:
        """Say why a fit would never end.

        Raises:
            OrderError: the loader yielded nothing, so no limit would ever be reached.
        """
        if num_batches == 0:
            raise OrderError(
                f"the training loader yielded no batch in epoch {self.clocks.epoch}. An iterator or a generator can be "
                "used only once: pass an object whose __iter__ starts anew, a list or a DataLoader",
                code="no-batches",
            )
        only_steps = self.limits.max_steps != -1 and self.limits.max_epochs == -1
        if only_steps and num_steps == 0 and "steps" not in self._told:
            self._told.add("steps")
            warn(
                "an epoch has passed without an optimizer step that counts, so max_steps may never be reached; step "
                "what self.optimizers() returns",
                code="no-steps",
            )

    def _window(self, batch_idx: int, every: int) -> tuple[int, int]:
        """The window that a batch is part of: a key of its own, and its true size; an epoch's last may be shorter."""
        first = batch_idx - batch_idx % every
        left = self.data.num_batches - first
        return self.clocks.micro_batches - batch_idx + first, every if left >= every else int(left)

    def end_batch(self, parts: FitParts, *, closes: bool, is_last: bool) -> bool:
        """Rows, validation, clocks after a batch; returns whether the epoch must be left."""
        clocks, state = self.clocks, parts.state
        if state.deferred:
            state.do_deferred()
        if state.interrupt is not None:
            state.interrupt()
        parts.optimization.end_batch(closes)
        if parts.write_row is not None and closes and self._row_is_due(parts):
            self._write_row(parts, parts.results.step_metrics())
        stops = state.should_stop and self._stops(state)
        resumes = self.phase == "validation"
        if parts.validate is not None and (resumes or self.cadence.is_due(clocks, is_last=is_last, stops=stops)):
            self._validate(parts, mid_window=not closes, resumes=resumes)
        if closes:
            if parts.schedulers is not None and parts.schedulers.after_every_validation:
                parts.schedulers.plateau_after_batch(clocks.batch_idx)
            clocks.updates += 1
            clocks.window_closes = False
        self.ended = self.done
        if state.should_stop and self._stops(state):
            return True
        limits = self.limits
        return not (limits.max_steps == -1 and not limits.most) and limits.steps_are_over(clocks)

    def _validate(self, parts: FitParts, *, mid_window: bool, resumes: bool) -> None:
        assert parts.validate is not None
        if parts.clear_gradients is not None and not (mid_window or resumes):
            parts.clear_gradients()
        if parts.switch is not None and not resumes:
            parts.switch("eval")
        self.phase = "validation"
        with Aside(self.ledger, "validation"):
            parts.validate()
        self.phase = "batches"
        if self.cadence.every is not None:
            self.cadence.every.done(self.clocks)
        if parts.switch is not None:
            parts.switch("train")

    def _row_is_due(self, parts: FitParts) -> bool:
        every = parts.log_every
        if isinstance(every, Every):
            return every.is_due(self.clocks) or parts.state.should_stop
        return every > 0 and ((self.clocks.updates + 1) % every == 0 or parts.state.should_stop)

    def _write_row(self, parts: FitParts, values: Mapping[str, Any], step: int | None = None) -> None:
        if values and parts.write_row is not None:
            step = self.clocks.updates if step is None else step
            with Aside(self.ledger, "logging"):
                parts.write_row({"epoch": self.clocks.epoch, **values}, step)

    def _start_epoch(self, parts: FitParts) -> None:
        if parts.check is not None:
            parts.check()
        self.data.load()
        set_epoch(self.data.loader, self.clocks.epoch)
        if parts.hooks.on_epoch_start is not None:
            parts.hooks.on_epoch_start()
        if parts.hooks.on_train_epoch_start is not None:
            parts.hooks.on_train_epoch_start()

    def end_epoch(self, parts: FitParts, is_complete: bool) -> None:
        """Do what comes after an epoch's last batch."""
        hooks = parts.hooks
        self.clocks.epoch_ends, self.phase, self.is_complete = True, "epoch_end", is_complete
        parts.results.end_epoch()
        if parts.epoch_outputs is not None:
            parts.epoch_outputs.end_epoch()
        if hooks.on_train_epoch_end is not None:
            hooks.on_train_epoch_end()
        self.finish_epoch(parts, is_complete)

    def finish_epoch(self, parts: FitParts, is_complete: bool) -> None:
        """Do what comes after ``on_train_epoch_end``."""
        results = parts.results
        if parts.hooks.on_epoch_end is not None:
            parts.hooks.on_epoch_end()
        if parts.schedulers is not None:
            parts.schedulers.plateau_after_epoch(is_complete=is_complete)
        if parts.write_row is not None:
            self._write_row(parts, results.epoch_metrics(), max(self.clocks.updates - 1, 0))
        results.reset()
        self.clocks.epoch += 1
        self.clocks.epoch_ends, self.phase = False, "between"
        state = parts.state
        if state.should_stop and not self.limits.may_stop(self.clocks) and "minimum" not in self._told:
            self._told.add("minimum")
            warn(
                "trainer.should_stop was set, but min_epochs or min_steps is not reached yet; the fit goes on",
                code="stop-before-minimum",
            )
