"""``Checkpoint``: base of the callbacks that save checkpoints, and what these have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

from leyden.callback import Callback
from leyden.checkpoint import copy_checkpoint, is_own, partial_file, rehearse
from leyden.checkpoint.encoding import encode
from leyden.errors import LeydenWarning, warn
from leyden.rank import rank_zero_warn
from leyden.seed import isolate_rng

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
    """The folder of the first logger's run, below the logger's folder unless the Trainer's names one for weights."""
    logger = next(iter(trainer.loggers), None)
    folder, name, version = (getattr(logger, key, None) for key in ("save_dir", "name", "version"))
    own = trainer.weights_save_path
    parts = [folder or own if own == trainer.default_root_dir else own]
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


def rehearse_fit(callback: Checkpoint, folder: str, trainer: Trainer, *, weights_only: bool = False) -> None:
    """Write hyper-parameters to a folder, where there must be room for a file; see whether callbacks' states are data.

    Where a plug-in of the user's writes the files, nothing is done. Of what users write only ``state_dict`` of
    callbacks is called, which may be at any time. ``on_save_checkpoint`` is for files alone: what it adds shows with
    the first one.

    Raises:
        InvalidValueError: the folder takes no files (``checkpoint-folder``).
        CheckpointError: hyper-parameters or a callback's state that are no data (``checkpoint-object``).
    """
    module = trainer.lightning_module
    if not is_own(trainer.strategy.storage):
        return
    assert module is not None
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if not is_lazy(tensor)]
    size = sum(tensor.nbytes for tensor in tensors)
    if not weights_only:
        size += sum(map(_moments_size, trainer.optimizers))
        states: dict[str, Any] = {}
        for one in trainer.callbacks:
            # One that cannot tell before the first step is asked again by a save; what it draws is not drawn.
            with contextlib.suppress(Exception), isolate_rng():
                states[one.state_key] = one.state_dict()
        encode({"callbacks": states})
    hparams = {
        owner.CHECKPOINT_HYPER_PARAMS_KEY: owner.hparams for owner in (module, trainer.datamodule) if owner is not None
    }
    rehearse(hparams, folder, size=size, owner=callback)


def _moments_size(optimizer: Any) -> int:
    """Bytes that an optimizer will keep, as its options tell: two moments with "betas", one with "momentum"."""
    return sum(
        tensor.nbytes * (2 if "betas" in group else bool(group.get("momentum")))
        for group in optimizer.param_groups
        for tensor in group["params"]
        if not is_lazy(tensor)
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
    """Tell what becomes of checkpoints that are in a folder already."""
    if save_top_k != 0 and os.path.isdir(folder) and any(name.endswith(".ckpt") for name in os.listdir(folder)):
        rank_zero_warn(
            f"ModelCheckpoint: the folder {folder!r} is not empty; a new file of the same name as one there "
            f"{'gets a version' if are_versioned else 'takes its place'}",
            code="checkpoint-folder-not-empty",
        )
