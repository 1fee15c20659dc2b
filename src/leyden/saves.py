"""What a run keeps for another one to go on with."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from leyden import checkpoint
from leyden.assembly import Engine
from leyden.errors import OrderError
from leyden.loops.fit import FitParts
from leyden.loops.ledger import Aside
from leyden.seed import isolate_rng
from leyden.signals import INTERRUPTED, slurm_job
from leyden.trainer_properties import TrainerProperties
from leyden.units import Every


class Saves(TrainerProperties):
    """Saves the state of a run."""

    barebones: bool
    default_root_dir: str
    fast_dev_run: int
    schedules: dict[str, Every]
    _configured: dict[str, Any]  # options of the optimizers' groups, as configure_optimizers has returned them
    _engine: Engine | None = None
    _eval_rows: dict[str, int]  # batches that the current run has evaluated, by loader
    _is_trial = False
    _parts: FitParts | None = None
    _place: dict[str, Any] | None = None  # of a fit whose sanity check runs, which leaves no trace
    _began: checkpoint.Switches | None = None  # the module when the fit began
    _writer: checkpoint.Writer | None = None

    def save_checkpoint(
        self,
        filepath: str | os.PathLike[str],
        weights_only: bool | None = None,
        storage_options: Any = None,
        *,
        asynchronous: bool = False,
        then: Callable[[], Any] | None = None,
        owner: object = None,
    ) -> None:
        """Write the state of the run to a file; the first process writes, all of them must call it.

        Called in the middle of a step (from ``on_train_batch_start`` to ``on_train_batch_end``, exclusively, and
        likewise in a fit's validation) the file is written as soon as the step is done: in the middle of one there is
        no state that a run could go on from exactly.

        Args:
            filepath: the file, or an address ("s3://bucket/a.ckpt"); missing folders are made. An older file of that
                name stays until the new one is whole.
            weights_only: whether to leave out optimizers, schedulers and everything else that only ``fit`` needs.
            storage_options: for a ``CheckpointIO`` of the user's; leyden's own files take none.
            asynchronous: return when the state is copied in memory, and write it in the background. One file at a
                time: the next save waits, and so does the end of the run, which raises if it failed.
            then: called when the file is durable; in the background too.
            owner: who asks ``wait_for_checkpoint(owner)`` whether it failed in the background; hashable. Nobody else
                is told before the end of the run.

        Raises:
            OrderError: no module was run yet (``save-before-run``).
            CheckpointError: the file cannot be written (``checkpoint-write``), or the state holds what is no data
                (``checkpoint-object``).
            MisconfigurationException: what only leyden's own files, or only others, can (``checkpoint-asynchronous``,
                ``storage-options``).
        """
        plugin, is_running = self.strategy.storage, self._state.stage is not None
        checkpoint.check_plugin(plugin, asynchronous=asynchronous, storage_options=storage_options)
        asynchronous = asynchronous or (is_running and checkpoint.is_asynchronous(plugin))
        how = {"asynchronous": asynchronous, "then": then, "owner": owner, "storage_options": storage_options}
        save = functools.partial(self._save_now, filepath, bool(weights_only), how)
        waiting = self._state.deferred
        if waiting is not None and self._parts is not None and checkpoint.is_mid_step(self._running()):
            waiting.append(save)
        else:
            save()

    def _save_now(self, filepath: str | os.PathLike[str], weights_only: bool, how: dict[str, Any]) -> None:
        with Aside(self.fit_loop.ledger, "saving"):
            self._writer = self._writer or checkpoint.Writer()
            self._writer.join()  # so that the callbacks know the file that is being written
            content = self.dump_checkpoint(weights_only)
            try:
                if self.is_global_zero:
                    self._writer.write(content, filepath, plugin=self.strategy.storage, **how)
                elif how["then"] is not None:
                    how["then"]()
            finally:
                self.strategy.barrier("save_checkpoint")

    def dump_checkpoint(self, weights_only: bool = False, *, hooks: bool = True) -> dict[str, Any]:
        """The state of the run as :meth:`save_checkpoint` writes it, in memory: its tensors are the run's own.

        Args:
            weights_only: as there.
            hooks: whether callbacks, datamodule and module are asked for what they keep; False leaves that out.

        Raises:
            OrderError: no module was run yet (``save-before-run``).
        """
        if self._module is None:
            self._module = self.strategy.model
        module = self._module
        if module is None:
            raise OrderError(
                "there is nothing to save yet: trainer.save_checkpoint(...) can be called from trainer.fit, validate, "
                "test or predict on",
                code="save-before-run",
            )
        self._publish()
        with isolate_rng():  # what users' hooks and states draw here must not change the run
            place = self._place or checkpoint.capture(self._running())
            run = checkpoint.describe(module, self.loggers) if self.is_global_zero else {}
            if self._plan is not None:
                run["plan"] = self._outline()
            return checkpoint.dump(
                module=module,
                datamodule=self.datamodule if hooks else None,
                callbacks=self.callbacks if hooks else (),
                trainer=self,
                plan=self._plan,
                scaler=self.scaler,
                place=place | run,  # of a run that has not yet gone on, it holds what that file told
                weights_only=weights_only,
                hooks=hooks,
            )

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Inside nothing is drawn from the run's generators, and a checkpoint holds the place where this began."""
        self._place = checkpoint.capture(self._running())
        try:
            with isolate_rng():
                yield
        finally:
            self._place = None

    def _running(self) -> checkpoint.Running:
        """What a checkpoint is made of, and restored to."""
        assert self._module is not None
        return checkpoint.Running(
            loop=self.fit_loop,
            validation=self.validate_loop,
            state=self._state,
            module=self._module,
            views=self._views,
            eval_rows=self._eval_rows,
            schedules={**self.schedules, **_schedules_of(self.callbacks)},
            engine=self._engine,
            parts=self._parts,
            began=self._began,
        )

    def _outline(self) -> dict[str, Any]:
        """What the run is made of."""
        return checkpoint.outline(
            self.plan,
            configured=self._configured,
            callbacks=self.callbacks,
            precision=self.precision,
            world_size=self.world_size,
            loader=self.fit_loop.data.loader,
        )

    def wait_for_checkpoint(self, owner: object = None) -> None:
        """Wait until the checkpoint that is being written in the background is durable.

        Args:
            owner: that of ``save_checkpoint``.

        Raises:
            CheckpointError: one of this owner's could not be written (``checkpoint-write``); told once.
        """
        if self._writer is not None:
            self._writer.wait(owner)

    def _close_writer(self) -> None:
        """Wait for the last checkpoint, and raise what no owner has asked for."""
        if self._writer is not None:
            self._writer.close()

    def _interrupted_path(self) -> str:
        """Where a signal saves: beside the other checkpoints, or where a job that starts again will look."""
        job = slurm_job()
        folders = [getattr(callback, "dirpath", None) for callback in self.checkpoint_callbacks if job is None]
        name = INTERRUPTED if job is None else f"{INTERRUPTED}-{job}"
        return os.path.join(next(filter(None, folders), None) or self.default_root_dir, f"{name}.ckpt")

    def _can_save_interrupted(self) -> bool:
        """Whether a signal saves: where training steps come, and the user has not switched checkpoints off."""
        is_in_earnest = self._state.deferred is not None and not (self._is_trial or self.fast_dev_run or self.barebones)
        return is_in_earnest and bool(self.checkpoint_callbacks)

    def _save_interrupted(self) -> str:
        """Save for a signal; returns the path."""
        path = self._interrupted_path()
        self.save_checkpoint(path)
        self.wait_for_checkpoint()
        return path


def _schedules_of(callbacks: Sequence[Any]) -> dict[str, Every]:
    """What recurs on clocks of its own in callbacks, by their key and the attribute."""
    return {
        f"{callback.state_key}.{name}": value
        for callback in callbacks
        for name, value in vars(callback).items()
        if isinstance(value, Every)
    }
