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
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from leyden.cli.probe import POINTS, Plan
from leyden.errors import InvalidValueError, LeydenError

#: Places that are told of one resumed run, and names at each.
_SHOWN: Final = 2
_NAMED: Final = 3
#: Columns of the report.
_WIDTH: Final = 79
_Event = dict[str, Any]


@dataclass
class Report:
    """What ``verify_resume`` has found.

    Attributes:
        findings: for each point the differences, the first ones first; no differences where the runs are equal.
        skipped: points that the run does not reach, and why.
        unrepeatable: differences between two runs that nobody has killed; nothing can be said of a resume then.
        batches: training batches of the whole run.
    """

    findings: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unrepeatable: list[str] = field(default_factory=list)
    batches: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether no resumed run could be told from the whole one, of one at least."""
        return bool(self.findings) and not self.unrepeatable and not any(self.findings.values())

    def __str__(self) -> str:
        lines = [f"whole run: {self.batches} batches"]
        if self.unrepeatable:
            remedy = "seed everything, and see torch.use_deterministic_algorithms"
            lines.append(f"two runs from the start differ, so nothing can be said of a resume; {remedy}")
            lines += [f"  {text}" for text in self.unrepeatable]
        width = max(map(len, POINTS))
        for point, differences in self.findings.items():
            lines.append(f"killed {point:{width}}  {'differs' if differences else 'equal'}")
            lines += [f"  {text}" for text in differences]
        lines += [f"killed {point:{width}}  not tried: {why}" for point, why in self.skipped.items()]
        return "\n".join(_wrapped(line) for line in lines)


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
                continue
            try:
                differences = _verify(runner, whole, point, facts)
                if differences is None:
                    report.skipped[point] = "the run ends before that"
                else:
                    report.findings[point] = differences
            except _Unrepeatable as found:
                report.unrepeatable = list(found.args[0])
                break
    return report


def _unreachable(point: str, facts: dict[str, str]) -> str | None:
    if point == "in a validation" and facts["validates"] != "True":
        return "the run validates nothing"
    if point == "in a window" and facts["window"] == "1":
        return "every batch is a window"
    return None


def _verify(runner: _Runner, whole: list[_Event], point: str, facts: dict[str, str]) -> list[str] | None:
    """Kill a run at a point, resume it, and tell the differences; None if it does not come to the point.

    Raises:
        _Unrepeatable: two runs from the start differ already.
    """
    killed = runner.run(point, point)
    saved = next((index for index, event in enumerate(killed) if event["kind"] == "saved"), None)
    differences = compare(whole[:saved], killed[:saved], facts)
    if differences:
        raise _Unrepeatable(differences)
    if saved is None:
        return None
    try:
        resumed = runner.run(point, point, resumes=True)
    except LeydenError as error:
        return [f"the script cannot be resumed. {error.message.strip()}"]
    begun, untold, before = _first(resumed, "resumed"), _first(resumed, "untold"), _first(killed, "untold")
    last = next(event["values"] for event in reversed(whole[:saved]) if event["kind"] == "step")
    lost = [name for name in last if begun and _is_kept(name) and begun.get(name) != last[name]]
    other = [name for name in untold if name in before and before[name] != untold[name]]
    rest = [event for event in resumed if event["kind"] not in ("start", "resumed", "untold")]
    differences = compare(whole[saved:], rest, facts, is_restored=not lost and not other)
    causes = [f"not restored: {_listed(lost)}"] if lost else []
    if differences and other:
        remedy = "keep it in on_save_checkpoint, state_dict or a buffer"
        causes.append(f"another value after the resume, since no checkpoint knows it: {_listed(other)}; {remedy}")
    return [*causes, *differences]


def _first(trace: list[_Event], kind: str) -> dict[str, str]:
    """Values of the first event of a kind; empty if there is none."""
    return next((event["values"] for event in trace if event["kind"] == kind), {})


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(line, _WIDTH, subsequent_indent=indent, **options)  # type: ignore[arg-type]


class _Unrepeatable(Exception):
    """Two runs from the start differ, so nothing can be said of a resume."""


def _is_kept(name: str) -> bool:
    """Whether an epoch's end leaves something alone, as it does not rates and schedulers."""
    return name.startswith(("module.", "optimizer")) and " of group " not in name


def compare(
    expected: Sequence[_Event], found: Sequence[_Event], facts: dict[str, str], *, is_restored: bool = False
) -> list[str]:
    """Name what differs between two traces: for each place what differs from there on, the first places first.

    Args:
        expected: the trace of the whole run.
        found: the one that should be the same.
        facts: of the whole run, for words.
        is_restored: whether both began with the same state.
    """
    told: set[str] = set()
    lines: list[str] = []
    for first, second in zip(expected, found, strict=False):
        if _key(first) != _key(second):
            return [*lines[:_SHOWN], f"{_described(second)} comes in place of {_described(first)}"]
        values = first["values"] | second["values"]
        names = [name for name in values if first["values"].get(name) != second["values"].get(name)]
        new = [name for name in names if name not in told]
        if new:
            hint = _hint(first, new, facts, is_first=not lines and is_restored)
            lines.append(f"from {first['place']} on: {_listed(new)}{hint}")
        told.update(names)
    if len(expected) != len(found):
        more, event = ("more", found[len(expected)]) if len(found) > len(expected) else ("less", expected[len(found)])
        lines = [*lines[:_SHOWN], f"{more} happens than in the whole run: {_described(event)}"]
    return lines[: _SHOWN + 1]


def _key(event: _Event) -> tuple[str, str]:
    return event["kind"], event["place"]


def _described(event: _Event) -> str:
    return f"{event['kind']} ({event['place']})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _hint(event: _Event, names: Sequence[str], facts: dict[str, str], *, is_first: bool) -> str:
    """What is likely to be the cause of the first difference."""
    if event["kind"] == "batch":
        return f". {facts['loader']} gives other samples, or draws random numbers that no checkpoint knows"
    if event["kind"] == "validation":
        return ". The validation data is another, or draws random numbers that no checkpoint knows"
    if is_first and event["kind"] == "step" and names[0].startswith("module."):
        return (
            ". The step does something else with the same batch, weights and random numbers: the module or a callback "
            "has state that no checkpoint knows; register a buffer, or keep it in on_save_checkpoint"
        )
    return ""


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
            raise LeydenError(f"{' '.join(self._command)} failed:\n{tail}\n", code="verify-script")
        events = [json.loads(line) for line in trace.read_text().splitlines()]
        if not events or events[0]["kind"] != "start":
            what = "has trained nothing: it calls no trainer.fit in its own process, or that has no batches"
            raise LeydenError(f"{' '.join(self._command)} {what}", code="verify-script")
        return events


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = (
        "The script runs up to the end of its first trainer.fit, once for the whole run and twice for each point. Its "
        "loggers are replaced, and its checkpoints go to a temporary folder; what else it writes, it writes. Exit "
        "code: 0 if the runs are equal, 1 if they are not, 2 if the script cannot be run."
    )
    parser.add_argument("--batches", type=int, default=8, help="batches of an epoch, at most (default: 8)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs, at most (default: 2)")
    parser.add_argument(
        "--point",
        action="append",
        choices=list(POINTS),
        metavar="POINT",
        help=f"where to kill, again for more; default: all of {', '.join(map(repr, POINTS))}",
    )
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
