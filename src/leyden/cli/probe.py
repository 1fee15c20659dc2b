"""A child of ``leyden verify-resume``: runs a script whose first ``trainer.fit`` is shortened, watched, perhaps killed.

``python -m leyden.cli.probe PLAN SCRIPT ...`` writes what happens to the plan's trace, a JSON object in each line. A
line is one write, so that it outlives the process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import inspect
import json
import os
import random
import runpy
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from leyden.callback import Callback
from leyden.loggers.base import DummyExperiment, Logger
from leyden.module import LightningModule
from leyden.optimization.joint import members_of
from leyden.seed import rng_state
from leyden.trainer import Trainer

#: Where a run is saved and killed, and in which hook.
POINTS: Final = {
    "in an epoch": "on_train_batch_end",
    "in a window": "on_train_batch_end",
    "in a validation": "on_validation_batch_end",
    "between epochs": "on_train_epoch_end",
    "in a save": "on_train_batch_end",
}

#: What is kept of the user's objects.
_STATE: Final = (int, float, complex, str, Tensor, random.Random, torch.Generator)


@dataclass(kw_only=True)
class Plan:
    """What a child does.

    Attributes:
        folder: for all that it writes.
        trace: the file that takes its events.
        batches: of an epoch at most.
        epochs: at most.
        point: where it is saved and killed, one of POINTS; None runs to the end.
        resumes: whether it goes on from what was saved.
    """

    folder: str
    trace: str
    batches: int
    epochs: int
    point: str | None = None
    resumes: bool = False

    @property
    def checkpoint(self) -> str:
        """The file that is saved at the point."""
        return os.path.join(self.folder, "verify.ckpt")


class Trace:
    """Writes events."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, kind: str, place: str = "", values: Mapping[str, str] | None = None) -> None:
        """Write one event: what happened, where, and digests of what must be the same, by name."""
        line = json.dumps({"kind": kind, "place": place, "values": dict(values or {})})
        os.write(self._file, line.encode() + b"\n")


class Rows(Logger):
    """Notes the rows that loggers get, in place of the script's own loggers."""

    name, version = "verify-resume", 0

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    @property
    def experiment(self) -> Any:
        """Takes everything that the script gives to its own logger's back end."""
        return DummyExperiment()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Note a row."""
        values = {f"the row's {key}": digest(value) for key, value in metrics.items()}
        self._trace.write("row", f"step {step}: {', '.join(metrics)}", values)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not of interest."""


