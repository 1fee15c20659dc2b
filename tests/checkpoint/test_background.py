"""Files written in the background: a consistent snapshot, one at a time; nobody is told of one that is not there."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import leyden.checkpoint.writing
import modes
from leyden import Callback, Trainer
from leyden.callbacks import ModelCheckpoint
from leyden.checkpoint import Writer, read_checkpoint, write_checkpoint
from leyden.checkpoint.background import Buffers
from leyden.errors import CheckpointError, LeydenWarning
from sameness import differences


class Gate:
    """Holds back the writing of files until it is opened, and lets it fail if asked to."""

    def __init__(self) -> None:
        self.begun, self.may_go = threading.Event(), threading.Event()
        self.fails = False

    @contextmanager
    def closed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Whatever happens, threads are let go in the end."""
        save = torch.save

        def held(*args: Any) -> None:
            self.begun.set()
            assert self.may_go.wait(30)
            if self.fails:
                raise OSError(28, "No space left on device")
            save(*args)

        monkeypatch.setattr(torch, "save", held)
        try:
            yield
        finally:
            self.may_go.set()
            monkeypatch.setattr(torch, "save", save)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    with gate.closed(monkeypatch):
        yield gate


def state(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((3,), value)}, "list": [1, {"a": value}]}


def test_the_file_has_what_was_there_at_the_call(gate: Gate, tmp_path: Path) -> None:
    """Not what the training has made of it since: tensors, containers, generators."""
    writer, content = Writer(), {**state(1.0), "random": torch.get_rng_state(), "bytes": bytearray(b"x")}
    writer.write(content, tmp_path / "a.ckpt", asynchronous=True)
    expected = {**state(1.0), "random": torch.get_rng_state(), "bytes": bytearray(b"x")}
    content["state_dict"]["weight"].zero_()
    content["list"][1]["a"] = content["list"][0] = 5
    content["bytes"][0] = 0
    torch.rand(1)
    gate.may_go.set()
    writer.wait()
    assert differences(expected, read_checkpoint(tmp_path / "a.ckpt")) == []


def test_the_file_is_the_same_as_one_written_at_once(tmp_path: Path) -> None:
    """Views that share memory, parameters, strides, empty tensors, all dtypes."""
    weight = torch.arange(12.0).reshape(3, 4)
    content = {
        "state_dict": {"weight": weight, "row": weight[1], "turned": weight.t(), "empty": torch.zeros(0, 3)},
        "parameter": nn.Parameter(weight.clone(), requires_grad=False),
        "leaf": torch.ones(2, requires_grad=True),
        "scalar": torch.tensor(3, dtype=torch.bfloat16),
        "complex": torch.ones(2, dtype=torch.complex64).conj(),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "module": nn.Linear(2, 2),
    }
    write_checkpoint(content, tmp_path / "a.ckpt")
    writer = Writer()
    for _ in range(2):  # into new buffers, and into those of the first time
        writer.write(content, tmp_path / "b.ckpt", asynchronous=True)
        writer.wait()
        first, second = read_checkpoint(tmp_path / "a.ckpt"), read_checkpoint(tmp_path / "b.ckpt")
        for name in ("complex", "sparse", "meta"):
            assert first.pop(name).shape == second.pop(name).shape
        assert differences(first.pop("module").state_dict(), second.pop("module").state_dict()) == []
        assert differences(first, second) == []
        assert second["state_dict"]["turned"].stride() == (1, 4)
        assert second["leaf"].requires_grad
        weights = second["state_dict"]
        assert weights["row"].untyped_storage().data_ptr() == weights["weight"].untyped_storage().data_ptr()


def test_memory_is_used_again() -> None:
    buffers, tensors = Buffers(), [torch.ones(1000), torch.ones(1000), torch.ones(10)]
    first = buffers.snapshot(tensors)
    places = {copy.data_ptr() for copy in first}
    assert places.isdisjoint(tensor.data_ptr() for tensor in tensors)
    assert {copy.data_ptr() for copy in buffers.snapshot([tensor * 2 for tensor in tensors])} == places
    assert first[2].tolist() == [2.0] * 10
    assert len(buffers.snapshot(tensors[:1])) == len(buffers._copies) == 1


