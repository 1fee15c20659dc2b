"""``replay``: a step that has failed, run again from its record."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from leyden import checkpoint
from leyden.callback import Callback
from leyden.callbacks.failure_recorder import Judging
from leyden.errors import CheckpointError, CheckpointNotFoundError, NonFiniteError
from leyden.module import LightningModule
from leyden.rank import rank_zero_info
from leyden.seed import set_rng_state
from leyden.trainer import Trainer
from leyden.tree import children

_TESTS: Final = {"nan": torch.isnan, "infinite": torch.isinf}


def replay(
    file: str | os.PathLike[str],
    module: LightningModule,
    *,
    callbacks: Sequence[Callback] = (),
    weights_only: bool | None = None,
    **arguments: Any,
) -> Trainer:
    """Run the step again that ``Trainer(record_failures=True)`` has recorded, under anomaly detection.

    The run goes on from the state in the file, with its batches and its random numbers, up to the step that has
    failed. That fails again, now with the operation named that made the first nan, in the forward pass or, by torch, in
    the backward one, unless it needs what is not in the file: another callback, a device that is not here, something
    that the module reads from outside. Whether the numbers on the way were the recorded ones is said in a note on the
    exception (Python >= 3.11), else in the log.

    Args:
        file: what the recorder has written.
        module: one like that of the run; its weights are replaced.
        callbacks: those of the run that change a step, if there were any.
        weights_only: as for ``trainer.fit``: None and True read the file as plain data.
        arguments: for the Trainer, in place of what the file says: ``accelerator="cpu"``, ``detect_anomaly=False``.

    Returns:
        The Trainer of the replay, if the step did not fail this time.

    Raises:
        CheckpointError: the file is no record of a failure (``replay-file``), missing (``checkpoint-missing``), or
            cannot be read.
        Exception: what the step raises.
        NonFiniteError: its loss or a gradient is not finite (``non-finite``).

    >>> # trainer = leyden.replay("failures/epoch=3-batch=17.failure", Model())
    """
    content = read_record(file, weights_only=weights_only)
    failure = content["failure"]
    silent = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "handle_signals")
    settings = {**failure["trainer"], **dict.fromkeys(silent, False), "detect_anomaly": True, **arguments}
    origin = _Origin()
    again = _Again(failure, origin)
    trainer = Trainer(callbacks=[*callbacks, again], limit_val_batches=0, **settings)
    data = _Recorded(failure, content["leyden"])
    try:
        with origin if settings["detect_anomaly"] else contextlib.nullcontext():
            trainer.fit(module, data, ckpt_path=file, weights_only=weights_only)
    except Exception as error:
        if again.has_begun and hasattr(error, "add_note"):
            error.add_note(again.comparison())
        elif again.has_begun:
            rank_zero_info(again.comparison())
        raise
    rank_zero_info(again.comparison())
    return trainer


def read_record(
    file: str | os.PathLike[str], *, weights_only: bool | None = None, builds: bool = True
) -> dict[str, Any]:
    """Read the record of a failing step.

    Args:
        file: the file.
        weights_only: as for :func:`replay`.
        builds: whether objects of users' classes are built, for which these must be there.

    Raises:
        CheckpointError: as :func:`replay`.
    """
    try:
        content = checkpoint.read_checkpoint(file, weights_only=weights_only, builds=builds)
    except CheckpointNotFoundError:
        raise CheckpointNotFoundError(
            f"there is no record {os.fspath(file)!r} of a failing step; a run with "
            "Trainer(record_failures=True) names it with its error",
            code="checkpoint-missing",
        ) from None
    if not isinstance(content.get("failure"), dict):
        raise CheckpointError(
            f"{os.fspath(file)!r} is a checkpoint, and no record of a failing step; pass a file that "
            "Trainer(record_failures=True) has written",
            code="replay-file",
        )
    return content


class _Recorded:
    """The training data as far as it was recorded; batches before it are not asked for."""

    def __init__(self, failure: dict[str, Any], place: dict[str, Any]) -> None:
        self._batches, self._length = failure["batches"], failure["num_batches"]
        self._first = place["batches"] - 1

    def __len__(self) -> int:
        if self._length == math.inf:
            raise TypeError("the loader had no length")
        return int(self._length)

    def __iter__(self) -> Iterator[Any]:
        yield from [None] * self._first
        yield from self._batches
        yield None  # never reached: it says that the last one was not the epoch's last


class _Again(Judging):
    """Gives every batch its random numbers, judges it as the recorder did, and ends after the last."""

    def __init__(self, failure: dict[str, Any], origin: _Origin) -> None:
        self._generators, self._origin = list(failure["generators"]), origin
        self._expected = [(index, *told) for index, step in enumerate(failure["sizes"]) for told in step]
        self._found: list[tuple[int, str, float]] = []
        self._step = -1

    @property
    def has_begun(self) -> bool:
        """Whether a batch was run."""
        return self._step >= 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        set_rng_state(self._generators[self._step + 1])
        self._step += 1
        self._origin.begin(batch)

    def judge(self, trainer: Trainer, pl_module: LightningModule, name: str, size: Tensor) -> None:
        self._found.append((self._step, name, float(size)))
        if not size.isfinite():
            what = "nan" if size.isnan() else "infinite"
            bad = [n for n, p in pl_module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            where = f" ({', '.join(bad)})" if name != "the loss" else ""
            raise NonFiniteError(f"{name} is {what}{where}{self._origin.told(what)}", code="non-finite")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        trainer.should_stop = self._step + 1 == len(self._generators)

    def comparison(self) -> str:
        """Whether the losses and gradients on the way were the recorded ones; anomaly detection may end it earlier."""
        for (step, name, expected), found in zip(self._expected, self._found, strict=False):
            if repr((step, name, expected)) != repr(found):
                late = len(self._generators) - 1 - step
                place = f"{late} steps before the recorded one" if late else "in the recorded step"
                return f"another run than the recorded one: {place} {name} was {expected!r}; {found[1]} is {found[2]!r}"
        if not self._found:
            return "no loss was computed before, here or in the record: there is nothing to compare"
        return f"bit for bit as recorded: {len(self._found)} losses and gradients of {self._step + 1} steps up to here"


class _Origin(TorchFunctionMode):
    """Finds the first operation of a step that makes nan, or infinite numbers, out of such as are not."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, str] = {}

    def begin(self, batch: Any) -> None:
        """A step begins."""
        self._made = {what: ": the batch holds such numbers" for what in _kinds(batch)}

    def told(self, what: str) -> str:
        """The origin of "nan" or "infinite" numbers of this step, for texts."""
        return self._made.get(what, "")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, name = _kinds((args, kwargs)), getattr(func, "__name__", repr(func))
        result = func(*args, **(kwargs or {}))
        for what in _kinds(result) - before - set(self._made) if name != "__get__" else ():  # a property: tensor.grad
            self._made[what] = f", first made by {name} in {_line_of_user()}"
        return result


def _kinds(data: Any) -> set[str]:
    """Which of "nan" and "infinite" nested data holds."""
    if not isinstance(data, Tensor):
        return set().union(*map(_kinds, children(data)))
    with contextlib.suppress(RuntimeError):  # sparse ones, float8, inside of vmap
        return {what for what, test in _TESTS.items() if test(data.detach()).any()}
    return set()


def _line_of_user() -> str:
    """The innermost line that is neither torch's nor ours."""
    roots = tuple(os.path.dirname(sys.modules[name].__file__ or "") + os.sep for name in ("torch", "leyden"))
    stack = traceback.extract_stack()
    frame = next((one for one in reversed(stack) if not one.filename.startswith((*roots, "<frozen"))), stack[-1])
    return f"{frame.filename}:{frame.lineno}, {frame.line}"
