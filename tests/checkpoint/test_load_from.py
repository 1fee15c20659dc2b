"""`load_from_checkpoint` of modules and datamodules."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import nn

import leyden
import modes
from leyden.errors import CheckpointError, InvalidTypeError, InvalidValueError, LeydenWarning


def kinds(framework: Any) -> dict[str, Any]:
    """Modules that keep their arguments in all ways."""

    class Base(framework.LightningModule):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Named(Base):
        def __init__(self, width: int = 1, rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(3, width)

    class Holder(Base):
        def __init__(self, hparams: Any, name: str = "a") -> None:
            super().__init__()
            self.name = name
            self.save_hyperparameters(hparams)
            self.layer = nn.Linear(3, self.hparams["width"])

    class Open(Base):
        def __init__(self, width: int, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.kwargs = kwargs
            self.layer = nn.Linear(3, width)

    class Silent(Base):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.layer = nn.Linear(3, width)

    class Late(Base):
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()

        def configure_model(self) -> None:
            self.layer = nn.Linear(3, self.hparams.width)

    return {kind.__name__: kind for kind in (Named, Holder, Open, Silent, Late)}


CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "names": ("Named", (), {"width": 2, "rate": 0.5}, {}),
    "another value": ("Named", (), {"width": 2}, {"rate": 0.7}),
    "one dict": ("Holder", ({"width": 2},), {}, {}),
    "one namespace": ("Holder", (Namespace(width=2),), {}, {}),
    "another dict": ("Holder", ({"width": 2},), {}, {"hparams": {"width": 2, "more": 1}}),
    "a value in the dict": ("Holder", ({"width": 2},), {}, {"more": 3}),
    "any": ("Open", (2,), {"depth": 3}, {"other": 4}),
    "nothing kept": ("Silent", (2,), {}, {"width": 2}),
    "built late": ("Late", (2,), {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_module_is_built_from_its_file(case: str, tmp_path: Path) -> None:
    """R147: with the arguments that were saved, or others; exactly as Lightning does, from either one's file."""
    name, args, kwargs, others = CASES[case]
    found = []
    for framework in (leyden, pytorch_lightning):
        kind = kinds(framework)[name]
        silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
        trainer = framework.Trainer(max_epochs=1, accelerator="cpu", **silent)
        torch.manual_seed(0)
        trainer.fit(kind(*args, **kwargs), torch.utils.data.DataLoader(modes.DATA, batch_size=None))
        trainer.save_checkpoint(tmp_path / f"{framework.__name__}.ckpt")
    for framework in (leyden, pytorch_lightning):
        for source in ("leyden", "pytorch_lightning"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = kinds(framework)[name].load_from_checkpoint(tmp_path / f"{source}.ckpt", **others)
            seen = dict(module.hparams), getattr(module, "name", None), getattr(module, "kwargs", None)
            found.append((seen, {key: value.tolist() for key, value in module.state_dict().items()}))
    assert all(one == found[0] for one in found)


def save(path: Path, module: Any, **options: Any) -> Any:
    trainer = leyden.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(module, modes.DATA, **options)
    trainer.save_checkpoint(path)
    return module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of a module of width 2."""
    save(tmp_path / "a.ckpt", kinds(leyden)["Named"](2))
    return tmp_path / "a.ckpt"


def test_an_argument_that_does_not_exist_is_told(path: Path) -> None:
    """It is often a misspelt one; Lightning drops it without a word."""
    with pytest.warns(LeydenWarning, match=r"takes no 'rat'; did you mean 'rate'\? \[checkpoint-argument\]"):
        kinds(leyden)["Named"].load_from_checkpoint(path, rat=0.3)


def test_it_is_called_on_the_class(path: Path) -> None:
    """On an instance it would seem to load into that."""
    module = kinds(leyden)["Named"](2)
    with pytest.raises(InvalidTypeError, match=r"module = Named\.load_from_checkpoint.*\[called-on-instance\]"):
        module.load_from_checkpoint(path)


def test_strict_is_asked_of_the_call_then_of_the_module(path: Path) -> None:
    Named = kinds(leyden)["Named"]

    class More(Named):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.extra = nn.Parameter(torch.ones(1))

    class Lenient(More):
        strict_loading = False

    with pytest.raises(CheckpointError, match="missing in the file: extra"):
        More.load_from_checkpoint(path, width=2)
    for kind, strict in ((More, False), (Lenient, None)):
        with pytest.warns(LeydenWarning, match=r"missing in the file: extra, and are left out \[checkpoint-keys\]"):
            kind.load_from_checkpoint(path, width=2, strict=strict)
    with pytest.raises(CheckpointError):
        Lenient.load_from_checkpoint(path, width=2, strict=True)


def test_the_module_may_change_the_file_before(path: Path) -> None:
    """R159: `on_load_checkpoint` comes before the weights."""

    class Zeros(kinds(leyden)["Named"]):  # type: ignore[misc]
        def __init__(self, width: int = 1, rate: float = 0.1) -> None:
            super().__init__(width, rate)

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            checkpoint["state_dict"] = {key: value * 0 for key, value in checkpoint["state_dict"].items()}

    assert not Zeros.load_from_checkpoint(path).layer.weight.any()


def test_weights_come_to_the_device_that_is_asked_for(path: Path) -> None:
    kind = kinds(leyden)["Named"]
    asked = []

    def place(storage: Any, location: str) -> Any:
        asked.append(location)
        return storage

    assert kind.load_from_checkpoint(path, map_location=place).device.type == "cpu"
    assert set(asked) == {"cpu"}


def test_arguments_from_a_file_of_a_logger(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "hparams.yaml").write_text("width: 2\nrate: 0.25\n")
    module = kinds(leyden)["Named"].load_from_checkpoint(path, hparams_file=tmp_path / "hparams.yaml")
    assert dict(module.hparams) == {"width": 2, "rate": 0.25}
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InvalidValueError, match=r"holds list.*\[checkpoint-hparams-file\]"):
        kinds(leyden)["Named"].load_from_checkpoint(path, hparams_file=tmp_path / "list.yaml")


class Data(leyden.LightningDataModule):
    """Keeps its arguments and a place."""

    def __init__(self, size: int = 2, root: str = "here") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.place = 0

    def train_dataloader(self) -> Any:
        return modes.DATA

    def state_dict(self) -> Any:
        return {"place": self.place}

    def load_state_dict(self, state_dict: Any) -> None:
        self.place = state_dict["place"]


def test_a_datamodule_is_built_from_a_file(tmp_path: Path) -> None:
    """R147: its arguments have keys of their own, its state the name of its class."""
    data = Data(size=5)
    data.place = 9
    trainer = leyden.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(kinds(leyden)["Named"](), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Data.load_from_checkpoint(tmp_path / "a.ckpt", root="there")
    assert (dict(loaded.hparams), loaded.place) == ({"size": 5, "root": "there"}, 9)
