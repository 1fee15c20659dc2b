"""Checkpoint files, written so that a good one is always there."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch

from leyden.checkpoint import places
from leyden.checkpoint.encoding import encode
from leyden.checkpoint.files import fault_of
from leyden.checkpoint.integrity import Crcs, ReadBack, seal, verify
from leyden.errors import CheckpointError, InvalidValueError, LeydenError

_HOST: Final = re.sub(r"\W", "_", socket.gethostname())[:64]
_PARTIAL: Final = re.compile(r"\.leyden-\w+\.(?P<host>\w+)-(?P<pid>\d+)\.partial")
#: After so long without a change, another machine's temporary file is taken for one of a dead process.
_SILENCE_S: Final = 3600.0
#: Names of the temporary files that this process is writing.
_in_flight: set[str] = set()
#: What file systems and systems say that cannot sync a folder.
_NO_SYNC: Final = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint; it is there as a whole, and durable, when this returns.

    The bytes go to a temporary file in the target's own folder, which then takes the target's name: whatever
    happens before leaves an older file of that name as it was. What dead processes have left there is removed.

    Args:
        checkpoint: the state; what is no plain data is encoded as such.
        path: the file, or an address like "s3://bucket/a.ckpt"; missing folders are made. What a link points to is
            written, unless it lies beside the link: that is another checkpoint, and the file takes the link's place.

    Raises:
        CheckpointError: it holds what cannot be encoded (``checkpoint-object``), or it could not be written, or the
            path is taken by a folder, a device or a pipe (``checkpoint-write``); the cause is attached.
    """
    write_encoded(encode(checkpoint), path)


def write_encoded(content: Any, path: str | os.PathLike[str]) -> None:
    """Write what is plain data."""
    path = places.local(path)
    with _explained(path):
        if places.is_remote(path):
            with places.replaced(path) as file:
                torch.save(content, file)
        else:
            _replace(Path(path).expanduser(), functools.partial(_save, content))


def copy_checkpoint(source: str, path: str) -> None:
    """Copy a file; as whole and durable as :func:`write_checkpoint` leaves one.

    Raises:
        CheckpointError: it could not be written (``checkpoint-write``).
    """
    with _explained(path):
        if places.is_remote(path):
            places.copy(source, path)
        else:
            _replace(Path(path).expanduser(), functools.partial(_copy, source))


def rehearse(content: Mapping[str, Any], folder: str, *, size: int, owner: object) -> None:
    """Write a small file to a folder and remove it, so that what stands against it is known before it matters.

    Args:
        content: what all files will hold, and may be no data.
        folder: a folder or an address; made if it is missing.
        size: bytes that there must be room for.
        owner: the object whose folder it is.

    Raises:
        InvalidValueError: naming the owner, the folder and what the system says (``checkpoint-folder``).
        CheckpointError: ``content`` is no data (``checkpoint-object``).
    """
    encoded, path = encode(content), f"{folder}/{_partial_name()}"
    try:
        write_encoded(encoded, path)
        places.remove(path)
        free = size if places.is_remote(folder) else shutil.disk_usage(folder).free
    except (CheckpointError, OSError) as error:
        cause = _root(error)
        raise _no_room(owner, folder, getattr(cause, "strerror", None) or str(cause)) from error
    if free < size:
        raise _no_room(owner, folder, f"a file has {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")


def _no_room(owner: object, folder: str, why: str) -> InvalidValueError:
    return InvalidValueError(
        f"{type(owner).__name__} cannot write to {folder!r} ({why}); choose another folder, or make it writable",
        code="checkpoint-folder",
    )


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except LeydenError:
        raise
    except Exception as error:  # pickles and file systems raise anything
        cause = _root(error)
        remedy = "Make room, or write elsewhere" if isinstance(cause, OSError) else "Keep such an object out of it"
        raise CheckpointError(
            f"the checkpoint {os.fspath(path)!r} was not written: {type(cause).__name__}: {cause}. "
            + f"{remedy}{_what_is_left(path)}",
            code="checkpoint-write",
        ) from cause


def _replace(target: Path, write: Callable[[str], Crcs]) -> None:
    """Let a new file take the place of ``target``: whole, and durable, when this returns.

    Args:
        target: the path.
        write: writes a file; returns what it has read back.
    """
    target = _free(target)
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.is_dir()]
    if missing:
        target.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync_folder(folder.parent)
    remove_stale(target.parent)
    with partial_file(target.parent) as temporary:
        _make_durable(temporary, write(temporary))
        with places.freed_aside(target):
            os.replace(temporary, target)
    _sync_folder(target.parent)


def _free(path: Path) -> Path:
    """Where a file may come to lie; it may take the place of regular files only."""
    real = Path(os.path.realpath(path))
    if (path.exists() or os.path.lexists(real)) and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise CheckpointError(
            f"the checkpoint {str(path)!r} was not written: that is {what}, and it stays. Write to another name",
            code="checkpoint-write",
        )
    is_second_name = real.parent == Path(os.path.realpath(path.parent))  # as that of ModelCheckpoint(save_last="link")
    return path if is_second_name or not path.is_symlink() else real


def _make_durable(path: str, known: Crcs) -> None:
    """Bring a file to the disk, and meanwhile read back what is not ``known``."""
    with open(path, "r+b") as file:
        wait = places.aside(os.fsync, file.fileno())
        try:
            verify(file, known=known)
        finally:
            wait()


def _save(content: Any, path: str) -> Crcs:
    with open(path, "wb") as file, ReadBack(file) as written:
        torch.save(content, written)  # type: ignore[arg-type]  # it has what torch.save calls
    seal(path)
    return written.crcs


def _copy(source: str, path: str) -> Crcs:
    shutil.copyfile(source, path)
    return {}


@contextmanager
def partial_file(folder: str | os.PathLike[str]) -> Iterator[str]:
    """An empty file that is gone afterwards, unless it has taken another name."""
    name = _partial_name()
    path = os.path.join(folder, name)
    _in_flight.add(name)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield path
    finally:
        with suppress(OSError):
            os.unlink(path)
        _in_flight.discard(name)


def _partial_name() -> str:
    return f".leyden-{uuid.uuid4().hex}.{_HOST}-{os.getpid()}.partial"


def remove_stale(folder: Path) -> None:
    """Remove temporary files of dead processes, and those of this one that it could not remove before."""
    entries: list[os.DirEntry[str]] = []
    with suppress(OSError):
        entries += os.scandir(folder)
    for entry in entries:
        match = _PARTIAL.fullmatch(entry.name)
        with suppress(OSError):
            if match is not None and not _is_in_use(entry, match["host"], int(match["pid"])):
                os.unlink(entry.path)


def _is_in_use(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    if host != _HOST:
        return time.time() - entry.stat().st_mtime < _SILENCE_S
    if pid == os.getpid():
        return entry.name in _in_flight
    if os.name != "posix":  # where files that are open cannot be removed
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable; systems that cannot do so need not."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _root(error: BaseException) -> BaseException:
    """What the system has said, if torch has only said that something failed."""
    cause: BaseException | None = error
    while isinstance(cause, RuntimeError):
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, OSError) else error


def _what_is_left(path: str | os.PathLike[str]) -> str:
    with suppress(OSError):  # which may be what has failed
        beside = [] if places.is_remote(path) else places.newest_first(os.path.dirname(path))
        good = next((name for name in beside if fault_of(name, thorough=False) is None), None)
        return f". The newest good checkpoint in its folder was {good!r}" if good else ""
    return ""
