"""Methods of 1.x on the base classes, for programs of that time that call them by ``super()``, and what they read.

They are there only while the aliases are on, and most of them only if these show a version of 1.x: elsewhere no base
class has them (R45), so that a method of such a name is always the user's own, and ``trainer.train_dataloader`` is what
was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from torch.utils.data import DataLoader

from leyden.callback import Callback
from leyden.callbacks.model_summary import summarize
from leyden.callbacks.progress.progress_bar import run_number
from leyden.compat.loggers import LoggerCollection
from leyden.compat.module_helpers import grad_norm
from leyden.compat.utilities import apply_to_collection
from leyden.former_trainer import FormerTrainer
from leyden.hooks.events import HISTORICAL
from leyden.module import LightningModule
from leyden.trainer_properties import TrainerProperties


def _of_module(self: LightningModule) -> None:
    """Do nothing."""


def _of_outputs(self: LightningModule, outputs: Any) -> None:
    """Do nothing."""


def _of_callback(self: Callback, trainer: Any, pl_module: Any) -> None:
    """Do nothing."""


def _get_progress_bar_dict(self: LightningModule) -> dict[str, int | str]:
    """What stands behind the progress bar beside what was logged."""
    return run_number(self.trainer.loggers)


class Read:
    """What is read from a module unless its own ``__init__`` has set it.

    Args:
        read: takes the module.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        return self if module is None else self._read(module)


class Combined:
    """What 1.5 put around the training data; all else is read from the data themselves.

    Args:
        inside: a loader or a dataset, or a collection of them.
        **own: what it has itself.
    """

    def __init__(self, inside: Any, **own: Any) -> None:
        vars(self).update(own, _inside=inside)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_inside"], name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inside)

    def __len__(self) -> int:
        return len(self._inside)

    def __getitem__(self, key: Any) -> Any:
        return self._inside[key]


def _train_dataloader(self: Any) -> Any:
    """The training data as 1.5 showed them: ``loaders`` is what was given, ``dataset.datasets`` their datasets."""
    given = _given(self, "train_dataloader")
    if given is None:
        return None
    datasets = apply_to_collection(given, DataLoader, lambda loader: loader.dataset)
    return Combined(given, loaders=given, dataset=Combined(datasets, datasets=datasets))


def _as_list(name: str) -> Any:
    """Loaders of an evaluation, which 1.x showed as a list, also where there is one."""

    def loaders(self: Any) -> Any:
        given = _given(self, name)
        several = given.values() if isinstance(given, Mapping) else given
        return several if given is None else list(several) if isinstance(given, list | tuple | Mapping) else [given]

    return property(loaders)


def _logger(self: Any) -> Any:
    """The logger; of several, all in one."""
    return LoggerCollection(self.loggers) if len(self.loggers) > 1 else _given(self, "logger")


def _given(trainer: Any, name: str) -> Any:
    return vars(TrainerProperties)[name].fget(trainer)


#: For all programs: nobody else has methods and attributes of these names.
_ALWAYS: Final[dict[type, dict[str, Any]]] = {
    LightningModule: {"get_progress_bar_dict": _get_progress_bar_dict, "truncated_bptt_steps": 0},
}
#: For those that are shown a version of 1.x.
_OF_1X: Final[dict[type, dict[str, Any]]] = {
    LightningModule: {
        **dict.fromkeys(HISTORICAL, _of_module),
        **dict.fromkeys(("training_epoch_end", "validation_epoch_end", "test_epoch_end"), _of_outputs),
        "datamodule": Read(lambda module: getattr(vars(module).get("_trainer"), "datamodule", None)),
        "grad_norm": grad_norm,
        "summarize": summarize,
    },
    Callback: dict.fromkeys(HISTORICAL, _of_callback),
    FormerTrainer: {
        "logger": property(_logger),
        "train_dataloader": property(_train_dataloader),
        **{name: _as_list(name) for name in ("val_dataloaders", "test_dataloaders", "predict_dataloaders")},
    },
}


def provide(version: str) -> None:
    """Put the methods in place that programs expect that are shown ``version``."""
    withdraw()
    for provided in (_ALWAYS, _OF_1X) if version.startswith("1.") else (_ALWAYS,):
        for base, methods in provided.items():
            for name, method in methods.items():
                setattr(base, name, method)


def withdraw() -> None:
    """Take them away again, if they are there."""
    for base, methods in (*_ALWAYS.items(), *_OF_1X.items()):
        for name in methods.keys() & vars(base).keys():
            delattr(base, name)