class Probe(Callback):
    """Stands behind all callbacks: notes every batch, and saves and kills the run at the plan's point."""

    def __init__(self, plan: Plan, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        self._has_saved = False
        self._has_begun = False
        if plan.point is not None and not plan.resumes:
            setattr(self, POINTS[plan.point], functools.partial(self._save_at, getattr(self, POINTS[plan.point])))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note what the run is made of, for words."""
        loader = trainer.fit_loop.data.loader
        made_of = f"{type(loader).__name__} over {type(getattr(loader, 'dataset', loader)).__name__}"
        facts = {"loader": made_of, "validates": str(trainer.enable_validation), "window": str(_window(trainer))}
        self.trace.write("start", "", facts)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Kill the run if it was saved; note what a resumed run begins with."""
        if self._has_saved or (self.plan.resumes and not self._has_begun):
            self.trace.write("untold", _place(trainer), _untold(trainer))
        if self._has_saved and self.plan.point != "in a save":
            _die()
        if self.plan.resumes and not self._has_begun:
            self.trace.write("resumed", _place(trainer), _state(trainer))
        self._has_begun = True
        self.trace.write("batch", _place(trainer), {"the batch": digest(batch)})

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what the batch has changed."""
        self.trace.write("step", _place(trainer), _state(trainer))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note a batch of a validation."""
        if not trainer.sanity_checking:
            values = {"the batch": digest(batch)}
            self.trace.write("validation", f"{_place(trainer)}, validation batch {batch_idx}", values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Note that an epoch has ended."""
        self.trace.write("epoch", f"epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Note what the run has come to."""
        metrics = {f"callback_metrics[{key!r}]": digest(value) for key, value in trainer.callback_metrics.items()}
        self.trace.write("end", "the end", {**_state(trainer), **metrics})

    def _save_at(self, hook: Any, trainer: Trainer, *args: Any) -> None:
        hook(trainer, *args)
        if self._has_saved:  # "in a save": the process ends before the new file has taken the place of the old one
            os.replace = _die
            trainer.save_checkpoint(self.plan.checkpoint)
        elif self._is_here(trainer, args):
            trainer.save_checkpoint(self.plan.checkpoint)
            self.trace.write("saved", _place(trainer))
            self._has_saved = True

    def _is_here(self, trainer: Trainer, args: Any) -> bool:
        epoch, batch, every = trainer.current_epoch, trainer.fit_loop.clocks.batch_idx, _window(trainer)
        if self.plan.point == "between epochs":
            return epoch == 0
        if self.plan.point == "in a validation":
            return not trainer.sanity_checking and epoch == self.plan.epochs - 1 and args[3] == 0
        closes, middle = (batch + 1) % every == 0, min(self.plan.batches, trainer.num_training_batches) // 2
        is_middle = epoch == self.plan.epochs - 1 and batch + 1 >= middle
        return is_middle and closes != (self.plan.point == "in a window")


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _window(trainer: Trainer) -> int:
    return trainer.accumulate_grad_batches


def _place(trainer: Trainer) -> str:
    return f"epoch {trainer.current_epoch}, batch {trainer.fit_loop.clocks.batch_idx}"


# -- what must be the same ------------------------------------------------------------------------------------------


def _state(trainer: Trainer) -> dict[str, str]:
    """Digests of everything that a resumed run must have as the other one, by names that users know."""
    module, content = trainer.lightning_module, trainer.dump_checkpoint(hooks=False)
    assert module is not None
    values: dict[str, Any] = {f"module.{name}": value for name, value in content["state_dict"].items()}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for index, optimizer in enumerate(trainer.optimizers):
        for member in members_of(optimizer):
            label = f"optimizer {index} ({type(member).__name__}): "
            for parameter, kept in member.state.items():
                of = names.get(id(parameter), "a parameter")
                values.update({f"{label}{key} of {of}": value for key, value in kept.items()})
            for number, group in enumerate(member.param_groups):
                values.update({f"{label}{key} of group {number}": v for key, v in group.items() if key != "params"})
    for index, config in enumerate(trainer.lr_scheduler_configs):
        values[f"scheduler {index} ({type(config.scheduler).__name__})"] = config.scheduler.state_dict()
    values["the loss scaler"] = trainer.scaler and trainer.scaler.state_dict()
    place = content["leyden"]
    values.update({f"clock {name}": value for name, value in place["clocks"].items() if "seconds" not in name})
    values.update({f"the random numbers of {name}": value for name, value in rng_state().items()})
    values["what was logged in the epoch"] = place["results"]
    others = [callback for callback in trainer.callbacks if not getattr(callback, "writes_checkpoints", False)]
    values.update({f"the state of {type(callback).__name__}": callback.state_dict() for callback in others})
    return {name: digest(value) for name, value in values.items()}


def _untold(trainer: Trainer) -> dict[str, str]:
    """Digests of what no checkpoint may know: data in the user's objects and in the script's globals."""
    module, dataset = trainer.lightning_module, getattr(trainer.fit_loop.data.loader, "dataset", None)
    assert module is not None
    owners = [owner for owner in (*module.modules(), *trainer.callbacks, dataset) if _is_users(type(owner))]
    places = {type(owner).__name__: {**vars(type(owner)), **vars(owner)} for owner in owners}
    places["global variable "] = vars(sys.modules["__main__"])
    usual = {*vars(LightningModule()), *vars(LightningModule)}
    return {
        f"{place}.{name}".replace(" .", " "): digest(value)
        for place, values in places.items()
        for name, value in values.items()
        if name not in usual and not name.startswith("__") and _is_state(value)
    }


def _is_users(kind: type) -> bool:
    return kind is not Probe and not kind.__module__.startswith(("torch.", "leyden.", "builtins"))


def _is_state(value: Any) -> bool:
    """Whether a value is data, or a generator of random numbers."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, _STATE) for item in inner)


def digest(value: Any) -> str:
    """A digest of nested data, the same for the same bits."""
    taken = hashlib.blake2b(digest_size=8)
    _feed(taken, value)
    return taken.hexdigest()


def _feed(taken: Any, value: Any) -> None:
    taken.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        dense = dense.cpu().resolve_conj().resolve_neg().contiguous()
        taken.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        taken.update(ctypes.string_at(dense.data_ptr(), dense.nbytes) if dense.nbytes else b"")
    elif hasattr(value, "tobytes"):  # NumPy's
        taken.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, random.Random):
        _feed(taken, value.getstate())
    elif isinstance(value, torch.Generator):
        _feed(taken, value.get_state())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            taken.update(repr(key).encode())
            _feed(taken, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _feed(taken, item)
    elif isinstance(value, (str, bytes, int, float, complex, type(None))):
        taken.update(repr(value).encode())
    else:
        _feed(taken, getattr(value, "__dict__", None))


# -- the script -----------------------------------------------------------------------------------------------------


def shorten(trainer: Trainer, plan: Plan) -> None:
    """Let a fit be over soon, and write nowhere but to the plan's folder."""
    if plan.batches <= 2 * _window(trainer):  # two windows, and the beginning of a third
        plan.batches = 2 * _window(trainer) + 1
    trainer.limit_train_batches = _at_most(trainer.limit_train_batches, plan.batches)
    trainer.limit_val_batches = _at_most(trainer.limit_val_batches, 3)
    epochs = trainer.max_epochs
    trainer.fit_loop.max_epochs = plan.epochs if epochs == -1 else min(epochs, plan.epochs)
    if isinstance(trainer.val_check_interval, int) and trainer.val_check_interval > plan.batches // 2:
        trainer.val_check_interval = plan.batches // 2
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1
    trainer.default_root_dir = plan.folder
    for callback in trainer.checkpoint_callbacks:
        if hasattr(callback, "dirpath"):
            callback.dirpath = os.path.join(plan.folder, "checkpoints")


def _at_most(limit: int | float, count: int) -> int | float:
    return count if isinstance(limit, float) and limit > 0 else min(limit, count)


def watch(plan: Plan) -> None:
    """Let the script's first fit be the plan's."""
    original, trace = Trainer.fit, Trace(plan.trace)

    @functools.wraps(original)
    def fit(self: Trainer, *args: Any, **kwargs: Any) -> None:
        shorten(self, plan)
        self.loggers = [Rows(trace)]
        self.callbacks.append(Probe(plan, trace))
        given = inspect.signature(original).bind(self, *args, **kwargs)
        if plan.resumes:
            given.arguments["ckpt_path"] = plan.checkpoint
        original(*given.args, **given.kwargs)
        sys.stdout.flush()
        os._exit(0)  # the rest of the script must not run, not even its `finally`

    Trainer.fit = fit  # type: ignore[method-assign]


def main() -> None:
    """Run the script."""
    _, plan, script, *arguments = sys.argv
    watch(Plan(**json.loads(plan)))
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")
    sys.exit("the script has ended, and no trainer.fit has come to its end in its own process")


if __name__ == "__main__":
    main()
