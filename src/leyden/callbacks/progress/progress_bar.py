"""``ProgressBar``: what a bar has to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leyden.callback import Callback
from leyden.callbacks.progress.drawing import LateReader
from leyden.errors import OrderError

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class ProgressBar(Callback):
    """Base of progress bars: says what there is to show and leaves the drawing to its subclasses.

    >>> class Dots(ProgressBar):
    ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
    ...         print(".", end="")
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._is_on = True
        self._reads_late = False
        self._reader = LateReader()
        self._current_eval_dataloader_idx: int | None = None

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs.

        Raises:
            OrderError: none runs (``progress-no-trainer``).
        """
        if self._trainer is None:
            raise OrderError(
                f"{type(self).__name__} is not attached to a Trainer; pass it to Trainer(callbacks=[...])",
                code="progress-no-trainer",
            )
        return self._trainer

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown."""
        return self._is_on

    @property
    def is_disabled(self) -> bool:
        """The opposite of ``is_enabled``."""
        return not self.is_enabled

    def enable(self) -> None:
        """Show progress."""
        self._is_on = True

    def disable(self) -> None:
        """Show nothing; so it is on every process but the first."""
        self._is_on = False

    @property
    def sanity_check_description(self) -> str:
        """Text in front of the sanity check's bar."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """Text in front of the training's bar, without the number of the epoch."""
        return "Training"

    @property
    def epoch_description(self) -> str:
        """Text in front of an epoch's bar: its index, and the fit's limits that are not counted in epochs or steps."""
        limits = " or ".join(map(str, self.trainer.fit_loop.limits.most.values()))
        return f"Epoch {self.trainer.current_epoch}" + (f" (limit: {limits})" if limits else "")

    @property
    def validation_description(self) -> str:
        """Text in front of a validation's bar."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """Text in front of a test's bar."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """Text in front of a prediction's bar."""
        return "Predicting"

    @property
    def total_train_batches(self) -> int | float:
        """Batches of an epoch; inf if unknown."""
        return self.trainer.num_training_batches

    @property
    def train_batch_idx(self) -> int:
        """Training batches of this epoch that are done, by the name of 1.x."""
        return self.trainer.fit_loop.done

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Validation or sanity check batches of the loader that runs; inf if unknown."""
        return self._of_current_loader(self.trainer.num_val_batches)

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Test batches of the loader that runs; inf if unknown."""
        return self._of_current_loader(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Prediction batches of the loader that runs; inf if unknown."""
        return self._of_current_loader(self.trainer.num_predict_batches)

    @property
    def total_val_batches(self) -> int | float:
        """Batches of one validation over all its loaders."""
        return sum(self.trainer.num_val_batches)

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether an evaluation has gone on to another loader since the last call."""
        changed = self._current_eval_dataloader_idx != dataloader_idx
        self._current_eval_dataloader_idx = dataloader_idx
        return changed

    def reset_dataloader_idx_tracker(self) -> None:
        """Let the next loader count as changed."""
        self._current_eval_dataloader_idx = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line that does not tear the bar."""
        print(*args, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach to the Trainer; only its first process shows anything."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar: the logger's version and what was logged with ``prog_bar=True``.

        Override it to show other things::

            def get_metrics(self, trainer, pl_module):
                items = super().get_metrics(trainer, pl_module)
                items.pop("v_num", None)
                return items
        """
        metrics: dict[str, int | str | float | dict[str, float]] = {}
        of_1x: Any = getattr(pl_module, "get_progress_bar_dict", None)
        metrics.update(run_number(trainer.loggers) if of_1x is None else of_1x())
        if self._reads_late:
            metrics.update(self._reader.read(trainer.progress_bar_tensors))
        else:
            metrics.update(trainer.progress_bar_metrics)
        return metrics

    def _of_current_loader(self, batches: Any) -> int | float:
        if not isinstance(batches, list | tuple):
            number: int | float = batches
            return number
        index = self._current_eval_dataloader_idx or 0
        return batches[index] if index < len(batches) else 0


def run_number(loggers: Any) -> dict[str, int | str]:
    """The run's number at the first logger as ``v_num``, its last four characters if it is a long name."""
    version = getattr(loggers[0], "version", None) if loggers else None
    if version in (None, ""):
        return {}
    return {"v_num": version[-4:] if isinstance(version, str) else version}
