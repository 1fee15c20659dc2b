"""Plug-ins that write, read and remove the checkpoints of a run: leyden's own way, and users'.

The Trainer and its callbacks ask ``trainer.strategy.storage`` for every file. What is leyden's own (a plain
``TorchCheckpointIO``, also in a plain ``AsyncCheckpointIO``) writes whole and durable files, checks them when it reads
them, and builds nothing but plain data. A user's gets and gives the checkpoint as a dictionary, its tensors where the
run has them; whether its files are whole, and what reading them may run, is the user's affair.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from leyden.checkpoint.files import read_file
from leyden.checkpoint.places import is_remote, remove
from leyden.checkpoint.writing import write_checkpoint
from leyden.errors import MisconfigurationException
from leyden.tree import map_tensors

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO", "WrappingCheckpointIO"]


class CheckpointIO(ABC):
    """Writes, reads and removes checkpoints; ``Trainer(plugins=[...])`` takes one.

    >>> import torch
    >>> class Plain(CheckpointIO):
    ...     def save_checkpoint(self, checkpoint, path, storage_options=None):
    ...         torch.save(checkpoint, path)
    ...     def load_checkpoint(self, path, map_location="cpu", weights_only=None):
    ...         return torch.load(path, map_location, weights_only=weights_only)
    ...     def remove_checkpoint(self, path):
    ...         os.remove(path)
    >>> # Trainer(plugins=[Plain()])
    """

    @abstractmethod
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: the state of the run; its tensors are the run's own, which go on changing.
            path: the file, as ``ModelCheckpoint`` names it or ``trainer.save_checkpoint`` was given it. Its folder is
                there, if that is one of this machine.
            storage_options: what ``trainer.save_checkpoint`` was given.
        """

    @abstractmethod
    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint; the run takes over what is returned, and changes it.

        Args:
            path: what ``ckpt_path`` says.
            map_location: not given by the Trainer.
            weights_only: what ``fit`` was given, False for ``trust=True``; not given to a method without it.
        """

    @abstractmethod
    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint that :meth:`save_checkpoint` has written."""

    def teardown(self) -> None:  # noqa: B027 - may be left as it is
        """A run is over."""


class TorchCheckpointIO(CheckpointIO):
    """leyden's own files: whole or not there, checked when they are read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; see :func:`leyden.checkpoint.write_checkpoint`.

        Raises:
            MisconfigurationException: there are storage options, which it does not know (``storage-options``).
        """
        check_plugin(None, storage_options=storage_options)
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = None) -> Any:
        """Read a file; see :func:`leyden.checkpoint.read_file`."""
        return read_file(path, map_location=map_location, weights_only=weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        remove(path)


class WrappingCheckpointIO(CheckpointIO):
    """Does what another one does, until a method is overridden.

    Args:
        checkpoint_io: the other one; None takes leyden's own.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self.checkpoint_io = TorchCheckpointIO() if checkpoint_io is None else checkpoint_io

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint."""
        given = {"map_location": map_location} if map_location is not None else {}
        return read_with(self.checkpoint_io, path, weights_only, **given)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        self.checkpoint_io.remove_checkpoint(path)

    def teardown(self) -> None:
        """A run is over."""
        self.checkpoint_io.teardown()


class AsyncCheckpointIO(WrappingCheckpointIO):
    """Writes one file at a time in the background, from copies of the tensors; an error is raised by the next call.

    Around leyden's own it is the same as ``ModelCheckpoint(asynchronous=True)``.

    Args:
        checkpoint_io: writes the files; None takes leyden's own.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        super().__init__(checkpoint_io)
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Begin to write a checkpoint."""
        self.wait()
        copied = map_tensors(lambda tensor: tensor.detach().clone(), checkpoint)
        worker = ThreadPoolExecutor(1, thread_name_prefix="leyden-checkpoint")
        self._pending = worker.submit(super().save_checkpoint, copied, path, storage_options)
        worker.shutdown(wait=False)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint, when none is being written."""
        self.wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, when none is being written: the one that takes its place is there by then."""
        self.wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait for the last file."""
        self.wait()
        super().teardown()

    def wait(self) -> None:
        """Wait for the file that is being written; raises what writing it has raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


# -- what a run does with them ------------------------------------------------------------------------------------


def is_asynchronous(plugin: Any) -> bool:
    """Whether a plug-in is leyden's own that writes in the background."""
    return type(plugin) is AsyncCheckpointIO and is_own(plugin.checkpoint_io)


def is_own(plugin: Any) -> bool:
    """Whether a plug-in is leyden's own, or None: files are written, checked and found as leyden does it."""
    return plugin is None or type(plugin) is TorchCheckpointIO or is_asynchronous(plugin)


def check_plugin(plugin: Any, *, asynchronous: bool = False, storage_options: Any = None) -> None:
    """Refuse what a plug-in cannot do.

    Raises:
        MisconfigurationException: a user's is to write in the background (``checkpoint-asynchronous``), or leyden's
            own to know options (``storage-options``).
    """
    if asynchronous and not is_own(plugin):
        raise MisconfigurationException(
            f"asynchronous=True is for leyden's own files, and {type(plugin).__name__} writes these; leave it out, or "
            "pass Trainer(plugins=[AsyncCheckpointIO(...)]) around it",
            code="checkpoint-asynchronous",
        )
    if storage_options is not None and is_own(plugin):
        raise MisconfigurationException(
            f"storage_options={storage_options!r}: leyden's own files take none; leave them out, or pass a "
            "CheckpointIO of your own that does, as Trainer(plugins=[...])",
            code="storage-options",
        )


def hand_over(
    plugin: Any, checkpoint: Mapping[str, Any], path: str | os.PathLike[str], storage_options: Any = None
) -> None:
    """Let a plug-in write a checkpoint; the folder is made first, if it is one of this machine."""
    if not is_remote(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    plugin.save_checkpoint(checkpoint, path, storage_options=storage_options)


def read_with(plugin: Any, path: Any, weights_only: bool | None, **given: Any) -> Any:
    """Let a plug-in read a checkpoint; its ``load_checkpoint`` had no ``weights_only`` before 2.6."""
    parameters = inspect.signature(plugin.load_checkpoint).parameters
    if "weights_only" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        given["weights_only"] = weights_only
    return plugin.load_checkpoint(path, **given)
