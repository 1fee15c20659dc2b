"""Settings of a run, written beside its logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from leyden.callback import Callback
from leyden.errors import OrderError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from leyden.cli.parser import LightningArgumentParser
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class SaveConfigCallback(Callback):
    """Writes all arguments of a run to a file beside its logs, from which ``--config FILE`` repeats it.

    Args:
        parser: knows how to write them.
        config: the arguments.
        config_filename: the file's name.
        overwrite: whether a file of an earlier run may be replaced.
        multifile: whether settings that came from several files are written to several.
        save_to_log_dir: False leaves it all to :meth:`save_config`.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, in the first run.

        Raises:
            OrderError: there is one already, and ``overwrite`` is not set (``cli-config-exists``).
        """
        if self.already_saved:
            return
        if self.save_to_log_dir:
            self._write(trainer)
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def _write(self, trainer: Trainer) -> None:
        folder = trainer.strategy.broadcast(trainer.log_dir or trainer.default_root_dir)
        path = os.path.join(folder, self.config_filename)
        if trainer.strategy.broadcast(not self.overwrite and os.path.isfile(path)):
            raise OrderError(
                f"{path} is there already, of an earlier run: delete it, choose another folder, or pass "
                'save_config_kwargs={"overwrite": True} or save_config_callback=None to LightningCLI',
                code="cli-config-exists",
            )
        if trainer.is_global_zero:
            os.makedirs(folder, exist_ok=True)
            self.parser.save(self.config, path, skip_unset=False, overwrite=self.overwrite, multifile=self.multifile)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Override it to save the arguments elsewhere too, as with a logger; called once, in the first process."""
