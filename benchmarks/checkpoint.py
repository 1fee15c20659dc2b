"""How long a save keeps the training waiting, beside a bare ``torch.save`` and Lightning, in one interleaved run.

    python benchmarks/checkpoint.py                              # 100 MB, a minute or two
    python benchmarks/checkpoint.py --megabytes 400 --rounds 21 --folder /data

In each round every contestant saves the same module once, in an order that rotates from round to round, over the file
of its round before. A contestant's figure is its time divided by the bare ``torch.save`` of the same round; the table
shows the median, the least and the greatest of these ratios. The disk is left to settle before each save, and what
is written in the background is waited for after the clock was stopped. The files must hold equal tensors.

What the contestants do is not the same: a bare ``torch.save`` writes over the older file and leaves the rest to the
system, so does Lightning but with a copy in memory; leyden's file is read back and on the disk when the save returns
or, in the background, when the next one begins. "torch.save + fsync" says what the disk itself costs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

WIDTH = 1024

Save = Callable[[Path], Any]


class Contestant:
    """Somebody who saves; ``finish`` waits for what goes on in the background."""

    def __init__(self, save: Save, finish: Callable[[], Any] = lambda: None) -> None:
        self.save = save
        self.finish = finish


def layers(megabytes: float) -> torch.nn.Module:
    """Square layers of 4 MiB each, as many as it takes."""
    torch.manual_seed(1)
    count = max(round(megabytes * 1e6 / (WIDTH * WIDTH * 4)), 1)
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)))


def trainer_of(package: Any, megabytes: float, **arguments: Any) -> Any:
    """A Trainer that has run one step of plain SGD, so that the file is as large as the weights."""

    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers(megabytes)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layers[0](batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = package.Trainer(accelerator="cpu", max_epochs=1, **off, **arguments)
    trainer.fit(Module(), torch.utils.data.DataLoader([torch.ones(1, WIDTH)], batch_size=None))
    return trainer


def bare(megabytes: float) -> Contestant:
    state = layers(megabytes).state_dict()
    return Contestant(lambda path: torch.save({"state_dict": state}, path))


def bare_and_durable(megabytes: float) -> Contestant:
    state = layers(megabytes).state_dict()

    def save(path: Path) -> None:
        torch.save({"state_dict": state}, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    return Contestant(save)


def leyden(megabytes: float) -> Contestant:
    import leyden

    return Contestant(trainer_of(leyden, megabytes).save_checkpoint)


def leyden_in_background(megabytes: float) -> Contestant:
    import leyden

    trainer = trainer_of(leyden, megabytes)
    return Contestant(lambda path: trainer.save_checkpoint(path, asynchronous=True), trainer.wait_for_checkpoint)


def lightning(megabytes: float) -> Contestant:
    import pytorch_lightning

    return Contestant(trainer_of(pytorch_lightning, megabytes).save_checkpoint)


def lightning_in_background(megabytes: float) -> Contestant:
    import pytorch_lightning
    from pytorch_lightning.plugins.io import AsyncCheckpointIO

    plugin = AsyncCheckpointIO()
    trainer = trainer_of(pytorch_lightning, megabytes, plugins=[plugin])
    return Contestant(trainer.save_checkpoint, lambda: wait_for_executor(plugin))


def wait_for_executor(plugin: Any) -> None:
    """The plugin says nothing about its progress; its only thread is free when a task has come through it."""
    executor = getattr(plugin, "_executor", None)
    if executor is not None:
        executor.submit(lambda: None).result()


# name -> (how to build it, the package that it needs)
CONTESTANTS: dict[str, tuple[Callable[[float], Contestant], str]] = {
    "torch.save": (bare, "torch"),
    "torch.save + fsync": (bare_and_durable, "torch"),
    "leyden": (leyden, "leyden"),
    "leyden, asynchronous": (leyden_in_background, "leyden"),
    "lightning": (lightning, "pytorch_lightning"),
    "lightning, AsyncCheckpointIO": (lightning_in_background, "pytorch_lightning"),
}


def measure(contestant: Contestant, path: Path) -> float:
    """Seconds that one save keeps its caller waiting."""
    os.sync()
    start = time.perf_counter()
    contestant.save(path)
    stall = time.perf_counter() - start
    contestant.finish()
    return stall


def compete(names: list[str], *, megabytes: float, rounds: int, folder: str) -> dict[str, Any]:
    """Run all rounds; the result maps each contestant to its figures."""
    contestants = {name: CONTESTANTS[name][0](megabytes) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        paths = {name: Path(place) / f"{index}.ckpt" for index, name in enumerate(names)}
        for name in names:  # first-time costs, not counted
            measure(contestants[name], paths[name])
        for index in range(rounds):
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(measure(contestants[name], paths[name]))
        equal = {name: holds_the_same(paths[names[0]], paths[name]) for name in names}
    return {name: summary(seconds[name], seconds[names[0]], equal[name]) for name in names}


def holds_the_same(first: Path, second: Path) -> bool:
    tensors = [list(torch.load(path, weights_only=True)["state_dict"].values()) for path in (first, second)]
    return len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))


def summary(seconds: list[float], bare_seconds: list[float], equal: bool) -> dict[str, Any]:
    ratios = [mine / base for mine, base in zip(seconds, bare_seconds, strict=True)]
    return {
        "milliseconds": statistics.median(seconds) * 1e3,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "ratio of medians": statistics.median(seconds) / statistics.median(bare_seconds),
        "equal": equal,
    }


def check_speed(path: Path, repeats: int = 9) -> float:
    """GB/s at which a file of leyden is verified, from the page cache."""
    from leyden.checkpoint.files import fault_of

    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        assert fault_of(str(path)) is None
        seconds.append(time.perf_counter() - start)
    return path.stat().st_size / statistics.median(seconds) / 1e9


def verification(megabytes: float, folder: str) -> float:
    from leyden.checkpoint import write_checkpoint

    with tempfile.TemporaryDirectory(dir=folder) as place:
        write_checkpoint({"state_dict": layers(megabytes).state_dict()}, Path(place) / "a.ckpt")
        return check_speed(Path(place) / "a.ckpt")


def table(figures: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['milliseconds']:.0f}",
            f"{row['ratio']['median']:.2f}",
            f"{row['ratio']['min']:.2f} - {row['ratio']['max']:.2f}",
            f"{row['ratio of medians']:.2f}",
            "yes" if row["equal"] else "NO",
        ]
        for name, row in figures.items()
    ]
    headers = ["", "ms of stall", "ratio to torch.save", "least - greatest", "ratio of medians", "tensors equal"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=100, help="size of the weights (default 100)")
    parser.add_argument("--rounds", type=int, default=15, help="saves of each contestant (default 15)")
    parser.add_argument("--folder", default=".", help="where the files go (default: here)")
    parser.add_argument("--contestants", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # advice on what is switched off here on purpose
    names = [name for name in CONTESTANTS if name in ("torch.save", *arguments.contestants)]
    names = [name for name in names if importlib.util.find_spec(CONTESTANTS[name][1]) is not None]
    with contextlib.redirect_stdout(sys.stderr):
        figures = compete(names, megabytes=arguments.megabytes, rounds=arguments.rounds, folder=arguments.folder)
        speed = verification(arguments.megabytes, arguments.folder)
    if arguments.json:
        print(json.dumps({"python": platform.python_version(), "saves": figures, "verified GB/s": speed}, indent=2))
    else:
        print(f"Python {platform.python_version()}, torch {torch.__version__}; {arguments.megabytes:.0f} MB,")
        print(f"{arguments.rounds} rounds, one thread.\n\n{table(figures)}\n\nverified at {speed:.1f} GB/s")
    return 0 if all(row["equal"] for row in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
