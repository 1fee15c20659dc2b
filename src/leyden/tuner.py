"""``Tuner``: looks for a learning rate or a batch size before a run, and sets what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leyden.callbacks import BatchSizeFinder, LearningRateFinder
from leyden.datamodule import LightningDataModule
from leyden.errors import InvalidValueError, MisconfigurationException, warn

if TYPE_CHECKING:
    from leyden.callbacks.learning_rate_finder import LearningRateCurve
    from leyden.module import LightningModule
    from leyden.trainer import Trainer

__all__ = ["Tuner", "lr_find", "scale_batch_size"]

_METHODS: Final = ("fit", "validate", "test", "predict")


class Tuner:
    """Tries out a module and its data as a Trainer would run them, and leaves no trace but the attribute it sets.

    The hooks ``setup``, ``configure_model``, ``configure_optimizers``, those of data and ``teardown`` run as for a fit;
    the Trainer's own callbacks and loggers do not take part. Module, optimizers, clocks and random numbers are
    afterwards as before, so that the fit that follows is the fit with that learning rate or batch size.

    Args:
        trainer: its arguments say how the trials run.
        update_attr: what ``lr_find`` does unless its call says otherwise; ``trainer.tuner`` of 1.x has False.

    >>> import leyden, torch
    >>> class Regression(leyden.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.lr, self.layer = 0.1, torch.nn.Linear(3, 1)
    ...     def training_step(self, batch, batch_idx):
    ...         return self.layer(batch).square().mean()
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=self.lr)
    >>> trainer, module = leyden.Trainer(max_epochs=1, accelerator="cpu"), Regression()
    >>> curve = Tuner(trainer).lr_find(module, [torch.ones(2, 3)], num_training=20)  # doctest: +ELLIPSIS
    LearningRateFinder: ...
    >>> module.lr == curve.suggestion(), trainer.global_step
    (True, 0)
    """

    def __init__(self, trainer: Trainer, *, update_attr: bool = True) -> None:
        self._trainer = trainer
        self._update_attr = update_attr

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool | None = None,
        attr_name: str = "",
        *,
        optimizer: int | str | None = None,
        train_dataloader: Any = None,
    ) -> LearningRateCurve | None:
        """Raise the learning rate from update to update, and set the one at which the loss falls fastest.

        Args:
            model: the module; its attribute ``lr`` or ``learning_rate``, or that of its ``hparams``, is set.
            train_dataloaders: as for ``trainer.fit``.
            val_dataloaders: as for ``trainer.fit``; nothing is validated.
            dataloaders: None; for evaluations, which have no learning rate.
            datamodule: as for ``trainer.fit``.
            method: "fit".
            min_lr: the first learning rate.
            max_lr: the last one.
            num_training: updates from the first to the last.
            mode: "exponential" or "linear".
            early_stop_threshold: a loss so many times the best one ends the sweep; None never does.
            update_attr: whether to set what was found; None takes what the Tuner was built with, True by default.
            attr_name: name of the attribute; "" takes ``lr`` or ``learning_rate``.
            optimizer: which one of several, as for :class:`~leyden.callbacks.LearningRateFinder`.
            train_dataloader: the 1.x spelling of ``train_dataloaders``.

        Returns:
            The curve, with ``suggestion()``, ``plot()`` and ``results``; None, with a warning, under ``fast_dev_run``.

        Raises:
            MisconfigurationException: no such attribute; data for another method; several optimizers and none was
                named; or the Trainer has a LearningRateFinder, which would search once more.
        """
        if method != "fit":
            raise MisconfigurationException(
                f"lr_find(method={method!r}): only 'fit' has a learning rate", code="tuner-method"
            )
        update = self._update_attr if update_attr is None else update_attr
        if optimizer is not None and update and not attr_name:
            raise MisconfigurationException(
                f"lr_find(optimizer={optimizer!r}) needs attr_name=..., the attribute that configure_optimizers reads "
                "for it; or pass update_attr=False",
                code="lr-finder-attribute",
            )
        finder = LearningRateFinder(
            min_lr, max_lr, num_training, mode, early_stop_threshold, update, attr_name, optimizer=optimizer
        )
        train = train_dataloaders if train_dataloaders is not None else train_dataloader
        self._try(finder, model, train, val_dataloaders, dataloaders, datamodule, method)
        return finder.optimal_lr

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Try out batch sizes, and set the largest that fits into the memory.

        Args:
            model: the module; it or the datamodule has the attribute, and makes its loader from it.
            train_dataloaders: a datamodule, or None: a loader that is there cannot change.
            val_dataloaders: None, likewise.
            dataloaders: a datamodule or None, for methods other than "fit".
            datamodule: the datamodule.
            method: "fit", "validate", "test" or "predict": what must fit.
            mode: "power" doubles; "binsearch" then halves the gap to the first that did not fit.
            steps_per_trial: updates, or batches of an evaluation, that each size must survive.
            init_val: the first size.
            max_trials: sizes to try at most.
            batch_arg_name: name of the attribute.
            margin: part that is taken off what "binsearch" finds.
            max_val: the largest size to try.

        Returns:
            The size; None, with a warning, under ``fast_dev_run``.

        Raises:
            MisconfigurationException: no such attribute, it does not reach the loader, data for another method, or the
                Trainer has a BatchSizeFinder, which would search once more.
        """
        finder = BatchSizeFinder(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)
        self._try(finder, model, train_dataloaders, val_dataloaders, dataloaders, datamodule, method)
        return finder.optimal_batch_size

    def _try(self, finder: Any, model: Any, train: Any, val: Any, given: Any, datamodule: Any, method: str) -> None:
        trainer, kind = self._trainer, type(finder)
        for data in (train, given):
            datamodule = data if isinstance(data, LightningDataModule) else datamodule
        train, given = (None if data is datamodule else data for data in (train, given))
        _check_data(method, train, val, given, datamodule)
        if any(isinstance(callback, kind) for callback in trainer.callbacks):
            raise InvalidValueError(
                f"the Trainer has a {kind.__name__}, which searches when a run begins; leave it out, or do without "
                "the Tuner",
                code="tuner-callback",
            )
        if trainer.fast_dev_run:
            warn(f"{kind.__name__}: fast_dev_run looks for mistakes only, so nothing is tuned", code="tuner-dev-run")
            return
        search = finder.lr_find if isinstance(finder, LearningRateFinder) else finder.scale_batch_size
        trainer.set_up_for(lambda: search(trainer, model), method, model, datamodule, train=train, val=val, given=given)


