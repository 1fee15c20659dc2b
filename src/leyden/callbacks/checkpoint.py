"""``Checkpoint``: base of the callbacks that save checkpoints, and what these have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

from leyden.callback import Callback
from leyden.checkpoint import copy_checkpoint, partial_file, rehearse
from leyden.checkpoint.places import is_remote
from leyden.errors import LeydenWarning, warn
from leyden.rank import rank_zero_warn

if TYPE_CHECKING:
    from leyden.trainer import Trainer


class Checkpoint(Callback):
    """Base of callbacks that save checkpoints: the Trainer calls them after all others, so that they save what is new.

    >>> from leyden import Trainer
    >>> class AtTheEnd(Checkpoint):
    ...     def on_train_end(self, trainer, pl_module):
    ...         trainer.save_checkpoint("end.ckpt")
    >>> trainer = Trainer(callbacks=[AtTheEnd(), Callback()], enable_progress_bar=False)
    >>> [type(callback).__name__ for callback in trainer.callbacks]
    ['Callback', 'AtTheEnd']
    """

    #: Called after all callbacks that do not write checkpoints.
    writes_checkpoints = True
    #: Called last at the end of an epoch, when the module has logged what is watched.
    is_monitor = True


def default_folder(trainer: Trainer) -> str:
    """The folder of the first logger's run, or the Trainer's, as far as the logger has one."""
    logger = trainer.logger
    folder, name, version = (getattr(logger, key, None) for key in ("save_dir", "name", "version"))
    parts = [folder or trainer.default_root_dir]
    if name is not None:
        parts.append(str(name))
    if version is not None:
        parts.append(version if isinstance(version, str) else f"version_{version}")
    return os.path.join(*parts, "checkpoints")


def position(trainer: Trainer) -> tuple[int, int]:
    """How far training is: steps, and where nobody counts them, since raw optimizers are stepped by hand, batches."""
    step, module = trainer.global_step, trainer.lightning_module
    return step, 0 if step or module is None or module.automatic_optimization else trainer.clocks.micro_batches


def save_despite(exception: BaseException, callback: Checkpoint, save: Callable[[], Any]) -> None:
    """Save while ``exception`` ends the run. If that fails too it is told, and does not take the exception's place."""
    try:
        save()
    except Exception as error:
        with contextlib.suppress(LeydenWarning):  # where warnings are errors
            warn(
                f"{type(callback).__name__} could not save what was trained until {type(exception).__name__} ended the "
                f"run: {error}",
                code="checkpoint-on-exception",
            )


def rehearse_fit(callback: Checkpoint, folder: str, *owners: Any) -> None:
    """Write the hyper-parameters of a module and a datamodule to a folder, where there must be room for the module.

    Raises:
        InvalidValueError: the folder takes no files (``checkpoint-folder``).
        CheckpointError: hyper-parameters that are no data (``checkpoint-object``).
    """
    present = [owner for owner in owners if owner is not None]
    tensors = [tensor for tensor in (*present[0].parameters(), *present[0].buffers()) if not is_lazy(tensor)]
    rehearse(
        {owner.CHECKPOINT_HYPER_PARAMS_KEY: owner.hparams for owner in present},
        folder,
        size=sum(tensor.nbytes for tensor in tensors),
        owner=callback,
    )


def link(target: str, name: str) -> None:
    """Make ``name`` point to ``target``, in one step; a copy where there are no links (Windows)."""
    if os.path.abspath(target) == os.path.abspath(name):
        return
    folder = os.path.dirname(name) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with partial_file(folder) as temporary:
            os.unlink(temporary)
            os.symlink(os.path.relpath(target, folder), temporary)
            os.replace(temporary, name)
    except OSError:
        copy_checkpoint(target, name)


def warn_of_others(folder: str, save_top_k: int, *, are_versioned: bool) -> None:
    """Tell what becomes of files that are in a folder already."""
    if save_top_k != 0 and not is_remote(folder) and os.listdir(folder):
        rank_zero_warn(
            f"ModelCheckpoint: the folder {folder!r} is not empty; a new file of the same name as one there "
            f"{'gets a version' if are_versioned else 'takes its place'}",
            code="checkpoint-folder-not-empty",
        )
