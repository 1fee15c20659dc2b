"""Time per training step beside a hand-written loop and two peers, in one interleaved run.

    python benchmarks/step.py                                   # everything, a few minutes
    python benchmarks/step.py --workloads mlp gan --rounds 11
    python benchmarks/step.py --json > figures.json

In each round every contestant trains the same model from the same seed on the same batches, one after the
other, in an order that rotates from round to round. A contestant's figure is its time divided by the
hand-written loop's time of the same round; the table shows the median, the least and the greatest of these
ratios over all rounds. Weights that are not bit for bit those of the hand-written loop make the run fail:
unequal work is not worth comparing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import io
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from workloads import DISTINCT_BATCHES, WORKLOADS, Batches, Stopwatch, Workload

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
WARMUP_STEPS = 50
DATA_SEED = 7
SEED = 11

Run = Callable[[Workload, Batches, Stopwatch], torch.nn.Module]


def run_raw(workload: Workload, batches: Batches, watch: Stopwatch) -> torch.nn.Module:
    model, step = workload.by_hand(watch)
    with torch.inference_mode(workload.stage == "validate"):
        for index, batch in enumerate(batches):
            step(index, batch)
    return model


def run_ignite(workload: Workload, batches: Batches, watch: Stopwatch) -> torch.nn.Module:
    """The hand-written step in Ignite's loop, which is all that Ignite does about the update."""
    from ignite.engine import Engine

    model, step = workload.by_hand(watch)
    engine = Engine(lambda engine, batch: step(engine.state.iteration - 1, batch))
    with torch.inference_mode(workload.stage == "validate"):
        engine.run(batches, max_epochs=1)
    return model


def run_lightning(workload: Workload, batches: Batches, watch: Stopwatch) -> torch.nn.Module:
    import pytorch_lightning

    return run_trainer(pytorch_lightning, workload, batches, watch)


def run_leyden(workload: Workload, batches: Batches, watch: Stopwatch) -> torch.nn.Module:
    import leyden

    return run_trainer(leyden, workload, batches, watch)


def run_trainer(package: Any, workload: Workload, batches: Batches, watch: Stopwatch) -> torch.nn.Module:
    """Run a Trainer from which everything was switched off that the workload does not ask for."""
    module: torch.nn.Module = workload.module(package.LightningModule, watch)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with tempfile.TemporaryDirectory() as folder, Terminal.in_place_of_output():
        parts = workload.parts(package, folder)
        trainer = package.Trainer(accelerator="cpu", max_epochs=1, **{**off, **workload.trainer_arguments, **parts})
        getattr(trainer, workload.stage)(module, batches)
    return module


class Terminal(io.StringIO):
    """What bars take for a terminal and draw on; nothing is kept."""

    @classmethod
    @contextmanager
    def in_place_of_output(cls) -> Iterator[None]:
        with redirect_stdout(cls()), redirect_stderr(cls()):
            yield

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


# name -> (how to run it, the package that it needs)
CONTESTANTS: dict[str, tuple[Run, str]] = {
    "raw": (run_raw, "torch"),
    "leyden": (run_leyden, "leyden"),
    "lightning": (run_lightning, "pytorch_lightning"),
    "ignite": (run_ignite, "ignite"),
}


def measure(name: str, workload: Workload, *, steps: int, clock: Callable[[], float]) -> tuple[float, list[Tensor]]:
    """Run one contestant once.

    Returns:
        Seconds per step, and the final parameters.
    """
    torch.manual_seed(DATA_SEED)
    watch = Stopwatch(warmup=WARMUP_STEPS, steps=steps, seed=SEED, clock=clock)
    batches = Batches(workload.batches(DISTINCT_BATCHES), watch.total)
    torch.manual_seed(SEED)
    gc.collect()  # one contestant's garbage must not be collected on another's time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on what is switched off here on purpose
        model = CONTESTANTS[name][0](workload, batches, watch)
    if watch.count != watch.total:
        raise RuntimeError(f"{name} ran {watch.count} steps of {workload.title!r}, expected {watch.total}")
    return watch.seconds_per_step(), [parameter.detach().clone() for parameter in model.parameters()]


def compete(workload: Workload, names: list[str], *, rounds: int, steps: int, clock: str) -> dict[str, Any]:
    """Run all rounds of one workload; the result maps each contestant to its figures."""
    names = [name for name in names if name not in workload.manual_only]
    for name in names:  # imports and first-time costs, not counted
        measure(name, workload, steps=1, clock=CLOCKS[clock])

    seconds: dict[str, list[float]] = {name: [] for name in names}
    equal = dict.fromkeys(names, True)
    for index in range(rounds):
        weights = {}
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed, weights[name] = measure(name, workload, steps=steps, clock=CLOCKS[clock])
            seconds[name].append(elapsed)
        for name in names:
            equal[name] &= all(map(torch.equal, weights["raw"], weights[name]))

    return {name: summary(seconds[name], seconds["raw"], equal[name]) for name in names}


def summary(seconds: list[float], raw_seconds: list[float], equal: bool) -> dict[str, Any]:
    ratios = [mine / raw for mine, raw in zip(seconds, raw_seconds, strict=True)]
    return {
        "microseconds": statistics.median(seconds) * 1e6,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "bit_equal": equal,
    }


def environment(names: list[str]) -> dict[str, Any]:
    packages = [CONTESTANTS[name][1] for name in names]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.import_module(package).__version__ for package in packages},
    }


def table(name: str, figures: dict[str, Any]) -> str:
    rows = [
        [
            contestant,
            f"{row['microseconds']:.0f}",
            f"{row['ratio']['median']:.2f}",
            f"{row['ratio']['min']:.2f} - {row['ratio']['max']:.2f}",
            "yes" if row["bit_equal"] else "NO",
        ]
        for contestant, row in figures.items()
    ]
    headers = ["", "us per step", "ratio to raw", "least - greatest", "weights bit-equal"]
    body = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    absent = "".join(f"\n{contestant} has no such mode.\n" for contestant in WORKLOADS[name].manual_only)
    return f"**{name}**: {WORKLOADS[name].title}\n\n{body}\n{absent}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds per workload (default 9)")
    parser.add_argument("--steps", type=int, default=1500, help="timed steps per run (default 1500)")
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS], default=[*WORKLOADS])
    parser.add_argument("--contestants", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS])
    parser.add_argument(
        "--clock", choices=[*CLOCKS], default="wall", help="cpu: of this process, for a machine that is busy"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


def choose_contestants(names: list[str]) -> list[str]:
    """The hand-written loop, then those asked for; one that is not installed is left out with a note."""
    chosen = ["raw", *(name for name in CONTESTANTS if name in names and name != "raw")]
    missing = [name for name in chosen if importlib.util.find_spec(CONTESTANTS[name][1]) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return [name for name in chosen if name not in missing]


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # trainers tell about devices and products at every fit
    names = choose_contestants(arguments.contestants)

    settings = {"rounds": arguments.rounds, "steps": arguments.steps, "clock": arguments.clock}
    report: dict[str, Any] = {**settings, **environment(names), "workloads": {}}
    if not arguments.json:
        versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        print(f"Python {report['python']}, {versions}; {arguments.rounds} rounds of {arguments.steps} steps,")
        print(f"{arguments.clock} clock, one thread.\n")
    for name in arguments.workloads:
        figures = report["workloads"][name] = compete(WORKLOADS[name], names, **settings)
        if not arguments.json:
            print(table(name, figures), flush=True)
    if arguments.json:
        print(json.dumps(report, indent=2))

    rows = [row for figures in report["workloads"].values() for row in figures.values()]
    return 0 if all(row["bit_equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
