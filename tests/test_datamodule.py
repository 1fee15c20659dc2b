"""LightningDataModule by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from leyden.datamodule import LightningDataModule
from leyden.errors import MisconfigurationException

LOADERS = ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
numbers = TensorDataset(torch.arange(6))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([1, 2, 3])


@pytest.mark.parametrize("method", LOADERS)
def test_a_loader_that_is_not_defined_is_named(method: str) -> None:
    class Digits(LightningDataModule):
        pass

    with pytest.raises(MisconfigurationException, match=rf"Digits has no {method}.*\[no-dataloader\]"):
        getattr(Digits(), method)()


def test_the_other_hooks_do_nothing() -> None:
    datamodule = LightningDataModule()
    datamodule.prepare_data()
    datamodule.setup(stage="fit")
    datamodule.teardown(stage="fit")
    datamodule.on_exception(KeyError())
    datamodule.load_state_dict({})
    assert datamodule.state_dict() == {}
    assert datamodule.trainer is None
    assert datamodule.prepare_data_per_node
    assert not datamodule.allow_zero_length_dataloader_with_multiple_devices


def test_batches_pass_and_move() -> None:
    datamodule = LightningDataModule()
    batch = {"x": torch.ones(2), "name": "a"}
    assert datamodule.on_before_batch_transfer(batch, 0) is batch
    assert datamodule.on_after_batch_transfer(batch, 0) is batch
    moved = datamodule.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["x"].device.type == "meta" and moved["name"] == "a"


def test_its_hyper_parameters_are_those_of_its_init() -> None:
    class Digits(LightningDataModule):
        def __init__(self, batch_size: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert Digits().hparams == {"batch_size": 4}


def test_it_works_without_super_init_and_with_arguments_of_1x() -> None:
    class Forgetful(LightningDataModule):
        def __init__(self, width: int) -> None:
            self.width = width

    assert Forgetful(3).trainer is None
    LightningDataModule(train_transforms=None, dims=(1, 28, 28))


def test_loaders_from_datasets() -> None:
    datamodule = LightningDataModule.from_datasets(numbers, numbers, numbers, numbers, batch_size=4)
    for name in LOADERS:
        loader = getattr(datamodule, name)()
        assert isinstance(loader, DataLoader) and (loader.batch_size, loader.num_workers) == (4, 0)
        expected = RandomSampler if name == "train_dataloader" else SequentialSampler
        assert isinstance(loader.sampler, expected)
        assert len(list(loader)) == 2


def test_only_what_is_given_becomes_a_loader() -> None:
    datamodule = LightningDataModule.from_datasets(val_dataset=numbers)
    assert len(datamodule.val_dataloader()) == 6
    with pytest.raises(MisconfigurationException, match="train_dataloader"):
        datamodule.train_dataloader()


def test_several_datasets_are_several_loaders() -> None:
    datamodule = LightningDataModule.from_datasets(
        train_dataset={"a": numbers, "b": Stream()}, val_dataset=[numbers, Stream()], test_dataset=(numbers,)
    )
    train = datamodule.train_dataloader()
    assert list(train) == ["a", "b"] and isinstance(train["a"].sampler, RandomSampler)
    assert [type(loader) for loader in datamodule.val_dataloader()] == [DataLoader, DataLoader]
    assert len(datamodule.test_dataloader()) == 1


def test_a_list_of_samples_is_one_dataset() -> None:
    loader = LightningDataModule.from_datasets(val_dataset=[1.0, 2.0, 3.0], batch_size=2).val_dataloader()
    assert [batch.tolist() for batch in loader] == [[1.0, 2.0], [3.0]]


def test_own_init_gets_what_it_takes() -> None:
    class Named(LightningDataModule):
        def __init__(self, name: str, batch_size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Anything(LightningDataModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Nothing(LightningDataModule):
        def __init__(self) -> None:
            super().__init__()

    assert Named.from_datasets(numbers, batch_size=3, name="n").hparams == {"name": "n", "batch_size": 3}
    assert Anything.from_datasets(numbers).hparams == {"batch_size": 1, "num_workers": 0}
    assert isinstance(Nothing.from_datasets(numbers), Nothing)


def test_the_public_surface_is_lightnings_r45() -> None:
    """Whatever 2.6's users may override is here, and nothing more that a trainer would call."""
    from pytorch_lightning import LightningDataModule as Theirs

    def methods(cls: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}

    other = {
        "remove_ignored_hparams",  # private here
        "load_from_checkpoint",  # no hook, and no matter of this class alone
    }
    assert methods(LightningDataModule) - other == methods(Theirs) - other
    for name in methods(LightningDataModule) - other:
        ours = list(inspect.signature(getattr(LightningDataModule, name)).parameters)
        assert ours == list(inspect.signature(getattr(Theirs, name)).parameters), name
