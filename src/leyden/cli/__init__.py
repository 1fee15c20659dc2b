"""The command ``leyden``, whose subcommands are modules here, and ``LightningCLI``; imported when they are used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from leyden.errors import LeydenError

if TYPE_CHECKING:
    from leyden.cli.lightning_cli import LightningCLI as LightningCLI
    from leyden.cli.parser import CALLBACK_REGISTRY as CALLBACK_REGISTRY
    from leyden.cli.parser import DATAMODULE_REGISTRY as DATAMODULE_REGISTRY
    from leyden.cli.parser import LR_SCHEDULER_REGISTRY as LR_SCHEDULER_REGISTRY
    from leyden.cli.parser import MODEL_REGISTRY as MODEL_REGISTRY
    from leyden.cli.parser import OPTIMIZER_REGISTRY as OPTIMIZER_REGISTRY
    from leyden.cli.parser import ArgsType as ArgsType
    from leyden.cli.parser import LightningArgumentParser as LightningArgumentParser
    from leyden.cli.parser import LRSchedulerCallable as LRSchedulerCallable
    from leyden.cli.parser import LRSchedulerTypeTuple as LRSchedulerTypeTuple
    from leyden.cli.parser import OptimizerCallable as OptimizerCallable
    from leyden.cli.parser import ReduceLROnPlateau as ReduceLROnPlateau
    from leyden.cli.save_config import SaveConfigCallback as SaveConfigCallback
    from leyden.instantiation import instantiate_class as instantiate_class
    from leyden.instantiation import instantiate_module as instantiate_module

_HOMES = {
    "LightningCLI": "leyden.cli.lightning_cli",
    "SaveConfigCallback": "leyden.cli.save_config",
    **dict.fromkeys(("instantiate_class", "instantiate_module"), "leyden.instantiation"),
    **dict.fromkeys(("ArgsType", "LRSchedulerCallable", "LRSchedulerTypeTuple"), "leyden.cli.parser"),
    **dict.fromkeys(("LightningArgumentParser", "OptimizerCallable", "ReduceLROnPlateau"), "leyden.cli.parser"),
    **dict.fromkeys(("CALLBACK_REGISTRY", "DATAMODULE_REGISTRY", "LR_SCHEDULER_REGISTRY"), "leyden.cli.parser"),
    **dict.fromkeys(("MODEL_REGISTRY", "OPTIMIZER_REGISTRY"), "leyden.cli.parser"),
}
__all__ = [*_HOMES]

#: Name -> module with ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code; and what it does.
COMMANDS: Final = {
    "run": ("leyden.cli.run", "run a script written for Lightning 1.5 to 2.6, unchanged"),
    "migrate": ("leyden.cli.migrate", "tell what a repository uses of Lightning, and how that runs on leyden"),
    "replay": ("leyden.cli.replay", "run a recorded failing step again, under anomaly detection"),
    "verify-resume": ("leyden.cli.verify", "kill a script's training, resume it, and compare bit for bit"),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.cli' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all is well, 1 it is not, 2 the command cannot be carried out.

    Args:
        arguments: what follows ``leyden``; None takes those of this process.
    """
    parser = argparse.ArgumentParser(prog="leyden", description="leyden, a PyTorch trainer about optimization")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name, (home, does) in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=does)
        if name in given[:1]:
            module = importlib.import_module(home)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    parsed = parser.parse_args(given)
    try:
        return int(parsed.run(parsed))
    except LeydenError as error:
        print(f"leyden {given[0]}: {error}", file=sys.stderr)
        return 2
