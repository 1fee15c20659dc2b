"""Files that real Lightning 1.9.5 and 1.5.10 have written, and what these came to from there (checkpoints/make.py)."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any

import fsspec
import pytest
import torch

import leyden
from leyden import Trainer
from leyden.checkpoint import read_checkpoint
from leyden.errors import CheckpointError, LeydenWarning
from leyden.precision import MixedPrecision

FILES = Path(__file__).parent / "checkpoints"
EXPECTED = json.loads((FILES / "expected.json").read_text())
SPEC = importlib.util.spec_from_file_location("make", FILES / "make.py")
assert SPEC is not None and SPEC.loader is not None
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)
KINDS = {
    **dict.fromkeys(("frequencies", "alternating"), "TwoOptimizers"),
    "midway": "OneOptimizer",
    "half": "OnPlateau",
}
#: 1.x says by these that the Trainer's argument is fit's.
FORMER = pytest.mark.filterwarnings("ignore:.*resume_from_checkpoint.*trainer-argument-1x")


def half(scaler: Any) -> Any:
    return MixedPrecision("16-mixed", "cpu", scaler)


def path(name: str) -> str:
    return str(FILES / f"{name}.ckpt")


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Files in memory are there for one test."""
    yield
    fsspec.filesystem("memory").store.clear()


@FORMER
@pytest.mark.parametrize("key", ["ckpt_path", "resume_from_checkpoint"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_goes_on_as_in_the_lightning_that_wrote_it(name: str, key: str, tmp_path: Path) -> None:
    """R149, R150, R154, R155: weights, clocks, rates, loss scale, callbacks; the same end by the same batches."""
    there = {key: value for key, value in EXPECTED[name].items() if key != "version"}
    here = make.run(leyden, name, tmp_path, half=half, **{key: path(name)})
    alike = {key: (here.pop(key), there.pop(key)) for key in ("weights", "rates", "best", "best_model_score", "waited")}
    for mine, theirs in alike.values():
        torch.testing.assert_close(tensors(mine), tensors(theirs))
    assert here == there
    trainer = make.run.trainer
    best = alike["best"][1]
    assert trainer.checkpoint_callback.best_model_path == f"memory://{name}/{min(best, key=best.get)}"
    assert trainer.current_epoch == make.EPOCHS
    assert getattr(make.run.data, "loaded", 5) == 5


def tensors(value: Any) -> Any:
    """Numbers in dicts and lists as tensors, by name."""
    return (
        {key: torch.tensor(one) for key, one in sorted(value.items())}
        if isinstance(value, dict)
        else tensors({"": value})
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_a_module_is_built_from_the_file(name: str, tmp_path: Path) -> None:
    """Hyper-parameters and weights; what the caller says counts more."""
    content, kind = torch.load(path(name), weights_only=False), make.kinds(leyden)[KINDS[name]]
    module = kind.load_from_checkpoint(path(name), map_location="cpu")
    assert dict(module.hparams) == content["hyper_parameters"]
    assert {key: value.tolist() for key, value in module.state_dict().items()} == {
        key: value.tolist() for key, value in content["state_dict"].items()
    }
    with pytest.raises(CheckpointError, match=r"body.0.weight.*\[checkpoint-weights\]"):
        kind.load_from_checkpoint(path(name), width=7)


def test_arguments_of_load_from_checkpoint() -> None:
    """What is said in place of the file's; names that it lacks are told where ``strict=False`` allows that."""
    kind = make.kinds(leyden)
    assert kind["TwoOptimizers"].load_from_checkpoint(path("frequencies"), lr=0.5).hparams.lr == 0.5
    assert kind["OneOptimizer"].load_from_checkpoint(path("midway"), lr=0.5).hparams.lr == 0.5
    assert kind["TwoOptimizers"].load_from_checkpoint(path("frequencies")).hparams.note == Path("a/b")
    assert kind["Data"].load_from_checkpoint(path("half")).hparams.size == 5

    class Larger(kind["OnPlateau"]):  # type: ignore[misc]
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(CheckpointError, match="more.weight"):
        Larger.load_from_checkpoint(path("half"))
    with pytest.warns(LeydenWarning, match="more.weight.*checkpoint-keys"):
        Larger.load_from_checkpoint(path("half"), strict=False)


def test_a_module_is_tested_with_the_weights_of_a_file(tmp_path: Path) -> None:
    kind, silent = make.kinds(leyden), dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    module = kind["TwoOptimizers"](frequencies=True)
    found = Trainer(accelerator="cpu", default_root_dir=tmp_path, **silent).validate(
        module, ckpt_path=path("frequencies"), verbose=False
    )
    assert found[0]["val_loss"] == pytest.approx(0.05300, abs=1e-4)  # of epoch=1 in the file


def test_values_of_pythons_own_are_read_and_no_others(tmp_path: Path) -> None:
    """R160: paths, times and namespaces in a pickle run nothing; anything else is told."""
    before = set(torch.serialization.get_safe_globals())
    values = [Path("a"), PureWindowsPath("b"), Namespace(a=1), datetime(2020, 1, 1, tzinfo=timezone.utc), timedelta(1)]
    torch.save({"state_dict": {}, "hyper_parameters": {"values": values}}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]["values"] == values
    torch.save({"state_dict": {}, "hyper_parameters": {"a": [Path("a"), Fraction(1, 2)]}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="the file names: fractions.Fraction. If"):
        read_checkpoint(tmp_path / "b.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before
