"""``leyden replay FILE MODULE``."""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
import traceback
from typing import Any

from leyden.checkpoint import read_checkpoint
from leyden.errors import InvalidValueError
from leyden.replaying import replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("file", metavar="FILE", help="what Trainer(record_failures=True) has written")
    parser.add_argument(
        "module",
        metavar="MODULE",
        nargs="?",
        help="its class, as train.py:Model or package.module:Model; built with the hyper-parameters in the file",
    )
    parser.add_argument("--accelerator", help='where to run: "cpu", "cuda"; default: where it has failed')


def run(arguments: argparse.Namespace) -> int:
    """Replay; returns 1 if the step fails again, whose traceback is what the command is for, and 0 if it does not.

    Raises:
        LeydenError: the file or the module is not what it should be.
    """
    if arguments.module is None:
        known = read_checkpoint(arguments.file).get("failure", {}).get("module", "its class")
        raise InvalidValueError(
            f"say which class to build: leyden replay {arguments.file} train.py:Model. The file names {known}, and a "
            "file does not say which code runs",
            code="replay-module",
        )
    module = load_class(arguments.module).load_from_checkpoint(arguments.file)
    chosen = {} if arguments.accelerator is None else {"accelerator": arguments.accelerator}
    try:
        replay(arguments.file, module, **chosen)
    except Exception:
        traceback.print_exc()
        return 1
    print("The step does not fail any more.")
    return 0


def load_class(name: str) -> Any:
    """The class that "train.py:Model" or "package.module:Model" names; a script's ``__main__`` part does not run.

    Raises:
        InvalidValueError: there is none (``replay-module``).
    """
    where, _, kind = name.rpartition(":")
    try:
        if where.endswith(".py"):
            sys.path.insert(0, os.path.dirname(os.path.abspath(where)))
            return runpy.run_path(where)[kind]
        sys.path.insert(0, os.getcwd())
        return getattr(importlib.import_module(where), kind)
    except (ImportError, KeyError, AttributeError, OSError, ValueError) as error:
        raise InvalidValueError(
            f"{name!r} names no class ({type(error).__name__}: {error}); write train.py:Model or package.module:Model",
            code="replay-module",
        ) from error
