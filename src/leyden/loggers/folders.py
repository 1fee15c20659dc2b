"""Folders with a number for each run, for the loggers that write files."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from leyden.errors import InvalidValueError
from leyden.loggers.base import Logger


class FolderLogger(Logger):
    """A logger that writes to ``save_dir/name/version_<n>``.

    Args:
        save_dir: folder of all experiments; made when the first run starts.
        name: folder of the experiment in it; None or "" for none.
        version: number of the run, or the name of its folder. None takes the number after the highest that is there.
        prefix: stands before every key, with a hyphen.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
    ) -> None:
        self._save_dir = os.fspath(save_dir)
        self._name = name or ""
        self._version = version
        self._prefix = prefix

    @property
    def save_dir(self) -> str:
        """Folder of all experiments."""
        return self._save_dir

    @property
    def name(self) -> str:
        """Folder of the experiment."""
        return self._name

    @property
    def version(self) -> int | str:
        """Number of this run, or the name of its folder."""
        if self._version is None:
            self._version = _next_version(self.root_dir)
        return self._version

    @property
    def root_dir(self) -> str:
        """Folder of all versions of the experiment."""
        return os.path.join(self._save_dir, self._name) if self._name else self._save_dir

    @property
    def log_dir(self) -> str:
        """Folder of this run."""
        return os.path.join(self.root_dir, _folder(self.version))

    @property
    def is_open(self) -> bool:
        """Whether the version is not chosen yet: nobody has given one, and nobody has asked."""
        return self._version is None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: where this run's files are."""
        return {"root_dir": os.path.realpath(self.root_dir), "version": self.version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the version of an earlier start of this run, before anything is written, if none was chosen.

        Args:
            state: what ``state_dict`` returned then. Another folder's, or one of a version that is gone, is left alone.
        """
        here = os.path.realpath(self.root_dir)
        if self.is_open and state["root_dir"] == here and os.path.isdir(os.path.join(here, _folder(state["version"]))):
            self._version = state["version"]


def _folder(version: int | str) -> str:
    return version if isinstance(version, str) else f"version_{version}"


def make_folder(path: str, owner: object, *, code: str = "logger-directory") -> str:
    """Make ``path`` and write to it once, so that a folder that takes no files is known before anything is trained.

    Raises:
        InvalidValueError: naming the owner, the folder and what the system says.
    """
    kind = type(owner).__name__
    if "://" in path:
        raise InvalidValueError(
            f"{kind} writes to local folders, got {path!r}; mount it, or copy the files after the run",
            code=code,
        )
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise InvalidValueError(
            f"{kind} cannot write to {path!r} ({error.strerror or error}); choose another folder or make it writable",
            code=code,
        ) from error


def _next_version(root_dir: str) -> int:
    try:
        names = os.listdir(root_dir)
    except OSError:
        return 0  # not there yet; or make_folder will tell what is wrong with it
    found = (re.fullmatch(r"version_(\d+)", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
