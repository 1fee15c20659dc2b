"""File systems that fail, and processes that are killed: at any event of a save, or at any byte of a file.

python tests/faults.py --offsets 100                   # every event and 100 places in a file; a minute or two
"""

from __future__ import annotations

import argparse
import builtins
import errno
import functools
import itertools
import logging
import os
import resource
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import modes
from leyden import Callback, LightningModule
from leyden.callbacks import ModelCheckpoint
from leyden.checkpoint import read_checkpoint
from leyden.checkpoint.files import fault_of
from leyden.errors import LeydenError
from sameness import differences

EPOCHS, BATCHES, KILLED = 3, modes.DATA[:2], 77
#: Functions that meet a file system, and whose first argument says where.
EVENTS: dict[Any, tuple[str, ...]] = {
    os: ("open", "fsync", "replace", "unlink", "remove", "mkdir", "symlink", "scandir"),
    builtins: ("open",),
}


#: What the system says: at one event, from one on, and from one on to whatever would change the disk. Or a kill.
ONCE, FULL, READ_ONLY, KILL = "once", "full", "read-only", "kill"
FAULTS = (ONCE, FULL, READ_ONLY, KILL)
#: Arguments of the callback.
GIVEN: tuple[dict[str, Any], ...] = (
    {},
    {"save_top_k": 0, "save_last": True, "every_n_train_steps": 2},
    {"save_last": "link"},
    {"save_top_k": 2, "monitor": "epoch", "mode": "max", "save_last": True},
    {"asynchronous": True, "save_last": True},
)


