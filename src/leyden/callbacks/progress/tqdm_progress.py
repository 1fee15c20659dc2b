"""``TQDMProgressBar``: the default bar."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from leyden.callbacks.progress.drawing import (
    LateReader,
    build_bar,
    finite,
    is_interactive,
    leave_out,
    restart,
    tqdm_class,
    with_digits,
)
from leyden.callbacks.progress.notebook import NotebookOutput, in_notebook
from leyden.callbacks.progress.progress_bar import ProgressBar
from leyden.errors import InvalidValueError, NotRunningError
from leyden.hooks.dispatch import overrides

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer

#: Seconds between two drawings: faster than an eye follows, and rare enough to cost nothing.
INTERVAL: Final = 0.1
#: Seconds of an epoch whose end is drawn even if something was drawn just before.
LONG: Final = 1.0


def _bar_of(kind: str, text: str) -> Any:
    """A bar that users read and may set; it is there as long as its loop runs, whether anything can be drawn or not."""
    return property(lambda bars: bars._existing(kind), lambda bars, bar: bars._take(kind, bar), doc=text)


class TQDMProgressBar(ProgressBar):
    """The default bar: one row for the epoch, one below it for a validation in it.

    On a terminal and in a notebook it is drawn ten times a second at most, however short steps and epochs are, and
    less often where drawing is slow: a tenth of the time may go into it. Values that live on a GPU are shown one
    drawing late, except at the end of an epoch, so that no step waits for the device. In a file or a pipe it is one
    plain line per epoch; in a notebook it is one output that is written over, for which it needs no widgets.

    A subclass finds the bars under ``train_progress_bar`` and the like, and makes others in ``init_train_tqdm`` and
    the like. Where nothing can be drawn, bars are made for such a subclass alone, and are tqdms that show nothing.

    Args:
        refresh_rate: batches between two drawings; 0 shows nothing. The clock limits all the same.
        process_position: rows to stay below, for several trainings in one terminal.
        leave: whether every epoch leaves its line on the screen; by default the last one does.

    Raises:
        InvalidValueError: a number below 0 (``progress-bar-option``).

    >>> TQDMProgressBar(refresh_rate=0).is_disabled
    True
    """

    #: It decides nothing, but like a monitor it must be called after the module at the end of an epoch: what the module
    #: logs in ``on_train_epoch_end`` is to be shown.
    is_monitor = True

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        super().__init__()
        for option, value in (("refresh_rate", refresh_rate), ("process_position", process_position)):
            if not isinstance(value, int) or value < 0:
                raise InvalidValueError(
                    f"TQDMProgressBar({option}={value!r}): expected an int >= 0", code="progress-bar-option"
                )
        self._refresh_rate = refresh_rate
        self._process_position = process_position
        self._leave = leave
        self._stage = ""
        self._due = math.inf  # when the next drawing may be; never while there is nothing to draw on
        self._train_bar: Any = None
        self._batches = 0  # of this epoch
        self._epoch_started = 0.0
        self._is_drawn = True  # whether the screen shows the end of the epoch
        self._eval_bar: Any = None
        self._output = NotebookOutput()
        self._aside = 0.0  # seconds of this epoch's validations
        self._eval_kind = ""
        self._build_eval: Callable[[], Any] | None = None
        self._eval_batches = 0  # of all loaders
        self._loader = 0
        self._loader_batches = 0
        self._eval_started = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # bars hold streams and locks, and belong to a run; a copy has the settings
        of_a_run = dict.fromkeys(("_train_bar", "_eval_bar", "_build_eval", "_trainer"))
        fresh = {"_reader": LateReader(), "_output": NotebookOutput(), "_due": math.inf, "_stage": ""}
        return {**self.__dict__, **of_a_run, **fresh}

    @property
    def refresh_rate(self) -> int:
        """Batches between two drawings."""
        return self._refresh_rate

    @property
    def process_position(self) -> int:
        """Rows to stay below."""
        return self._process_position

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._is_on and self._refresh_rate > 0

    train_progress_bar = main_progress_bar = _bar_of("train", "The bar of the training, a tqdm.")
    val_progress_bar = _bar_of("val", "The bar of the validation or of the sanity check, a tqdm.")
    test_progress_bar = _bar_of("test", "The bar of the test, a tqdm.")
    predict_progress_bar = _bar_of("predict", "The bar of the prediction, a tqdm.")

    def init_sanity_tqdm(self) -> Any:
        """The bar of the sanity check; override it for another."""
        return self._build(self.sanity_check_description, self.total_val_batches_current_dataloader)

    def init_train_tqdm(self) -> Any:
        """The bar of an epoch of training; override it for another."""
        return self._build(self.epoch_description, self.total_train_batches, leave=True)

    def init_validation_tqdm(self) -> Any:
        """The bar of a validation, below the epoch's in a fit; override it for another."""
        total = self.total_val_batches_current_dataloader
        return self._build(self.validation_description, total, leave=self._train_bar is None)

    def init_test_tqdm(self) -> Any:
        """The bar of a test; override it for another."""
        return self._build(self.test_description, self.total_test_batches_current_dataloader, leave=True)

    def init_predict_tqdm(self) -> Any:
        """The bar of a prediction; override it for another."""
        total = self.total_predict_batches_current_dataloader
        return self._build(self.predict_description, total, leave=True)

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line above the bars."""
        if self._train_bar is None and self._eval_bar is None:
            print(*args, sep=sep, **kwargs)
        else:
            tqdm_class().write(sep.join(map(str, args)), **{"file": sys.stdout, **kwargs})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach to the Trainer; only its first process shows anything."""
        super().setup(trainer, pl_module, stage)
        self._stage, self._train_bar = stage, None

    # -- training ------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new row for the epoch, or the old one anew."""
        self._batches, self._aside = 0, 0.0
        self._epoch_started = time.monotonic()
        if self._leave:
            self._train_bar = None
        if self._train_bar is not None:
            restart(self._train_bar, self.total_train_batches)
            self._train_bar.set_description(self.epoch_description, refresh=False)
        elif self._draws() or self._is_own("init_train_tqdm"):
            self._make_train()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, if the clock says so."""
        self._batches = batch_idx + 1
        if time.monotonic() >= self._due and self._batches % self._refresh_rate == 0:
            self._draw_train(trainer, pl_module, late=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch's final values, unless epochs fly by; a line where nothing can be drawn."""
        if self.is_enabled and (self._train_bar is None or not self._draws()):
            self._write_epoch(trainer, pl_module)
        if self._train_bar is None:
            return
        now = time.monotonic()
        self._is_drawn = self._leave or now >= min(self._due, self._epoch_started + LONG)
        if self._is_drawn:
            self._draw_train(trainer, pl_module, late=False)
        if self._leave:
            self._train_bar.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last row stays, with the final values."""
        if self._train_bar is not None and not self._is_drawn:
            self._draw_train(trainer, pl_module, late=False)
        self._close()

    # -- evaluation ----------------------------------------------------------------------------------------

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row goes, the training's takes its place."""
        self._close_eval()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A row for the validation."""
        self._start_eval("val", "init_sanity_tqdm" if trainer.sanity_checking else "init_validation_tqdm")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if the clock says so."""
        self._after_eval_batch(batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row goes; its values move up to the epoch's."""
        seconds = time.monotonic() - self._eval_started
        self._aside += seconds
        if self._train_bar is None:
            self._end_eval(self.validation_description if self._stage == "validate" else "")
            return
        self._close_eval()
        leave_out(self._train_bar, seconds)
        if time.monotonic() >= self._due:
            self._draw_train(trainer, pl_module, late=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A row for the test."""
        self._start_eval("test", "init_test_tqdm")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if the clock says so."""
        self._after_eval_batch(batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row stays."""
        self._end_eval(self.test_description)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A row for the prediction."""
        self._start_eval("predict", "init_predict_tqdm")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if the clock says so."""
        self._after_eval_batch(batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The row stays."""
        self._end_eval(self.predict_description)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the screen so that the traceback begins on a line of its own."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the screen."""
        self._close()
        self._stage, self._train_bar = "", None

    # -- drawing -------------------------------------------------------------------------------------------

    def _draws(self) -> bool:
        return self.is_enabled and is_interactive(sys.stdout)

    def _is_own(self, name: str) -> bool:
        """Whether a subclass makes a bar itself, which then is there from the start and where nothing can be drawn."""
        return overrides(self, name, (TQDMProgressBar,))

    def _build(self, description: str, total: float, *, leave: bool = False) -> Any:
        row = 2 * self._process_position + (self._train_bar is not None)
        output = self._output if in_notebook() else None
        return build_bar(
            description=description, total=total, position=row, leave=leave, output=output, hidden=not self._draws()
        )

    def _make_train(self) -> None:
        start = time.monotonic()
        self._train_bar = self.init_train_tqdm()  # which draws it
        self._pay(start)

    def _draw_train(self, trainer: Trainer, pl_module: LightningModule, *, late: bool) -> None:
        start = time.monotonic()
        self._reads_late = late
        try:
            self._train_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        finally:
            self._reads_late = False
        self._move(self._train_bar, self._batches, start)

    def _move(self, bar: Any, batches: int, start: float) -> None:
        """Draw ``bar`` at ``batches``, unless it is further."""
        if not bar.update(max(batches - bar.n, 0)):  # it draws if it has moved
            bar.refresh()
        self._pay(start)

    def _pay(self, start: float) -> None:
        """The drawing that began at ``start`` must be paid for before the next."""
        end = time.monotonic()
        self._due = end + max(INTERVAL, 9 * (end - start)) if self.is_enabled else math.inf

    def _start_eval(self, kind: str, init: str) -> None:
        self._close_eval()
        self._eval_kind, self._build_eval = kind, getattr(self, init)
        self._eval_batches = self._loader = self._loader_batches = 0
        self._current_eval_dataloader_idx = 0
        self._eval_started = time.monotonic()
        if self._train_bar is None:
            self._due = 0.0 if self._draws() else math.inf
        if self._eval_started >= self._due or self._is_own(init):
            self._draw_eval()

    def _after_eval_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        self._eval_batches += 1
        if dataloader_idx != self._loader:
            self._loader = self._current_eval_dataloader_idx = dataloader_idx
            if self._eval_bar is not None:
                restart(self._eval_bar, self._look_of_eval()[1])
                self._name_loader()
        self._loader_batches = batch_idx + 1
        if time.monotonic() >= self._due and self._loader_batches % self._refresh_rate == 0:
            self._draw_eval()

    def _draw_eval(self) -> None:
        start = time.monotonic()
        if self._eval_bar is None:
            assert self._build_eval is not None
            self._eval_bar = self._build_eval()  # which draws it
            leave_out(self._eval_bar, self._eval_started - start)  # it began before it could be seen
            self._name_loader()
            if self._loader_batches == 0:
                self._pay(start)
                return
        self._move(self._eval_bar, self._loader_batches, start)

    def _look_of_eval(self) -> tuple[str, int | float, Any]:
        """Description, batches of the current loader, batches of all loaders."""
        trainer = self.trainer
        if self._eval_kind == "test":
            return self.test_description, self.total_test_batches_current_dataloader, trainer.num_test_batches
        if self._eval_kind == "predict":
            batches = trainer.num_predict_batches
            return self.predict_description, self.total_predict_batches_current_dataloader, batches
        description = self.sanity_check_description if trainer.sanity_checking else self.validation_description
        return description, self.total_val_batches_current_dataloader, trainer.num_val_batches

    def _name_loader(self) -> None:
        description, _, batches = self._look_of_eval()
        if isinstance(batches, list | tuple) and len(batches) > 1:
            self._eval_bar.set_description(f"{description} DataLoader {self._loader}", refresh=False)

    def _end_eval(self, description: str) -> None:
        """The end of an evaluation that is no part of a fit; its line begins with ``description``."""
        if self._eval_bar is not None:
            self._move(self._eval_bar, self._loader_batches, time.monotonic())
        if description and self.is_enabled and (self._eval_bar is None or not self._draws()):
            self._write_line(description, self._eval_batches, None, time.monotonic() - self._eval_started)
        self._close_eval()

    def _write_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = "".join(f", {name}={with_digits(v)}" for name, v in self.get_metrics(trainer, pl_module).items())
        total = self.total_train_batches
        self._write_line(
            self.epoch_description, self._batches, total, time.monotonic() - self._epoch_started, values, self._aside
        )

    def _write_line(
        self, description: str, batches: int, total: float | None, seconds: float, values: str = "", aside: float = 0.0
    ) -> None:
        of = "" if finite(total) is None else f"/{finite(total)}"
        speed = f" ({batches / (seconds - aside):.2f} it/s)" if seconds > aside else ""
        print(f"{description}: {batches}{of} in {seconds:.1f} s{speed}{values}", flush=True)

    def _existing(self, kind: str) -> Any:
        """The bar of a loop that runs, made if nobody has needed it yet, at the batch in hand."""
        if kind == "train" and self._train_bar is None and self._stage == "fit":
            self._make_train()
        if kind == self._eval_kind and self._eval_bar is None and self._build_eval is not None:
            self._draw_eval()
        is_eval = kind == self._eval_kind
        bar, batches = (self._eval_bar, self._loader_batches) if is_eval else (self._train_bar, self._batches)
        if bar is None or not (is_eval or kind == "train"):
            raise NotRunningError(f"there is no {kind} bar now: no such loop runs", code="progress-no-bar")
        bar.n = max(bar.n, batches)  # what is drawn lags behind
        return bar

    def _take(self, kind: str, bar: Any) -> None:
        """A bar that a subclass has made and set."""
        if kind == "train":
            self._train_bar = bar
        else:
            self._eval_kind, self._eval_bar = kind, bar

    def _close_eval(self) -> None:
        bar, self._eval_bar, self._build_eval = self._eval_bar, None, None
        if bar is not None:
            bar.close()
        if self._train_bar is None:
            self._due = math.inf

    def _close(self) -> None:
        self._close_eval()
        if self._train_bar is not None:
            self._train_bar.close()
        self._due = math.inf
        self._output = NotebookOutput()  # the next run may be another cell's
