"""Python processes that a program starts, such as workers and other scripts: the aliases are on there, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: How a process is told what to install.
_SETTING: Final = "LEYDEN_COMPAT"
#: Python imports the ``sitecustomize`` that it finds there when it starts; so there is nothing else in that folder.
_FOLDER: Final = str(Path(__file__).parent / "site")


def provide(version: str, era: str) -> None:
    """Let processes that start from now on install the aliases when they import something of Lightning's."""
    os.environ.update({_SETTING: f"{version} {era}", "PYTHONPATH": os.pathsep.join([_FOLDER, *_others()])})


def withdraw() -> None:
    """Undo that."""
    if os.environ.pop(_SETTING, None) is not None:
        os.environ["PYTHONPATH"] = os.pathsep.join(_others())


def _others() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", _FOLDER)]