class Disk:
    """Counts the events in a folder, and lets one of them fail, or all from one on.

    Args:
        folder: where.
        at: number of the event that fails, from 1 on; 0 for none.
        fault: what happens then.
    """

    def __init__(self, folder: Path, at: int = 0, fault: str = ONCE) -> None:
        self.folder, self.at, self.fault = os.path.realpath(folder), at, fault
        self.events: list[str] = []
        self.had_good = False
        self._here = threading.local()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Let events fail meanwhile."""
        originals = [(module, name, getattr(module, name)) for module, names in EVENTS.items() for name in names]
        originals.append((torch, "save", torch.save))
        try:
            for module, name, original in originals:
                setattr(module, name, self._watched(name, original, place=1 if module is torch else 0))
            yield
        finally:
            for module, name, original in originals:
                setattr(module, name, original)

    def _watched(self, name: str, original: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(args) > place and not vars(self._here) and self._is_here(args[place]):
                self._happen(name, *args[1:])
            return original(*args, **kwargs)

        return call

    def _is_here(self, where: Any) -> bool:
        if isinstance(where, int):
            where = os.readlink(f"/proc/self/fd/{where}")
        path = os.fspath(where) if isinstance(where, str | os.PathLike) else where.name
        return os.path.realpath(os.path.dirname(path)).startswith(self.folder) or path == self.folder

    def _happen(self, name: str, *how: Any) -> None:
        self.events.append(name)
        self.check()
        count = len(self.events)
        if not self.at or count < self.at or (count > self.at and self.fault == ONCE):
            return
        if self.fault == KILL:
            os._exit(KILLED)
        if self.fault == READ_ONLY and not changes(name, *how):
            return
        code = errno.EROFS if self.fault == READ_ONLY else errno.ENOSPC
        raise OSError(code, os.strerror(code))

    def check(self) -> None:
        """Once there was a good file, there is one at every moment."""
        self._here.is_looking = True  # what it does itself does not count
        has_good = bool(good_files(Path(self.folder)))
        del self._here.is_looking
        assert has_good or not self.had_good, f"no good file is left at event {len(self.events)} ({self.events[-1]})"
        self.had_good |= has_good


def changes(name: str, how: Any = "r", *_: Any) -> bool:
    """Whether an event would change a disk."""
    if name == "open":
        return bool(how & (os.O_WRONLY | os.O_RDWR) if isinstance(how, int) else set(how) & set("wax+"))
    return name not in ("scandir", "fsync")


def good_files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.ckpt") if fault_of(str(path)) is None]


def fit(folder: Path, *callbacks: Callback, epochs: int = EPOCHS, ckpt_path: Any = None, **given: Any) -> Any:
    """Train; returns the module, or None if the fit failed because of its files."""
    checkpoint = ModelCheckpoint(folder, filename="{epoch}", **given)
    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = modes.leyden.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks, checkpoint], **silent)
    module = modes.build("one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be written is told; that it is, is tested elsewhere
        try:
            trainer.fit(module, BATCHES, ckpt_path=ckpt_path)
        except LeydenError:
            return None
    return module


def goes_on(folder: Path, expected: LightningModule, **given: Any) -> list[str]:
    """What is wrong about a run that goes on from the last file, on a disk that works again."""
    module = fit(folder, ckpt_path="last", **given)
    if module is None:
        return ["it cannot go on"]
    stray = [path.name for path in folder.iterdir() if path.name.startswith(".leyden")]
    return [*differences(dict(expected.state_dict()), dict(module.state_dict())), *stray]


class SmallFiles(Callback):
    """From the second epoch on no file of this process may be larger than a limit."""

    def __init__(self, size: int) -> None:
        self.size = size

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.wait_for_checkpoint()
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


def at_offsets(count: int, folder: Path, **given: Any) -> list[str]:
    """What is wrong after saves that break off at a byte, for bytes all over the file."""
    expected, wrong = fit(folder / "whole", **given), []
    size = max(path.stat().st_size for path in (folder / "whole").iterdir())
    for index in range(count):
        place, limit = folder / str(index), size * index // count
        try:
            broken = fit(place, SmallFiles(limit), **given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        left = good_files(place)
        steps = [read_checkpoint(place / name)["global_step"] for name in left]
        is_later = max(steps, default=0) > len(BATCHES)  # the file at the end is smaller, and may have been written
        if not left or (broken is None) is is_later:
            wrong.append(f"byte {limit}: the fit {'failed' if broken is None else 'was told nothing'}, left: {left}")
        wrong += [f"byte {limit}: {what}" for what in goes_on(place, expected, **given)]
    return wrong


def at_events(fault: str, folder: Path, *, every: int = 1, **given: Any) -> Iterator[str]:
    """What is wrong after fits whose disk fails at an event, for every which event."""
    expected = fit(folder / "whole", **given)
    calm = Disk(folder / "calm")
    with calm.failing():
        fit(folder / "calm", epochs=2, **given)
    assert {"open", "save", "fsync", "replace", "unlink", "scandir"} <= set(calm.events)
    for at in range(1, len(calm.events) + 1, every):
        place = folder / str(at)
        disk = Disk(place, at, fault)
        if fault == KILL:
            was_killed(disk, **given)
        else:
            with disk.failing():
                fit(place, epochs=2, **given)
        disk.check()
        yield from (f"event {at} ({calm.events[at - 1]}): {what}" for what in goes_on(place, expected, **given))


def was_killed(disk: Disk, **given: Any) -> None:
    """Fit in another process, which ends at the event without a word."""
    child = os.fork()
    if child == 0:
        with disk.failing():
            fit(Path(disk.folder), epochs=2, **given)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == KILLED, f"the process was not killed; it ended with {code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--offsets", type=int, default=100, help="places in a file")
    parser.add_argument("--every", type=int, default=1, help="every which event")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="what events end with")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    trials: list[tuple[str, Callable[..., Iterable[str]]]] = [
        (fault, functools.partial(at_events, fault, every=arguments.every)) for fault in arguments.faults
    ]
    trials.append((f"{arguments.offsets} places in a file", functools.partial(at_offsets, arguments.offsets)))
    failed = False
    for name, given in itertools.product(dict(trials), GIVEN):
        with tempfile.TemporaryDirectory() as folder:
            wrong = list(dict(trials)[name](folder=Path(folder), **given))
        print(f"{name:24} {given or 'default'!s:75} {'as it should be' if not wrong else 'WRONG'}", flush=True)
        print(*wrong, sep="\n", end="\n" if wrong else "")
        failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
