"""``leyden replay FILE MODULE``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from leyden.callbacks.failure_recorder import replay_command
from leyden.errors import InvalidValueError, LeydenError
from leyden.module import LightningModule
from leyden.rank import rank_zero_info
from leyden.replaying import read_record, replay
from leyden.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = (
        "The state before the step, its batch and its random numbers are those of the file. Exit code: 1 if the step "
        "fails again, 0 if it does not, 2 if it cannot be run. Callbacks that change a step, or a module whose "
        "arguments are not in the file: leyden.replay(FILE, module, callbacks=[...]) in Python."
    )
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
    recorded = read_record(arguments.file, builds=False)["failure"]["module"]  # before any code of the user's runs
    if arguments.module is None:
        raise InvalidValueError(
            f"say which class to build, for a file does not say which code runs. The run was of this: "
            f"{replay_command(arguments.file, recorded)}",
            code="replay-module",
        )
    chosen = {} if arguments.accelerator is None else {"accelerator": arguments.accelerator}
    main = sys.modules["__main__"]
    try:
        with _put_back(arguments.file):
            kind = load_class(arguments.module)
        replay(arguments.file, _build(kind, arguments), **chosen)
    except LeydenError as error:
        if error.code.startswith(("checkpoint", "replay", "resume")):
            raise
        traceback.print_exc()
    except Exception:
        traceback.print_exc()
    else:
        print("The step does not fail this time.")
        return 0
    finally:
        sys.modules["__main__"] = main
    print("The step fails again.")
    return 1


@contextlib.contextmanager
def _put_back(path: str) -> Iterator[None]:
    """Write a file again that is deleted inside: scripts begin with an empty folder for their results."""
    with open(path, "rb") if os.path.isfile(path) else contextlib.nullcontext() as file:
        try:
            yield
        finally:
            if file is not None and not os.path.exists(path):
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                with open(path, "wb") as again:
                    shutil.copyfileobj(file, again)
                rank_zero_info(f"the script has deleted {path!r}, which is written again")


def _build(kind: Any, arguments: argparse.Namespace) -> LightningModule:
    if not (isinstance(kind, type) and issubclass(kind, LightningModule)):
        raise InvalidValueError(f"{arguments.module!r} is {kind!r}, no LightningModule", code="replay-module")
    try:
        return kind.load_from_checkpoint(arguments.file)
    except LeydenError:
        raise
    except Exception as error:
        raise InvalidValueError(
            f"{arguments.module!r} cannot be built from the hyper-parameters in the file ({type(error).__name__}: "
            f"{error}): call self.save_hyperparameters() in its __init__, or build it in Python and call "
            f"leyden.replay({arguments.file!r}, module)",
            code="replay-module",
        ) from error


class _Trains(BaseException):
    """The script has come to its training."""


def load_class(name: str) -> Any:
    """The class that "train.py:Model" or "package.module:Model" names.

    A script runs up to its first run of a Trainer, without what is under ``if __name__ == "__main__"``. Then it is the
    main module, as it was when the file was written, so that objects of its classes are found.

    Raises:
        InvalidValueError: there is none (``replay-module``).
    """
    where, _, kind = name.rpartition(":")
    is_script, original = where.endswith(".py"), Trainer._run
    sys.path.insert(0, os.path.dirname(os.path.abspath(where)) if is_script else os.getcwd())
    Trainer._run = _stop  # type: ignore[method-assign]
    try:
        module = _script(where) if is_script else importlib.import_module(where)
        return getattr(module, kind)
    except _Trains:
        why = f"to import {where} trains, so it is a script"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    finally:
        Trainer._run = original  # type: ignore[method-assign]
    raise InvalidValueError(
        f"{name!r} names no class ({why}); write train.py:Model or package.module:Model", code="replay-module"
    )


def _stop(*_: Any, **__: Any) -> None:
    raise _Trains


def _script(path: str) -> ModuleType:
    """The main module, made of a script."""
    module = sys.modules["leyden_script"] = ModuleType("leyden_script")
    module.__file__ = path
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    with contextlib.suppress(_Trains):
        exec(code, vars(module))
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            value.__module__ = "__main__"
    sys.modules["__main__"] = module
    return module
