"""Kills a training at random moments, lets it go on, and compares it with the run that nobody killed.

    python tests/reliability/kill.py --trials 200
    python tests/reliability/kill.py --repeat 7:joint:2:save:3          # one trial, as it is named in a report
    python tests/reliability/kill.py --trials 100 --signals             # SIGTERM, SIGINT or SIGHUP, not SIGKILL

A trial starts ``program.py``, kills it (SIGKILL) in a moment of a given kind, starts it again, perhaps kills it again,
and at last lets it finish. The moment is "after k calls of functions inside of the n-th batch, save or validation",
with random n and k, so that any line between two calls can be the last one. In the end everything must be as without
the kills, bit for bit. Other signals let the process end by itself: with the exit code 128 + n, and a checkpoint of the
very batch.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).resolve().parent.parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)

import torch  # noqa: E402

from reliability import program  # noqa: E402
from sameness import differences  # noqa: E402

WORKERS, KILLS, SIGNALS = (0, 2), (1, 3), ("SIGTERM", "SIGINT", "SIGHUP")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried."""

    seed: int
    mode: str
    workers: int
    kind: str
    kills: int

    def __str__(self) -> str:
        return f"{self.seed}:{self.mode}:{self.workers}:{self.kind}:{self.kills}"

    @classmethod
    def parse(cls, text: str) -> Trial:
        seed, mode, workers, kind, kills = text.split(":")
        return cls(seed=int(seed), mode=mode, workers=int(workers), kind=kind, kills=int(kills))


