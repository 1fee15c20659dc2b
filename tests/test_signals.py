"""Signals that come while a run is on: saved at the next boundary, gone on from exactly there, nobody left behind."""

from __future__ import annotations

import builtins
import contextlib
import functools
import multiprocessing
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import modes
from leyden import Callback, LightningModule, Trainer, signals
from leyden.callbacks import Checkpoint, LearningRateFinder, ModelCheckpoint
from leyden.errors import InvalidValueError, LeydenWarning, RunInterrupted
from resumption import Outcome, differences, run, shuffled

NUMBERS = {name: getattr(signal, name) for name in signals.DEFAULT_ACTIONS}
#: Where a signal may come: hook, epoch, batch.
PLACES: dict[str, tuple[str, int, int]] = {
    "before a step": ("on_train_batch_start", 1, 1),
    "inside of a step": ("on_before_backward", 1, 3),
    "after a step": ("on_train_batch_end", 0, 2),
    "last batch": ("on_train_batch_end", 1, 5),
    "validation": ("on_validation_batch_start", 1, 5),
    "end of an epoch": ("on_train_epoch_end", 1, 5),
    "save": ("on_save_checkpoint", 1, 5),
}


def send(number: int) -> None:
    """Send a signal to this process; its handler has run when this returns."""
    os.kill(os.getpid(), number)


class Sender(Checkpoint):
    """Does something, by default sends a signal, once, in a hook of an epoch and batch; checkpoints are wanted."""

    def __init__(self, hook: str, epoch: int = 0, batch: int = 0, act: Callable[[], Any] | None = None) -> None:
        self.place, self.act, self.heard = (epoch, batch), act or functools.partial(send, signal.SIGTERM), []
        self.is_done = False
        setattr(self, hook, self.maybe)

    def maybe(self, trainer: Trainer, *args: Any) -> None:
        here = trainer.current_epoch, trainer.fit_loop.clocks.batch_idx
        if not self.is_done and here == self.place:
            self.is_done = True
            self.act()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.heard.append(type(exception))


@functools.cache
def whole(name: str) -> Outcome:
    return run(name)


def interrupted(
    name: str, folder: Path, sender: Sender, expected: type[BaseException] = SystemExit, **more: Any
) -> str:
    """Run until a signal ends the run; returns where it was saved."""
    with pytest.raises(expected):
        run(name, sender, ModelCheckpoint(folder, every_n_epochs=1), **more)
    return str(folder / "interrupted.ckpt")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", modes.MODES)
def test_a_run_goes_on_where_a_signal_ended_it(name: str, place: str, tmp_path: Path) -> None:
    """Wherever it comes, in all modes: weights, optimizers, schedulers, clocks, random numbers, rows."""
    interrupted(name, tmp_path, Sender(*PLACES[place]))
    second = run(name, ModelCheckpoint(tmp_path), seed=99, ckpt_path="last")
    assert second.trainer.ckpt_path == str(tmp_path / "interrupted.ckpt")
    assert differences(whole(name).state, second.state) == []
    assert differences(whole(name).rows[-len(second.rows) :], second.rows) == []


