"""Writes the tables of docs/compatibility.md: every public name of Lightning 2.6, and what leyden has for it.

    python docs/names.py            with pytorch-lightning 2.6 installed; rewrites the tables in place
    python docs/names.py --check    exits with 1 if they would change

A name is public if it is defined in a module whose path has no underscore in front, or is a public member of a class
that users derive from or hold.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leyden
from leyden.compat import names

PAGE = Path(__file__).with_name("compatibility.md")
CLASSES = ("Trainer", "LightningModule", "LightningDataModule", "Callback")
PRESENT, ALIAS, ABSENT = "present", "alias", "absent"


def public_names(package: str) -> Iterator[tuple[str, str]]:
    """Modules and the names that they define."""
    root = importlib.import_module(package)
    modules = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))]
    for module_name in modules:
        place = module_name[len(package) + 1 :]
        if any(part.startswith("_") for part in place.split(".")) or place.startswith("utilities.testing"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(module_name)
        except Exception:  # a module for a package that is not installed
            continue
        for name, value in sorted(vars(module).items()):
            is_defined = inspect.isclass(value) or inspect.isfunction(value)
            if not name.startswith("_") and is_defined and value.__module__ == module_name:
                yield place, name


def status_of(place: str, name: str) -> tuple[str, str]:
    """What leyden has for a name, and a remark."""
    try:
        value = names.find("pytorch", place, name)
    except LookupError:
        return ABSENT, names.reason(place or "(the package)", name)
    home = getattr(value, "__module__", "") or ""
    if home.startswith("leyden.compat"):
        return ALIAS, f"`{home}`"
    shown = getattr(value, "__name__", name)
    return (PRESENT, "") if shown == name else (ALIAS, f"`{home}.{shown}`")


def members(name: str) -> Iterator[tuple[str, str, str]]:
    """The public members of a class of Lightning's, with what leyden's has."""
    theirs = getattr(importlib.import_module("pytorch_lightning"), name)
    ours: Any = getattr(leyden, name)
    example = ours(logger=False, enable_checkpointing=False, accelerator="cpu") if name == "Trainer" else None
    for member in sorted(set(dir(theirs)) - set(dir(importlib.import_module("torch").nn.Module))):
        if member.startswith("_"):
            continue
        there = hasattr(ours, member) or (example is not None and hasattr(example, member))
        status, remark = (PRESENT, "") if there else (ABSENT, names.reason(name, member))
        yield member, status, remark


def table() -> tuple[str, list[str]]:
    """The tables as Markdown, and the absent names that have no reason."""
    lines: list[str] = []
    counts = dict.fromkeys((PRESENT, ALIAS, ABSENT), 0)
    silent: list[str] = []
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for place, name in public_names("pytorch_lightning"):
        rows.setdefault(place or "(the package)", []).append((name, *status_of(place, name)))
    for name in CLASSES:
        rows[name] = list(members(name))
    for place, found in rows.items():
        by_status: dict[tuple[str, str], list[str]] = {}
        for name, status, remark in found:
            counts[status] += 1
            by_status.setdefault((status, remark), []).append(f"`{name}`")
            if status == ABSENT and not remark:
                silent.append(f"{place}.{name}")
        for (status, remark), known in by_status.items():
            lines.append(f"| {place} | {', '.join(known)} | {status} | {remark} |")
    head = ", ".join(f"{count} {status}" for status, count in counts.items())
    table = "\n".join(["| where | names | on leyden | |", "| --- | --- | --- | --- |", *lines])
    return f"{sum(counts.values())} public names of Lightning 2.6: {head}.\n\n{table}", silent


def main() -> int:
    """Rewrite or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    text, silent = table()
    if silent:
        print("absent without a reason:", *silent, sep="\n  ")
        return 1
    before = PAGE.read_text()
    marked = re.compile(r"(<!-- names -->\n).*?(\n<!-- /names -->)", re.DOTALL)
    after = marked.sub(lambda match: match[1] + text + match[2], before)
    if given.check:
        return int(after != before)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
