"""Where checkpoints lie: in folders of this machine, or at addresses that fsspec knows, like "s3://bucket/run"."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leyden.checkpoint.integrity import sealed_at
from leyden.errors import MissingExtraError

AnyPath = str | os.PathLike[str]


def is_remote(path: AnyPath) -> bool:
    """Whether a path is an address."""
    return "://" in os.fspath(path)


def local(path: AnyPath) -> str:
    """A path as it is; without the "file://" that one of this machine may begin with."""
    return os.fspath(path).removeprefix("file://")


def absolute(path: AnyPath) -> str:
    """A path that does not depend on the current folder; links are followed."""
    path = local(path)
    return path.rstrip("/") if is_remote(path) else os.path.realpath(os.path.expanduser(path))


def exists(path: AnyPath) -> bool:
    """Whether there is a file or a folder."""
    return bool(system_of(path).exists(path)) if is_remote(path) else os.path.exists(path)


def remove(path: AnyPath) -> None:
    """Delete a file."""
    if is_remote(path):
        system_of(path).rm_file(path)
    else:
        with freed_aside(path):
            os.remove(path)


@contextmanager
def freed_aside(path: AnyPath) -> Iterator[None]:
    """Let a thread give back the space of a file that goes within: that may take a fifth of the time of writing it."""
    handle = None
    if os.name == "posix" and os.path.isfile(path):  # to open a pipe is to wait for its other end
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        if handle is not None:
            aside(os.close, handle)


def aside(act: Callable[..., Any], *args: Any) -> Callable[[], None]:
    """Let a thread do something; what is returned waits for that, and raises the ``OSError`` that it raised."""
    errors: list[OSError] = []

    def run() -> None:
        try:
            act(*args)
        except OSError as error:
            errors.append(error)

    def wait() -> None:
        if thread.ident is not None:
            thread.join()
        if errors:
            raise errors[0]

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError:  # the interpreter ends, and takes no more threads
        run()
    return wait


def newest_first(folder: AnyPath) -> list[str]:
    """The checkpoints in a folder; those written last come first."""
    if not is_remote(folder):
        return by_age([str(path) for path in Path(folder).expanduser().glob("*.ckpt")])
    system = system_of(folder)
    return by_age([system.unstrip_protocol(name) for name in system.glob(f"{os.fspath(folder).rstrip('/')}/*.ckpt")])


def by_age(paths: Sequence[str]) -> list[str]:
    """Those of some paths that are files, those written last first.

    When that was is in the files themselves; the time of the file system, which a copy may not keep, counts for files
    that do not say, such as Lightning's, and where two say the same.
    """
    times = {path: _written_at(path) for path in paths}
    return sorted((path for path in paths if times[path]), key=times.__getitem__, reverse=True)


def _written_at(path: str) -> tuple[int, ...]:
    """When a file was written, in ns, as it says itself and as its file system does; nothing if there is none."""
    if is_remote(path):
        system = system_of(path)
        return (int(system.modified(path).timestamp() * 1e9),) if system.isfile(path) else ()
    if not os.path.isfile(path):
        return ()
    time = os.stat(path).st_mtime_ns
    return sealed_at(path) or time, time


def opened(address: str) -> Any:
    """A file at an address, to read; ``FileNotFoundError`` if there is none."""
    return system_of(address).open(address, "rb")


def copy(source: str, address: str) -> None:
    """Copy a file from an address to another one of the same kind."""
    system_of(source).cp_file(source, address)


@contextmanager
def replaced(address: AnyPath) -> Iterator[Any]:
    """A file at an address, to write, which is there when all is written, and not at all if that fails.

    Raises:
        OSError: it is there, and shorter or longer than what was written.
    """
    system, address = system_of(address), os.fspath(address)
    system.makedirs(address.rpartition("/")[0], exist_ok=True)
    with system.transaction, system.open(address, "wb") as file:
        yield file
        size = file.tell()
    if system.size(address) != size:
        raise OSError(f"the file has {system.size(address)} bytes there, and {size} were written")


def system_of(path: AnyPath) -> Any:
    """Fsspec's file system of a path.

    Raises:
        MissingExtraError: fsspec is not installed.
    """
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("fsspec", extra="remote") from None
    return url_to_fs(os.fspath(path))[0]
