"""A step that fails is written to a file, and runs again from it exactly as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import leyden
import leyden.callbacks.failure_recorder as failure_recorder
import modes
from leyden import Callback, LightningModule, Trainer
from leyden.callbacks import FailureRecorder
from leyden.errors import CheckpointError, InvalidTypeError, InvalidValueError, NonFiniteError
from resumption import SaveAt, differences, noisy, run

#: Epoch and batch of the step that fails: not the first one after a copy of the state.
EPOCH, BATCH = 1, 3


def explode(loss: Tensor) -> Tensor:
    raise ValueError("this batch is bad")


def not_a_number(loss: Tensor) -> Tensor:
    return loss * float("nan")


def infinite(loss: Tensor) -> Tensor:
    return loss / 0.0


def bad_gradient(loss: Tensor) -> Tensor:
    """A loss that is fine, and whose gradient is 0 times infinity."""
    return loss + (loss * 0).sqrt()


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], type[Exception], str]] = {
    "exception": (explode, ValueError, "this batch is bad"),
    "nan": (not_a_number, NonFiniteError, "the loss is not finite in batch 3 of epoch 1"),
    "inf": (infinite, NonFiniteError, "the loss is not finite in batch 3 of epoch 1"),
    "gradient": (bad_gradient, NonFiniteError, "a gradient of optimizer 0 is not finite"),
}


def arm(module: Any, fault: Callable[[Tensor], Tensor], *, call: int = 0) -> Any:
    """Let the loss of a module fail in one step; it notes the losses and what led to them."""
    seen: list[Any] = []
    loss_of = module.loss

    def loss(batch: Any) -> Tensor:
        value = loss_of(batch)
        trainer = module.trainer
        if trainer.training:
            here = [trainer.current_epoch, trainer.clocks.batch_idx]
            calls = [place for *place, _ in seen].count(here)
            seen.append((*here, [value.item(), *weights(module)]))
            if (*here, calls) == (EPOCH, BATCH, call):
                return fault(value)
        return value

    module.__dict__.update(loss=loss, seen=seen)
    return module


def faulty(name: str, fault: Callable[[Tensor], Tensor], *, call: int = 0) -> Any:
    """The module of a mode, armed."""
    return arm(noisy(modes.build(name)), fault, call=call)


class Arm(Callback):
    """Arms the module of a run."""

    def __init__(self, fault: Callable[[Tensor], Tensor], call: int = 0) -> None:
        self.fault, self.call = fault, call

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.module = arm(pl_module, self.fault, call=self.call)


def weights(module: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in module.state_dict().values()]


def fail(name: str, folder: Path, fault: str, *callbacks: Callback, call: int = 0, **options: Any) -> Any:
    """Train until the fault; returns the module."""
    made, error, text = FAULTS[fault]
    armed = Arm(made, call)
    with pytest.raises(error, match=text):
        run(name, armed, *callbacks, record_failures=folder, **options)
    return armed.module


def replayed(name: str, folder: Path, fault: str, *, call: int = 0, **options: Any) -> Any:
    """Replay the one file in the folder; returns the module."""
    made, error, _ = FAULTS[fault]
    module = faulty(name, made, call=call)
    (file,) = folder.iterdir()
    with pytest.raises((error, RuntimeError)):
        leyden.replay(file, module, **options)
    return module


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", modes.MODES)
def test_a_failing_step_runs_again(name: str, fault: str, tmp_path: Path) -> None:
    """With the weights, the batch and the random numbers that it had."""
    module = fail(name, tmp_path, fault)
    again = replayed(name, tmp_path, fault)
    here = [[entry for entry in seen if entry[:2] == (EPOCH, BATCH)] for seen in (module.seen, again.seen)]
    assert len(here[0]) == 1
    assert differences(*here) == []


@pytest.mark.parametrize("name", ["manual", "alternating"])
def test_the_state_before_a_step_that_fails_after_its_first_update(name: str, tmp_path: Path) -> None:
    """The first of two optimizers has stepped when the second one's loss is computed."""
    module = fail(name, tmp_path, "exception", call=1)
    again = replayed(name, tmp_path, "exception", call=1)
    assert [place for *place, _ in again.seen[-2:]] == [[EPOCH, BATCH]] * 2
    assert differences(module.seen[-2:], again.seen[-2:]) == []