def test_one_at_a_time(gate: Gate, tmp_path: Path) -> None:
    """The second waits for the first, whose buffers it needs."""
    writer, done = Writer(), []
    writer.write(state(1.0), tmp_path / "a.ckpt", asynchronous=True, then=lambda: done.append("a"))
    assert gate.begun.wait(30)
    assert done == []
    opener = threading.Timer(0.05, gate.may_go.set)
    opener.start()
    writer.write(state(2.0), tmp_path / "b.ckpt", asynchronous=True, then=lambda: done.append("b"))
    assert done[:1] == ["a"]
    writer.wait()
    assert done == ["a", "b"]
    opener.join()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_is_told_to_its_owner_only(asynchronous: bool, gate: Gate, tmp_path: Path) -> None:
    """Once. The next save is done nevertheless, and hears of nothing; what nobody asks for is raised in the end."""
    writer, done = Writer(), []
    gate.fails = True
    gate.may_go.set()
    for owner in ("a", "b", None):
        writer.write(
            state(1.0), tmp_path / f"{owner}.ckpt", asynchronous=True, then=lambda: done.append("a"), owner=owner
        )
    writer.join()
    gate.fails = False
    writer.write(state(2.0), tmp_path / "c.ckpt", asynchronous=asynchronous, owner="c")
    writer.wait("c")
    for owner in ("a", None):
        with pytest.raises(CheckpointError, match=rf"{owner}\.ckpt' was not written: OSError.*No space left"):
            writer.wait(owner)
        writer.wait(owner)
    with pytest.raises(CheckpointError, match=r"b\.ckpt"):
        writer.close()
    writer.close()
    assert done == []
    assert [path.name for path in tmp_path.iterdir()] == ["c.ckpt"]


def trainer_with(*callbacks: Callback, **given: Any) -> Trainer:
    return Trainer(**{"max_epochs": 3, "enable_progress_bar": False, **given}, callbacks=[*callbacks])


class Do(Callback):
    """Does something at the end of an epoch, after the checkpoint callbacks of the epoch before."""

    def __init__(self, epoch: int, act: Callable[[Any], Any]) -> None:
        self.epoch, self.act = epoch, act

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.act(trainer)


def test_a_fit_waits_at_its_end(gate: Gate, tmp_path: Path) -> None:
    opener = threading.Timer(0.05, gate.may_go.set)
    save = Do(2, lambda trainer: trainer.save_checkpoint(tmp_path / "a.ckpt", asynchronous=True))
    opener.start()
    trainer_with(save).fit(modes.build("one"), modes.DATA)
    opener.join()
    assert read_checkpoint(tmp_path / "a.ckpt")["epoch"] == 2


def test_an_error_is_raised_at_the_end_of_a_fit(gate: Gate, tmp_path: Path) -> None:
    gate.fails = True
    gate.may_go.set()
    save = Do(2, lambda trainer: trainer.save_checkpoint(tmp_path / "a.ckpt", asynchronous=True))
    with pytest.raises(CheckpointError, match="No space left"):
        trainer_with(save).fit(modes.build("one"), modes.DATA)


def test_an_exception_waits_as_well(gate: Gate, tmp_path: Path) -> None:
    """And is what is raised, whatever becomes of the file."""

    def save_and_fail(trainer: Any) -> None:
        trainer.save_checkpoint(tmp_path / "a.ckpt", asynchronous=True)
        gate.may_go.set()
        raise KeyError("the reason")

    with pytest.raises(KeyError, match="the reason"):
        trainer_with(Do(2, save_and_fail)).fit(modes.build("one"), modes.DATA)
    assert read_checkpoint(tmp_path / "a.ckpt")["epoch"] == 2


def test_best_model_path_names_what_is_there(gate: Gate, tmp_path: Path) -> None:
    """Until the file is durable it is the one of before; that one is not removed before either."""
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=True)
    seen: list[Any] = []

    def look(trainer: Any) -> None:
        seen.append((Path(callback.best_model_path).name, sorted(path.name for path in tmp_path.glob("*.ckpt"))))

    def hold(trainer: Any) -> None:
        trainer.wait_for_checkpoint()
        look(trainer)
        gate.may_go.clear()

    def let_go(trainer: Any) -> None:
        look(trainer)
        gate.may_go.set()
        trainer.wait_for_checkpoint()
        look(trainer)

    gate.may_go.set()
    trainer_with(callback, Do(1, hold), Do(2, let_go)).fit(modes.build("one"), modes.DATA)
    assert seen == [("epoch=0.ckpt", ["epoch=0.ckpt"])] * 2 + [("epoch=1.ckpt", ["epoch=1.ckpt"])]
    assert Path(callback.best_model_path).name == "epoch=2.ckpt"
    kept = read_checkpoint(callback.best_model_path)["callbacks"][callback.state_key]
    assert kept == {
        **callback.state_dict(),
        "outdated": [str(tmp_path / "epoch=1.ckpt")],
    }  # a kill may come before that


