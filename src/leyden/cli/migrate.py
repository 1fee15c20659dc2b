"""``leyden migrate``: what a repository uses of Lightning, and how it runs on leyden."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tabulate import tabulate

from leyden.compat.survey import ABSENT, SAME, VERDICTS, Survey, survey
from leyden.errors import InvalidValueError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("path", type=Path, help="a file or a folder; nothing in it is imported or run")
    parser.add_argument("--json", action="store_true", help="all uses, for programs")
    parser.add_argument("--all", action="store_true", help="show what runs as it is, too")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if something does not run."""
    if not arguments.path.exists():
        raise InvalidValueError(f"there is no {str(arguments.path)!r}", code="migrate-what")
    found = survey(arguments.path)
    if arguments.json:
        print(json.dumps({"uses": [asdict(use) for use in found.uses], "unread": dict(found.unread)}, indent=2))
    else:
        print(report(found, everything=arguments.all))
    return int(any(use.verdict == ABSENT for use in found.uses) or bool(found.unread))


def report(found: Survey, *, everything: bool = False) -> str:
    """The report as text: what does not run as it is, line by line, and a summary."""
    if not found.uses and not found.unread:
        return "nothing of Lightning is used here"
    told = [use for use in found.uses if everything or use.verdict != SAME]
    blocks = []
    for verdict in reversed(VERDICTS):
        lines = [(f"{use.file}:{use.line}", use.name, use.reason) for use in told if use.verdict == verdict]
        if lines:
            blocks.append(f"{_TITLES[verdict]}\n" + tabulate(lines, tablefmt="plain", maxcolwidths=[None, 44, 60]))
    if found.unread:
        blocks.append("Cannot be read\n" + tabulate(sorted(found.unread.items()), tablefmt="plain"))
    counts = Counter(use.verdict for use in found.uses)
    summary = ", ".join(f"{counts[verdict]} {_COUNTED[verdict]}" for verdict in VERDICTS)
    uses, files = len(found.uses), len({use.file for use in found.uses})
    many = [f"{count} {what}{'' if count == 1 else 's'}" for count, what in ((uses, "use"), (files, "file"))]
    blocks.append(f"{many[0]} of Lightning in {many[1]}: {summary}.")
    blocks.append("Run it by: leyden run SCRIPT")
    return "\n\n".join(blocks)


_TITLES = {ABSENT: "Does not run", VERDICTS[1]: "Runs with a difference", SAME: "Runs as it is"}
_COUNTED = {ABSENT: "do not run", VERDICTS[1]: "run with a difference", SAME: "run as they are"}
