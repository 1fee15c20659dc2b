"""The command ``leyden``; each subcommand is a module here, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from leyden.errors import LeydenError

#: Name -> module with ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code; and what it does.
COMMANDS: Final = {
    "replay": ("leyden.cli.replay", "run a recorded failing step again, under anomaly detection"),
    "verify-resume": ("leyden.cli.verify", "kill a script's training, resume it, and compare bit for bit"),
}


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
        print(f"leyden: {error}", file=sys.stderr)
        return 2