@pytest.mark.parametrize(("signal_name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_how_a_run_ends(signal_name: str, code: int | None, tmp_path: Path, capfd: Any) -> None:
    """128 + n, or KeyboardInterrupt; callbacks are told, loggers finalized, the user is."""
    finalized: list[str] = []

    class Rows(modes.Rows):
        def finalize(self, status: str) -> None:
            finalized.append(status)

    sender = Sender("on_train_batch_start", 0, 1, functools.partial(send, NUMBERS[signal_name]))
    trainer = Trainer(max_epochs=1, callbacks=[sender, ModelCheckpoint(tmp_path)], logger=Rows(), **QUIET)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        trainer.fit(Model(), modes.DATA)
    assert getattr(caught.value, "code", None) == code
    assert trainer.interrupted
    assert trainer.received_sigterm == (signal_name == "SIGTERM")
    assert trainer.global_step == 2  # the step in hand was finished, no other began
    assert sender.heard == [SystemExit if code != 130 else RunInterrupted]
    assert finalized == ["failed"]
    said = capfd.readouterr().err
    assert f"leyden: {signal_name}: the run is saved and ends at the end of this step" in said
    assert f"the run is saved to '{tmp_path}/interrupted.ckpt'" in said


QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


class Model(LightningModule):
    """One layer, one optimizer, all evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.steps: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps.append("train")
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.steps.append("evaluate")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.steps.append("evaluate")

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.steps.append("evaluate")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_after_ctrl_c_the_trainer_is_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook: the next cell may go on, or do something else."""
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    sender = Sender("on_train_batch_end", 0, 1, functools.partial(send, signal.SIGINT))
    trainer, module = Trainer(max_epochs=2, callbacks=[sender, ModelCheckpoint(tmp_path)], **QUIET), Model()
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(module, modes.DATA)
    assert caught.type is KeyboardInterrupt
    trainer.validate(module, modes.DATA)
    assert not trainer.interrupted
    trainer.fit(module, modes.DATA, ckpt_path="last")
    assert (trainer.ckpt_path, trainer.global_step) == (str(tmp_path / "interrupted.ckpt"), 12)
    assert not trainer.interrupted


def test_where_no_callback_has_a_folder_the_file_is_in_the_root_folder(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=1, callbacks=Sender("on_train_batch_start"), default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit):
        trainer.fit(Model(), modes.DATA)
    second = Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    second.fit(Model(), modes.DATA, ckpt_path="last")
    assert second.ckpt_path == str(tmp_path / "interrupted.ckpt")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_nothing_is_saved_where_checkpoints_are_off(name: str, tmp_path: Path, capfd: Any) -> None:
    """The user has said so; a line says it again."""

    class Act(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                send(NUMBERS[name])

    trainer = Trainer(max_epochs=1, callbacks=Act(), enable_checkpointing=False, default_root_dir=tmp_path, **QUIET)
    ends = name != "SIGUSR1"
    with pytest.raises((SystemExit, KeyboardInterrupt)) if ends else contextlib.nullcontext():
        trainer.fit(Model(), modes.DATA)
    assert trainer.global_step == (2 if ends else 6)
    assert list(tmp_path.iterdir()) == []
    what = "ends with the next step that ends, or when it is over" if ends else "goes on"
    assert f"{name}: the run {what}; nothing can be saved now (checkpoints are off" in capfd.readouterr().err


def test_sigusr1_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    """Outside of SLURM: whoever sends it wants a checkpoint now, and no other trace."""
    sender = Sender(*PLACES["inside of a step"], functools.partial(send, signal.SIGUSR1))
    first = run("one", sender, ModelCheckpoint(tmp_path))
    assert differences(whole("one").state, first.state) == []
    second = run("one", ModelCheckpoint(tmp_path), seed=99, ckpt_path=tmp_path / "interrupted.ckpt")
    assert differences(whole("one").state, second.state) == []


@pytest.mark.parametrize("hook", ["setup", "on_sanity_check_start", "on_fit_start"])
def test_before_anything_is_trained_there_is_nothing_to_save(hook: str, tmp_path: Path, capfd: Any) -> None:
    """The file that an earlier run has left stays what it was."""
    (tmp_path / "interrupted.ckpt").write_text("older")
    module, sender = Model(), Sender(hook)
    trainer = Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit):
        trainer.fit(module, modes.DATA, modes.DATA)
    assert "train" not in module.steps
    assert (tmp_path / "interrupted.ckpt").read_text() == "older"
    assert sender.heard == [SystemExit]
    assert "SIGTERM: the run ends with the next step that ends, or when it is over" in capfd.readouterr().err


def test_ctrl_c_before_the_first_step_does_not_wait(tmp_path: Path) -> None:
    """There is no boundary inside of setup, which may take an hour."""
    after: list[str] = []

    class Slow(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            send(signal.SIGINT)
            after.append("setup went on")

    trainer = Trainer(max_epochs=1, callbacks=Slow(), default_root_dir=tmp_path, **QUIET)
    with pytest.raises(RunInterrupted) as caught:
        trainer.fit(Model(), modes.DATA)
    assert caught.value.code == 130
    assert trainer.interrupted
    assert after == []


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_ends_after_its_batch(stage: str, tmp_path: Path) -> None:
    name = "validation" if stage == "validate" else stage
    module, sender = Model(), Sender(f"on_{name}_batch_start")
    trainer = Trainer(callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit) as caught:
        getattr(trainer, stage)(module, modes.DATA)
    assert caught.value.code == 143
    assert module.steps == ["evaluate"]
    assert list(tmp_path.iterdir()) == []


def test_a_trial_ends_after_its_batch_and_leaves_no_trace(tmp_path: Path) -> None:
    module = Model()
    before = module.layer.weight.detach().clone()
    act = functools.partial(send, signal.SIGTERM)

    class Signalled(Model):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if len(module.steps) == 3:
                act()
            return super().training_step(batch, batch_idx)

    module.__class__ = Signalled
    module.lr = 0.1  # type: ignore[assignment]
    finder = LearningRateFinder(num_training_steps=6, update_attr=False)
    trainer = Trainer(max_epochs=1, callbacks=finder, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit):
        trainer.fit(module, modes.DATA)
    assert torch.equal(module.layer.weight, before)
    assert not (tmp_path / "interrupted.ckpt").exists()


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end", "on_fit_end"])
def test_a_signal_after_the_last_boundary_ends_the_process_when_the_run_is_over(
    hook: str, tmp_path: Path, capfd: Any
) -> None:
    """Nothing is saved then, and nothing else is said; only in the last epoch's hook is it not yet known to be last."""
    sender = Sender(hook, int(hook != "on_train_epoch_end"), 5)
    trainer = Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit) as caught:
        trainer.fit(Model(), modes.DATA)
    assert caught.value.code == 143
    assert sender.heard == []  # the fit itself has succeeded
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr().err
    assert ("the run is saved" in said) == (hook == "on_train_epoch_end")
    assert "SIGTERM: no step came after it; the run is over, and nothing is saved for it" in said


def test_a_save_that_fails_does_not_keep_the_run_from_ending(tmp_path: Path) -> None:
    (tmp_path / "interrupted.ckpt").mkdir()
    trainer = Trainer(max_epochs=1, callbacks=Sender("on_train_batch_start"), default_root_dir=tmp_path, **QUIET)
    with pytest.warns(LeydenWarning, match="SIGTERM: the run could not be saved"), pytest.raises(SystemExit):
        trainer.fit(Model(), modes.DATA)


# -- handlers -----------------------------------------------------------------------------------------------------


def test_handlers_are_there_in_a_run_only(tmp_path: Path) -> None:
    """The user's own are called too, and are back afterwards."""
    heard: list[int] = []
    own = lambda number, frame: heard.append(number)  # noqa: E731
    before = {name: signal.getsignal(number) for name, number in NUMBERS.items()}
    inside: dict[str, Any] = {}
    look = lambda: inside.update({name: signal.getsignal(number) for name, number in NUMBERS.items()})  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    try:
        Trainer(max_epochs=1, callbacks=Sender("on_train_start", 0, 0, look), **QUIET).fit(Model(), modes.DATA)
        assert signal.getsignal(signal.SIGTERM) is own
        with pytest.raises(SystemExit):
            ended = Trainer(max_epochs=1, callbacks=Sender("on_train_start"), default_root_dir=tmp_path, **QUIET)
            ended.fit(Model(), modes.DATA)
        assert signal.getsignal(signal.SIGTERM) is own
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before["SIGTERM"])
    assert {name: signal.getsignal(number) for name, number in NUMBERS.items()} == before
    assert not any(inside[name] == before[name] for name in NUMBERS)


def test_what_is_ignored_stays_ignored() -> None:
    """`nohup` ignores SIGHUP so that a run survives its terminal; a shell does so with Ctrl-C for jobs behind "&"."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sender = Sender("on_train_start", 0, 0, functools.partial(send, signal.SIGHUP))
        Trainer(max_epochs=1, callbacks=sender, **QUIET).fit(Model(), modes.DATA)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_handler_that_the_user_installs_in_the_run_stays() -> None:
    own = lambda number, frame: None  # noqa: E731
    before = signal.getsignal(signal.SIGUSR1)
    try:
        sender = Sender("on_train_start", 0, 0, lambda: signal.signal(signal.SIGUSR1, own))
        Trainer(max_epochs=1, callbacks=sender, **QUIET).fit(Model(), modes.DATA)
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("handled", [False, ["SIGHUP"], {"SIGINT": "exit"}])
def test_signals_may_be_left_alone(handled: Any) -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []
    sender = Sender("on_train_start", 0, 0, lambda: inside.append(signal.getsignal(signal.SIGTERM)))
    Trainer(max_epochs=1, callbacks=sender, handle_signals=handled, **QUIET).fit(Model(), modes.DATA)
    assert inside == [before]


def test_actions_may_be_chosen(tmp_path: Path) -> None:
    sender = Sender("on_train_batch_start", 0, 1, functools.partial(send, signal.SIGUSR2))
    trainer = Trainer(
        max_epochs=1, callbacks=sender, default_root_dir=tmp_path, handle_signals={"SIGUSR2": "save"}, **QUIET
    )
    trainer.fit(Model(), modes.DATA)
    assert (tmp_path / "interrupted.ckpt").is_file()


@pytest.mark.parametrize("value", ["SIGTERM", 15, None, ["SIGKILL"], ["sigterm"], {"SIGTERM": "stop"}, {15: "exit"}])
def test_what_is_no_signal_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError, match="handle-signals"):
        Trainer(handle_signals=value)


def test_another_thread_handles_no_signals() -> None:
    """Python lets only the main thread install handlers; the run works all the same."""
    inside: list[Any] = []
    trainer = Trainer(
        max_epochs=1, callbacks=Sender("on_train_start", 0, 0, lambda: inside.append(signal.getsignal(15))), **QUIET
    )
    thread = threading.Thread(target=trainer.fit, args=(Model(), modes.DATA))
    thread.start()
    thread.join()
    assert inside == [signal.getsignal(15)]
    assert trainer.global_step == 6


def test_a_run_within_a_run_leaves_signals_to_the_outer(tmp_path: Path) -> None:
    """Its own end is no place where the outer one could be saved."""
    inner, module = Trainer(callbacks=Sender("on_test_batch_start"), **QUIET), Model()
    sender = Sender("on_train_batch_end", 0, 1, lambda: inner.test(module, modes.DATA, verbose=False))
    outer = Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit):
        outer.fit(Model(), modes.DATA)
    assert module.steps == ["evaluate"] * 6
    assert (outer.global_step, outer.received_sigterm, inner.received_sigterm) == (2, True, False)
    assert (tmp_path / "interrupted.ckpt").is_file()


def test_the_same_signal_from_several_senders_counts_once(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all processes of a job, and launchers hand it on to their child once more."""
    sender = Sender("on_train_batch_start", 0, 1, lambda: [send(signal.SIGINT), send(signal.SIGINT)])
    trainer = Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Model(), modes.DATA)
    assert trainer.global_step == 2
    assert (tmp_path / "interrupted.ckpt").is_file()


