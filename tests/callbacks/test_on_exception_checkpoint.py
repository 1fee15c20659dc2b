"""``OnExceptionCheckpoint``, and what ``Checkpoint`` is for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

import leyden
from leyden import Callback
from leyden.callbacks import Checkpoint, OnExceptionCheckpoint
from leyden.errors import InvalidValueError
from modes import MODES, build, run


class Failing:
    """Fails once, in the middle of the second epoch."""

    kind: type[BaseException] = RuntimeError
    spoil: Path | None = None

    def training_step(self: Any, batch: Any, batch_idx: int, *optimizer_idx: int) -> Any:
        if self.kind is not None and self.current_epoch == 1 and batch_idx == 2:
            if self.spoil is not None:
                shutil.rmtree(self.spoil)
                self.spoil.touch()
            kind, self.kind = self.kind, None
            raise kind("the reason")
        return super().training_step(batch, batch_idx, *optimizer_idx)


def failing(mode: str = "one", framework: Any = leyden, **attributes: Any) -> Any:
    module = build(mode, framework, **attributes)
    namespace: dict[str, Any] = {}
    if mode == "alternating":

        def training_step(self: Any, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return Failing.training_step(self, batch, batch_idx, optimizer_idx)

        namespace["training_step"] = training_step
    module.__class__ = type("FailingModule", (Failing, type(module)), namespace)
    return module


def fit(callbacks: list[Callback], mode: str = "one", **arguments: Any) -> Any:
    return run(mode, callbacks, **{"enable_checkpointing": True, "max_epochs": 3, **arguments})


FINISHED = {"one": 8, "accumulated": 2, "manual": 16, "alternating": 16, "joint": 8}


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", MODES)
def test_saves_the_last_step_that_was_finished(mode: str, kind: type[BaseException], tmp_path: Path) -> None:
    callback = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(kind, match="the reason"):
        fit([callback], mode, module=failing(mode, kind=kind))
    checkpoint = torch.load(callback.ckpt_path, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, FINISHED[mode])


def test_the_reason_survives_when_saving_fails(tmp_path: Path) -> None:
    callback = OnExceptionCheckpoint(tmp_path / "run")
    with (
        pytest.raises(RuntimeError, match="the reason"),
        pytest.warns(UserWarning, match=r"could not save .* until RuntimeError ended .*on_exception.ckpt"),
    ):
        fit([callback], module=failing(spoil=tmp_path / "run"))


@pytest.mark.filterwarnings("error")
def test_the_reason_survives_when_warnings_are_errors(tmp_path: Path) -> None:
    callback = OnExceptionCheckpoint(tmp_path / "run")
    with pytest.raises(RuntimeError, match="the reason"):
        fit([callback], module=failing(spoil=tmp_path / "run"))


@pytest.mark.parametrize("resumes", [False, True])
def test_the_file_has_served_when_a_fit_succeeds(resumes: bool, tmp_path: Path) -> None:
    """R161. Evaluations in between leave it alone; Lightning removes it then, and in any folder."""
    callback, module = OnExceptionCheckpoint(tmp_path), failing()
    with pytest.raises(RuntimeError):
        trainer, *_ = fit([callback], module=module)
    path = Path(callback.ckpt_path)
    module.trainer.validate(module, [(torch.ones(2, 3), torch.ones(2, 1))], verbose=False)
    assert path.exists()
    if resumes:  # as in a new process
        callback = OnExceptionCheckpoint(tmp_path)
    trainer = leyden.Trainer(max_epochs=3, callbacks=[callback], enable_progress_bar=False)
    trainer.fit(module, DataLoader([(torch.ones(2, 3), torch.ones(2, 1))] * 6, batch_size=None), ckpt_path=path)
    assert not path.exists()


def test_a_file_of_another_run_stays(tmp_path: Path) -> None:
    other, elsewhere = tmp_path / "on_exception.ckpt", tmp_path / "elsewhere.ckpt"
    for path in (other, elsewhere):
        path.touch()
    callback = OnExceptionCheckpoint(tmp_path)
    callback.load_state_dict({"ckpt_path": str(elsewhere)})
    fit([callback])
    assert other.exists()
    assert elsewhere.exists()


def test_nothing_to_save(tmp_path: Path) -> None:
    """Neither before training nor while debugging."""

    class Early(Callback):
        def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
            raise RuntimeError("too early")

    with pytest.raises(RuntimeError, match="too early"):
        fit([OnExceptionCheckpoint(tmp_path), Early()])
    module = failing()
    module.on_train_end = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit([OnExceptionCheckpoint(tmp_path)], module=module, fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidValueError, match="OnExceptionCheckpoint cannot write to") as caught:
        fit([OnExceptionCheckpoint(tmp_path / "file" / "run")])
    assert caught.value.code == "checkpoint-folder"


def test_the_name() -> None:
    theirs = pytorch_lightning.callbacks.OnExceptionCheckpoint("runs", "rescued")
    assert OnExceptionCheckpoint("runs", "rescued").ckpt_path == theirs.ckpt_path
    with pytest.raises(ValueError, match="needs a name"):
        OnExceptionCheckpoint("runs", "")


def test_checkpoints_are_called_last() -> None:
    """R162."""

    class Own(Checkpoint):
        pass

    own, other = Own(), Callback()
    assert leyden.Trainer(callbacks=[own, other], enable_progress_bar=False).callbacks == [other, own]
