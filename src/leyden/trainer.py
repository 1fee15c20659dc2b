"""``Trainer``: arguments, and the runs ``fit``, ``validate``, ``test``, ``predict``."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from leyden import checkpoint
from leyden.callback import Callback
from leyden.datamodule import LightningDataModule
from leyden.errors import MisconfigurationException
from leyden.former_trainer import FormerTrainer
from leyden.hooks.dispatch import RunState
from leyden.loops.cadence import Limits
from leyden.loops.evaluate import EvaluationLoop
from leyden.loops.fit import FitLoop
from leyden.module import LightningModule
from leyden.optimization.clocks import Clocks
from leyden.optimization.optimizer import LightningOptimizer
from leyden.optimization.plan import Plan
from leyden.optimization.toggling import Toggler
from leyden.resolve import (
    BATCH_LIMITS,
    CALLBACK_DEFAULTS,
    check_cadences,
    refuse_what_is_not_yet,
    resolve_accumulation,
    resolve_batch_limit,
    resolve_callbacks,
    resolve_limits,
    resolve_loggers,
    resolve_precision,
    resolve_profiler,
    resolve_recorder,
    resolve_schedules,
    resolve_settings,
    set_backends,
    writers_last,
)
from leyden.results.views import Views
from leyden.runs import Source
from leyden.signals import Signals, resolve_signals
from leyden.strategies import Strategy, build_strategy, resolve_device, resolve_plugins

if TYPE_CHECKING:
    from leyden.loggers import Logger
    from leyden.profilers import Profiler


class Trainer(FormerTrainer):
    """Runs a ``LightningModule``: training, validation, test, prediction.

    Where a length is a number it is counted as the argument's name says. It may be a text on any clock instead: "500
    updates", "2 epochs", "300 steps", "100 batches", "1e6 samples", "30 min"; see :mod:`leyden.units`.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda" or "mps"; "auto" takes what is there. Or an ``Accelerator`` object.
        strategy: "auto" or a ``Strategy``.
        devices: "auto", a number, or a list of indices; this version runs on one device.
        num_nodes: number of machines; this version runs on one.
        precision: "32-true" (default), "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", or 1.x spellings.
        logger: a logger or a list; False for none. True, the default, takes TensorBoard's if that is installed, else a
            CSV file, in ``lightning_logs/version_<n>`` of ``default_root_dir``.
        callbacks: a callback or a list.
        fast_dev_run: run this many batches (True: 1) of everything, once, to find mistakes, without a sanity check, and
            without writing checkpoints or to loggers; False or 0 runs in earnest.
        max_epochs: epochs at most, or a length; -1 for no limit. None means 1,000 unless another maximum is given.
        min_epochs: epochs, or a length, before ``should_stop`` is heeded.
        max_steps: optimizer steps at most, over all optimizers, or a length; -1 or None for no limit.
        min_steps: optimizer steps, or a length, before ``should_stop`` is heeded.
        max_time: time at most, over all fits: a length, a timedelta, a mapping of its arguments, or "DD:HH:MM:SS". Of
            several maxima the first that is reached counts.
        limit_train_batches: batches of an epoch at most (int), or the part of them (float). None means all.
        limit_val_batches: likewise for each validation loader.
        limit_test_batches: likewise for each test loader.
        limit_predict_batches: likewise for each loader to predict for.
        overfit_batches: use this many batches (or this part) of training and validation data, unshuffled; 0 uses all.
        val_check_interval: validate every so many batches (int), every such part of an epoch (float up to 1.0), or in
            an interval on any clock, which goes on across epochs; a time may have the forms of ``max_time`` and counts
            from the end of the last validation. None validates at the epoch's end.
        check_val_every_n_epoch: validate every so many epochs, >= 1; None counts batches across epochs.
        num_sanity_val_steps: validation batches that a fit begins with; -1 for all. None means 2.
        log_every_n_steps: windows between two rows of the loggers, or an interval on any clock, after which the next
            window has a row; 0 writes no rows for steps. None means 50.
        enable_checkpointing: whether to save a checkpoint of the last epoch, by a ``ModelCheckpoint()``, unless a
            callback that saves is given. None means True.
        enable_progress_bar: whether to show a progress bar. None means True.
        enable_model_summary: whether to print the module's layers, unless a callback that does is given. None means
            True.
        accumulate_grad_batches: micro-batches of one update: an int, or a schedule ``{epoch: int}``.
        gradient_clip_val: greatest norm (or value) of an optimizer's gradients; None clips nothing.
        gradient_clip_algorithm: "norm" (default) or "value".
        deterministic: True or "warn" asks torch for deterministic algorithms and sets ``CUBLAS_WORKSPACE_CONFIG``; None
            leaves torch's setting alone.
        benchmark: whether cuDNN tries out algorithms; None leaves torch's setting alone, or switches it off if
            ``deterministic``.
        inference_mode: whether ``validate``, ``test`` and ``predict`` run under ``torch.inference_mode``.
        use_distributed_sampler: accepted; there is nothing to distribute in this version.
        profiler: measures where time goes: "simple", "advanced", "pytorch", or a ``Profiler``; None measures nothing.
        detect_anomaly: whether autograd looks for the operation that made a nan.
        barebones: nothing but the loop, to measure it: no bar, summary, loggers, checkpoints or sanity check, and
            ``self.log`` does nothing.
        plugins: a precision, e.g. ``MixedPrecision("16-mixed", "cpu", scaler)``; a ``CheckpointIO``, which then writes,
            reads and removes the checkpoints; or a list. A cluster environment is accepted; of it counts whether SLURM
            is to requeue the job, unless ``handle_signals`` says what to do.
        sync_batchnorm: accepted; there is nothing to synchronise on one device.
        reload_dataloaders_every_n_epochs: epochs between two calls of the dataloader hooks; 0 calls them once.
        default_root_dir: folder for what callbacks and loggers write; None means the current one.
        enable_autolog_hparams: whether ``save_hyperparameters`` values go to the loggers at the start.
        model_registry: not available in this version.
        track_grad_norm: logs the norm of each optimizer's gradients before clipping: the norm's order, a number > 0 or
            "inf"; None (or -1, as in 1.x) logs none.
        handle_signals: what happens when the process gets a signal while a run is on: at the next boundary the fit is
            saved, so that ``ckpt_path="last"`` goes on exactly there, and the run ends with the exit code 128 + n
            (SIGTERM, SIGHUP; SIGINT raises ``KeyboardInterrupt``), or goes on (SIGUSR1; under SLURM it requeues the job
            and ends). True (default) handles these four; False none; a list handles those named; a dict says what to
            do about each: ``{"SIGTERM": "exit", "SIGUSR1": "save", "SIGUSR2": "requeue"}``.
        record_failures: True, or a folder, adds a ``FailureRecorder``: a training step that fails, or whose loss or
            gradients are not finite, is written to a file, and ``leyden replay FILE`` runs it again.
        **former: arguments of Lightning 1.x, as ``gpus``; :mod:`leyden.former` has what each means today.

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
        precision: int | str | None = None,
        logger: Logger | Sequence[Logger] | bool | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | str | None = None,
        min_epochs: int | str | None = None,
        max_steps: int | str | None = -1,
        min_steps: int | str | None = None,
        max_time: str | timedelta | Mapping[str, float] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | Mapping[str, float] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | str | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int | Mapping[int, int] | None = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        track_grad_norm: float | str | None = None,
        handle_signals: bool | Sequence[str] | Mapping[str, str] = True,
        record_failures: bool | str | os.PathLike[str] = False,
        **former: Any,
    ) -> None:
        settings = resolve_settings(locals())
        refuse_what_is_not_yet({"model_registry": model_registry})
        self.profiler = resolve_profiler(profiler)
        self._state = RunState()
        found = resolve_plugins(plugins, strategy)
        self._signals = Signals(resolve_signals(handle_signals, found.environment))
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accelerator, self._devices = resolve_device(settings["accelerator"], settings["devices"])
        self.strategy = build_strategy(
            found.strategy or strategy, self._devices, num_nodes=num_nodes, accelerator=settings["accelerator"]
        )
        self.strategy.checkpoint_io = found.checkpoint_io or checkpoint.TorchCheckpointIO()
        self.num_nodes = num_nodes
        self._precision = resolve_precision(precision, found.precisions, device_type=self.strategy.root_device.type)
        set_backends(deterministic, benchmark)

        self.barebones = barebones
        self.fast_dev_run = settings["fast_dev_run"]
        self.inference_mode = inference_mode
        self.default_root_dir = os.fspath(default_root_dir or os.getcwd())
        self.track_grad_norm = settings["track_grad_norm"]
        self._detect_anomaly = settings["detect_anomaly"]
        self._autolog_hparams = enable_autolog_hparams
        self._set_cadences(settings)
        self._accumulation = accumulate_grad_batches
        self.accumulate_grad_batches, schedule = resolve_accumulation(accumulate_grad_batches)
        self.loggers = resolve_loggers(settings["logger"], default_root_dir=self.default_root_dir)
        self.callbacks = resolve_callbacks(
            settings["callbacks"], **{name: settings[name] for name in CALLBACK_DEFAULTS}
        )
        added = [callback for callback in (schedule, resolve_recorder(record_failures)) if callback is not None]
        self.callbacks = writers_last([*self.callbacks, *added])
        self._former = settings["former"]
        self._begin(resolve_limits(settings))

    def _set_cadences(self, settings: Mapping[str, Any]) -> None:
        """How much data the runs use, and how often something happens."""
        check_cadences(settings)
        overfit = self.overfit_batches = resolve_batch_limit("overfit_batches", settings["overfit_batches"] or 0)
        train, val, test, predict = (resolve_batch_limit(name, settings[name]) for name in BATCH_LIMITS)
        self.limit_train_batches, self.limit_val_batches = (overfit, overfit) if overfit else (train, val)
        self.limit_test_batches, self.limit_predict_batches = test, predict
        interval, epochs = settings["val_check_interval"], settings["check_val_every_n_epoch"]
        self.val_check_interval = 1.0 if interval is None and epochs is not None else interval
        self.check_val_every_n_epoch = epochs
        self.reload_dataloaders_every_n_epochs = settings["reload_dataloaders_every_n_epochs"]
        sanity, every = settings["num_sanity_val_steps"], settings["log_every_n_steps"]
        self.num_sanity_val_steps = 2 if sanity is None else sanity
        self.log_every_n_steps = every if isinstance(every, int) else 50
        self.schedules = resolve_schedules(settings)

    def _begin(self, limits: Limits) -> None:
        """The state of a Trainer that has not run anything."""
        self.clocks = Clocks()
        self.fit_loop = FitLoop(limits, self.clocks)
        self.validate_loop, self.test_loop, self.predict_loop = EvaluationLoop(), EvaluationLoop(), EvaluationLoop()
        self.interrupted = False
        self.datamodule: LightningDataModule | None = None
        self._views = Views()
        self._module: LightningModule | None = None
        self._plan: Plan | None = None
        self._handles: list[LightningOptimizer] = []
        self._toggler = Toggler([])
        self._optimization: Any = None
        self._eval_rows: dict[str, int] = {}
        self._given: dict[str, Any] = {}
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
        weights_only: bool | None = None,
        *,
        trust: bool = False,
        resume: Mapping[str, str] | None = None,
        train_dataloader: Any = None,
    ) -> None:
        """Train a module.

        Args:
            model: the module.
            train_dataloaders: yields training batches: a loader, any iterable, or a list of batches; or a collection
                of loaders (a dict, a list, nested at will), whose batches are such collections: the longest sets the
                length, shorter ones begin again. A ``CombinedLoader`` combines them in another way. None asks the
                datamodule, then the module.
            val_dataloaders: one or a collection of such, evaluated one after the other; likewise.
            datamodule: may also stand in the place of ``train_dataloaders``.
            ckpt_path: a checkpoint to go on from: a path, a URL, "last" (the newest that the checkpoint callbacks have
                written) or "best".
            weights_only: None and True read the file as plain data; False trusts it.
            trust: True lets code in the file run, if plain data is not all that it holds.
            resume: what is not taken from that checkpoint, by component, such as ``{"lr": "replace", "schedulers":
                "reset"}``: :mod:`leyden.checkpoint.choices` has all of them. Everything is compared before anything
                changes, and what is done is printed. With "last" it is so at each start.
            train_dataloader: the 1.x spelling of ``train_dataloaders``.

        Raises:
            MisconfigurationException: what cannot work, before the first step where it can be known.
        """
        train = train_dataloaders if train_dataloaders is not None else train_dataloader
        train, datamodule = _split(train, datamodule)
        body = functools.partial(self._fit, train=train, val=val_dataloaders)
        path = self._former.get("ckpt_path") if ckpt_path is None else ckpt_path
        if resume is not None:
            checkpoint.Choices(resume)  # what is no choice at all is refused before anything starts
            if path is None:
                raise MisconfigurationException(
                    "trainer.fit(resume=...) says what is not taken from a checkpoint, and there is no ckpt_path",
                    code="resume-without-file",
                )
        source = Source(path, checkpoint.as_data(weights_only, trust), resume=resume)
        self._run("fit", model, datamodule, body, source)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        *,
        trust: bool = False,
        val_dataloaders: Any = None,
    ) -> list[dict[str, float]]:
        """Validate a module (the last one by default); returns what was logged, a dict for each loader."""
        given, datamodule = _split(dataloaders if dataloaders is not None else val_dataloaders, datamodule)
        body = functools.partial(self._evaluate, stage="validate", given=given, verbose=verbose)
        source = Source(ckpt_path, checkpoint.as_data(weights_only, trust), model is not None)
        return self._run("validate", self._chosen(model), datamodule, body, source)  # type: ignore[no-any-return]

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        *,
        trust: bool = False,
        test_dataloaders: Any = None,
    ) -> list[dict[str, float]]:
        """Test a module (the last one by default); returns what was logged, a dict for each loader."""
        given, datamodule = _split(dataloaders if dataloaders is not None else test_dataloaders, datamodule)
        body = functools.partial(self._evaluate, stage="test", given=given, verbose=verbose)
        source = Source(ckpt_path, checkpoint.as_data(weights_only, trust), model is not None)
        return self._run("test", self._chosen(model), datamodule, body, source)  # type: ignore[no-any-return]

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        *,
        trust: bool = False,
    ) -> list[Any] | None:
        """Predict for all batches; a list of what ``predict_step`` returned, or a list of lists for several loaders."""
        dataloaders, datamodule = _split(dataloaders, datamodule)
        keeps = return_predictions is None or return_predictions
        body = functools.partial(self._predict, given=dataloaders, keeps=keeps)
        source = Source(ckpt_path, checkpoint.as_data(weights_only, trust), model is not None)
        return self._run("predict", self._chosen(model), datamodule, body, source)  # type: ignore[no-any-return]


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