@dataclass(kw_only=True)
class Finding:
    """What has become of it.

    Attributes:
        trial: what was tried.
        kills: how often the process was in fact killed.
        resumed: whether the last start went through, and every start went on from a file if there was one.
        starts: for each start the batches that were trained before it, and the file that it went on from.
        differs: places in the final state that are not bit-equal.
        ignored: files of rows of starts that were killed before they saved anything; these and what is beside them
            count for nobody.
        damaged: starts that have found a damaged file.
        again: batches that were trained anew although a checkpoint that knew them was whole.
        twice, never: samples that were trained more or less often than once in an epoch of the surviving history.
        reordered: whether the order of the samples differs.
        lost, doubled, changed: rows of ``metrics.csv``.
        files: names of files that are there and should not be, or the other way round.
        contents: places in the checkpoints at the end that are not bit-equal.
        told: the last lines of a start that failed.
    """

    trial: Trial
    kills: int = 0
    resumed: bool = False
    starts: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    damaged: int = 0
    again: int = 0
    twice: int = 0
    never: int = 0
    reordered: bool = False
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    files: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    told: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the run cannot be told from the one that nobody killed."""
        return self.resumed and self.kills == self.trial.kills and not any(getattr(self, name) for name in FAULTS)

    @property
    def is_trained_alike(self) -> bool:
        """Whether weights, optimizers, schedulers, learning rates and steps are bit-equal."""
        parts = ("weights", "trained weights", "optimizers", "schedulers", "rates", "clocks")
        return self.resumed and not any(place.split("/")[1].split(":")[0] in parts for place in self.differs)

    def __str__(self) -> str:
        hidden = ("trial", "told", "ignored")
        facts = {name: value for name, value in asdict(self).items() if value and name not in hidden}
        for name in ("differs", "contents"):
            if len(facts.get(name, ())) > 6:
                facts[name] = [*facts[name][:6], f"and {len(facts[name]) - 6} more"]
        return f"{self.trial}  {facts}" + (f"\n{self.told}" if self.told else "")


#: What must be nothing in a finding.
FAULTS = (
    "differs",
    "damaged",
    "again",
    "twice",
    "never",
    "reordered",
    "lost",
    "doubled",
    "changed",
    "files",
    "contents",
)


class Server:
    """The process that forks; see ``fork_server.py``."""

    def __init__(self, framework: str) -> None:
        paths = os.pathsep.join(filter(None, (TESTS, *sys.path)))  # pytest may have found leyden by its own settings
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "reliability.fork_server", framework]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def start(self, settings: program.Settings) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(settings)) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts the runs has ended; stderr tells why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()  # closes its input, which ends it


class Killer:
    """Carries out trials, several at once.

    Args:
        folder: for what they write.
        framework: "leyden" or "pytorch_lightning".
        servers: how many at once.
    """

    def __init__(self, folder: Path, *, framework: str = "leyden", servers: int = 2) -> None:
        self.folder = folder
        self.framework = framework
        self._servers = threading.local()
        self._all: list[Server] = []
        self._executor = ThreadPoolExecutor(servers, initializer=self._open_server)
        self._references: dict[str, Future[Path]] = {}

    def _open_server(self) -> None:
        self._servers.mine = Server(self.framework)
        self._all.append(self._servers.mine)

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._executor.shutdown()
        for server in self._all:
            server.close()

    def run(self, trials: Sequence[Trial], *, signals: Sequence[str] = ()) -> Iterator[Finding]:
        """Carry out trials; findings come in the order of the trials.

        Args:
            trials: what is tried.
            signals: what processes get, at random; SIGKILL if there are none.
        """
        for trial in trials:
            self.whole(trial)
        yield from self._executor.map(functools.partial(self._try, signals), trials)

    def whole(self, trial: Trial) -> Future[Path]:
        """The folder of the run that nobody kills."""
        regular = {name: self._more(trial).get(name, False) for name in ("asynchronous", "only_one")}
        name = "-".join(["whole", trial.mode, str(trial.workers), *(key for key, value in regular.items() if value)])
        if name not in self._references:
            settings = self._settings(self.folder / name, trial, measures=True, **regular)
            self._references[name] = self._executor.submit(self._run_whole, settings)
        return self._references[name]

    def _more(self, trial: Trial) -> dict[str, Any]:
        """Settings that a trial draws: additional saves, or fewer, or regular ones in the background."""
        number = random.Random(trial.seed).choice((1, 2, 3, 4))
        if trial.kind == "window":
            return {"saves": number}
        if trial.kind == "validation":
            return {"saves_in_validation": number % 2 == 1}
        return {"asynchronous": number % 2 == 1, "only_one": number == 2} if self.framework == "leyden" else {}

    def _settings(self, folder: Path, trial: Trial, **more: Any) -> program.Settings:
        given = {"mode": trial.mode, "workers": trial.workers, "framework": self.framework}
        return program.Settings(folder=str(folder), **given, **more)

    def _run_whole(self, settings: program.Settings) -> Path:
        folder = Path(settings.folder)
        folder.mkdir(parents=True)
        answer = self._servers.mine.start(settings)
        if answer["end"] != "finished":
            raise RuntimeError(f"the run that nobody kills {answer}:\n{_tail(folder)}")
        return folder

    def _try(self, signals: Sequence[str], trial: Trial) -> Finding:
        more, whole = self._more(trial), self.whole(trial).result()
        folder, finding = self.folder / str(trial).replace(":", "-"), Finding(trial=trial)
        folder.mkdir(parents=True)
        for moment in [*moments(trial, torch.load(whole / "final.pt")["moments"], signals), None]:
            settings = self._settings(folder, trial, moment=moment, **more)
            number, has_file, files = len(_starts(folder)), any(folder.glob("**/*.ckpt")), _row_files(folder)
            answer = self._servers.mine.start(settings)
            end = answer["end"]
            if moment is not None and end == "killed":
                finding.kills += 1
                finding.told += "" if answer["code"] == moment.code else f"{moment.signal} ended it with {answer}\n"
            begun = _starts(folder)[number:]
            if begun and begun[0].endswith("-"):
                finding.ignored = files
                finding.told += f"start {number + 1} found no checkpoint\n" if has_file else ""
            if end != "killed":
                finding.resumed = end == "finished" and not finding.told
                finding.told += "" if end == "finished" else f"{end}: {_tail(folder)}"
                break
        finding.starts = _starts(folder)
        if end == "finished":
            compare(whole, folder, finding, all_saved=bool(signals))
        if finding.is_exact:
            shutil.rmtree(folder)
        return finding


def moments(
    trial: Trial, measured: dict[str, tuple[int, int]], signals: Sequence[str] = ()
) -> Iterator[program.Moment]:
    """Random moments of a kind that a run surely reaches, given how many there are and how many calls they have."""
    draw, (number, calls) = random.Random(str(trial)), measured[trial.kind]
    for _ in range(trial.kills):
        files = trial.kind == "save" and draw.random() < 0.5
        nth = draw.randint(1, max(1, number // trial.kills))
        moment = program.Moment(kind=trial.kind, nth=nth, calls=draw.randrange(60 if files else calls), files=files)
        moment.signal = draw.choice(signals) if signals else moment.signal
        yield moment


# -- what was lost -------------------------------------------------------------------------------------------------


def compare(whole: Path, folder: Path, finding: Finding, *, all_saved: bool = False) -> None:
    """Compare a run with the one that nobody killed; ``all_saved`` if each start should have saved all that it did."""
    expected, state = (torch.load(path / "final.pt", weights_only=False) for path in (whole, folder))
    expected.pop("moments", None)
    finding.differs = differences(expected, state)
    _compare_samples(history(whole), history(folder), finding)
    _compare_rows(rows(_row_files(whole)), rows(set(_row_files(folder)) - set(finding.ignored)), finding)
    files, found = _files(whole), _files(folder, ignored={path.parent for path in finding.ignored})
    finding.files = sorted(files.keys() ^ found.keys())
    for name in sorted(files.keys() & found.keys()):
        if not name.endswith(".ckpt") or (name.endswith("/last.ckpt") and _has_nothing_left(folder)):
            continue
        finding.contents += differences(*(_content(path) for path in (files[name], found[name])), name)
    finding.damaged = (folder / "output").read_text().count("[checkpoint-fallback]")
    finding.again = _trained_again(folder, all_saved)


def history(folder: Path) -> list[list[int]]:
    """What the surviving weights were trained on: number, epoch, batch and samples of each batch.

    What was trained after the checkpoint that a later start has gone on from did not survive. The number of a batch is
    kept with the weights, so no bookkeeping of the trainer's is believed.
    """
    survived: list[list[int]] = []
    for word, *rest in _journal(folder):
        if word == "started":
            survived = [entry for entry in survived if entry[0] < int(rest[0])]
        elif word == "trained":
            survived.append([int(value) for value in rest])
    return survived


def _journal(folder: Path) -> list[list[str]]:
    path = folder / "journal"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _trained_again(folder: Path, all_saved: bool) -> int:
    """Batches that starts have trained anew though a checkpoint was there, or should have been, that knew them."""
    again = saved = 0
    for word, *rest in _journal(folder):
        if word == "saved":
            saved = max(saved, int(rest[0]))
        elif word == "trained" and all_saved:
            saved = max(saved, int(rest[0]) + 1)
        elif word == "started":
            again += max(saved - int(rest[0]), 0)
    return again


def _has_nothing_left(folder: Path) -> bool:
    """Whether the last start had no batch left to train, so that it has saved nothing but "last", at its end."""
    words = [words[0] for words in _journal(folder)]
    return "trained" not in words[len(words) - words[::-1].index("started") :]


def _starts(folder: Path) -> list[str]:
    return [" ".join(words[1:]) for words in _journal(folder) if words[0] == "started"]


def _compare_samples(expected: list[list[int]], found: list[list[int]], finding: Finding) -> None:
    finding.reordered = expected != found
    once, times = (Counter((epoch, i) for _, epoch, _, *samples in run for i in samples) for run in (expected, found))
    finding.never, finding.twice = sum((once - times).values()), sum((times - once).values())


def _row_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("logs/**/metrics.csv"))


def rows(files: Iterable[Path]) -> list[dict[str, str]]:
    """The rows of all versions; Lightning opens a new one at each start."""
    texts = [file.read_text().splitlines() for file in sorted(files)]
    return [{name: value for name, value in row.items() if value} for lines in texts for row in csv.DictReader(lines)]


def _compare_rows(expected: list[dict[str, str]], found: list[dict[str, str]], finding: Finding) -> None:
    def places(rows: Iterable[dict[str, str]]) -> Counter[Any]:
        return Counter((row["step"], row.get("epoch"), tuple(sorted(row))) for row in rows)

    def exactly(rows: Iterable[dict[str, str]]) -> Counter[Any]:
        return Counter(tuple(sorted(row.items())) for row in rows)

    finding.lost = sum((places(expected) - places(found)).values())
    finding.doubled = sum((places(found) - places(expected)).values())
    finding.changed = sum((exactly(found) - exactly(expected)).values()) - finding.doubled
    finding.changed += int(not (finding.lost or finding.doubled or finding.changed) and expected != found)  # the order


def _files(folder: Path, ignored: Collection[Path] = ()) -> dict[str, Path]:
    """All that a run has left, by name, but what a logger has left of starts that were killed before they saved."""
    own = {"journal", "output", "final.pt", "last-anywhere.ckpt", "interrupted.ckpt"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in own]
    files = [path for path in files if path.parent not in ignored]
    return {re.sub(r"version_\d+", "version", str(path.relative_to(folder))): path for path in files}


def _content(path: Path) -> Any:
    """What is in a checkpoint, but seconds, folders, and the version, which starts before the first save use up."""
    try:
        content = program.without_folders(torch.load(path, weights_only=True))
    except Exception as error:  # a damaged file may raise anything
        return f"cannot be read: {error}"
    if "leyden" in content:
        del content["leyden"]["clocks"]["seconds_before"]
        for logger in content["leyden"]["loggers"]:
            del logger["version"]
    return content


def _tail(folder: Path) -> str:
    return "\n".join((folder / "output").read_text().splitlines()[-12:])


# -- the command ---------------------------------------------------------------------------------------------------


def cycle(count: int, seed: int, modes: Sequence[str] = program.MODES, workers: Sequence[int] = WORKERS) -> list[Trial]:
    """Trials that take all combinations in turn."""
    grid = itertools.cycle(itertools.product(KILLS, program.KINDS, workers, modes))
    return [
        Trial(seed=seed + i, mode=mode, workers=number, kind=kind, kills=kills)
        for i, (kills, kind, number, mode) in enumerate(itertools.islice(grid, count))
    ]


def table(findings: Sequence[Finding]) -> str:
    """The findings by kind of moment and number of kills."""
    head = "| killed in | kills | trials | resumed | weights equal | all equal | samples twice, never "
    head += "| rows lost, doubled, changed | batches again | files left |"
    groups: dict[tuple[str, Any], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.trial.kind, finding.trial.kills), []).append(finding)
    groups["all", f"{sum(finding.kills for finding in findings)} in all"] = list(findings)
    lines = [head, "| --- | --- |" + " ---: |" * 8]
    for (kind, kills), group in groups.items():
        counts = [len(group), *(sum(getattr(f, name) for f in group) for name in _COUNTED)]
        samples, rows = (", ".join(str(sum(getattr(f, n) for f in group)) for n in names) for names in _SUMS)
        again, files = sum(f.again for f in group), sum(len(f.files) for f in group)
        lines.append("| " + " | ".join(map(str, (kind, kills, *counts, samples, rows, again, files))) + " |")
    return "\n".join(lines)


_COUNTED = ("resumed", "is_trained_alike", "is_exact")
_SUMS = (("twice", "never"), ("lost", "doubled", "changed"))


def main() -> int:
    """Run the command; returns 1 if a run differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each has the next one")
    parser.add_argument("--modes", nargs="+", default=list(program.MODES), choices=program.MODES)
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS), help="of the training loader")
    parser.add_argument("--framework", default="leyden", choices=("leyden", "pytorch_lightning"))
    parser.add_argument("--repeat", nargs="+", type=Trial.parse, help="trials as reports name them")
    parser.add_argument("--signals", action="store_true", help=f"{', '.join(SIGNALS)} in place of SIGKILL")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for what the trials write; what was exact is deleted")
    given = parser.parse_args()
    trials = given.repeat or cycle(given.trials, given.seed, given.modes, given.workers)
    folder, findings = given.keep or Path(tempfile.mkdtemp(prefix="kills-")), []
    signals = SIGNALS if given.signals else ()
    with Killer(folder, framework=given.framework, servers=given.at_once) as killer:
        for finding in killer.run(trials, signals=signals):
            findings.append(finding)
            if not finding.is_exact:
                print(finding, flush=True)
    print(f"\n{table(findings)}")
    if given.keep is None:
        shutil.rmtree(folder)
    return int(not all(finding.is_exact for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