def test_a_file_knows_the_one_before(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks know a file when it is durable, and the next one says what they know; after a kill that must be all."""
    join = Writer.join

    def let_go(writer: Writer) -> None:
        if writer._thread is not None:
            gate.may_go.set()
        join(writer)

    monkeypatch.setattr(Writer, "join", let_go)
    gate.may_go.set()  # for the rehearsal
    first = ModelCheckpoint(tmp_path, filename="a-{step}", every_n_train_steps=3, asynchronous=True)
    second = ModelCheckpoint(tmp_path, filename="b-{step}", every="3 updates")
    trainer_with(Do(0, lambda trainer: gate.may_go.clear()), first, second, max_steps=3).fit(
        modes.build("one"), modes.DATA
    )
    known = read_checkpoint(tmp_path / "b-step=3.ckpt")["callbacks"][first.state_key]
    assert known["best_model_path"] == str(tmp_path / "a-step=3.ckpt")


@pytest.mark.parametrize("given", [{}, {"save_last": True}, {"save_last": "link"}, {"monitor": "x", "save_top_k": 2}])
def test_what_is_left_is_the_same_as_without(given: dict[str, Any], tmp_path: Path) -> None:
    class Logging(modes.Steps, leyden.LightningModule):
        automatic_optimization = True

        def __init__(self) -> None:
            super().__init__()
            self.build()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", float(self.current_epoch != 1), on_epoch=True)
            return super().training_step(batch, batch_idx)

    left = []
    for asynchronous in (False, True):
        folder = tmp_path / str(asynchronous)
        callback = ModelCheckpoint(folder, filename="{epoch}", asynchronous=asynchronous, **given)
        trainer_with(callback).fit(Logging(), modes.DATA)
        files = {path.name: read_checkpoint(path)["state_dict"] for path in sorted(folder.glob("*.ckpt"))}
        names = [Path(callback.best_model_path).name, Path(callback.last_model_path).name]
        left.append((files, names, (folder / "last.ckpt").is_symlink(), len(callback.best_k_models)))
    assert differences(left[0], left[1]) == []


class Failing(Callback):
    """Files cannot be written in some epochs, to one folder or to all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *epochs: int, folder: Path | str = "") -> None:
        self.now = -1
        save = torch.save

        def maybe(*args: Any) -> None:
            if self.now in epochs and str(folder) in args[1].name:
                raise OSError(28, "No space left on device")
            save(*args)

        monkeypatch.setattr(torch, "save", maybe)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        writer = trainer._writer
        if writer is not None and writer._thread is not None:
            writer._thread.join()  # whatever has become of the file: the callback is to find out
        self.now = trainer.current_epoch


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_told_and_ends_no_training(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the callback knows is what is there; the next save tries again."""
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=asynchronous)
    with pytest.warns(
        LeydenWarning, match=r"epoch=1\.ckpt' was not written.*was '.*epoch=0\.ckpt'.*The training goes on"
    ):
        trainer = trainer_with(callback, Failing(monkeypatch, 1))
        trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.current_epoch == 3
    assert [path.name for path in tmp_path.iterdir()] == [Path(callback.best_model_path).name] == ["epoch=2.ckpt"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.filterwarnings("ignore:.*checkpoint-not-saved")
def test_a_fit_whose_last_file_is_missing_fails(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the training, when a last try was in vain; what was written before is left."""
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=asynchronous)
    trainer = trainer_with(callback, Failing(monkeypatch, 1, 2))
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.global_step == 18
    assert [path.name for path in tmp_path.iterdir()] == [Path(callback.best_model_path).name] == ["epoch=0.ckpt"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failure_is_that_of_its_callback(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The next callback that saves knows its own file; and the fit fails for the one that is missing."""
    first, second = tmp_path / "a", tmp_path / "b"
    failing = ModelCheckpoint(first, filename="{epoch}", asynchronous=True)
    other = ModelCheckpoint(second, filename="{epoch}", every="6 updates", asynchronous=asynchronous)
    trainer = trainer_with(failing, other, Failing(monkeypatch, 1, 2, folder=first))
    warnings.simplefilter("always")
    with pytest.raises(CheckpointError, match=r"a/epoch=3.*No space left"):
        trainer.fit(modes.build("one"), modes.DATA)
    told = [str(warning.message) for warning in recwarn if "not-saved" in str(warning.message)]
    assert len(told) == 3
    assert all("/a/epoch" in text and "/b/" not in text for text in told)
    assert [path.name for path in first.iterdir()] == [Path(failing.best_model_path).name] == ["epoch=0.ckpt"]
    assert [path.name for path in second.iterdir()] == [Path(other.best_model_path).name] == ["epoch=2.ckpt"]


def test_a_copy_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text names one file that is good, once, and the callback knows the one that is there."""
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", save_last=True, asynchronous=True)
    known: list[str] = []
    seen = Do(2, lambda trainer: (trainer._writer.join(), known.append(Path(callback._newest).name)))
    copyfile = shutil.copyfile

    def copy(source: str, target: str) -> None:
        if "epoch=1" in source:
            raise OSError(28, "No space left on device")
        copyfile(source, target)

    monkeypatch.setattr("shutil.copyfile", copy)
    with pytest.warns(LeydenWarning, match=r"last\.ckpt' was not written") as told:
        trainer_with(callback, seen).fit(modes.build("one"), modes.DATA)
    (text,) = (str(warning.message) for warning in told if "not-saved" in str(warning.message))
    assert text.count("newest") == 1
    assert f"was '{tmp_path / 'epoch=1.ckpt'}'" in text
    assert known == ["epoch=1.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=2.ckpt", "last.ckpt"]


class Keeping(Callback):
    """Keeps something, or adds it to the file of an epoch."""

    def __init__(self, *, state: Any = None, added: Any = None) -> None:
        self.state, self.added, self.saves = state, added, 0

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.saves += 1
        if trainer.current_epoch == 1:
            checkpoint["x"] = self.added


def test_a_state_that_is_no_data_is_found_before_the_first_step(tmp_path: Path) -> None:
    """Unless callbacks' states are not saved."""
    trainer = trainer_with(Keeping(state=lambda: 0), ModelCheckpoint(tmp_path))
    with pytest.raises(CheckpointError, match=r"callbacks.*Keeping.*state.*checkpoint-object"):
        trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.clocks.micro_batches == 0
    trainer_with(Keeping(state=lambda: 0), ModelCheckpoint(tmp_path, save_weights_only=True)).fit(
        modes.build("one"), modes.DATA
    )


def test_a_state_that_comes_with_the_first_step(tmp_path: Path) -> None:
    """Is not asked for in vain before, as far as the user sees; hooks of saves are not called without one."""

    class Late(Keeping):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.mean = 1.0

        def state_dict(self) -> dict[str, Any]:
            return {"mean": self.mean}

    late = Late()
    trainer_with(late, ModelCheckpoint(tmp_path, filename="a")).fit(modes.build("one"), modes.DATA)
    assert late.saves == 3
    assert read_checkpoint(tmp_path / "a.ckpt")["callbacks"][late.state_key] == {"mean": 1.0}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_hook_adds_ends_no_training(asynchronous: bool, tmp_path: Path) -> None:
    """If it is no data, files are missing, as where they cannot be written; "raise" ends the fit."""
    adds, given = Keeping(added=object()), {"filename": "{epoch}", "asynchronous": asynchronous}
    with pytest.warns(LeydenWarning, match=r"ModelCheckpoint has not saved: x is .*The training goes on"):
        trainer_with(adds, ModelCheckpoint(tmp_path, **given)).fit(modes.build("one"), modes.DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=2.ckpt"]
    ends = trainer_with(adds, ModelCheckpoint(tmp_path / "b", on_save_error="raise", **given))
    with pytest.raises(CheckpointError, match="checkpoint-object"):
        ends.fit(modes.build("one"), modes.DATA)
    assert ends.current_epoch == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_ends_the_fit_if_asked_to(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=asynchronous, on_save_error="raise")
    trainer = trainer_with(callback, Failing(monkeypatch, 1, 2))
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.current_epoch == (2 if asynchronous else 1)


class Told:
    """A logger that is told of checkpoints."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    def after_save_checkpoint(self, callback: ModelCheckpoint) -> None:
        assert Path(callback.best_model_path).is_file()
        self.paths.append(Path(callback.best_model_path).name)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_loggers_are_told_of_durable_files(asynchronous: bool, tmp_path: Path) -> None:
    logger = Told()
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", asynchronous=asynchronous)
    trainer_with(callback, logger=logger).fit(modes.build("one"), modes.DATA)
    assert logger.paths == [f"epoch={epoch}.ckpt" for epoch in range(3)]


def test_what_the_rehearsal_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step: room for less than a file; and it leaves nothing."""
    usage = leyden.checkpoint.writing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10))
    trainer = trainer_with(ModelCheckpoint(tmp_path))
    with pytest.raises(
        leyden.errors.InvalidValueError, match=r"cannot write to .*\(a file has 0 MB, and 0 MB are free\)"
    ):
        trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.clocks.micro_batches == 0
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_room_for_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has no moments yet: Adam's are twice as large as the module; files of weights have none."""

    module = modes.build("one", configure_optimizers=lambda: torch.optim.Adam(module.parameters()))
    usage, size = shutil.disk_usage(tmp_path), sum(parameter.nbytes for parameter in module.parameters())
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=3 * size - 1))
    with pytest.raises(leyden.errors.InvalidValueError, match="are free"):
        trainer_with(ModelCheckpoint(tmp_path)).fit(module, modes.DATA)
    trainer_with(ModelCheckpoint(tmp_path, save_weights_only=True)).fit(module, modes.DATA)