def test_every_batch_since_the_copy_is_in_the_file(tmp_path: Path) -> None:
    module = fail("one", tmp_path, "exception", FailureRecorder(tmp_path / "other", every=2))
    (file,) = (tmp_path / "other").iterdir()
    again = faulty("one", explode)
    with pytest.raises(ValueError, match="bad"):
        leyden.replay(file, again)
    assert [batch for _, batch, _ in again.seen] == [2, 3]
    assert differences(module.seen[-2:], again.seen) == []
    (file,) = tmp_path.glob("*.failure")
    assert len(leyden.checkpoint.read_checkpoint(file)["failure"]["batches"]) == 4  # since the epoch began


def test_a_number_that_is_not_finite_ends_the_run_before_the_step(tmp_path: Path) -> None:
    """So the weights are still good, and a checkpoint that an exception saves is."""
    module = fail("one", tmp_path, "gradient")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def test_a_replay_names_the_operation(tmp_path: Path) -> None:
    fail("one", tmp_path, "gradient")
    (file,) = tmp_path.iterdir()
    with pytest.warns(UserWarning, match="Error detected in MulBackward0"), pytest.raises(RuntimeError, match="Mul"):
        leyden.replay(file, faulty("one", bad_gradient))


def in_the_forward_pass(loss: Tensor) -> Tensor:
    """A number that torch's anomaly detection, which looks at the backward pass, does not find; a mask is none."""
    masked = torch.zeros(2).masked_fill(torch.tensor([True, False]), -float("inf")).softmax(0).sum()
    return loss + masked + (loss * 0 - 1).log()


def test_a_replay_names_the_operation_of_the_forward_pass(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="the loss is not finite in batch 3"):
        run("one", Arm(in_the_forward_pass), record_failures=tmp_path)
    (file,) = tmp_path.iterdir()
    with pytest.raises(
        NonFiniteError, match=r"the loss is nan, first made by log in .*test_failure_recorder.py:\d+, ret"
    ):
        leyden.replay(file, faulty("one", in_the_forward_pass))


def test_a_batch_that_is_not_finite(tmp_path: Path) -> None:
    batch = [torch.ones(2, 3), torch.full((2, 1), float("nan"))]
    with pytest.raises(NonFiniteError):
        run("one", record_failures=tmp_path, loader=[batch])
    (file,) = tmp_path.iterdir()
    with pytest.raises(NonFiniteError, match="the loss is nan: the batch holds such numbers"):
        leyden.replay(file, noisy(modes.build("one")))


