"""Objects from plain data: a class named by its import path, and arguments that may be such objects themselves."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from leyden.errors import CheckpointError, MissingExtraError
from leyden.hparams import given_hyperparameters

#: The hyper-parameter that says: these describe objects, and ``instantiate_module`` builds from them.
INSTANTIATOR: Final = "_instantiator"
#: Its value: the name that Lightning gives it, so that it can load the file too.
LIGHTNINGS: Final = "pytorch_lightning.cli.instantiate_module"
#: All values that mean this; any other one is a text.
INSTANTIATORS: Final = (LIGHTNINGS, "lightning.pytorch.cli.instantiate_module")
#: The hyper-parameter that names the class, where the command line chose it.
CLASS_PATH: Final = "_class_path"


def check_described(described: Any, kinds: tuple[type, ...]) -> None:
    """Refuse descriptions that would import or build more than what this process knows already.

    Args:
        described: plain data of a file; in it ``class_path`` and ``_class_path`` name classes.
        kinds: what may be built: classes that are imported, and derive from one of these.

    Raises:
        CheckpointError: a name of something else (``checkpoint-untrusted``).
    """
    if isinstance(described, list | tuple):
        for item in described:
            check_described(item, kinds)
    elif isinstance(described, Mapping):
        for key, value in described.items():
            if key in (CLASS_PATH, "class_path") and not _is_known(value, kinds):
                raise CheckpointError(
                    f"the file describes an object of {value!r}, which this program has not imported, or which is no "
                    "module, optimizer or scheduler; import it first, or pass trust=True if you trust the file",
                    code="checkpoint-untrusted",
                )
            check_described(value, kinds)


def _is_known(path: Any, kinds: tuple[type, ...]) -> bool:
    module, _, name = str(path).rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, kinds)


def import_jsonargparse() -> Any:
    """The package ``jsonargparse``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("jsonargparse")
    except ModuleNotFoundError:
        raise MissingExtraError("jsonargparse[signatures]", extra="cli") from None


def class_at(path: str) -> Any:
    """What an import path names.

    >>> class_at("torch.optim.SGD").__name__
    'SGD'
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def instantiate_class(args: Any | tuple[Any, ...], init: Mapping[str, Any]) -> Any:
    """Build what a mapping describes.

    Args:
        args: positional arguments: one, or a tuple of them.
        init: ``class_path``, and perhaps ``init_args``, the arguments by name.

    >>> import torch
    >>> init = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    >>> instantiate_class([torch.zeros(1)], init).defaults["lr"]
    0.5
    """
    positional = args if isinstance(args, tuple) else (args,)
    return class_at(init["class_path"])(*positional, **(init.get("init_args") or {}))


def instantiate_module(class_type: type[Any], config: Mapping[str, Any]) -> Any:
    """Build a module or a datamodule from hyper-parameters that ``LightningCLI`` has saved.

    Args:
        class_type: the class, or a base of the one that ``config`` names.
        config: arguments by name. Objects among them are described by ``class_path`` and ``init_args``;
            ``_class_path`` names the class where the command line chose it. The object's hyper-parameters are these.

    Raises:
        MissingExtraError: jsonargparse is not installed.
    """
    parser = import_jsonargparse().ArgumentParser(exit_on_error=False)
    given = {name: value for name, value in config.items() if name != CLASS_PATH}
    chosen = class_type
    if CLASS_PATH in config:
        chosen = class_at(config[CLASS_PATH])
        parser.add_subclass_arguments(class_type, "module", fail_untyped=False)
        given = {"class_path": config[CLASS_PATH], "init_args": given}
    else:
        parser.add_class_arguments(class_type, "module", fail_untyped=False)
    with given_hyperparameters(chosen, {**config, INSTANTIATOR: LIGHTNINGS}):
        return parser.instantiate(parser.parse_object({"module": given})).module