def _check_data(method: str, train: Any, val: Any, given: Any, datamodule: Any) -> None:
    """Refuse a method that there is not, data that another one takes, and data given twice."""
    if method not in _METHODS:
        raise InvalidValueError(
            f"method={method!r} must be one of {', '.join(map(repr, _METHODS))}", code="tuner-method"
        )
    if (given if method == "fit" else train if train is not None else val) is not None:
        wanted = "train_dataloaders and val_dataloaders" if method == "fit" else "dataloaders"
        raise MisconfigurationException(f"method={method!r} takes its data as {wanted}", code="tuner-data")
    if datamodule is not None and (train if method == "fit" else given) is not None:
        raise MisconfigurationException(
            "both dataloaders and a datamodule were given; pass one of them", code="loaders-and-datamodule"
        )


def lr_find(trainer: Trainer, model: LightningModule, min_lr: float = 1e-8, **options: Any) -> Any:
    """``trainer.tuner.lr_find`` as a function, as 1.x has it beside the method."""
    return Tuner(trainer, update_attr=False).lr_find(model, min_lr=min_lr, **options)


def scale_batch_size(trainer: Trainer, model: LightningModule, mode: str = "power", **options: Any) -> int | None:
    """``trainer.tuner.scale_batch_size`` as a function, as 1.x has it beside the method."""
    return Tuner(trainer).scale_batch_size(model, mode=mode, **options)


def tune(trainer: Trainer, model: LightningModule, **given: Any) -> dict[str, Any]:
    """What ``trainer.tune`` of 1.x does: first the batch size, then the learning rate.

    Args:
        trainer: ``Trainer(auto_scale_batch_size=..., auto_lr_find=...)`` says what is tuned.
        model: the module.
        **given: data, ``scale_batch_size_kwargs`` and ``lr_find_kwargs``.

    Returns:
        "scale_batch_size": the size, "lr_find": the curve; what was asked for.
    """
    options = {name: dict(given.pop(f"{name}_kwargs", None) or {}) for name in ("scale_batch_size", "lr_find")}
    scale, find = (trainer._former.get(name) for name in ("auto_scale_batch_size", "auto_lr_find"))
    if not scale and not find:
        warn(
            "trainer.tune(...) has nothing to do: neither auto_scale_batch_size nor auto_lr_find is set",
            code="tune-nothing",
        )
    tuner, found = Tuner(trainer), dict[str, Any]()
    if scale:
        chosen = {"mode": scale} if isinstance(scale, str) else {}
        found["scale_batch_size"] = tuner.scale_batch_size(model, **given, **(options["scale_batch_size"] | chosen))
    if find:
        chosen = {"attr_name": find} if isinstance(find, str) else {}
        found["lr_find"] = tuner.lr_find(model, **given, **(options["lr_find"] | chosen))
    return found