@pytest.mark.parametrize(("every", "precision"), [(1, "32-true"), (2, "64-true"), (16, "bf16-mixed")])
def test_a_replay_tells_whether_it_is_the_recorded_run(
    every: int, precision: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All losses and gradients are compared, bit for bit, in the middle of a window too."""
    options: dict[str, Any] = {"precision": precision, "val_check_interval": 2, "max_epochs": 2}
    with pytest.raises(NonFiniteError, match="in batch 5 of epoch 1"):
        run("accumulated", Arm(bad_gradient), FailureRecorder(tmp_path, every=every), **options)
    (file,) = tmp_path.iterdir()
    for module, said in (
        (faulty("accumulated", bad_gradient), "bit for bit as recorded"),
        (arm(modes.build("accumulated"), bad_gradient), "another run than the recorded one"),
    ):
        caplog.clear()
        with pytest.raises(NonFiniteError) as caught:
            leyden.replay(file, module, detect_anomaly=False)
        told = [*caplog.messages, *getattr(caught.value, "__notes__", [])]
        assert any(text.startswith(said) for text in told), told


def test_great_numbers_are_finite(tmp_path: Path) -> None:
    """Their squares are not."""
    loader = [[torch.ones(2, 3), torch.full((2, 1), 1e18)]] * 2
    run("one", record_failures=tmp_path, loader=loader, max_epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_does_not_fail_again(tmp_path: Path) -> None:
    """The bug was fixed: the replay says so by returning."""
    fail("one", tmp_path, "nan")
    (file,) = tmp_path.iterdir()
    trainer = leyden.replay(file, noisy(modes.build("one")))
    assert (trainer.current_epoch, trainer.clocks.batch_idx) == (EPOCH + 1, BATCH)


class Arrival:
    """Stands for a CUDA event: what was sent is there after some questions, or when it is waited for."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def query(self) -> bool:
        self.left -= 1
        return self.left < 0

    def synchronize(self) -> None:
        self.left = 0


@pytest.mark.parametrize("questions", [0, 1, 100])
@pytest.mark.parametrize("every", [1, 2, 16])
def test_a_device_that_answers_late(every: int, questions: int, tmp_path: Path, monkeypatch: Any) -> None:
    """As on a GPU, where nobody waits for the number: the record is of the step that has failed, not of a later one."""
    monkeypatch.setattr(failure_recorder, "_is_late", lambda size: True)
    monkeypatch.setattr(failure_recorder, "_send", lambda sizes: (torch.stack(sizes), Arrival(questions)))
    armed = Arm(bad_gradient)
    with pytest.raises(NonFiniteError, match="a gradient of optimizer 0 is not finite in batch 3 of epoch 1"):
        run("one", armed, FailureRecorder(tmp_path, every=every))
    assert len(armed.module.seen) > 10 or questions == 0  # steps that followed
    monkeypatch.undo()
    again = replayed("one", tmp_path, "gradient")
    here = [[entry for entry in seen if entry[:2] == (EPOCH, BATCH)] for seen in (armed.module.seen, again.seen)]
    assert differences(*here) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_waits(tmp_path: Path) -> None:
    """torch raises at every call that would synchronise, between two copies of the state."""

    class Strict(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("error" if batch_idx > 0 else "default")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("default")

    run("one", Strict(), record_failures=tmp_path, accelerator="cuda")
    armed = Arm(bad_gradient)
    with pytest.raises(NonFiniteError, match="batch 3 of epoch 1"):
        run("one", armed, record_failures=tmp_path, accelerator="cuda")


def test_the_recorder_changes_nothing(tmp_path: Path) -> None:
    for name in modes.MODES:
        assert differences(run(name).state, run(name, record_failures=tmp_path / name).state) == []
        assert list((tmp_path / name).iterdir()) == []


def test_what_a_validation_changes_is_in_the_state(tmp_path: Path) -> None:
    """A rate that was lowered between the last copy and the step."""

    class Lower(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for optimizer in trainer.optimizers:
                optimizer.param_groups[0]["lr"] *= 0.5

    options: dict[str, Any] = {"val_check_interval": 2}
    module = fail("one", tmp_path, "exception", Lower(), **options)
    again = replayed("one", tmp_path, "exception")
    assert [batch for _, batch, _ in again.seen] == [2, 3]
    assert differences(module.seen[-1], again.seen[-1]) == []


def test_clipping_and_precision_are_those_of_the_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"gradient_clip_val": 0.01, "precision": "bf16-mixed"}
    module = fail("one", tmp_path, "exception", **options)
    assert differences(module.seen[-1], replayed("one", tmp_path, "exception").seen[-1]) == []


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_batch_start"])
def test_what_fails_outside_of_a_step_is_not_recorded(hook: str, tmp_path: Path) -> None:
    class Fails(Callback):
        pass

    callback = Fails()
    setattr(callback, hook, lambda *_: explode(torch.ones(())))
    with pytest.raises(ValueError, match="bad"):
        run("one", callback, record_failures=tmp_path, num_sanity_val_steps=0)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_no_failure(tmp_path: Path) -> None:
    def interrupt(loss: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("one", Arm(interrupt), record_failures=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_it_is_in_that_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"):
        run("one", Arm(explode), record_failures=True, logger=False, default_root_dir=tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.failure")] == [
        "failures/epoch=1-batch=3.failure"
    ]


def test_an_exception_says_where_its_record_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad") as caught:
        run("one", Arm(explode), record_failures=tmp_path)
    notes = getattr(caught.value, "__notes__", None)
    assert notes is None or any(f"leyden.replay('{tmp_path}" in note for note in notes)  # Python >= 3.11


def test_a_checkpoint_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    run("one", SaveAt(path, "on_train_batch_end"))
    with pytest.raises(CheckpointError, match="replay-file"):
        leyden.replay(path, modes.build("one"))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (functools.partial(FailureRecorder, every=0), InvalidValueError),
        (functools.partial(FailureRecorder, every=True), InvalidValueError),
        (functools.partial(Trainer, record_failures=None), InvalidTypeError),
        (functools.partial(Trainer, record_failures=3), InvalidTypeError),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_a_folder_that_takes_no_files_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidValueError, match="failure-folder"):
        run("one", record_failures=tmp_path / "file" / "folder")
