"""LightningDataModule: where the data of a project lives."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from leyden import checkpoint, errors
from leyden.hparams import HyperparametersMixin, class_only
from leyden.tree import move_to_device

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

D = TypeVar("D", bound="LightningDataModule")
_FORMER = ("train_transforms", "val_transforms", "test_transforms", "dims")


class LightningDataModule(HyperparametersMixin):
    """Downloads, splits and loads the data of a project; override what you need.

    Order of calls in a run: ``prepare_data`` (one process), ``setup`` (every process), the dataloader methods
    that the run needs, for every batch the three transfer hooks, ``teardown``.

    >>> class Squares(LightningDataModule):
    ...     def setup(self, stage):
    ...         self.numbers = torch.arange(4.0)
    ...     def train_dataloader(self):
    ...         return DataLoader(torch.utils.data.TensorDataset(self.numbers, self.numbers**2), batch_size=2)
    """

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "datamodule_hparams_name"

    name: str | None = None
    trainer: Any = None
    """The Trainer that runs it; None outside of a run."""
    prepare_data_per_node: bool = True
    """Whether ``prepare_data`` runs once per machine (local rank 0) or once per run (global rank 0)."""
    allow_zero_length_dataloader_with_multiple_devices: bool = False
    """Whether a rank may have no batch at all where there are several."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        vars(self).update(zip(_FORMER, args, strict=False))  # what subclasses written for 1.x hand up; it means nothing
        vars(self).update((name, kwargs[name]) for name in _FORMER if name in kwargs)

    @classmethod
    def from_datasets(
        cls: type[D],
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> D:
        """A datamodule with a ``DataLoader`` over each dataset that is given.

        Args:
            train_dataset: a dataset, shuffled in every epoch unless it is an ``IterableDataset``; or a list,
                tuple or mapping of datasets, which makes as many loaders.
            val_dataset: the same, never shuffled, like the following.
            test_dataset: see ``val_dataset``.
            predict_dataset: see ``val_dataset``.
            batch_size: samples per batch, in all loaders.
            num_workers: processes that load; 0 loads in the main process.
            datamodule_kwargs: arguments of the class's own ``__init__``, which gets ``batch_size`` and
                ``num_workers`` as well if it takes them.

        >>> datamodule = LightningDataModule.from_datasets(train_dataset=[1, 2, 3], batch_size=2)
        >>> len(datamodule.train_dataloader())
        2
        """
        options = {"batch_size": batch_size, "num_workers": num_workers}
        parameters = inspect.signature(cls).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        taken = {name: value for name, value in options.items() if takes_any or name in parameters}
        datamodule = cls(**{**taken, **datamodule_kwargs})
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for stage, dataset in given.items():
            if dataset is not None:
                method = _loader_method(dataset, shuffle=stage == "train", **options)
                setattr(datamodule, f"{stage}_dataloader", method)
        return datamodule

    @class_only
    def load_from_checkpoint(
        cls: type[D],
        checkpoint_path: str | os.PathLike[str] | BinaryIO,
        map_location: Any = None,
        hparams_file: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> D:
        """Build a datamodule from a checkpoint: its hyper-parameters, then its state.

        Args:
            checkpoint_path: a file, an open one, or a URL.
            map_location: where tensors in its state go; None means the device that they were on, if it is here.
            hparams_file: a YAML file with hyper-parameters to use in place of the checkpoint's.
            weights_only: None and True read the file as plain data; False trusts it.
            trust: True lets code in the file run, if plain data is not all that it holds.
            **kwargs: arguments of ``__init__``, in place of those that were saved.

        Raises:
            CheckpointError: the file cannot be read.
        """
        data = checkpoint.as_data(weights_only, trust)
        options = {"map_location": map_location, "hparams_file": hparams_file, "weights_only": data}
        return checkpoint.load_datamodule(cls, checkpoint_path, **options, overrides=kwargs)  # type: ignore

    def prepare_data(self) -> None:
        """Download, tokenize: what writes to disk. Runs in one process, so do not assign attributes here."""

    def setup(self, stage: str) -> None:
        """Split, build datasets. Runs in every process.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def teardown(self, stage: str) -> None:
        """Clean up when the run of ``stage`` ends. Runs in every process."""

    def train_dataloader(self) -> Any:
        """The loader that ``fit`` trains on, or a collection of them, whose batches come together."""
        raise self._not_defined("train_dataloader")

    def val_dataloader(self) -> Any:
        """The loader, or a collection of them, that ``fit`` and ``validate`` validate on, one after the other."""
        raise self._not_defined("val_dataloader")

    def test_dataloader(self) -> Any:
        """The loader, or a collection of them, for ``test``."""
        raise self._not_defined("test_dataloader")

    def predict_dataloader(self) -> Any:
        """The loader, or a collection of them, for ``predict``."""
        raise self._not_defined("predict_dataloader")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it moves to the device; return it."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to ``device``; return it. Override it for batches that ``leyden.tree`` cannot walk."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on its device; return it."""
        return batch

    def on_exception(self, exception: BaseException) -> None:
        """Clean up after an exception, a keyboard interrupt included; it goes on afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of the data, beside the hyper-parameters."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned when the checkpoint was written."""

    # -- command lines of Lightning 1.x --------------------------------------------------------------------------------

    @classmethod
    def add_argparse_args(cls, parent_parser: ArgumentParser, **kwargs: Any) -> ArgumentParser:
        """Add the arguments of the class's ``__init__`` to a parser of ``argparse``, as Lightning 1.x did."""
        command_line: Any = importlib.import_module("leyden.argparsing")
        return command_line.add_arguments(cls, parent_parser, former={}, **kwargs)  # type: ignore[no-any-return]

    @classmethod
    def from_argparse_args(cls: type[D], args: Namespace | ArgumentParser, **kwargs: Any) -> D:
        """Build a datamodule from parsed arguments; ``kwargs`` take their place, others than its own are left out."""
        command_line: Any = importlib.import_module("leyden.argparsing")
        return command_line.from_arguments(cls, args, former={}, **kwargs)  # type: ignore[no-any-return]

    def _not_defined(self, method: str) -> errors.MisconfigurationException:
        return errors.MisconfigurationException(
            f"{type(self).__name__} has no {method}, which this run needs: define it, or pass the loaders to "
            "the Trainer's method",
            code="no-dataloader",
        )


def _loader_method(datasets: Any, *, shuffle: bool, **options: Any) -> Any:
    def build(dataset: Any) -> DataLoader[Any]:
        shuffles = shuffle and not isinstance(dataset, IterableDataset)
        # Without CUDA there is nothing to pin for, and torch would warn.
        return DataLoader(dataset, shuffle=shuffles, pin_memory=torch.cuda.is_available(), **options)

    def loaders() -> Any:
        if isinstance(datasets, Mapping) and _all_datasets(datasets.values()):
            return {name: build(dataset) for name, dataset in datasets.items()}
        if isinstance(datasets, (list, tuple)) and _all_datasets(datasets):
            return [build(dataset) for dataset in datasets]
        return build(datasets)

    return loaders


def _all_datasets(values: Iterable[Any]) -> bool:
    values = list(values)
    return bool(values) and all(isinstance(value, Dataset) for value in values)