def test_ctrl_c_again_ends_a_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0])
    monkeypatch.setattr(signals, "monotonic", lambda: next(times))
    sender = Sender("on_train_batch_start", 0, 1, lambda: [send(signal.SIGINT), send(signal.SIGINT)])
    trainer = Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Model(), modes.DATA)
    assert trainer.global_step == 1
    assert list(tmp_path.iterdir()) == []


# -- SLURM --------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """A batch job; what is returned puts a stand-in for ``scontrol`` in place and tells where it notes its calls."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def install(script: str) -> Path:
        path, calls = tmp_path / "scontrol", tmp_path / "calls"
        path.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return calls

    return install  # type: ignore[return-value]


def test_slurm_requeues_and_the_same_script_goes_on(slurm: Any, tmp_path: Path) -> None:
    calls = slurm("exit 0")
    arguments: dict[str, Any] = {"max_epochs": 1, "default_root_dir": tmp_path, **QUIET}
    sender = Sender("on_train_batch_end", 0, 3, functools.partial(send, signal.SIGUSR1))
    with pytest.raises(SystemExit) as caught:
        Trainer(callbacks=sender, **arguments).fit(Model(), modes.DATA)
    assert caught.value.code == 138
    assert calls.read_text() == "requeue 77\n"
    again, module = Trainer(**arguments), Model()
    again.fit(module, modes.DATA)
    assert len(module.steps) == 2
    assert not (tmp_path / "interrupted-77.ckpt").exists()  # the next fit of the job starts from its beginning


