"""``ModelCheckpoint``: when a fit saves, under which name, and which files it keeps."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.callbacks.checkpoint import Checkpoint, default_folder, position, rehearse_fit, save_despite, warn_of_others
from leyden.callbacks.checkpoint_arguments import FIELD, check_arguments, resolve_intervals, with_former
from leyden.callbacks.monitored import logged, tell_missing, tell_waited, validation_ends_epochs, validation_follows
from leyden.callbacks.saving import Saves
from leyden.checkpoint.places import absolute, exists
from leyden.loggers.parameters import write_yaml
from leyden.rank import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from datetime import timedelta

    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class ModelCheckpoint(Checkpoint):
    """Saves checkpoints while a fit runs, and keeps the best.

    A save happens at the end of an epoch, or after a validation where validations come at other times, or on a clock:
    ``every_n_train_steps``, ``train_time_interval``, ``every``. Clocks are read when an optimizer has stepped, never
    inside of an accumulation window; one that jumps over its mark (two optimizers raise ``trainer.global_step`` by two)
    is due when the mark is passed. A save that is due on a batch which a validation follows waits for its values.

    Args:
        dirpath: folder of the files. None takes ``checkpoints`` in the folder of the first logger's run, or in
            ``default_root_dir`` without a logger.
        filename: template of the names without extension, such as "{epoch}-{val_loss:.2f}". None means
            "{epoch}-{step}"; the step is ``trainer.global_step``.
        monitor: name of the value in ``trainer.callback_metrics`` that says which files are best. None keeps the last.
        verbose: whether the log tells of every save.
        save_last: True saves a second file, "last", with every save; "link" makes it a symbolic link.
        save_top_k: so many of the best are kept; -1 keeps all, 0 saves none (but "last").
        save_on_exception: whether an exception saves what was trained before it.
        save_weights_only: whether optimizers, schedulers and callbacks are left out.
        mode: "min" if smaller is better, "max" if greater is.
        auto_insert_metric_name: whether "{epoch}" becomes "epoch=3" or just "3", e.g. because names have a "/".
        every_n_train_steps: ``trainer.global_step`` between saves; None and 0 switch this off.
        train_time_interval: time of the fit between saves: a timedelta, "30 min", "DD:HH:MM:SS".
        every_n_epochs: epochs between saves; 1 if nothing else says when to save, 0 saves at no epoch's end.
        save_on_train_epoch_end: True saves at the end of training epochs, False after validations. None (default) is
            True where a validation ends every epoch, so that the values of both are there. Without a validation the
            end of an epoch is taken in any case.
        enable_version_counter: whether a file that is there is left alone, and the new one named "...-v1".
        every: time between saves on any clock: "500 updates", "2 epochs", "30 min", "1e6 samples".
        asynchronous: True writes files in the background, from a copy of the state in memory that is as large as a
            file. The attributes below tell of a file when it is durable; the end of the fit waits for that.
        on_save_error: what follows if a file cannot be written: the disk is full, or a hook adds what is no data.
            "warn" (default) goes on training and tries again with the next save; the fit fails at its end if the last
            one is not written then either. "raise" ends the fit at once. Older files stay in any case.
        **former: arguments of 1.x.

    Attributes:
        best_model_path: path of the best file, or without ``monitor`` of the last.
        best_model_score: its value, a tensor of shape ``()`` on the CPU.
        best_k_models: the paths that are kept, with their values.
        kth_best_model_path: the worst of them, once there are ``save_top_k``.
        kth_value: its value.
        last_model_path: path of "last".
        current_score: value of the last file that was kept.
        dirpath: the folder; known from ``setup`` on.
        filename: the template.

    Raises:
        InvalidValueError: ``mode`` (``checkpoint-mode``), ``save_last`` (``checkpoint-save-last``), ``save_top_k``
            (``checkpoint-save-top-k``), an interval (``checkpoint-every``, ``duration``) or a template
            (``checkpoint-filename``) that cannot be; several intervals (``checkpoint-triggers``). When a fit starts:
            a folder that takes no files, or has no room for one (``checkpoint-folder``).
        MisconfigurationException: at the first check, a ``monitor`` that was not logged (``checkpoint-monitor``).
        CheckpointError: a file that cannot be written (``checkpoint-write``), or holds what is no data; of
            hyper-parameters and callbacks' states that shows when a fit starts (``checkpoint-object``).

    >>> checkpoint = ModelCheckpoint("runs", "{epoch:02d}-{val_loss:.2f}", monitor="val_loss", save_top_k=3)
    >>> checkpoint.format_checkpoint_name({"epoch": 3, "val_loss": 0.123}).removeprefix(checkpoint.dirpath)
    '/epoch=03-val_loss=0.12.ckpt'
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | str | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | Mapping[str, float] | str | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        *,
        every: str | timedelta | Mapping[str, float] | None = None,
        asynchronous: bool = False,
        on_save_error: str = "warn",
        **former: Any,
    ) -> None:
        today = with_former(former, (dirpath, filename, save_top_k, every_n_epochs))
        dirpath, filename, save_top_k, every_n_epochs = today
        check_arguments(
            **{"dirpath": dirpath, "filename": filename, "monitor": monitor, "mode": mode},
            **{"save_last": save_last, "save_top_k": save_top_k, "on_save_error": on_save_error},
        )
        given = {"steps": every_n_train_steps, "epochs": every_n_epochs, "time": train_time_interval}
        intervals = resolve_intervals(**given, every=every)
        self.dirpath = None if dirpath is None else absolute(dirpath)
        self.filename, self.auto_insert_metric_name = filename, auto_insert_metric_name
        self.monitor, self.mode, self.verbose = monitor, mode, verbose
        self.save_last, self.save_top_k = save_last, save_top_k
        self.save_on_exception, self.save_weights_only = save_on_exception, save_weights_only
        self.best_model_path = self.kth_best_model_path = self.last_model_path = ""
        self.best_model_score: Tensor | None = None
        self.current_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_value = torch.tensor(torch.inf if mode == "min" else -torch.inf)
        self._every_n_train_steps, self._every_n_epochs, self._train_time_interval, self._clock = intervals
        self._asked = save_on_train_epoch_end
        self._counts_versions = enable_version_counter
        self._saves = Saves(asynchronous=asynchronous, on_error=on_save_error)
        self._active = False  # in a fit that saves
        self._waits = False  # a save is due, but what it is judged by is not there yet
        self._has_validated = False
        self._resumed = ""  # the file that the fit goes on from, if the user has named it: it is kept
        self._newest = ""  # written last, under a name of its own or as "last"
        self._outdated: tuple[str, ...] = ()  # what goes when the file that is written now is durable
        self._seen: tuple[int, int] | None = None  # how far training was when the clock was read last
        self._saved: tuple[int, int] | None = None  # ... and when something was saved last

    @property
    def every_n_epochs(self) -> int:
        """Epochs between saves; 0 if they are not what counts."""
        return self._every_n_epochs

    @property
    def state_key(self) -> str:
        """The class, what is watched, and when it is saved; Lightning's, unless ``every`` names a clock of its own."""
        key: dict[str, Any] = {"monitor": self.monitor, "mode": self.mode}
        key.update(every_n_train_steps=self._every_n_train_steps, every_n_epochs=self._every_n_epochs)
        key["train_time_interval"] = self._train_time_interval
        if self._clock is not None and self._clock.duration.clock not in ("steps", "seconds"):
            key["every"] = str(self._clock.duration)
        return f"{type(self).__qualname__}{key!r}"

    # -- when -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        self._active = stage == "fit" and not trainer.fast_dev_run
        self._saves.begin(trainer.strategy.storage)
        self.dirpath = self.dirpath or trainer.strategy.broadcast(default_folder(trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder and write to it, so that what keeps files from being written shows before the first step."""
        writes = self.save_top_k != 0 or self.save_last or self.save_on_exception
        if self._active and writes and trainer.is_global_zero:
            rehearse_fit(self, str(self.dirpath), trainer, weights_only=self.save_weights_only)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        if self._active and trainer.is_global_zero and not self._newest and trainer.ckpt_path is None:
            warn_of_others(self.dirpath or "", self.save_top_k, are_versioned=self._counts_versions)
        resumed = absolute(str(trainer.ckpt_path or ""))
        self._resumed = "" if trainer.resumes_last else resumed
        self._seen, self._saved = position(trainer), (0, 0)  # there is nothing to save before the first step
        self._waits, self._has_validated, self._newest = False, False, ""
        self._saves.catch_up(trainer, self, resumed)
        if self._clock is not None:
            self._clock.start(trainer.clocks)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the clock says so, and an optimizer has stepped."""
        if self._clock is None or not self._active:
            return
        here = position(trainer)
        if here == self._seen:
            return
        self._seen = here
        is_due = self._clock.is_due(trainer.clocks)
        if self._clock.duration.clock == "seconds":
            is_due = trainer.strategy.broadcast(is_due)  # the first process's time is everybody's
        if not is_due:
            return
        metrics = logged(trainer)
        if self.monitor is not None and (self.monitor not in metrics or validation_follows(trainer)):
            self._waits = True
        else:
            self._save(trainer, metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what has waited for this validation, or, where validations are what counts, because of it."""
        if self._active and not trainer.sanity_checking:
            self._has_validated = True
            if not self._saves_at_epoch_ends(trainer):
                self._end(trainer)
            elif self._waits and self.monitor in trainer.callback_metrics:
                self._save(trainer, logged(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what has waited for the epoch's values, and, where epochs are what counts, because of it."""
        if self._active and self._saves_at_epoch_ends(trainer):
            self._end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save "last" if nothing was saved, and say so if a save has waited in vain."""
        if not self._active:
            return
        metrics = logged(trainer)
        with self._saves.last_chance(trainer, self) as has_failed:
            if has_failed:
                self._save(trainer, metrics)
            elif self.save_last and not self._newest:
                with self._saves.attempt(trainer, self):
                    self._save_last(trainer, metrics)
        if self._waits and trainer.enable_validation:  # else it has been said
            tell_waited(self, str(self.monitor), trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what was trained, if asked for; the exception goes on its way, also if that fails."""
        self._saves.settle(trainer, self, on_error="warn")
        has_news = self._saved is not None and self._saved != position(trainer)
        if self.save_on_exception and self._active and has_news and not trainer.sanity_checking:
            save_despite(exception, self, functools.partial(self._save_rest, trainer))

    def _saves_at_epoch_ends(self, trainer: Trainer) -> bool:
        if not trainer.enable_validation:
            return True
        return validation_ends_epochs(trainer) if self._asked is None else self._asked

    def _end(self, trainer: Trainer) -> None:
        """A validation or an epoch, whichever counts, has ended."""
        if self._saved == position(trainer):
            return
        metrics, is_missing = logged(trainer), False
        is_due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if (self._waits or is_due) and self.monitor is not None and self.save_top_k != 0:
            is_missing = self.monitor not in metrics
        if is_missing:
            first, validated = not self._waits, self._has_validated
            tell_missing(self, str(self.monitor), trainer, has_validated=validated, is_first=first)
            self._waits = True  # for the first validation
        elif self._waits or is_due:
            return self._save(trainer, metrics, always_last=self._waits)
        only_last = not trainer.enable_validation if is_missing else self.save_last == "link" and self._newest
        if only_last:
            with self._saves.attempt(trainer, self):
                self._save_last(trainer, metrics)

    # -- what -----------------------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer, metrics: dict[str, Tensor], *, always_last: bool = True) -> None:
        """Save if it is among the best, and "last" with it; what is replaced goes when the new file is there."""
        self._saves.settle(trainer, self)
        here, self._waits = position(trainer), False
        if self._saved == here:
            return
        with self._saves.attempt(trainer, self):
            self._save_files(trainer, metrics, here, always_last)
        if self._clock is not None:
            self._clock.done(trainer.clocks)

    def _save_files(self, trainer: Trainer, metrics: dict[str, Tensor], here: Any, always_last: bool) -> None:
        if self.save_top_k != 0 and self.save_last and not self.last_model_path:
            # Now: a run that goes on from this very file has to know that "last" is its own.
            self.last_model_path = self._path(trainer, metrics, self.CHECKPOINT_NAME_LAST)
        if self.save_top_k != 0:
            self._save_best(trainer, metrics)
        if self.save_last != "link":  # which must not point to nothing meanwhile
            self._saves.discard(trainer, self)
        if always_last or self._saved == here or (self.save_last == "link" and self._newest):
            self._save_last(trainer, metrics)
        self._saves.discard(trainer, self)

    def _save_best(self, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
        """Save if it is among the best."""
        if self.monitor is None:
            path = self._path(trainer, metrics, self.filename, own=self.best_model_path)
            outdated, self.best_model_path = self.best_model_path, path  # before saving: it is part of the state
            self._save_checkpoint(trainer, path, instead_of=outdated if self.save_top_k == 1 else "")
            return
        current = metrics[self.monitor].detach().cpu().clone()
        if self.check_monitor_top_k(trainer, current):
            self._save_among_best(trainer, metrics, current)
        elif self.verbose:
            rank_zero_info(f"{_place(metrics)}: {self.monitor} = {current:g} is not among the best {self.save_top_k}")

    def _save_among_best(self, trainer: Trainer, metrics: dict[str, Tensor], current: Tensor) -> None:
        best, outdated = self.best_k_models, ""
        if -1 < self.save_top_k <= len(best):
            outdated = self.kth_best_model_path
            best.pop(outdated, None)
        if torch.isnan(current):
            current = torch.full_like(current, torch.inf if self.mode == "min" else -torch.inf)
        path = self._path(trainer, metrics, self.filename, own=outdated)
        self.current_score = best[path] = current
        first, last = (min, max) if self.mode == "min" else (max, min)
        if self.save_top_k == -1 or len(best) >= self.save_top_k:
            self.kth_best_model_path = last(best, key=best.__getitem__)
            self.kth_value = best[self.kth_best_model_path]
        self.best_model_path = first(best, key=best.__getitem__)
        self.best_model_score = best[self.best_model_path]
        if self.verbose:
            score = f"{self.monitor} = {current:g} (best {self.best_model_score:g})"
            rank_zero_info(f"{_place(metrics)}: {score} is saved to {path!r}")
        self._save_checkpoint(trainer, path, instead_of=outdated)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the value ``current`` of ``monitor`` is among the best; the same in all processes."""
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        worst = self.best_k_models[self.kth_best_model_path]
        is_better = bool(current < worst if self.mode == "min" else current > worst)
        return bool(trainer.strategy.broadcast(is_better))

    def _save_last(self, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
        if not self.save_last:
            return
        path = self._path(trainer, metrics, self.CHECKPOINT_NAME_LAST, own=self.last_model_path)
        outdated, self.last_model_path = self.last_model_path, path
        if self.save_last == "link" and self._newest and self.save_top_k != 0:
            self._saves.link(trainer, self._newest, path)
            self._outdated += (outdated,) if outdated != path else ()
        else:
            self._save_checkpoint(trainer, path, instead_of=outdated)
        self._saves.discard(trainer, self)

    def _save_rest(self, trainer: Trainer) -> None:
        """What was trained since the last save, under a name of its own."""
        metrics = logged(trainer)
        path = self._path(trainer, metrics, self.filename)
        with self._saves.attempt(trainer, self, on_error="raise"):
            self._save_checkpoint(trainer, path)
            self._save_last(trainer, metrics)
        self._saves.settle(trainer, self, on_error="raise")
        rank_zero_info(f"what was trained before the exception is saved to {path!r}")

    def _save_checkpoint(self, trainer: Trainer, filepath: str, *, instead_of: str = "") -> None:
        """Write a file; what it says about this callback includes which file it takes the place of."""
        self._outdated += (instead_of,) if instead_of not in ("", filepath) else ()
        self._newest, self._saved = filepath, position(trainer)
        self._saves.save(trainer, self, filepath)

    def format_checkpoint_name(
        self, metrics: Mapping[str, Any], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """The path for some values.

        Args:
            metrics: the values; one that the template names and that is missing is 0.
            filename: another template than the callback's.
            ver: number of the version, behind the name; None for none.
            prefix: stands before the name.

        >>> ModelCheckpoint(filename="{step}-{val/acc:.1f}").format_checkpoint_name({"step": 4, "val/acc": 0.75}, ver=2)
        'step=4-val/acc=0.8-v2.ckpt'
        """

        def fill(field: re.Match[str]) -> str:
            start = f"{field[1]}{self.CHECKPOINT_EQUALS_CHAR}" if self.auto_insert_metric_name else ""
            return f"{start}{metrics.get(field[1], 0):{field[2] or ''}}"

        default = f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"
        name = FIELD.sub(fill, filename or self.filename or default)
        parts = [*([prefix] if prefix is not None else []), name, *([f"v{ver}"] if ver is not None else [])]
        return os.path.join(self.dirpath or "", self.CHECKPOINT_JOIN_CHAR.join(parts) + self.FILE_EXTENSION)

    def _path(self, trainer: Trainer, metrics: dict[str, Tensor], template: str | None, own: str = "") -> str:
        """The path for the values, with a version if another file than ``own`` is there."""
        missing = [field[1] for field in FIELD.finditer(template or "") if field[1] not in metrics]
        if missing:
            rank_zero_warn(
                f"ModelCheckpoint(filename={template!r}): {', '.join(missing)} was not logged and is 0 in the name. "
                f"Logged were: {', '.join(sorted(metrics))}",
                code="checkpoint-filename",
            )
        path, version = self.format_checkpoint_name(metrics, template), self.STARTING_VERSION
        while self._counts_versions and path != own and self.file_exists(path, trainer):
            path = self.format_checkpoint_name(metrics, template, version)
            version += 1
        return path

    def file_exists(self, filepath: str | os.PathLike[str], trainer: Trainer) -> bool:
        """Whether the first process sees a file there; the same in all processes."""
        return bool(trainer.strategy.broadcast(exists(filepath)))

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write the paths that are kept with their values to a YAML file; None writes ``best_k_models.yaml``."""
        path = os.path.join(self.dirpath or "", "best_k_models.yaml") if filepath is None else os.fspath(filepath)
        write_yaml(path, self.best_k_models)

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and how good it is."""
        names = ("monitor", "best_model_score", "best_model_path", "current_score", "dirpath")
        more = ("best_k_models", "kth_best_model_path", "kth_value", "last_model_path")
        values = {**vars(self), **(self._saves.coming or {})}
        outdated = {"outdated": list(values["_outdated"])} if values["_outdated"] else {}
        return {name: values[name] for name in (*names, *more)} | outdated

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the files of ``state_dict``; in another folder only with the path of the best."""
        folder = state_dict.get("dirpath", self.dirpath)
        if folder == self.dirpath:
            self.best_model_score = state_dict["best_model_score"]
            for name in ("current_score", "kth_best_model_path", "kth_value", "best_k_models", "last_model_path"):
                setattr(self, name, state_dict.get(name, getattr(self, name)))
            self._outdated = tuple(state_dict.get("outdated", ()))
        else:
            rank_zero_warn(
                f"ModelCheckpoint saved to {folder!r} and saves to {self.dirpath!r} now: the files there are left "
                "alone, and new ones are not compared with them; best_model_path names the best of them until then",
                code="checkpoint-dirpath",
            )
        self.best_model_path = state_dict["best_model_path"]


def _place(metrics: Mapping[str, Tensor]) -> str:
    return f"epoch {metrics['epoch']:d}, step {metrics['step']:d}"
