"""``FailureRecorder``: keeps what it takes to run the step again that has failed."""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.callback import Callback
from leyden.checkpoint.encoding import encode
from leyden.checkpoint.writing import write_encoded
from leyden.errors import InvalidValueError, NonFiniteError
from leyden.loggers.folders import make_folder
from leyden.optimization.gradients import gradients_of
from leyden.rank import rank_zero_info
from leyden.seed import rng_state

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


@dataclass
class _Step:
    """One batch: a copy in the host's memory, the generators before it, and what is still to be judged."""

    batch_idx: int
    batch: Any
    generators: dict[str, Any]
    names: list[str] = field(default_factory=list)
    flags: list[Tensor] = field(default_factory=list)  # on a device, each of shape (), dtype=bool: is it finite
    found: Tensor | None = None  # the same in the host's memory, once `arrived`
    arrived: torch.cuda.Event | None = None


@dataclass
class _Recording:
    """The state of the run before a batch, and that batch with those after it."""

    state: dict[str, Any]
    epoch: int
    steps: list[_Step] = field(default_factory=list)


class FailureRecorder(Callback):
    """Writes a file when a training step raises an exception, or has a loss or a gradient that is not finite.

    ``leyden.replay(file, module)`` and ``leyden replay FILE`` run the step again. ``Trainer(record_failures=True)``
    adds this callback.

    Every few batches the state of the run (module, optimizers, schedulers, scaler, clocks) is copied to the host's
    memory; between, each batch and the states of the random generators. The file holds the last copy and all that came
    after it, so the state before the failing step is exact whatever the steps have updated: several optimizers, half
    an accumulation window, manual mode.

    A loss or gradient that is not finite ends the run: on the CPU before the optimizer steps. On a GPU nothing waits
    for the number, so some steps follow before it is known; the recorded state is the one before the first of them.
    Under a loss scaler, whose business gradients that overflow are, the loss alone is judged.

    Args:
        folder: where files go. None takes ``failures`` in the folder of the first logger's run.
        every: batches between two copies of the state, at least 1. So many batches are kept in memory, on a GPU up to
            twice as many with two copies of the state; a copy costs about what an optimizer's step does.

    Attributes:
        path: the file that was written last, or None.

    Raises:
        InvalidValueError: ``every`` (``record-every``), or a folder that takes no files (``failure-folder``).
        NonFiniteError: the loss or a gradient is not finite (``non-finite``).
        CheckpointError: with the first batch, if it holds objects that no file can hold (``checkpoint-object``).

    >>> recorder = FailureRecorder("failures", every=8)
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, every: int = 16) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InvalidValueError(f"FailureRecorder(every={every!r}) must be an int >= 1", code="record-every")
        self.folder = None if folder is None else os.fspath(folder)
        self.every = every
        self.path: str | None = None
        self._recordings: list[_Recording] = []
        self._is_stale = True  # something that no batch repeats has changed the state

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder, if there is one of its own."""
        if self.folder is not None and stage == "fit" and trainer.is_global_zero:
            make_folder(self.folder, self, code="failure-folder")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit."""
        self._recordings, self._is_stale = [], True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what the step begins with."""
        self._look_back(trainer, pl_module, waits=False)
        opens = not pl_module.automatic_optimization or batch_idx % trainer.accumulate_grad_batches == 0
        if self._is_stale or batch_idx == 0 or (opens and len(self._recordings[-1].steps) >= self.every):
            if len(self._recordings) > 1:
                self._look_back(trainer, pl_module, waits=True)
            state = encode(trainer.dump_checkpoint(hooks=False), _to_host)
            self._recordings = [*self._recordings[-1:], _Recording(state, trainer.current_epoch)]
            self._is_stale = False
        self._recordings[-1].steps.append(_Step(batch_idx, encode(batch, _to_host), rng_state()))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Judge the loss."""
        if trainer.scaler is None:
            self._judge(trainer, pl_module, "the loss", is_finite([loss]))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Judge the gradients."""
        if trainer.scaler is None:
            name = f"a gradient of optimizer {trainer.optimizers.index(optimizer)}"
            self._judge(trainer, pl_module, name, is_finite(gradients_of(optimizer)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the device for what was judged, without waiting for it."""
        if trainer.scaler is not None:
            each = outputs if isinstance(outputs, list) else [outputs]
            losses = [one["loss"] for one in each if one.get("loss") is not None]
            self._judge(trainer, pl_module, "the loss", is_finite(losses))
        step = self._recordings[-1].steps[-1]
        if step.flags:
            step.found = torch.empty(len(step.flags), dtype=torch.bool, pin_memory=True)
            step.found.copy_(torch.stack(step.flags), non_blocking=True)
            step.arrived, step.flags = torch.cuda.Event(), []  # type: ignore[no-untyped-call]
            step.arrived.record()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation may change rates and more, which no batch repeats."""
        self._is_stale = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what is left of the epoch."""
        self._look_back(trainer, pl_module, waits=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the file for an exception of the step."""
        is_ours = isinstance(exception, Exception) and not isinstance(exception, NonFiniteError)
        if is_ours and trainer.training and self._is_in_step(trainer):
            text = "".join(traceback.format_exception(exception))
            path = self._write(trainer, pl_module, self._recordings[-1], None, text)
            rank_zero_info("the failing step is recorded: leyden replay %s", path)
            if hasattr(exception, "add_note"):
                exception.add_note(f"the step is recorded: leyden replay {path}")

    def _is_in_step(self, trainer: Trainer) -> bool:
        """Whether the batch that was recorded last is not through."""
        loop, steps = trainer.fit_loop, self._recordings[-1].steps if self._recordings else []
        is_in_hand = bool(steps) and steps[-1].batch_idx == loop.clocks.batch_idx == loop.done
        return is_in_hand and loop.phase == "batches"

    def _judge(self, trainer: Trainer, pl_module: LightningModule, name: str, flag: Tensor) -> None:
        recording = self._recordings[-1]
        step = recording.steps[-1]
        if flag.device.type != "cuda":
            if not flag:
                self._fail(trainer, pl_module, recording, step, name)
            return
        step.names.append(name)
        step.flags.append(flag)

    def _look_back(self, trainer: Trainer, pl_module: LightningModule, *, waits: bool) -> None:
        """Read what has arrived from the device.

        Args:
            trainer: the Trainer.
            pl_module: its module.
            waits: whether to wait for what has not arrived: at the end of an epoch, and before the state that it may
                need is forgotten.
        """
        for recording in self._recordings:
            for step in recording.steps:
                if step.arrived is None or step.found is None:
                    continue
                if waits:
                    step.arrived.synchronize()
                elif not step.arrived.query():  # type: ignore[no-untyped-call]
                    return
                step.arrived = None
                for name, is_good in zip(step.names, step.found.tolist(), strict=True):
                    if not is_good:
                        self._fail(trainer, pl_module, recording, step, name)

    def _fail(
        self, trainer: Trainer, pl_module: LightningModule, recording: _Recording, step: _Step, name: str
    ) -> None:
        what = f"{name} is not finite in batch {step.batch_idx} of epoch {recording.epoch}"
        path = self._write(trainer, pl_module, recording, step, what)
        raise NonFiniteError(f"{what}. The step is recorded: leyden replay {path}", code="non-finite")

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, recording: _Recording, last: _Step | None, what: str
    ) -> str:
        """Write the file for a step, the last one by default; returns its path."""
        steps = recording.steps if last is None else recording.steps[: recording.steps.index(last) + 1]
        folder = self.folder or os.path.join(trainer.log_dir or trainer.default_root_dir, "failures")
        self.path = os.path.join(folder, f"epoch={recording.epoch}-batch={steps[-1].batch_idx}.failure")
        with contextlib.suppress(RuntimeError):  # a device that has failed; what was copied before is there
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
        told = dict(recording.state)
        pl_module.on_save_checkpoint(told)
        content = {key: value if value is recording.state.get(key) else encode(value) for key, value in told.items()}
        content["failure"] = {
            "what": what,
            "module": f"{type(pl_module).__module__}:{type(pl_module).__qualname__}",
            "batches": [step.batch for step in steps],
            "generators": encode([step.generators for step in steps]),
            "num_batches": trainer.num_training_batches,
            "trainer": encode(_settings(trainer)),
        }
        if trainer.is_global_zero:
            write_encoded(content, self.path)
        return self.path


def is_finite(tensors: list[Tensor]) -> Tensor:
    """Whether all numbers are finite: a tensor of shape ``()`` on their device, which nothing waits for."""
    dense = [tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach() for tensor in tensors]
    return torch.isfinite(torch.nn.utils.get_total_norm(dense, math.inf))


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory; from a GPU it is only queued."""
    if tensor.device.type != "cuda" or tensor.layout is not torch.strided:
        return tensor.detach().cpu() if tensor.device.type != "cpu" else tensor.detach().clone()
    host = torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
    return host.copy_(tensor.detach(), non_blocking=True)


def _settings(trainer: Trainer) -> dict[str, Any]:
    """Arguments of a Trainer that runs a step in the same way."""
    return {
        "accelerator": trainer.strategy.root_device.type,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "deterministic": torch.are_deterministic_algorithms_enabled() or None,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm and str(trainer.gradient_clip_algorithm),
        "gradient_clip_val": trainer.gradient_clip_val,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "precision": trainer.precision,
    }
