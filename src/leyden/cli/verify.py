"""``leyden verify-resume SCRIPT``: a script's training, killed and resumed, compared with the one that nobody killed.

::

    the whole run                       trace: every batch, what it changed, every row
    for each point:
        a run that is saved at the point and killed after it
        the same script in a fresh process, which goes on from that file
        its trace must be the rest of the whole run's
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from leyden.cli.probe import POINTS, Plan
from leyden.errors import InvalidValueError, LeydenError

#: Differences that are told of one resumed run.
_SHOWN: Final = 12
_Event = dict[str, Any]


@dataclass
class Report:
    """What ``verify_resume`` has found.

    Attributes:
        findings: for each point the differences, the first ones first; no differences where the runs are equal.
        skipped: points that the run does not reach, and why.
        batches: training batches of the whole run.
    """

    findings: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    batches: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether no resumed run could be told from the whole one."""
        return not any(self.findings.values())

    def __str__(self) -> str:
        lines = [f"whole run: {self.batches} batches"]
        for point, differences in self.findings.items():
            lines.append(f"killed {point}: {'differs' if differences else 'equal'}")
            lines += [f"  {text}" for text in differences]
        lines += [f"killed {point}: not tried, {why}" for point, why in self.skipped.items()]
        return "\n".join(lines)


def verify_resume(
    script: str | os.PathLike[str],
    arguments: Sequence[str] = (),
    *,
    points: Sequence[str] | None = None,
    batches: int = 8,
    epochs: int = 2,
) -> Report:
    """Whether a script's training, killed and resumed, is bit for bit the one that nobody has killed.

    The script runs in processes of its own, in the present folder, up to the end of its first ``trainer.fit``, which is
    shortened. Its loggers are replaced, and its checkpoints go to a temporary folder. What is compared: batches,
    weights, buffers, states of optimizers, schedulers and callbacks, rates, clocks, random numbers, logged rows.

    Args:
        script: a Python script that trains.
        arguments: its arguments.
        points: where to kill; all of "in an epoch", "in a window", "in a validation", "between epochs", "in a save" by
            default.
        batches: of an epoch at most; more if windows are longer than half of it.
        epochs: at most.

    Raises:
        InvalidValueError: an unknown point, or less than two batches or epochs (``verify-arguments``).
        LeydenError: the script fails, or calls no ``trainer.fit`` (``verify-script``).

    >>> # report = verify_resume("train.py", ["--lr", "0.1"]); print(report); assert report.is_equal
    """
    points = list(POINTS) if points is None else list(points)
    unknown = [point for point in points if point not in POINTS]
    if unknown or batches < 2 or epochs < 2:
        raise InvalidValueError(
            f"verify_resume(points={points!r}, batches={batches!r}, epochs={epochs!r}) takes points out of "
            f"{list(POINTS)}, and at least 2 batches and epochs",
            code="verify-arguments",
        )
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        runner = _Runner(Path(folder), [os.fspath(script), *arguments], batches, epochs)
        whole = runner.run("whole")
        report = Report(batches=sum(event["kind"] == "step" for event in whole))
        facts = whole[0]["values"]
        for point in points:
            why = _unreachable(point, facts)
            if why is not None:
                report.skipped[point] = why
            else:
                report.findings[point] = _verify(runner, whole, point, facts)
    return report


def _unreachable(point: str, facts: dict[str, str]) -> str | None:
    if point == "in a validation" and facts["validates"] != "True":
        return "the run validates nothing"
    if point == "in a window" and facts["window"] == "1":
        return "every batch is a window"
    return None


def _verify(runner: _Runner, whole: list[_Event], point: str, facts: dict[str, str]) -> list[str]:
    """Kill a run at a point, resume it, and tell the differences."""
    killed = runner.run(point, point)
    place = next((index for index, event in enumerate(killed) if event["kind"] == "saved"), None)
    if place is None:
        return ["the run did not come to this point a second time"]
    again = compare(whole[:place], killed[:place], facts)
    if again:
        return ["two runs from the start differ, so nothing can be said of a resume; call seed_everything", *again]
    resumed = runner.run(point, point, resumes=True)
    begun = [event for event in resumed if event["kind"] == "resumed"]
    last = next(event for event in reversed(whole[:place]) if event["kind"] == "step")
    restored = _not_restored(last["values"], begun[0]["values"]) if begun else []
    rest = [event for event in resumed if event["kind"] not in ("start", "resumed")]
    return [*restored, *compare(whole[place:], rest, facts)][:_SHOWN]


