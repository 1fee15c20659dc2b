"""``OnExceptionCheckpoint``: saves what was trained when an exception ends the fit."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Final

from leyden.callbacks.checkpoint import Checkpoint, rehearse_fit, save_despite
from leyden.checkpoint.places import exists
from leyden.errors import InvalidValueError

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Saves a checkpoint when an exception (Ctrl-C included) ends a fit, as of the last step that was finished.

    The file is removed when a later fit succeeds that goes on from it, in this process or by ``ckpt_path``. Nothing is
    saved before training has begun, and under ``fast_dev_run``.

    Args:
        dirpath: folder of the file, or an address; written to when the fit starts, so that one that takes no files
            shows then.
        filename: name of the file without its extension; a file of an earlier run is replaced.

    Raises:
        InvalidValueError: an empty name (``checkpoint-filename``).

    >>> OnExceptionCheckpoint("runs", filename="rescued").ckpt_path
    'runs/rescued.ckpt'
    """

    FILE_EXTENSION: Final = ".ckpt"

    def __init__(self, dirpath: str | os.PathLike[str], filename: str = "on_exception") -> None:
        if not filename:
            raise InvalidValueError(
                "OnExceptionCheckpoint(filename='') needs a name, such as 'on_exception'", code="checkpoint-filename"
            )
        self.dirpath = os.fspath(dirpath)
        self.filename = filename
        self._has_begun = False
        self._written = ""

    @property
    def ckpt_path(self) -> str:
        """Path of the file."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is trained yet."""
        self._has_begun = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder and write to it.

        Raises:
            InvalidValueError: it takes no files (``checkpoint-folder``).
            CheckpointError: hyper-parameters or a callback's state that are no data (``checkpoint-object``).
        """
        if not trainer.fast_dev_run and trainer.is_global_zero:
            rehearse_fit(self, self.dirpath, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to lose."""
        self._has_begun = not trainer.fast_dev_run

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save; the exception goes on its way, also if that fails."""
        if self._has_begun:
            self._written = self.ckpt_path  # before saving: the file says that it is ours
            save_despite(exception, self, functools.partial(trainer.save_checkpoint, self.ckpt_path))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After a fit that succeeded: remove the file that an earlier, failed part of it has left."""
        if stage == "fit" and self._written and trainer.is_global_zero and exists(self._written):
            trainer.strategy.remove_checkpoint(self._written)
        self._written = "" if stage == "fit" else self._written

    def state_dict(self) -> dict[str, Any]:
        """The file, if there is one."""
        return {"ckpt_path": self._written} if self._written else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the file, if this is where it lies; it has served when this fit succeeds."""
        self._written = self.ckpt_path if state_dict.get("ckpt_path") == self.ckpt_path else ""
