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
from typing import Any, final

from leyden.data.loaders import Batches, set_epoch
from leyden.data.transfer import Transfer
from leyden.errors import OrderError, warn
from leyden.hooks.dispatch import Hooks, RunState
from leyden.loops.cadence import Limits, ValidationCadence
from leyden.loops.outputs import EpochOutputs
from leyden.optimization.automatic import AutomaticOptimization
from leyden.optimization.clocks import Clocks
from leyden.optimization.manual import ManualOptimization
from leyden.optimization.schedulers import Schedulers
from leyden.results.collect import Results

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
        log_every: windows between two rows of the loggers.
        epoch_outputs: collects outputs for the module's 1.x ``training_epoch_end``, or None.
        check: raises if the module has changed what the engine was built for; asked before every epoch.
        clear_gradients: the module's ``on_validation_model_zero_grad``.
        switch: puts optimizers that have modes into "train" or "eval".
    """

    optimization: AutomaticOptimization | ManualOptimization
    hooks: Hooks
    state: RunState
    results: Results
    schedulers: Schedulers | None = None
    transfer: Transfer | None = None
    validate: Callable[[], Any] | None = None
    write_row: WriteRow | None = None
    log_every: int = 50
    epoch_outputs: EpochOutputs | None = None
    check: Callable[[], None] | None = None
    clear_gradients: Callable[[], Any] | None = None
    switch: Callable[[str], None] | None = None


@final
class FitLoop:
    """Runs epochs until a limit is reached; its clocks go on when ``fit`` is called again.

    Args:
        limits: how long to run.
        clocks: counts everything.

    Attributes:
        num_batches: batches of an epoch; inf if unknown.
        loader: the training loader.
        cadence: when to validate.
    """

    def __init__(self, limits: Limits, clocks: Clocks) -> None:
        self.limits = limits
        self.clocks = clocks
        self.num_batches: int | float = 0
        self.loader: Any = None
        self._batches: Batches | None = None
        self._loaded_in: int | None = None
        self.cadence = ValidationCadence()
        self._load: Callable[[], tuple[Any, int | float]] = _not_connected
        self._build_cadence: Callable[[int | float], ValidationCadence] = _default_cadence
        self._reload_every = 0
        self._told: set[str] = set()

    @property
    def max_epochs(self) -> int:
        """Epochs at most; raise it to go on with a finished fit."""
        return self.limits.max_epochs

    @max_epochs.setter
    def max_epochs(self, value: int) -> None:
        self.limits.max_epochs = value

    @property
    def max_steps(self) -> int:
        """Optimizer steps at most; raise it to go on with a finished fit."""
        return self.limits.max_steps

    @max_steps.setter
    def max_steps(self, value: int) -> None:
        self.limits.max_steps = value

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch in hand is the epoch's last."""
        return self._batches is not None and self._batches.is_last

    @property
    def batches_left(self) -> float:
        """Batches of this epoch from the one in hand on; inf if the loader's length is unknown."""
        return 1 if self.is_last_batch else self.num_batches - self.clocks.batch_idx

    def connect(
        self,
        *,
        load: Callable[[], tuple[Any, int | float]],
        build_cadence: Callable[[int | float], ValidationCadence],
        reload_every: int = 0,
    ) -> None:
        """Say where the data comes from; asked for when it is first needed.

        Args:
            load: returns the training loader and the number of its batches (inf if unknown).
            build_cadence: when to validate, given the number of training batches.
            reload_every: epochs between two calls of ``load``; 0 loads once.
        """
        self._load, self._build_cadence, self._reload_every = load, build_cadence, reload_every
        self._loaded_in = None

    def disconnect(self) -> None:
        """Forget where the data came from; loader and number of batches stay to be read."""
        self._load, self._build_cadence, self._loaded_in = _not_connected, _default_cadence, None

    def load(self) -> None:
        """Ask for the training loader, unless it is there and still good."""
        epoch = self.clocks.epoch
        if self._load is _not_connected and self.loader is not None:
            return  # the fit is over, and its loader is still known
        if self._loaded_in is not None and not (self._reload_every and epoch - self._loaded_in >= self._reload_every):
            return
        self.loader, self.num_batches = self._load()
        self._loaded_in = epoch
        self.cadence = self._build_cadence(self.num_batches)

    def _stops(self, state: RunState) -> bool:
        return state.should_stop and self.limits.may_stop(self.clocks)

    def is_over(self, state: RunState) -> bool:
        """Whether no further epoch may start."""
        limits, clocks = self.limits, self.clocks
        return self._stops(state) or limits.steps_are_over(clocks) or limits.epochs_are_over(clocks)

    def run(self, parts: FitParts) -> None:
        """Run epochs until a limit is reached."""
        hooks = parts.hooks
        try:
            if parts.switch is not None:
                parts.switch("train")
            if hooks.on_train_start is not None:
                hooks.on_train_start()
            while not self.is_over(parts.state):
                self._start_epoch(parts)
                is_complete = not self._stops(parts.state) and self.run_epoch(parts)
                self._end_epoch(parts, is_complete)
        finally:
            if parts.switch is not None:
                parts.switch("eval")
        if hooks.on_train_end is not None:
            hooks.on_train_end()

    def run_epoch(self, parts: FitParts) -> bool:
        """Run the batches of one epoch; returns whether all of them ran."""
        clocks, hooks, results, state = self.clocks, parts.hooks, parts.results, parts.state
        run, transfer, schedulers = parts.optimization.run, parts.transfer, parts.schedulers
        batches = self._batches = Batches(self.loader, self.num_batches)
        starts = hooks.on_train_batch_start is not None or hooks.on_batch_start is not None
        steps_before, batch_idx = clocks.global_step, -1
        for batch_idx, batch in enumerate(batches):
            clocks.batch_idx = batch_idx
            clocks.micro_batches += 1
            every, is_last = state.window_size, batches.is_last
            closes = every == 1 or is_last or (batch_idx + 1) % every == 0
            if transfer is not None:
                batch = transfer(batch, 0)
            results.batch = batch
            if batch is None:
                warn("the loader yielded None: this batch is skipped", code="batch-none")
            elif starts and self._is_refused(hooks, batch, batch_idx):
                batches.is_last = True
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
            if hooks.on_train_batch_end is not None:
                hooks.on_train_batch_end(outputs, batch, batch_idx)
            if hooks.on_batch_end is not None:
                hooks.on_batch_end()
            if parts.epoch_outputs is not None:
                parts.epoch_outputs.add(outputs)
            if self._end_batch(parts, closes=closes, is_last=is_last):
                return is_last
        if not batches.is_last and batch_idx >= 0:
            self._close_early(parts, batch_idx)
        self._check_progress(batch_idx + 1, clocks.global_step - steps_before)
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
        left = self.num_batches - first
        return self.clocks.micro_batches - batch_idx + first, every if left >= every else int(left)

    def _end_batch(self, parts: FitParts, *, closes: bool, is_last: bool) -> bool:
        """Rows, validation, clocks after a batch; returns whether the epoch must be left."""
        clocks, state = self.clocks, parts.state
        parts.optimization.end_batch(closes)
        if parts.write_row is not None and closes and self._row_is_due(parts):
            self._write_row(parts, parts.results.step_metrics())
        stops = state.should_stop and self._stops(state)
        if parts.validate is not None and self.cadence.is_due(clocks, is_last=is_last, stops=stops):
            self._validate(parts, mid_window=not closes)
        if closes:
            if parts.schedulers is not None and parts.schedulers.after_every_validation:
                parts.schedulers.plateau_after_batch(clocks.batch_idx)
            clocks.updates += 1
        if state.should_stop and self._stops(state):
            return True
        limits = self.limits
        return (limits.max_steps != -1 or limits.max_seconds is not None) and limits.steps_are_over(clocks)

    def _validate(self, parts: FitParts, *, mid_window: bool) -> None:
        assert parts.validate is not None
        if parts.clear_gradients is not None and not mid_window:
            parts.clear_gradients()
        if parts.switch is not None:
            parts.switch("eval")
        parts.validate()
        if parts.switch is not None:
            parts.switch("train")

    def _row_is_due(self, parts: FitParts) -> bool:
        every = parts.log_every
        return every > 0 and ((self.clocks.updates + 1) % every == 0 or parts.state.should_stop)

    def _write_row(self, parts: FitParts, values: Mapping[str, Any], step: int | None = None) -> None:
        if values and parts.write_row is not None:
            step = self.clocks.updates if step is None else step
            parts.write_row({"epoch": self.clocks.epoch, **values}, step)

    def _start_epoch(self, parts: FitParts) -> None:
        if parts.check is not None:
            parts.check()
        self.load()
        set_epoch(self.loader, self.clocks.epoch)
        if parts.hooks.on_epoch_start is not None:
            parts.hooks.on_epoch_start()
        if parts.hooks.on_train_epoch_start is not None:
            parts.hooks.on_train_epoch_start()

    def _end_epoch(self, parts: FitParts, is_complete: bool) -> None:
        hooks, results = parts.hooks, parts.results
        results.end_epoch()
        if parts.epoch_outputs is not None:
            parts.epoch_outputs.end_epoch()
        if hooks.on_train_epoch_end is not None:
            hooks.on_train_epoch_end()
        if hooks.on_epoch_end is not None:
            hooks.on_epoch_end()
        if parts.schedulers is not None:
            parts.schedulers.plateau_after_epoch(is_complete=is_complete)
        if parts.write_row is not None:
            self._write_row(parts, results.epoch_metrics(), max(self.clocks.updates - 1, 0))
        results.reset()
        self.clocks.epoch += 1
        state = parts.state
        if state.should_stop and not self.limits.may_stop(self.clocks) and "minimum" not in self._told:
            self._told.add("minimum")
            warn(
                "trainer.should_stop was set, but min_epochs or min_steps is not reached yet; the fit goes on",
                code="stop-before-minimum",
            )


def _default_cadence(num_batches: int | float) -> ValidationCadence:
    return ValidationCadence()


def _not_connected() -> tuple[Any, int | float]:
    raise OrderError("the training loader is known from trainer.fit(...) on", code="loader-before-fit")


def all_limits_reached(loop: FitLoop) -> str | None:
    """Why a fit has nothing left to do, in words that name the argument that continues; None if it has."""
    limits, clocks = loop.limits, loop.clocks
    if limits.epochs_are_over(clocks):
        name = "trainer.fit_loop.max_epochs"
        return f"{clocks.epoch} epochs are done and max_epochs is {limits.max_epochs}; raise {name} to go on"
    if limits.max_steps != -1 and clocks.global_step >= limits.max_steps:
        name = "trainer.fit_loop.max_steps"
        return f"{clocks.global_step} steps are done and max_steps is {limits.max_steps}; raise {name} to go on"
    return None
