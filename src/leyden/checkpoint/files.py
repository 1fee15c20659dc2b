"""Reading checkpoint files: all of a file is checked first, and no code in it runs."""

from __future__ import annotations

import difflib
import io
import os
import urllib.request
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any, BinaryIO, Final

import torch

from leyden.checkpoint import places
from leyden.checkpoint.encoding import decode
from leyden.checkpoint.integrity import DamagedError, verify
from leyden.errors import CheckpointError, CheckpointNotFoundError, InvalidValueError

_PURE: Final = {kind.__name__: kind for kind in (PurePosixPath, PureWindowsPath)}
_PATHS: Final = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath, **_PURE, type(Path()).__name__: Path}
#: Python's own classes that files of Lightning hold, by the names that versions of Python have for them: values, which
#: run no code when they are built. leyden's own files have them as data.
_VALUES: Final[list[Any]] = [
    *(Namespace, SimpleNamespace, date, datetime, time, timedelta, timezone),
    *((kind, f"{module}.{name}") for name, kind in _PATHS.items() for module in ("pathlib", "pathlib._local")),
]


def as_data(weights_only: bool | None, trust: bool) -> bool | None:
    """What ``weights_only`` is where a file may be trusted explicitly.

    Raises:
        InvalidValueError: one says yes and the other no (``trust``).
    """
    if trust and weights_only:
        raise InvalidValueError("trust=True runs code in the file, weights_only=True does not; keep one", code="trust")
    return False if trust else weights_only


def read_checkpoint(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    map_location: Any = "cpu",
    weights_only: bool | None = None,
    builds: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: a file, an open one, or an address: "https://...", or what fsspec knows, such as "s3://bucket/a.ckpt".
        map_location: where its tensors go, as for ``torch.load``.
        weights_only: None and True read data and run no code in the file, whatever its source; False trusts it.
        builds: whether to build objects of users' classes, which must be there then.

    Raises:
        CheckpointNotFoundError: there is no such file (``checkpoint-missing``).
        CheckpointError: it is damaged or no checkpoint (``checkpoint-unreadable``, ``checkpoint-content``), names
            what it may not or what is not here (``checkpoint-name``), or holds objects that only code in it could
            build (``checkpoint-untrusted``).
    """
    return as_checkpoint(
        read_file(path, map_location=map_location, weights_only=weights_only, builds=builds), str(path)
    )


def as_checkpoint(checkpoint: Any, name: str) -> dict[str, Any]:
    """What a file holds, if that is a checkpoint.

    Raises:
        CheckpointError: it is not (``checkpoint-content``).
    """
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        what = f"its keys are {list(checkpoint)[:8]}" if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise CheckpointError(
            f"{name!r} is no checkpoint of a run, which has the key 'state_dict': {what}. Weights alone are loaded by "
            "module.load_state_dict(torch.load(path))",
            code="checkpoint-content",
        )
    return checkpoint


def read_file(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    map_location: Any = "cpu",
    weights_only: bool | None = None,
    builds: bool = True,
) -> Any:
    """Read what :func:`~leyden.checkpoint.write_checkpoint` or ``torch.save`` has written, whatever it is.

    Arguments and errors are those of :func:`read_checkpoint`.
    """
    name, trusted = str(path), weights_only is False
    try:
        with _opened(path) as file:
            verify(file)
            content = _load(file, name, map_location, weights_only=not trusted)
            return decode(content, trusted=trusted) if builds else content
    except (FileNotFoundError, IsADirectoryError):
        raise missing(name) from None
    except DamagedError as cause:
        raise _unreadable(name, str(cause), cause.remedy) from None
    except OSError as cause:
        raise _unreadable(name, _told(cause), "See that it is there and may be read") from cause
    except CheckpointError as cause:
        if name in cause.message:
            raise
        raise CheckpointError(f"the checkpoint {name!r} is not read: {cause.message}", code=cause.code) from cause


def glance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of this machine holds, without reading its tensors; nothing if it is damaged or no data.

    >>> glance("not there.ckpt")
    {}
    """
    try:
        with open(path, "rb") as file:
            verify(file, thorough=False)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whoever reads it to go on from it will tell
        return {}
    return content if isinstance(content, dict) else {}


def fault_of(path: str, *, thorough: bool = True) -> str | None:
    """What is wrong with a file, or None; one at an address is fetched for that."""
    try:
        with places.opened(path) if places.is_remote(path) else open(path, "rb") as file:
            verify(file, thorough=thorough)
    except OSError as error:
        return str(error)
    return None


def _opened(path: Any) -> AbstractContextManager[Any]:
    """A file to read from its beginning, here or at an address."""
    if hasattr(path, "read"):
        return nullcontext(path)
    path = places.local(path)
    if path.startswith(("http://", "https://")):
        with urllib.request.urlopen(path) as answer:
            return io.BytesIO(answer.read())
    return places.opened(path) if places.is_remote(path) else Path(path).expanduser().open("rb")


def _load(file: Any, name: str, map_location: Any, *, weights_only: bool) -> Any:
    file.seek(0)
    try:
        with torch.serialization.safe_globals(_VALUES):
            return torch.load(file, map_location=map_location, weights_only=weights_only)
    except Exception as cause:  # damaged bytes raise anything
        unknown = _code_in(file) if weights_only else []
        if unknown:
            raise CheckpointError(
                f"the checkpoint {name!r} holds more than plain data, and to build it would run code that the "
                f"file names: {', '.join(unknown)}. If you trust where it came from, pass trust=True",
                code="checkpoint-untrusted",
            ) from cause
        remedy = "It is whole; another program may have written it, or map_location does not fit"
        raise _unreadable(name, _told(cause), remedy) from cause


def _code_in(file: Any) -> list[str]:
    """Functions and classes that a file names and torch does not know."""
    try:
        file.seek(0)
        with torch.serialization.safe_globals(_VALUES):
            return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it names them in a way that torch does not read either
        return []


def missing(name: str) -> CheckpointNotFoundError:
    """The error for a file that is not there, with what is there of a similar name; or for a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        newest = next(iter(places.newest_first(path)), None)
        hint = f"pass a file; the newest in it is {newest!r}" if newest else "there are no checkpoints in it"
        return CheckpointNotFoundError(f"{name!r} is a folder, not a checkpoint; {hint}", code="checkpoint-missing")
    try:
        there = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".ckpt"]
    except OSError:
        there = []
        hint = f"; there is no folder {str(path.parent)!r}"
    else:
        close = difflib.get_close_matches(path.name, there, n=3) or sorted(there)[:3]
        hint = f"; in its folder are {', '.join(map(repr, close))}" if close else "; its folder has no checkpoints"
    return CheckpointNotFoundError(f"there is no checkpoint {name!r}{hint}", code="checkpoint-missing")


def _unreadable(name: str, reason: str, remedy: str) -> CheckpointError:
    text = f"{name!r} cannot be read as a checkpoint: {reason}. {remedy}"
    return CheckpointError(text, code="checkpoint-unreadable")


def _told(cause: Exception) -> str:
    line = next(iter(str(cause).strip().splitlines()), "no reason was given")
    return f"{type(cause).__name__}: {line.rstrip('. ')}"
