"""The parser of :class:`leyden.cli.LightningCLI`: jsonargparse's, with arguments of Lightning's classes."""

from __future__ import annotations

import inspect
from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, TypeVar, Union

from torch.optim import Optimizer, lr_scheduler

from leyden import __version__, callbacks, former, loggers, profilers, strategies
from leyden.callback import Callback
from leyden.datamodule import LightningDataModule
from leyden.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from leyden.module import LightningModule
from leyden.trainer import Trainer

try:
    from jsonargparse import ArgumentParser
    from jsonargparse import Namespace as Namespace
    from jsonargparse import class_from_function as class_from_function  # type: ignore[attr-defined] # by a star import
except ModuleNotFoundError:
    raise MissingExtraError("jsonargparse[signatures]", extra="cli") from None

T = TypeVar("T")


class ReduceLROnPlateau(lr_scheduler.ReduceLROnPlateau):
    """torch's, and the name of the logged value that it looks at.

    Args:
        optimizer: whose learning rates.
        monitor: the value, as ``self.log`` names it.
        *args: torch's arguments.
        **kwargs: torch's arguments.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


#: What ``LightningCLI(args=...)`` takes.
ArgsType = Union[list[str], dict[str, Any], Namespace, None]  # noqa: UP007
#: For an argument of a module: an optimizer that lacks its parameters only. Its default may be a class or a lambda.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
#: Likewise a scheduler that lacks its optimizer only.
LRSchedulerCallable = Callable[[Optimizer], Union[lr_scheduler.LRScheduler, ReduceLROnPlateau]]  # noqa: UP007

#: Which argument of ``add_optimizer_args`` has the CLI define ``configure_optimizers``.
AUTOMATIC: Final = "AUTOMATIC"
_KINDS: Final = (Trainer, LightningModule, LightningDataModule, Callback)
#: Those that ``--lr_scheduler`` chooses from.
LRSchedulerTypeTuple: Final = (lr_scheduler.LRScheduler, ReduceLROnPlateau)


def load_choices() -> None:
    """Import what may be chosen by its bare name, as ``--trainer.callbacks EarlyStopping``."""
    for package in (callbacks, loggers, profilers, strategies):
        for name in package.__all__:
            getattr(package, name)


class LightningArgumentParser(ArgumentParser):
    """A parser that knows Lightning's classes, optimizers and schedulers.

    Args:
        *args: those of ``jsonargparse.ArgumentParser``.
        description: what ``--help`` says first.
        env_prefix: the beginning of the names of environment variables.
        default_env: whether environment variables are read: ``PL_FIT__MODEL__WIDTH`` is ``fit --model.width``.
        **kwargs: those of ``jsonargparse.ArgumentParser``.
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Trains, validates, tests or predicts with a LightningModule",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dump_header", [f"leyden=={__version__}"])
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self.add_argument("-c", "--config", action="config", help="a file with arguments, in yaml or json")
        self.callback_keys: list[str] = []
        #: Key -> the class, or a tuple of those to choose from, and the argument that gets it, or AUTOMATIC.
        self.optimizers: dict[str, tuple[Any, str]] = {}
        self.lr_schedulers: dict[str, tuple[Any, str]] = {}

    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """Add the arguments of a Trainer, a module, a datamodule or a callback.

        Args:
            lightning_class: the class, or a function with an annotation that it returns one. A callback is given to
                the Trainer in every run.
            nested_key: the first part of the arguments' names.
            subclass_mode: whether the class is chosen on the command line, among subclasses of this one.
            required: whether one must be chosen.

        Returns:
            The names of the arguments.

        Raises:
            InvalidTypeError: it is nothing of the kind (``cli-class``).
        """
        cls = lightning_class
        if callable(cls) and not isinstance(cls, type):
            cls = class_from_function(cls)
        if not (isinstance(cls, type) and issubclass(cls, _KINDS)):
            raise InvalidTypeError(
                f"expected a subclass of {', '.join(kind.__name__ for kind in _KINDS)}, or a function that returns "
                f"one, got {lightning_class!r}",
                code="cli-class",
            )
        if issubclass(cls, Callback):
            self.callback_keys.append(nested_key)
        if subclass_mode:
            return list(self.add_subclass_arguments(cls, nested_key, fail_untyped=False, required=required) or [])
        is_trainer = issubclass(cls, Trainer)
        names = self.add_class_arguments(
            cls, nested_key, fail_untyped=False, instantiate=not is_trainer, sub_configs=True
        )
        if is_trainer:
            self._add_former(nested_key)
        return list(names)

    def _add_former(self, key: str) -> None:
        """The Trainer's arguments of 1.x, which old files of settings have; ``--help`` does not tell them."""
        taken = {action.dest for action in self._actions}
        for name in (f"{key}.{name}" for name in former.DEFAULTS):
            if name not in taken:
                self.add_argument(f"--{name}", type=Any, default=SUPPRESS, help=SUPPRESS)

    def add_optimizer_args(
        self, optimizer_class: Any = (Optimizer,), nested_key: str = "optimizer", link_to: str = AUTOMATIC
    ) -> None:
        """Add the arguments of an optimizer.

        Args:
            optimizer_class: the class; or a tuple, of whose subclasses one is chosen on the command line.
            nested_key: the first part of the arguments' names.
            link_to: the argument of the module that gets ``class_path`` and ``init_args`` as a dict, such as
                "model.optimizer_init"; "AUTOMATIC", the default: the CLI defines ``configure_optimizers``.
        """
        self._add_built_later(optimizer_class, nested_key, "params")
        self.optimizers[nested_key] = (optimizer_class, link_to)

    def add_lr_scheduler_args(
        self, lr_scheduler_class: Any = LRSchedulerTypeTuple, nested_key: str = "lr_scheduler", link_to: str = AUTOMATIC
    ) -> None:
        """Add the arguments of a scheduler; see :meth:`add_optimizer_args`."""
        self._add_built_later(lr_scheduler_class, nested_key, "optimizer")
        self.lr_schedulers[nested_key] = (lr_scheduler_class, link_to)

    def _add_built_later(self, cls: Any, key: str, missing: str) -> None:
        """Arguments of what cannot be built yet, because the argument ``missing`` is not there."""
        options: dict[str, Any] = {"instantiate": False, "fail_untyped": False, "skip": {missing}}
        for one in cls if isinstance(cls, tuple) else (cls,):
            if not inspect.isclass(one):
                raise InvalidTypeError(
                    f"{key!r}: expected a class or a tuple of classes, got {one!r}", code="cli-class"
                )
        if isinstance(cls, tuple):
            self.add_subclass_arguments(cls, key, **options)
        else:
            self.add_class_arguments(cls, key, sub_configs=True, **options)


