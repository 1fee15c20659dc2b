"""Files of leyden in Lightning 2.6.6, and Lightning's in leyden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import leyden
import modes
from resumption import differences


def saver(framework: Any, path: Path, hook: str, epoch: int, batch: int, *, weights_only: bool = False) -> Any:
    """A callback of a framework that saves in a hook of an epoch and, unless it ends the epoch, of a batch."""

    class Save(framework.Callback):  # type: ignore[misc, name-defined]
        batch = -1

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.batch = batch_idx

    def save(trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking and (trainer.current_epoch, callback.batch) == (epoch, batch):
            trainer.save_checkpoint(path, weights_only=weights_only)

    callback = Save()
    setattr(callback, hook, save)
    return callback


def fit(name: str, framework: Any, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> dict[str, Any]:
    """Train a mode on a framework; what it has come to."""
    module = modes.build(name, framework)
    seen: list[tuple[int, int, int]] = []
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        seen.append((module.current_epoch, batch_idx, module.global_step))
        return step(batch, batch_idx)

    module.training_step = training_step
    silent = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    given = {"max_epochs": 4, "accelerator": "cpu", **silent, **modes.MODES[name][1], **options}
    trainer = framework.Trainer(**given, callbacks=list(callbacks))
    loaders = DataLoader(modes.DATA, batch_size=None), DataLoader(modes.DATA[:2], batch_size=None)
    trainer.fit(module, *loaders, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    loop = trainer.fit_loop
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    return {
        "weights": dict(module.state_dict()),
        "optimizers": [{key: state[key] for key in ("state",)} for state in optimizers],
        "rates": [[group["lr"] for group in state["param_groups"]] for state in optimizers],
        "schedulers": [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs],
        "clocks": (trainer.current_epoch, trainer.global_step),
        "updates": loop.clocks.updates if framework is leyden else loop.epoch_loop._batches_that_stepped,
        "seen": seen,
    }


PLACES = {
    "epoch_end": ("on_train_epoch_end", 1, 5, {}),
    "batch": ("on_train_batch_end", 1, 2, {}),
    "last batch": ("on_train_batch_end", 1, 5, {}),
    "validation": ("on_validation_end", 1, 2, {"val_check_interval": 3}),
    "validation at the end": ("on_validation_end", 1, 5, {}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", modes.SHARED)
def test_lightning_resumes_from_our_files_as_from_its_own(name: str, place: str, tmp_path: Path) -> None:
    """R147, R151, R152, R153, R155: Lightning 2.6.6 cannot tell our file from its own."""
    hook, epoch, batch, options = PLACES[place]
    ours, theirs = tmp_path / "ours.ckpt", tmp_path / "theirs.ckpt"
    fit(name, leyden, saver(leyden, ours, hook, epoch, batch), **options)
    fit(name, pytorch_lightning, saver(pytorch_lightning, theirs, hook, epoch, batch), **options)
    from_ours = fit(name, pytorch_lightning, ckpt_path=ours, **options)
    from_theirs = fit(name, pytorch_lightning, ckpt_path=theirs, **options)
    assert differences(from_theirs, from_ours) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", modes.SHARED)
def test_a_run_of_lightning_goes_on_here(name: str, place: str, tmp_path: Path) -> None:
    """R154, R156, V10: from Lightning's file the run goes on where it was, with the next batch of the loader."""
    hook, epoch, batch, options = PLACES[place]
    whole = fit(name, pytorch_lightning, saver(pytorch_lightning, tmp_path / "a.ckpt", hook, epoch, batch), **options)
    rest = fit(name, leyden, ckpt_path=tmp_path / "a.ckpt", **options)
    whole["seen"] = whole["seen"][(epoch * 6 + batch + 1) :]
    assert differences(whole, rest) == []


@pytest.mark.parametrize("order", [(leyden, pytorch_lightning), (pytorch_lightning, leyden)], ids=["there", "here"])
@pytest.mark.parametrize("name", modes.SHARED)
def test_a_finished_run_goes_on_in_the_other(name: str, order: Any, tmp_path: Path) -> None:
    """R151, R152: between epochs nothing is in progress."""
    writer, reader = order
    whole = fit(name, writer)
    fit(name, writer, saver(writer, tmp_path / "a.ckpt", "on_fit_end", 2, 5), max_epochs=2)
    rest = fit(name, reader, ckpt_path=tmp_path / "a.ckpt")
    whole["seen"] = whole["seen"][12:]
    assert differences(whole, rest) == []


def keys(value: Any) -> Any:
    """The names in nested dicts, in order."""
    return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value).__name__


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("place", ["epoch_end", "batch", "validation"])
@pytest.mark.parametrize("name", modes.SHARED)
def test_files_have_lightnings_layout(name: str, place: str, weights_only: bool, tmp_path: Path) -> None:
    """R147, R148, R151, R152, R153: the same keys in the same order, and the same counts."""
    hook, epoch, batch, options = PLACES[place]
    ours, theirs = tmp_path / "ours.ckpt", tmp_path / "theirs.ckpt"
    fit(name, leyden, saver(leyden, ours, hook, epoch, batch, weights_only=weights_only), **options)
    fit(
        name,
        pytorch_lightning,
        saver(pytorch_lightning, theirs, hook, epoch, batch, weights_only=weights_only),
        **options,
    )
    mine, other = torch.load(ours), torch.load(theirs)
    assert ("leyden" in mine) is not weights_only
    mine.pop("leyden", None)
    assert list(mine) == list(other)
    assert keys(mine["loops"]) == keys(other["loops"])
    assert (mine["epoch"], mine["global_step"]) == (other["epoch"], other["global_step"])
    for part in ("state_dict", "batch_progress", "automatic_optimization.optim_progress"):
        part = f"epoch_loop.{part}"
        assert mine["loops"]["fit_loop"][part] == other["loops"]["fit_loop"][part], part
    assert mine["loops"]["fit_loop"]["epoch_progress"] == other["loops"]["fit_loop"]["epoch_progress"]
