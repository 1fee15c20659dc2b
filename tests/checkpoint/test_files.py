"""Checkpoint files are there as a whole or not at all, and reading one runs no code in it."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.core.saving import pl_load

import faults
import modes
from leyden import Trainer
from leyden.callbacks import ModelCheckpoint
from leyden.checkpoint import integrity, places, read_checkpoint, write_checkpoint, writing
from leyden.errors import CheckpointError, CheckpointNotFoundError, InvalidValueError, LeydenError

GOOD = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 1}


def test_a_file_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes reach the disk, whole; then the name changes hands; then the folder reaches the disk."""
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def note_replace(source: Any, target: Any) -> None:
        events.append("rename")
        assert Path(source).parent == Path(target).parent
        assert read_checkpoint(source)["epoch"] == 1
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_checkpoint(GOOD, tmp_path / "new" / "folder" / "a.ckpt")
    assert events == ["folder", "folder", "file", "rename", "folder"]  # each folder that was made, in its parent
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.ckpt"]
    assert read_checkpoint(tmp_path / "new" / "folder" / "a.ckpt")["state_dict"]["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("part", "told"),
    [(torch.arange(3.0).numpy().tobytes(), "the CRC-32 differs"), (b"leyden:2:", "the digest differs")],
)
def test_a_file_is_read_back_before_it_has_its_name(
    part: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else than what was written has arrived: the older file stays."""
    write_checkpoint(GOOD, tmp_path / "a.ckpt")

    def spoil(path: str) -> None:
        integrity.seal(path)
        bad = bytearray(Path(path).read_bytes())
        bad[bad.index(part) + len(part) - 1 + (told == "the digest differs")] ^= 1
        Path(path).write_bytes(bad)

    monkeypatch.setattr(writing, "seal", spoil)
    with pytest.raises(CheckpointError, match=rf"a\.ckpt' was not written: DamagedError: .* {told}"):
        write_checkpoint({**GOOD, "epoch": 2}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("is_read_meanwhile", [True, False])
def test_large_tensors_are_read_back_while_the_file_is_written(
    is_read_meanwhile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread; and when all is there, where it could not read."""
    content, write, crc = {"state_dict": {"weight": torch.ones(10_000)}}, integrity.ReadBack.write, integrity._crc
    threads: set[str] = set()

    def spoil(file: Any, data: Any) -> int:
        bad = bytearray(data)
        bad[-1] ^= len(bad) > 10_000
        return write(file, bad)

    def note(*args: Any) -> int:
        threads.add(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread() and not is_read_meanwhile:
            raise OSError(5, "Input/output error")
        return crc(*args)

    monkeypatch.setattr(integrity, "_crc", note)
    write_checkpoint(content, tmp_path / "a.ckpt")
    assert len(threads) == 2
    monkeypatch.setattr(integrity.ReadBack, "write", spoil)
    with pytest.raises(CheckpointError, match=r"b\.ckpt' was not written: DamagedError: .*data/0' is damaged"):
        write_checkpoint(content, tmp_path / "b.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_file_is_written_while_the_interpreter_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes no more threads then."""

    def refuse(thread: Any) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for epoch in (1, 2):
        write_checkpoint({**GOOD, "epoch": epoch}, tmp_path / "a.ckpt")
        assert read_checkpoint(tmp_path / "a.ckpt")["epoch"] == epoch


def test_a_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_checkpoint(GOOD, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_mode == (tmp_path / "other").stat().st_mode


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["save", "fsync", "replace"])
def test_a_failed_save_leaves_the_older_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(GOOD, path)
    before = path.read_bytes()
    monkeypatch.setattr(torch if step == "save" else os, step, full_disk)
    expected = r"a\.ckpt' was not written: OSError.*No space left.*newest good .*a\.ckpt' \[checkpoint-write\]"
    with pytest.raises(CheckpointError, match=expected):
        write_checkpoint({**GOOD, "epoch": 2}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("content", "says"), [({"state_dict": lambda: 0}, "lambda"), ({"state_dict": {}, "x": threading.Lock()}, "lock")]
)
def test_what_cannot_be_saved_is_told(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        write_checkpoint(content, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_bare_torch_and_lightning_read_a_file(tmp_path: Path) -> None:
    """The digest at its end is in nobody's way; apart from it the file is what ``torch.save`` writes."""
    write_checkpoint(GOOD, tmp_path / "a.ckpt")
    for options in ({}, {"mmap": True}, {"weights_only": False}):
        assert torch.load(tmp_path / "a.ckpt", **options)["state_dict"]["weight"].tolist() == [0, 1, 2]
    assert pl_load(tmp_path / "a.ckpt", weights_only=True)["epoch"] == 1
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"leyden:2:")


def leave(folder: Path, *, host: str, pid: int, age_s: float = 0) -> Path:
    """A temporary file that somebody has left."""
    path = folder / f".leyden-{pid}{host}.{host}-{pid}.partial"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    """By the next save; never what a living process writes, nor anything of another name."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = writing._HOST
    stale = [
        leave(tmp_path, host=host, pid=dead.pid),
        leave(tmp_path, host=host, pid=os.getpid()),  # of a save of this process that could not remove it
        leave(tmp_path, host="other", pid=1, age_s=2 * 3600),
    ]
    kept = [leave(tmp_path, host=host, pid=os.getppid()), leave(tmp_path, host="other", pid=2, age_s=60)]
    for name in (".leyden-notes", "leyden-1.other-1.partial", ".a.ckpt.partial"):
        kept.append(tmp_path / name)
        kept[-1].touch()
    write_checkpoint(GOOD, tmp_path / "a.ckpt")
    assert [path.exists() for path in stale] == [False] * 3
    assert all(path.exists() for path in kept)


def test_one_that_cannot_be_removed_keeps_no_other(tmp_path: Path) -> None:
    host = writing._HOST
    for number in range(4):
        (tmp_path / f".leyden-{number}.{host}-{os.getpid()}.partial").touch()
    (tmp_path / f".leyden-5.{host}-{os.getpid()}.partial").mkdir()
    (tmp_path / f".leyden-6.{host}-{'9' * 30}.partial").touch()  # no number of a process
    writing.remove_stale(tmp_path)
    assert sorted(path.name[:9] for path in tmp_path.iterdir()) == [".leyden-5", ".leyden-6"]


def test_what_is_no_file_is_left(tmp_path: Path) -> None:
    """A folder, a pipe (nobody waits for its other end), links to them, and a link to itself."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "self"):
        (tmp_path / f"to-{name}").symlink_to("to-self" if name == "self" else name)
    before = sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir())
    for name, _ in before:
        what = "a folder" if name.endswith("folder") else "no regular file"
        with pytest.raises(CheckpointError, match=rf"{name}' was not written: that is {what}.*\[checkpoint-write\]"):
            write_checkpoint(GOOD, tmp_path / name)
    assert sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir()) == before
    places.remove(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()


def test_a_link_is_followed(tmp_path: Path) -> None:
    """Also to what is not there yet; but a second name of a checkpoint beside it becomes a file, and that one stays."""
    (tmp_path / "far").mkdir()
    (tmp_path / "a.ckpt").symlink_to("far/b.ckpt")
    (tmp_path / "last.ckpt").symlink_to("c.ckpt")
    for epoch in (1, 2):
        write_checkpoint({**GOOD, "epoch": epoch}, tmp_path / "a.ckpt")
        assert (tmp_path / "a.ckpt").is_symlink()
        assert read_checkpoint(tmp_path / "far" / "b.ckpt")["epoch"] == epoch
    write_checkpoint(GOOD, tmp_path / "c.ckpt")
    write_checkpoint({**GOOD, "epoch": 2}, tmp_path / "last.ckpt")
    assert [read_checkpoint(tmp_path / name)["epoch"] for name in ("c.ckpt", "last.ckpt")] == [1, 2]


def test_what_keeps_a_file_from_being_read_is_told_as_it_is(tmp_path: Path) -> None:
    """Nothing is guessed of a file that was not reached."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(
            CheckpointError, match=r"refused.* See that it is there and may be read \[checkpoint-unr"
        ) as told:
            read_checkpoint(f"http://127.0.0.1:{nobody.getsockname()[1]}/a.ckpt")
    assert "older" not in str(told.value)
    with pytest.raises(CheckpointNotFoundError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_a_temporary_file_that_is_being_written_stays(tmp_path: Path) -> None:
    with writing.partial_file(tmp_path) as path:
        write_checkpoint(GOOD, tmp_path / "a.ckpt")
        assert os.path.exists(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_nothing_is_staged_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TMPDIR lies on another file system, is full or is missing, nobody notices."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    write_checkpoint(GOOD, tmp_path / "a.ckpt")
    write_checkpoint(GOOD, f"file://{tmp_path}/b.ckpt")  # for which fsspec would stage
    assert read_checkpoint((tmp_path / "b.ckpt").as_uri())["epoch"] == 1
    monkeypatch.setattr(urllib.request, "urlopen", lambda address: (tmp_path / "a.ckpt").open("rb"))
    assert read_checkpoint("https://example.org/a.ckpt")["epoch"] == 1
    modes.run("one", [ModelCheckpoint(f"file://{tmp_path}/run")], max_epochs=1, enable_checkpointing=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epoch=0-step=6.ckpt"]


def test_the_cause_is_told_where_torch_does_not(tmp_path: Path) -> None:
    """Its writer says "file write failed"; the system says that files may not be larger."""
    script = (
        "import resource, sys, torch\n"
        "from leyden.checkpoint import write_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        write_checkpoint({'state_dict': {'weight': torch.ones(100_000)}}, path)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    names = [tmp_path / "a.ckpt", tmp_path / "\u00fc" / "a.ckpt"]  # torch writes another way where a name is not ASCII
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stdout.count("was not written: OSError: [Errno 27] File too large") == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["\u00fc"]


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    """The rehearsal tells it before the first step; root, who may write everywhere, asks a disk that is read-only."""
    disk = faults.Disk(tmp_path, 1, faults.READ_ONLY)
    trainer = Trainer(max_epochs=1, callbacks=[ModelCheckpoint(tmp_path)], enable_progress_bar=False)
    with disk.failing():
        with pytest.raises(CheckpointError, match=r"a\.ckpt' was not written: OSError: .*Read-only file system"):
            write_checkpoint(GOOD, tmp_path / "a.ckpt")
        with pytest.raises(InvalidValueError, match=r"cannot write to .*\(Read-only file system\)"):
            trainer.fit(modes.build("one"), modes.DATA)
    assert trainer.clocks.micro_batches == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(CheckpointError, match=r"runs.*\[checkpoint-write\]"):
        write_checkpoint(GOOD, tmp_path / "runs" / "a.ckpt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The error is a FileNotFoundError, and names what there is."""
    write_checkpoint(GOOD, tmp_path / "epoch=3-step=40.ckpt")
    with pytest.raises(FileNotFoundError, match=r"epoch=3-step=4\.ckpt'; in its folder are 'epoch=3-step=40\.ckpt'"):
        read_checkpoint(tmp_path / "epoch=3-step=4.ckpt")
    with pytest.raises(CheckpointNotFoundError, match="there is no folder"):
        read_checkpoint(tmp_path / "nowhere" / "a.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoints"):
        read_checkpoint(tmp_path / "empty" / "a.ckpt")


def truncated(path: Path) -> None:
    write_checkpoint(GOOD, path)
    path.write_bytes(path.read_bytes()[:-200])


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("epoch: 3"),
    "truncated": truncated,
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "folder": lambda path: path.mkdir(),
    "numbers": lambda path: torch.save([1, 2], path),
    "weights alone": lambda path: torch.save({"weight": torch.ones(1)}, path),
}


@pytest.mark.parametrize("weights_only", [None, True, False])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint(kind: str, weights_only: bool | None, tmp_path: Path) -> None:
    FOREIGN[kind](tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*\[checkpoint-(unreadable|content|missing)\]"):
        read_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (self.place,)


def hostile(path: Path) -> Path:
    """A file with code in it, and what that code makes."""
    torch.save({**GOOD, "hyper_parameters": {"lr": Hostile(str(path.parent / "made"))}}, path)
    return path.parent / "made"


@pytest.mark.parametrize("weights_only", [None, True])
def test_code_in_a_file_does_not_run(weights_only: bool | None, tmp_path: Path) -> None:
    """R160: the refusal names what the file wanted, and how to trust it."""
    made = hostile(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"mkdir.*trust=True \[checkpoint-untrusted\]"):
        read_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    assert not made.exists()
    read_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert made.exists()


def test_code_from_an_address_does_not_run_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R160, V11: addresses are no more to be trusted than files."""
    made = hostile(tmp_path / "a.ckpt")
    write_checkpoint(GOOD, tmp_path / "b.ckpt")
    asked = []

    def answer(address: str) -> Any:
        asked.append(address)
        return (tmp_path / address.rpartition("/")[2]).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(CheckpointError, match="checkpoint-untrusted"):
        read_checkpoint("https://example.org/a.ckpt")
    assert not made.exists()
    assert read_checkpoint("https://example.org/b.ckpt")["epoch"] == 1
    assert asked == ["https://example.org/a.ckpt", "https://example.org/b.ckpt"]


def test_an_open_file_is_read(tmp_path: Path) -> None:
    write_checkpoint(GOOD, tmp_path / "a.ckpt")
    with (tmp_path / "a.ckpt").open("rb") as file:
        assert read_checkpoint(file)["epoch"] == 1


def test_a_pickle_of_another_age_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Hostile(str(tmp_path / "made")), protocol=2))
    with pytest.raises(LeydenError, match=r"a\.ckpt"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "made").exists()
