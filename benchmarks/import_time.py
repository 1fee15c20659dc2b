"""What an import costs beyond `import torch`: time, and modules.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --rounds 11 --json

Each figure comes from a fresh interpreter; rounds are interleaved, and a ratio is taken against
`import torch` of the same round. `import leyden` alone loads little, because public names are resolved when
they are first used; `from leyden import ...` is what a script pays that trains something.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from typing import Any

from tabulate import tabulate

# The time is that of a script that starts cold.
PROBE = """
import json, time
started = time.perf_counter()
{statement}
elapsed = time.perf_counter() - started
print(json.dumps(elapsed))
"""
# Modules are counted beyond those that torch brings.
COUNT = """
import json, sys
import torch
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""

STATEMENTS = {
    "import torch": "torch",
    "import leyden": "leyden",
    "from leyden import LightningModule, Trainer": "leyden",
    "from ignite.engine import Engine": "ignite",
    "from pytorch_lightning import LightningModule, Trainer": "pytorch_lightning",
}


def run_fresh(code: str) -> Any:
    """Run code in a new interpreter; what it prints last is JSON. Warnings of third parties are not shown."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(statements: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    new_modules = {  # also fills the file cache, before anything is timed
        statement: run_fresh(COUNT.format(statement=statement)) for statement in statements
    }
    seconds: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(rounds):
        for statement in statements:
            seconds[statement].append(run_fresh(PROBE.format(statement=statement)))
    torch_seconds = seconds["import torch"]
    return {
        statement: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(mine / base for mine, base in zip(times, torch_seconds, strict=True)),
            "modules": len(new_modules[statement]),
        }
        for statement, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="fresh interpreters per statement (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()

    present = [text for text, module in STATEMENTS.items() if importlib.util.find_spec(module)]
    figures = measure(present, arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    rows = [
        [f"`{statement}`", f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", str(row["modules"])]
        for statement, row in figures.items()
    ]
    headers = ["", "seconds", "ratio to torch", "modules beyond torch"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
