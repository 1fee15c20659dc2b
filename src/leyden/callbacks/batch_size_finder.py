"""``BatchSizeFinder``: the largest batch that fits into the memory."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

from leyden.callback import Callback
from leyden.callbacks.attributes import get_attribute, holders_of, set_attribute
from leyden.errors import InvalidValueError, MisconfigurationException

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer


class BatchSizeFinder(Callback):
    """Tries out batch sizes before a fit, validation, test or prediction, and sets the largest that fits.

    The dataloader method of the module or the datamodule must read the attribute. Everything else that this changes is
    put back: see :meth:`~leyden.trials.Trials.trial`.

    Args:
        mode: "power" doubles as long as it fits (default); "binsearch" then halves the gap to the first that did not.
        steps_per_trial: updates, or batches of an evaluation, that each size must survive.
        init_val: the first size.
        max_trials: sizes to try at most.
        batch_arg_name: name of the attribute, of the module, the datamodule or their ``hparams``.
        margin: part that is taken off what "binsearch" finds, since later batches may need more.
        max_val: the largest size to try.

    Attributes:
        optimal_batch_size: what was found, or None.

    Raises:
        InvalidValueError: a number out of range, or an unknown mode.
        MisconfigurationException: no such attribute, or it does not reach the loader; before any batch.

    >>> BatchSizeFinder(mode="binsearch").optimal_batch_size is None
    True
    """

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        if mode not in ("power", "binsearch"):
            raise InvalidValueError(
                f"BatchSizeFinder(mode={mode!r}) must be 'power' or 'binsearch'", code="batch-size-finder-mode"
            )
        if min(steps_per_trial, init_val, max_trials) < 1 or max_val < init_val or not 0 <= margin < 1:
            raise InvalidValueError(
                f"BatchSizeFinder(steps_per_trial={steps_per_trial}, init_val={init_val}, max_trials={max_trials}, "
                f"margin={margin}, max_val={max_val}): the first three must be >= 1, margin from 0 to 1, max_val >= "
                "init_val",
                code="batch-size-finder-range",
            )
        self._mode = mode
        self._steps_per_trial = steps_per_trial
        self._init_val = init_val
        self._max_trials = max_trials
        self._batch_arg_name = batch_arg_name
        self._margin = margin
        self._max_val = max_val
        self.optimal_batch_size: int | None = None
        self._in_fit = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember whether a fit begins."""
        self._in_fit = stage == "fit"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size for training."""
        self._find_unless_dev_run(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size for ``trainer.validate``; a validation inside of a fit is left alone."""
        if not self._in_fit:
            self._find_unless_dev_run(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size for ``trainer.test``."""
        self._find_unless_dev_run(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size for ``trainer.predict``."""
        self._find_unless_dev_run(trainer, pl_module)

    def _find_unless_dev_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:
            self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the size and set it."""
        name = self._batch_arg_name
        if not holders_of(trainer, pl_module, name):
            raise MisconfigurationException(
                f"BatchSizeFinder sets {name!r}, but {type(pl_module).__qualname__}, the datamodule and their hparams "
                "do not have it: make it an attribute that the dataloader method reads, or name another by "
                "batch_arg_name=...",
                code="batch-size-finder-attribute",
            )
        before = get_attribute(trainer, pl_module, name)
        try:
            found = self._search(trainer, pl_module)
        except BaseException:
            set_attribute(trainer, pl_module, name, before)
            raise
        self.optimal_batch_size = found
        self._load(trainer, pl_module, found)
        pl_module.print(f"BatchSizeFinder: the batch size is {found} from now on")

    def _search(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """The largest size known to fit when the trials are over."""
        best, bad, size = 0, 0, self._init_val
        for _ in range(self._max_trials):
            length = self._load(trainer, pl_module, size)
            if self._fits(trainer):
                best = size
                is_all = size >= length or size >= self._max_val
            else:
                bad, is_all = size, False
            if is_all or (bad and self._mode == "power" and best) or bad - best == 1:
                break
            size = best * 2 if not bad else (best + bad) // 2 if best else bad // 2
            size = min(size, self._max_val)
        if not best:
            raise MisconfigurationException(
                f"BatchSizeFinder found no batch size that fits: the smallest tried was {bad}. Begin with a smaller "
                "init_val, or free memory",
                code="batch-size-finder-none",
            )
        return max(int(best * (1 - self._margin)), 1) if self._mode == "binsearch" else best

    def _load(self, trainer: Trainer, pl_module: LightningModule, size: int) -> float:
        """Make loaders of this batch size; returns how many samples the largest dataset has, inf if unknown."""
        set_attribute(trainer, pl_module, self._batch_arg_name, size)
        loaders = trainer.reload_dataloaders()
        sizes: set[Any] = {getattr(loader, "batch_size", None) for loader in loaders} - {None}
        if sizes and size not in sizes:
            raise MisconfigurationException(
                f"{self._batch_arg_name} was set to {size}, but the loader has batches of {sorted(sizes)}: a loader "
                "that was passed to the Trainer cannot change. Define it as a method that reads the attribute",
                code="batch-size-finder-loader",
            )
        return max((_length(loader) for loader in loaders), default=float("inf"))

    def _fits(self, trainer: Trainer) -> bool:
        try:
            trainer.trial(self._steps_per_trial)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors that were too large
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return False
        return True


def _length(loader: Any) -> float:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return float("inf")


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text  # torch's CPU allocator
        or "CUDNN_STATUS_NOT_SUPPORTED" in text  # cuDNN's way to say that a batch is too large
    )