def _not_restored(saved: dict[str, str], begun: dict[str, str]) -> list[str]:
    """What a resumed run does not begin with as it was saved; an epoch's end may change rates and schedulers."""
    names = [name for name in saved if name.startswith(("module.", "optimizer")) and " of group " not in name]
    return [f"{name} is not restored" for name in names if begun.get(name) != saved[name]]


def compare(expected: Sequence[_Event], found: Sequence[_Event], facts: dict[str, str]) -> list[str]:
    """Name what differs between two traces, and from where on; the first differences first."""
    told: dict[str, str] = {}
    for first, second in zip(expected, found, strict=False):
        if (first["kind"], first["place"]) != (second["kind"], second["place"]):
            return [*told.values(), f"{_described(second)} comes in place of {_described(first)}"]
        for name in [*first["values"], *(set(second["values"]) - set(first["values"]))]:
            if name not in told and first["values"].get(name) != second["values"].get(name):
                told[name] = _difference(name, first, facts)
    if len(expected) != len(found):
        more, fewer, rest = ("more", found, expected) if len(found) > len(expected) else ("fewer", expected, found)
        return [*told.values(), f"{more} happens than in the whole run, from {_described(fewer[len(rest)])} on"]
    return list(told.values())


def _described(event: _Event) -> str:
    words = {"batch": "batch", "step": "end of", "validation": "validation", "row": "row of", "epoch": "end of"}
    return f"{words.get(event['kind'], event['kind'])} {event['place']!r}".replace("'", "")


def _difference(name: str, event: _Event, facts: dict[str, str]) -> str:
    if name == "the batch":
        loader = f"the validation data ({event['kind']})" if event["kind"] == "validation" else facts["loader"]
        return (
            f"the data differs from {event['place']} on: {loader} gives other samples, or draws random numbers that no "
            "checkpoint knows"
        )
    return f"{name} differs from {event['place']} on"


class _Runner:
    """Starts the script."""

    def __init__(self, folder: Path, command: list[str], batches: int, epochs: int) -> None:
        self._folder, self._command, self._batches, self._epochs = folder, command, batches, epochs

    def run(self, name: str, point: str | None = None, *, resumes: bool = False) -> list[_Event]:
        """Run the script as a plan says; returns its trace."""
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        trace = folder / ("resumed" if resumes else "trace")
        plan = Plan(
            folder=str(folder),
            trace=str(trace),
            batches=self._batches,
            epochs=self._epochs,
            point=point,
            resumes=resumes,
        )
        command = [sys.executable, "-m", "leyden.cli.probe", json.dumps(asdict(plan)), *self._command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        is_killed = point is not None and not resumes and done.returncode == -signal.SIGKILL
        if done.returncode != 0 and not is_killed:
            tail = "\n".join(done.stdout.splitlines()[-15:])
            what = f"resuming it (killed {point})" if resumes else "running it"
            raise LeydenError(f"{' '.join(self._command)}: {what} failed:\n{tail}\n", code="verify-script")
        return [json.loads(line) for line in trace.read_text().splitlines()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("--batches", type=int, default=8, help="of an epoch at most (default: 8)")
    parser.add_argument("--epochs", type=int, default=2, help="at most (default: 2)")
    parser.add_argument("--point", action="append", choices=list(POINTS), help="where to kill; default: everywhere")
    parser.add_argument("script", metavar="SCRIPT", help="a Python script that trains")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Verify; returns 0 if the runs are equal and 1 if they are not.

    Raises:
        LeydenError: the script fails.
    """
    if not os.path.isfile(arguments.script):
        raise InvalidValueError(f"there is no script {arguments.script!r}", code="verify-arguments")
    report = verify_resume(
        arguments.script,
        arguments.arguments,
        points=arguments.point,
        batches=arguments.batches,
        epochs=arguments.epochs,
    )
    print(report)
    return 0 if report.is_equal else 1
