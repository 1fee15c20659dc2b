"""``FailureRecorder``: keeps what it takes to run the step again that has failed."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
import traceback
from abc import abstractmethod
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
    sizes: list[Tensor] = field(default_factory=list)  # of what the names say; each of shape (), on its device
    found: Tensor | None = None  # the same in the host's memory, shape (names,), when `arrived` says so
    arrived: torch.cuda.Event | None = None

    def told(self) -> list[tuple[str, float]]:
        """Names and sizes; the device must be done."""
        if self.found is None:
            with contextlib.suppress(RuntimeError):  # a device that has failed
                self.found = torch.stack(self.sizes).cpu() if self.sizes else torch.empty(0)
        return list(zip(self.names, [] if self.found is None else self.found.tolist(), strict=False))


@dataclass
class _Recording:
    """The state of the run before a batch, and that batch with those after it."""

    state: dict[str, Any]
    epoch: int
    steps: list[_Step] = field(default_factory=list)


class Judging(Callback):
    """Measures the loss and the gradients of every step; what becomes of the numbers is for derived classes to say.

    Under a loss scaler, whose business gradients that overflow are, the loss alone is measured.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Measure the loss."""
        if trainer.scaler is None:
            self.judge(trainer, pl_module, "the loss", _size_of([loss]))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure the gradients."""
        if trainer.scaler is None:
            name = f"a gradient of optimizer {trainer.optimizers.index(optimizer)}"
            self.judge(trainer, pl_module, name, _size_of(gradients_of(optimizer)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the losses that no scaler has touched."""
        if trainer.scaler is not None:
            for one in outputs if isinstance(outputs, list) else [outputs]:
                if one.get("loss") is not None:
                    self.judge(trainer, pl_module, "the loss", _size_of([one["loss"]]))

    @abstractmethod
    def judge(self, trainer: Trainer, pl_module: LightningModule, name: str, size: Tensor) -> None:
        """Take a norm of what the name says: shape ``()``, on its device."""


class FailureRecorder(Judging):
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
        opens = not pl_module.automatic_optimization or batch_idx % trainer.accumulate_grad_batches == 0
        renews = self._is_stale or batch_idx == 0 or (opens and len(self._recordings[-1].steps) >= self.every)
        self._look_back(trainer, pl_module, waits_for=len(self._recordings) - 1 if renews else 0)
        if renews:
            state = encode(trainer.dump_checkpoint(hooks=False), _to_host)
            self._recordings = [*self._recordings[-1:], _Recording(state, trainer.current_epoch)]
            self._is_stale = False
        self._recordings[-1].steps.append(_Step(batch_idx, encode(batch, _to_host), rng_state()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the device for what was judged, without waiting for it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step = self._recordings[-1].steps[-1]
        if step.sizes and _is_late(step.sizes[0]):
            step.found, step.arrived = _send(step.sizes)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation may change rates and more, which no batch repeats."""
        self._is_stale = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what is left of the epoch."""
        self._look_back(trainer, pl_module, waits_for=2)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the file for an exception of the step."""
        is_ours = isinstance(exception, Exception) and not isinstance(exception, NonFiniteError)
        if is_ours and trainer.training and self._is_in_step(trainer):
            text = "".join(traceback.format_exception(exception))
            told = f"the step is recorded: {self._write(trainer, pl_module, self._recordings[-1], None, text)}"
            rank_zero_info(told)
            if hasattr(exception, "add_note"):
                exception.add_note(told)

    def _is_in_step(self, trainer: Trainer) -> bool:
        """Whether the batch that was recorded last is not through."""
        loop, steps = trainer.fit_loop, self._recordings[-1].steps if self._recordings else []
        is_in_hand = bool(steps) and steps[-1].batch_idx == loop.clocks.batch_idx == loop.done
        return is_in_hand and loop.phase == "batches"

    def judge(self, trainer: Trainer, pl_module: LightningModule, name: str, size: Tensor) -> None:
        """Keep a number; fail now if it is here and not finite."""
        recording = self._recordings[-1]
        step = recording.steps[-1]
        step.names.append(name)
        step.sizes.append(size)
        if not _is_late(size) and not size.isfinite():
            self._fail(trainer, pl_module, recording, step, name)

    def _look_back(self, trainer: Trainer, pl_module: LightningModule, *, waits_for: int) -> None:
        """Read what has arrived from the device.

        Args:
            trainer: the Trainer.
            pl_module: its module.
            waits_for: how many of the recordings to wait for: all at the end of an epoch, and one before it is
                forgotten.
        """
        for place, recording in enumerate(self._recordings):
            for step in recording.steps:
                if step.arrived is None or step.found is None:
                    continue
                if place < waits_for:
                    step.arrived.synchronize()
                elif not step.arrived.query():  # type: ignore[no-untyped-call]
                    return
                step.arrived = None
                for name, size in step.told():
                    if not math.isfinite(size):
                        self._fail(trainer, pl_module, recording, step, name)

    def _fail(
        self, trainer: Trainer, pl_module: LightningModule, recording: _Recording, step: _Step, name: str
    ) -> None:
        what = f"{name} is not finite in batch {step.batch_idx} of epoch {recording.epoch}"
        command = self._write(trainer, pl_module, recording, step, what)
        raise NonFiniteError(f"{what}. The step is recorded: {command}", code="non-finite")

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, recording: _Recording, last: _Step | None, what: str
    ) -> str:
        """Write the file for a step, the last one by default; returns how to run that again."""
        steps = recording.steps if last is None else recording.steps[: recording.steps.index(last) + 1]
        folder = self.folder or os.path.join(trainer.log_dir or trainer.default_root_dir, "failures")
        self.path = os.path.join(folder, f"epoch={recording.epoch}-batch={steps[-1].batch_idx}.failure")
        with contextlib.suppress(RuntimeError):  # a device that has failed; what was copied before is there
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
        told = dict(recording.state)
        place = told["leyden"] = dict(told["leyden"])
        place["plan"] = {**place.get("plan", {}), "data": []}  # a replay has a loader of its own
        pl_module.on_save_checkpoint(told)
        kept = {id(value) for value in (*recording.state.values(), place)}  # encoded already
        content = {key: value if id(value) in kept else encode(value) for key, value in told.items()}
        content["failure"] = {
            "what": what,
            "module": _home_of(type(pl_module)),
            "batches": [step.batch for step in steps],
            "sizes": [step.told() for step in steps],
            "generators": encode([step.generators for step in steps]),
            "num_batches": trainer.num_training_batches,
            "trainer": encode(_settings(trainer)),
        }
        if trainer.is_global_zero:
            write_encoded(content, self.path)
        return replay_command(self.path, content["failure"]["module"])


def _home_of(kind: type) -> str:
    """Where a class is defined, as the command takes it: "package.module:Model", or "train.py:Model" for a script's."""
    module, main = kind.__module__, sys.modules["__main__"]
    if module == "__main__":
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else os.path.abspath(file) if file is not None else module
    return f"{module}:{kind.__qualname__}"


def replay_command(path: str, home: str) -> str:
    """What a user types to run a recorded step again; a class of a notebook or of a function has no address."""
    if home.startswith("__main__:") or "<locals>" in home:
        return f"leyden.replay({path!r}, {home.rpartition(':')[2].rpartition('.')[2]}(...))"
    return f"leyden replay {shlex.quote(path)} {shlex.quote(home)}"


def _size_of(tensors: list[Tensor]) -> Tensor:
    """A norm of the tensors, not finite if one of their numbers is not: shape ``()``; nothing waits for a GPU."""
    dense = [tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach() for tensor in tensors]
    dense = [tensor for tensor in dense if tensor.numel()]
    if not any(tensor.is_cuda for tensor in dense):  # on a CPU the greatest value takes 14 times as long
        norm = torch.nn.utils.get_total_norm(dense)
        if norm.isfinite():
            return norm
    return torch.nn.utils.get_total_norm(dense, math.inf)  # squares may overflow


def _is_late(size: Tensor) -> bool:
    """Whether to read it would wait for a device."""
    return size.device.type == "cuda"


def _send(sizes: list[Tensor]) -> tuple[Tensor, torch.cuda.Event]:
    """Queue a copy of numbers to the host's memory; the event tells when it is there."""
    numbers, arrived = torch.stack(sizes), torch.cuda.Event()  # type: ignore[no-untyped-call]
    found = torch.empty(len(sizes), dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    arrived.record()
    return found, arrived


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