def test_slurm_requeues_one_task_of_an_array(slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slurm("exit 0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    sender = Sender("on_train_batch_end", 0, 3, functools.partial(send, signal.SIGUSR1))
    with pytest.raises(SystemExit):
        Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET).fit(Model(), modes.DATA)
    assert calls.read_text() == "requeue 70_3\n"


def test_a_run_that_slurm_does_not_requeue_goes_on(slurm: Any, tmp_path: Path) -> None:
    """It is saved, and SLURM will end it; until then it is worth something."""
    slurm("echo 'Requested operation is presently disabled' >&2; exit 1")
    sender = Sender("on_train_batch_end", 0, 3, functools.partial(send, signal.SIGUSR1))
    trainer = Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET)
    with pytest.warns(LeydenWarning, match="presently disabled"):
        trainer.fit(Model(), modes.DATA)
    assert trainer.global_step == 6
    assert (tmp_path / "interrupted-77.ckpt").is_file()


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_slurm_does_not_requeue_what_is_not_saved(stage: str, slurm: Any, tmp_path: Path) -> None:
    """It would begin anew at each start, for ever."""
    calls, module = slurm("exit 0"), Model()
    hook = "on_train_batch_start" if stage == "fit" else "on_test_batch_start"
    act = type("Act", (Callback,), {hook: lambda self, trainer, *_: send(signal.SIGUSR1)})()
    trainer = Trainer(max_epochs=1, callbacks=act, enable_checkpointing=False, default_root_dir=tmp_path, **QUIET)
    getattr(trainer, stage)(module, modes.DATA)
    assert len(module.steps) == len(modes.DATA)
    assert not calls.exists()


