"""When a run asks for its data: every call of module and datamodule, in the order in which Lightning makes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import leyden

TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
LOADERS = tuple(f"{stage}_dataloader" for stage in ("train", "val", "test", "predict"))
AROUND = ("prepare_data", "setup", "teardown")
MODULE = (
    *("configure_model", "configure_optimizers", "on_fit_start", "on_fit_end", "on_train_start", "on_train_end"),
    *("on_train_epoch_start", "on_train_epoch_end", "on_train_batch_start", "on_train_batch_end"),
    *(
        f"on_{stage}_{event}"
        for stage in ("validation", "test", "predict")
        for event in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
    ),
)


def loader(count: int) -> DataLoader[Any]:
    return DataLoader(torch.ones(count, 1))


def loaders_of(base: type) -> type:
    """The same data in all kinds of forms."""

    class Data(base):  # type: ignore[misc, valid-type]
        def train_dataloader(self) -> Any:
            return {"a": loader(2), "b": [loader(1)]}

        def val_dataloader(self) -> Any:
            return [loader(1), loader(2)]

        def test_dataloader(self) -> Any:
            return loader(2)

        def predict_dataloader(self) -> Any:
            return [loader(1)]

    return Data


def module_of(base: type) -> type:
    class Module(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.weight.sum()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            """Nothing to compute."""

        test_step = predict_step = validation_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


def noting(base: type, names: tuple[str, ...], note: Callable[[str], None], prefix: str = "") -> Any:
    """An instance that notes every call of these methods."""

    def override(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            stage = "".join(str(getattr(v, "value", v)) for v in (*args, *kwargs.values()) if isinstance(v, str))
            note(f"{prefix}{name} {stage}".strip())
            return getattr(super(made, self), name)(*args, **kwargs)

        return method

    made = type("Noting", (base,), {name: override(name) for name in names})
    return made()


def events(library: Any, stage: str, *, with_datamodule: bool, **arguments: Any) -> list[str]:
    """Every call, in order."""
    found: list[str] = []
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = library.Trainer(accelerator="cpu", **silent, **{"max_epochs": 1, **arguments})
    base = module_of(library.LightningModule)
    names, given = MODULE + AROUND, {}
    if with_datamodule:
        data = loaders_of(library.LightningDataModule)
        given["datamodule"] = noting(data, LOADERS + AROUND + TRANSFER, found.append, "dm.")
    else:
        base, names = loaders_of(base), names + LOADERS + TRANSFER
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = {"verbose": False} if stage in ("validate", "test") else {}
        getattr(trainer, stage)(noting(base, names, found.append), **given, **quiet)
    return found


@pytest.mark.parametrize("with_datamodule", [True, False], ids=["datamodule", "module"])
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_the_order_is_lightnings(stage: str, with_datamodule: bool) -> None:
    """R44: prepare_data, setup, the loaders that the run needs, three transfer hooks for every batch, teardown."""
    theirs = events(pytorch_lightning, stage, with_datamodule=with_datamodule)
    ours = events(leyden, stage, with_datamodule=with_datamodule)
    assert ours == theirs
    prefix = "dm." if with_datamodule else ""
    own = {"fit": ["train", "val"], "validate": ["val"]}.get(stage, [stage])
    asked = [event for event in ours if event.endswith("_dataloader")]
    assert sorted(asked) == [f"{prefix}{name}_dataloader" for name in own]
    assert ours.index(f"{prefix}prepare_data") < ours.index(f"{prefix}setup {stage}") < ours.index(asked[0])
    assert ours[-1] == f"teardown {stage}"


RELOADS: dict[str, dict[str, Any]] = {
    "never": {},
    "every epoch": {"reload_dataloaders_every_n_epochs": 1},
    "every second": {"reload_dataloaders_every_n_epochs": 2},
    "every epoch, after a sanity check": {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 1},
    "every epoch, validated every second": {"reload_dataloaders_every_n_epochs": 1, "check_val_every_n_epoch": 2},
    "every second, validated then": {"reload_dataloaders_every_n_epochs": 2, "check_val_every_n_epoch": 2},
    "every third, validated every second": {"reload_dataloaders_every_n_epochs": 3, "check_val_every_n_epoch": 2},
    "every epoch, validated twice in it": {"reload_dataloaders_every_n_epochs": 1, "val_check_interval": 1},
    "every epoch, validated across epochs": {
        "reload_dataloaders_every_n_epochs": 1,
        "check_val_every_n_epoch": None,
        "val_check_interval": 3,
    },
    "every epoch, not validated": {"reload_dataloaders_every_n_epochs": 1, "limit_val_batches": 0},
}


@pytest.mark.parametrize("name", RELOADS)
def test_loaders_are_asked_for_again_when_lightning_asks(name: str) -> None:
    """R44: ``reload_dataloaders_every_n_epochs`` for training and validation, between the epochs' own events."""
    arguments = {"max_epochs": 5, "num_sanity_val_steps": 0, **RELOADS[name]}
    theirs, ours = (
        events(library, "fit", with_datamodule=True, **arguments) for library in (pytorch_lightning, leyden)
    )
    assert ours == theirs
    every = RELOADS[name].get("reload_dataloaders_every_n_epochs", 5)
    assert ours.count("dm.train_dataloader") == -(-5 // every)


def test_a_reloaded_loader_is_the_one_that_is_used() -> None:
    """Its length, limits and the number that users read follow it."""

    class Growing(leyden.LightningDataModule):
        size = 0

        def train_dataloader(self) -> Any:
            self.size += 1
            return loader(self.size)

        val_dataloader = train_dataloader

    class Module(module_of(leyden.LightningModule)):  # type: ignore[misc]
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer = self.trainer
            seen.append((trainer.num_training_batches, batch_idx, trainer.is_last_batch, trainer.num_val_batches))

    seen: list[Any] = []
    trainer = leyden.Trainer(
        accelerator="cpu",
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), datamodule=Growing())
    assert seen == [(1, 0, True, [2]), (3, 0, False, [2]), (3, 1, False, [2]), (3, 2, True, [2])]
    assert trainer.num_val_batches == [4]