class Registry(dict[str, Any]):
    """What 1.5 had to register classes with, so that the command line knew their names; today every subclass is known.

    >>> @MODEL_REGISTRY
    ... class Model: ...
    >>> MODEL_REGISTRY.names
    ['Model']
    """

    def __call__(self, cls: T, key: str | None = None, override: bool = False) -> T:
        """Register a class; returns it.

        Raises:
            InvalidValueError: there is another of this name, and ``override`` is not set (``cli-registry``).
        """
        name = key or str(getattr(cls, "__name__", cls))
        if not override and self.get(name, cls) is not cls:
            raise InvalidValueError(f"{name!r} is registered already; pass override=True", code="cli-registry")
        self[name] = cls
        return cls

    def register_classes(self, module: ModuleType, base_cls: type, override: bool = False) -> None:
        """Register all subclasses of ``base_cls`` in a module."""
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, base_cls) and cls is not base_cls:
                self(cls, override=override)

    @property
    def names(self) -> list[str]:
        """The names of what was registered."""
        return list(self)

    @property
    def classes(self) -> tuple[Any, ...]:
        """What was registered."""
        return tuple(self.values())


MODEL_REGISTRY, DATAMODULE_REGISTRY, CALLBACK_REGISTRY = Registry(), Registry(), Registry()
OPTIMIZER_REGISTRY, LR_SCHEDULER_REGISTRY = Registry(), Registry()