def test_slurm_preemption_saves_and_ends(slurm: Any, tmp_path: Path) -> None:
    """SIGTERM: SLURM requeues a preempted job by itself."""
    calls = slurm("exit 0")
    trainer = Trainer(max_epochs=1, callbacks=Sender("on_train_batch_end"), default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit) as caught:
        trainer.fit(Model(), modes.DATA)
    assert (caught.value.code, calls.exists()) == (143, False)
    assert (tmp_path / "interrupted-77.ckpt").is_file()


def test_an_interactive_job_is_not_requeued(slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slurm("exit 0")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    sender = Sender("on_train_batch_end", 0, 3, functools.partial(send, signal.SIGUSR1))
    Trainer(max_epochs=1, callbacks=sender, default_root_dir=tmp_path, **QUIET).fit(Model(), modes.DATA)
    assert not calls.exists()


# -- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_are_gone_after_an_interruption(number: int, tmp_path: Path) -> None:
    """Also while somebody, like a notebook, still holds the traceback."""
    trainer = Trainer(
        max_epochs=1,
        callbacks=Sender("on_train_batch_end", 0, 1, functools.partial(send, number)),
        default_root_dir=tmp_path,
        **QUIET,
    )
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        trainer.fit(Model(), shuffled(num_workers=2))
    assert caught.value.__traceback__ is not None
    assert multiprocessing.active_children() == []


#: A script as users write one, in which something happens before the third step.
SCRIPT = """
import os, random, signal, sys, time
import torch
from leyden import Callback, LightningModule, Trainer, seed_everything, signals
from leyden.callbacks import ModelCheckpoint

FOLDER, ACT, WORKERS = sys.argv[1], sys.argv[5], int(sys.argv[2])
CKPT_PATH, BAR = sys.argv[3] or None, sys.argv[4] == "bar"

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).pow(2).mean() * torch.rand(())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)

class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.randn(2) + index * random.random()

class Acting(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 2:
            exec(ACT)

seed_everything(1, verbose=False)
trainer = Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_model_summary=False, enable_progress_bar=BAR,
    callbacks=[Acting(), ModelCheckpoint(FOLDER)],
)
module = Model()
data = torch.utils.data.DataLoader(Noisy(), 2, shuffle=True, num_workers=WORKERS, persistent_workers=WORKERS > 0)
trainer.fit(module, data, ckpt_path=CKPT_PATH)
torch.save(module.state_dict(), os.path.join(FOLDER, "weights.pt"))
"""


def script(folder: Path, act: str = "pass", *, bar: bool = False, workers: int = 0, ckpt_path: str = "") -> list[str]:
    """The command that runs the script."""
    given = (str(folder), str(workers), ckpt_path, "bar" if bar else "", act)
    return [sys.executable, "-W", "ignore", "-c", SCRIPT, *given]


def test_ctrl_c_in_a_terminal_with_workers(tmp_path: Path) -> None:
    """It reaches every process of the group, none of which stays; the script ends as Python does, and goes on there."""
    folders = [tmp_path / name for name in ("whole", "broken")]
    subprocess.run(script(folders[0], workers=2), check=True)
    act = "os.killpg(os.getpgrp(), signal.SIGINT)"
    broken = subprocess.run(script(folders[1], act, workers=2), start_new_session=True, capture_output=True, text=True)
    assert broken.returncode == 130
    said = [line for line in broken.stderr.splitlines() if line]
    assert [line.startswith("leyden: SIGINT: the run is saved") for line in said] == [True, True], broken.stderr
    subprocess.run(script(folders[1], workers=2, ckpt_path="last"), check=True)
    whole, resumed = (torch.load(folder / "weights.pt") for folder in folders)
    assert differences(whole, resumed) == []


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    act = "signals._ECHO_S = 0.0; signal.raise_signal(15); signal.raise_signal(15); print('went on')"
    ended = subprocess.run(script(tmp_path, act), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "")
    assert "once more ends it at once" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """SIGHUP: the progress bar has nowhere to draw any more, and the run is saved all the same."""
    pid, terminal = pty.fork()
    if pid == 0:
        act = "print('ready', flush=True)\nwhile not trainer._signals.received: time.sleep(0.01)"
        command = script(tmp_path, act, bar=True)
        os.execv(command[0], command)
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert (tmp_path / "interrupted.ckpt").is_file()
