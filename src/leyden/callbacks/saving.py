"""How the files of a ``ModelCheckpoint`` come and go: at once or in the background, and what a failed save does."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leyden.callbacks.checkpoint import link
from leyden.checkpoint import check_plugin, copy_checkpoint, is_asynchronous, is_own
from leyden.checkpoint.places import absolute, by_age, exists
from leyden.errors import CheckpointError
from leyden.rank import rank_zero_warn

if TYPE_CHECKING:
    from leyden.callbacks.model_checkpoint import ModelCheckpoint
    from leyden.trainer import Trainer


class Saves:
    """The saves of a callback.

    What a save changes (what the callback knows, which files are no longer kept) counts when the file is durable. If
    it is written in the background that is later; if it cannot be written, never.

    Args:
        asynchronous: whether files are written in the background.
        on_error: "warn" or "raise".
    """

    def __init__(self, *, asynchronous: bool, on_error: str) -> None:
        self.asynchronous = asynchronous
        self.on_error = on_error
        self.error: CheckpointError | None = None  # of the last file, if it was not written
        self.coming: Mapping[str, Any] | None = None  # what the callback will know when the file is there
        self._before: dict[str, Any] = {}
        self._first = ""
        self._landed: Mapping[str, Any] = {}  # what it will know as soon as the first file is there
        self._acts: list[Callable[[], Any]] = []
        self._is_new = False

    def begin(self, plugin: Any) -> None:
        """A run begins: the plug-in that writes its files may want that in the background, or be a user's."""
        check_plugin(plugin, asynchronous=self.asynchronous)
        self.asynchronous = self.asynchronous or is_asynchronous(plugin)

    @contextmanager
    def attempt(self, trainer: Trainer, owner: ModelCheckpoint, on_error: str | None = None) -> Iterator[None]:
        """The decisions of one save; ``on_error`` in place of what the user has chosen."""
        self._before, self._first, self._acts = _knowledge(owner), "", []
        try:
            yield
            if self._first:
                self._submit(trainer, owner)
        except CheckpointError as error:
            vars(owner).update(self._before)
            self._cope(error, owner, on_error or self.on_error)

    def save(self, trainer: Trainer, owner: ModelCheckpoint, path: str) -> None:
        """Write a file; in the background a second one is a copy of the first."""
        if not self.asynchronous:
            trainer.save_checkpoint(path, owner.save_weights_only)
            self._before, self.error = _knowledge(owner), None
            _tell_loggers(trainer, owner)
        elif self._first:
            self._acts.append(functools.partial(copy_checkpoint, self._first, path))
        else:
            self._first, self._landed = path, _knowledge(owner)

    def then(self, act: Callable[[], Any]) -> None:
        """Do something when the file is durable."""
        if self._first:
            self._acts.append(act)
        else:
            act()

    def link(self, trainer: Trainer, target: str, path: str) -> None:
        """Let ``path`` point to a file when it is durable."""
        if trainer.is_global_zero:
            self.then(functools.partial(link, target, path))
        trainer.strategy.barrier()

    def discard(self, trainer: Trainer, owner: ModelCheckpoint) -> None:
        """Delete the files that the owner keeps no longer, when their successor is durable.

        Never one outside of its folder, which another run may go on with, nor the one that the user has named to go on
        from.
        """
        folder = absolute(owner.dirpath or "")  # a logger's folder may be relative
        for path in owner._outdated:
            is_ours = f"{absolute(os.path.dirname(path))}/".startswith(f"{folder}/")
            if is_ours and trainer.is_global_zero:
                self.then(functools.partial(_remove_unless, path, owner._resumed, trainer.strategy))
        self.then(functools.partial(setattr, owner, "_outdated", ()))

    def catch_up(self, trainer: Trainer, owner: ModelCheckpoint, resumed: str) -> None:
        """Delete what a kill has left of the files whose successor is the one that this run goes on from."""
        owner._outdated = tuple(path for path in owner._outdated if _is_older(path, resumed))
        self.discard(trainer, owner)

    def settle(self, trainer: Trainer, owner: ModelCheckpoint, on_error: str | None = None) -> None:
        """Wait for the file in the background, and tell what has become of it; ``on_error`` as for ``attempt``."""
        if not self.asynchronous:
            return
        try:
            trainer.wait_for_checkpoint(self)
        except CheckpointError as error:
            owner._saved = (-1, -1)
            self._cope(error, owner, on_error or self.on_error)
        if self._is_new:
            self._is_new = False
            _tell_loggers(trainer, owner)

    @contextmanager
    def last_chance(self, trainer: Trainer, owner: ModelCheckpoint) -> Iterator[bool]:
        """The end of a fit, given whether the last file was not written; raises if it is not written in the end."""
        self.settle(trainer, owner)
        yield self.error is not None
        self.settle(trainer, owner)
        if self.error is not None:
            raise self.error

    def _submit(self, trainer: Trainer, owner: ModelCheckpoint) -> None:
        first, acts, self._first = self._first, self._acts, ""
        self.coming = after = _knowledge(owner)
        vars(owner).update({**self._before, "_saved": after["_saved"]})
        land = functools.partial(self._land, owner, self._landed, after, acts)
        try:
            trainer.save_checkpoint(first, owner.save_weights_only, asynchronous=True, then=land, owner=self)
        finally:
            self.coming = None

    def _land(
        self,
        owner: ModelCheckpoint,
        landed: Mapping[str, Any],
        after: Mapping[str, Any],
        acts: list[Callable[[], Any]],
    ) -> None:
        vars(owner).update(landed)
        self._is_new, self.error = True, None
        for act in acts:  # which may fail, such as the copy to "last"
            act()
        vars(owner).update({**after, "_outdated": owner._outdated})

    def _cope(self, error: CheckpointError, owner: ModelCheckpoint, on_error: str) -> None:
        if on_error == "raise" or error.code not in ("checkpoint-write", "checkpoint-object"):
            raise error
        self.error = error
        rank_zero_warn(
            f"{type(owner).__name__} has not saved: {error.message}. The training goes on and the next save tries "
            "again; if the last one fails too, so does the fit (with on_save_error='raise': at once)",
            code="checkpoint-not-saved",
        )


def _knowledge(owner: ModelCheckpoint) -> dict[str, Any]:
    """What a save changes."""
    names = ("best_model_score", "best_model_path", "current_score", "kth_best_model_path", "kth_value")
    kept = {name: getattr(owner, name) for name in (*names, "last_model_path", "_newest", "_outdated", "_saved")}
    return {**kept, "best_k_models": dict(owner.best_k_models)}


def _is_older(path: str, other: str) -> bool:
    """Whether a file is older than another one; for addresses nobody knows."""
    return by_age((other, path)) == [other, path]


def _remove_unless(path: str, kept: str, strategy: Any) -> None:
    """Delete a file that is there, unless it is ``kept``; one that cannot be deleted ends no training."""
    is_there = not is_own(strategy.storage) or exists(path) or os.path.islink(path)
    if not is_there or absolute(path) == kept:
        return
    try:
        strategy.remove_checkpoint(path)
    except OSError as error:
        rank_zero_warn(f"a checkpoint that is kept no longer was not deleted: {error}", code="checkpoint-not-removed")


def _tell_loggers(trainer: Trainer, owner: ModelCheckpoint) -> None:
    for logger in trainer.loggers if trainer.is_global_zero else ():
        tell = getattr(logger, "after_save_checkpoint", None)
        if tell is not None:
            tell(owner)
