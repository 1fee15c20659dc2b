"""``Trainer``: arguments, and the runs ``fit``, ``validate``, ``test``, ``predict``."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from leyden.callback import Callback
from leyden.datamodule import LightningDataModule
from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.fits import Fits
from leyden.hooks.dispatch import RunState
from leyden.loops.cadence import Limits
from leyden.loops.evaluate import EvaluationLoop
from leyden.loops.fit import FitLoop
from leyden.loops.predict import PredictLoop
from leyden.module import LightningModule
from leyden.optimization.clocks import Clocks
from leyden.optimization.optimizer import LightningOptimizer
from leyden.optimization.plan import Plan
from leyden.optimization.toggling import Toggler
from leyden.resolve import (
    check_cadences,
    refuse_what_is_not_yet,
    resolve_accumulation,
    resolve_batch_limit,
    resolve_callbacks,
    resolve_fast_dev_run,
    resolve_grad_norm,
    resolve_limits,
    resolve_loggers,
    resolve_precision,
    warn_of_what_is_not_yet,
    writers_last,
)
from leyden.results.views import Views
from leyden.strategies import Strategy, build_strategy, resolve_device


class Trainer(Fits):
    """Runs a ``LightningModule``: training, validation, test, prediction.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda" or "mps"; "auto" takes what is there.
        strategy: "auto" or a ``Strategy``.
        devices: "auto", a number, or a list of indices; this version runs on one device.
        num_nodes: number of machines; this version runs on one.
        precision: "32-true" (default), "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", or 1.x spellings.
        logger: a logger or a list; True takes TensorBoard's if that is installed, else a CSV file. None and False log
            nowhere.
        callbacks: a callback or a list.
        fast_dev_run: run this many batches (True: 1) of everything, once, to find mistakes; False or 0 runs in earnest.
        max_epochs: epochs at most; -1 for no limit. None means 1,000 unless another maximum is given.
        min_epochs: epochs before ``should_stop`` is heeded.
        max_steps: optimizer steps at most, over all optimizers; -1 or None for no limit.
        min_steps: optimizer steps before ``should_stop`` is heeded.
        max_time: wall time at most: a timedelta, a mapping of its arguments, or "DD:HH:MM:SS".
        limit_train_batches: batches of an epoch at most (int), or the part of them (float). None means all.
        limit_val_batches: likewise for each validation loader.
        limit_test_batches: likewise for each test loader.
        limit_predict_batches: likewise for each loader to predict for.
        overfit_batches: use this many batches (or this part) of training and validation data, unshuffled; 0 uses all.
        val_check_interval: validate every so many batches (int) or every such part of an epoch (float up to 1.0); None
            validates at the epoch's end.
        check_val_every_n_epoch: validate every so many epochs, >= 1; None counts batches across epochs.
        num_sanity_val_steps: validation batches that a fit begins with; -1 for all. None means 2.
        log_every_n_steps: windows between two rows of the loggers; 0 writes no rows for steps. None means 50.
        enable_checkpointing: True warns, since this version writes no checkpoints.
        enable_progress_bar: whether to show a progress bar.
        enable_model_summary: True warns, since this version prints no summary.
        accumulate_grad_batches: micro-batches of one update: an int, or a schedule ``{epoch: int}``.
        gradient_clip_val: greatest norm (or value) of an optimizer's gradients; None clips nothing.
        gradient_clip_algorithm: "norm" (default) or "value".
        deterministic: True or "warn" asks torch for deterministic algorithms.
        benchmark: whether cuDNN tries out algorithms; None leaves torch's setting alone.
        inference_mode: whether ``validate``, ``test`` and ``predict`` run under ``torch.inference_mode``.
        use_distributed_sampler: accepted; there is nothing to distribute in this version.
        profiler: not available in this version.
        detect_anomaly: whether autograd looks for the operation that made a nan.
        barebones: not available in this version.
        plugins: a precision, e.g. ``MixedPrecision("16-mixed", "cpu", scaler)``.
        sync_batchnorm: not available in this version.
        reload_dataloaders_every_n_epochs: epochs between two calls of the dataloader hooks; 0 calls them once.
        default_root_dir: folder for what callbacks and loggers write; None means the current one.
        enable_autolog_hparams: whether ``save_hyperparameters`` values go to the loggers at the start.
        model_registry: not available in this version.
        track_grad_norm: logs the norm of each optimizer's gradients before clipping: the norm's order, a number > 0 or
            "inf"; None (or -1, as in 1.x) logs none.

    Raises:
        MisconfigurationException: an argument that cannot work, by name.

    >>> trainer = Trainer(max_epochs=3, accumulate_grad_batches=4, gradient_clip_val=1.0)
    >>> trainer.max_epochs
    3
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | Sequence[int] = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        logger: Any = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int | None = -1,
        min_steps: int | None = None,
        max_time: Any = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool = True,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int | Mapping[int, int] | None = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Any = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        track_grad_norm: float | str | None = None,
    ) -> None:
        refuse_what_is_not_yet(
            {
                "profiler": profiler,
                "barebones": barebones,
                "sync_batchnorm": sync_batchnorm,
                "model_registry": model_registry,
            }
        )
        warn_of_what_is_not_yet(enable_checkpointing=enable_checkpointing, enable_model_summary=enable_model_summary)
        check_cadences(
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            log_every_n_steps=log_every_n_steps,
            reload_dataloaders_every_n_epochs=reload_dataloaders_every_n_epochs,
        )
        self._state = RunState()
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accelerator, self._devices = resolve_device(accelerator, devices)
        self.strategy = build_strategy(strategy, self._devices, num_nodes=num_nodes)
        self.num_nodes = num_nodes
        self._precision = resolve_precision(precision, plugins, device_type=self.strategy.root_device.type)

        self.fast_dev_run = resolve_fast_dev_run(fast_dev_run)
        if self.fast_dev_run:
            most = self.fast_dev_run
            # max_steps: the limit of batches ends the run, however many optimizers step in each
            max_epochs, max_steps, num_sanity_val_steps, val_check_interval = 1, -1, 0, 1.0
            limit_train_batches = limit_val_batches = limit_test_batches = limit_predict_batches = most
            check_val_every_n_epoch, logger, log_every_n_steps = 1, None, 1
        self.limit_train_batches = resolve_batch_limit("limit_train_batches", limit_train_batches)
        self.limit_val_batches = resolve_batch_limit("limit_val_batches", limit_val_batches)
        self.limit_test_batches = resolve_batch_limit("limit_test_batches", limit_test_batches)
        self.limit_predict_batches = resolve_batch_limit("limit_predict_batches", limit_predict_batches)
        self.overfit_batches = resolve_batch_limit("overfit_batches", overfit_batches)
        self.val_check_interval = val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = 2 if num_sanity_val_steps is None else num_sanity_val_steps
        self.log_every_n_steps = 50 if log_every_n_steps is None else log_every_n_steps
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.inference_mode = inference_mode
        self.default_root_dir = os.fspath(default_root_dir or os.getcwd())
        self.track_grad_norm = resolve_grad_norm(track_grad_norm)
        self._detect_anomaly = detect_anomaly
        self._autolog_hparams = enable_autolog_hparams
        _set_backends(deterministic, benchmark)

        limits = resolve_limits(
            max_epochs=max_epochs, min_epochs=min_epochs, max_steps=max_steps, min_steps=min_steps, max_time=max_time
        )
        self._accumulation = accumulate_grad_batches
        self.accumulate_grad_batches, schedule = resolve_accumulation(accumulate_grad_batches)
        self.loggers = resolve_loggers(logger, default_root_dir=self.default_root_dir)
        self.callbacks = resolve_callbacks(callbacks, enable_progress_bar=enable_progress_bar)
        if schedule is not None:
            self.callbacks = writers_last([*self.callbacks, schedule])

        self._begin(limits)

    def _begin(self, limits: Limits) -> None:
        """The state of a Trainer that has not run anything."""
        self.clocks = Clocks()
        self.fit_loop = FitLoop(limits, self.clocks)
        self.validate_loop, self.test_loop, self.predict_loop = EvaluationLoop(), EvaluationLoop(), PredictLoop()
        self.interrupted = False
        self.datamodule: LightningDataModule | None = None
        self._views = Views()
        self._module: LightningModule | None = None
        self._plan: Plan | None = None
        self._handles: list[LightningOptimizer] = []
        self._toggler = Toggler([])
        self._optimization: Any = None
        self._eval_rows: dict[str, int] = {}
        for name in ("on_init_start", "on_init_end"):
            for callback in self.callbacks:
                if callable(getattr(callback, name, None)):
                    getattr(callback, name)(self)

    # -- runs -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        *,
        train_dataloader: Any = None,
    ) -> None:
        """Train a module.

        Args:
            model: the module.
            train_dataloaders: yields training batches: a loader, any iterable, or a list of batches. None asks the
                datamodule, then the module.
            val_dataloaders: one or a list of such; likewise.
            datamodule: may also stand in the place of ``train_dataloaders``.
            ckpt_path: not available in this version.
            train_dataloader: the 1.x spelling of ``train_dataloaders``.

        Raises:
            MisconfigurationException: what cannot work, before the first step where it can be known.
        """
        train = train_dataloaders if train_dataloaders is not None else train_dataloader
        train, datamodule = _split(train, datamodule)
        body = functools.partial(self._fit, train=train, val=val_dataloaders)
        self._run("fit", model, datamodule, body, ckpt_path)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        *,
        val_dataloaders: Any = None,
    ) -> list[dict[str, float]]:
        """Validate a module (the last one by default); returns what was logged, a dict for each loader."""
        given, datamodule = _split(dataloaders if dataloaders is not None else val_dataloaders, datamodule)
        body = functools.partial(self._evaluate, stage="validate", given=given, verbose=verbose)
        return self._run("validate", self._chosen(model), datamodule, body, ckpt_path)  # type: ignore[no-any-return]

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        *,
        test_dataloaders: Any = None,
    ) -> list[dict[str, float]]:
        """Test a module (the last one by default); returns what was logged, a dict for each loader."""
        given, datamodule = _split(dataloaders if dataloaders is not None else test_dataloaders, datamodule)
        body = functools.partial(self._evaluate, stage="test", given=given, verbose=verbose)
        return self._run("test", self._chosen(model), datamodule, body, ckpt_path)  # type: ignore[no-any-return]

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> list[Any] | None:
        """Predict for all batches; a list of what ``predict_step`` returned, or a list of lists for several loaders."""
        dataloaders, datamodule = _split(dataloaders, datamodule)
        keeps = return_predictions is None or return_predictions
        body = functools.partial(self._predict, given=dataloaders, keeps=keeps)
        return self._run("predict", self._chosen(model), datamodule, body, ckpt_path)  # type: ignore[no-any-return]


def _split(data: Any, datamodule: LightningDataModule | None) -> tuple[Any, LightningDataModule | None]:
    """A datamodule may stand where loaders do."""
    if isinstance(data, LightningDataModule):
        if datamodule is not None:
            raise MisconfigurationException("two datamodules were given; pass one", code="two-datamodules")
        return None, data
    if data is not None and datamodule is not None:
        raise MisconfigurationException(
            "both dataloaders and a datamodule were given; pass one of them", code="loaders-and-datamodule"
        )
    return data, datamodule


def _set_backends(deterministic: bool | str | None, benchmark: bool | None) -> None:
    if deterministic is not None:
        if deterministic not in (True, False, "warn"):
            raise InvalidValueError(
                f"Trainer(deterministic={deterministic!r}) must be True, False or 'warn'", code="deterministic"
            )
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if benchmark is not None:
        if not isinstance(benchmark, bool):
            raise InvalidValueError(f"Trainer(benchmark={benchmark!r}) must be True, False or None", code="benchmark")
        torch.backends.cudnn.benchmark = benchmark
