"""Worker processes of loaders: their seeds, signals and places. Loaded for loaders that have them."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from leyden.data.loaders import parts_of
from leyden.data.tracking import track
from leyden.rank import rank_zero_only
from leyden.seed import worker_init


def prepare_workers(loader: Any, seed_workers: bool) -> None:
    """Keep signals from the workers of a ``DataLoader``, or of those combined, know where they are, seed them if asked.

    Args:
        loader: its ``worker_init_fn`` is changed in place; the user's is called too, and seeds if there is one.
            Anything but a DataLoader is left alone.
        seed_workers: whether ``seed_everything(workers=True)`` was called:
            :func:`leyden.seed.workers_are_seeded`.
    """
    for part in parts_of(loader):
        if not isinstance(part, DataLoader):
            continue
        init = part.worker_init_fn.init if isinstance(part.worker_init_fn, Sheltered) else part.worker_init_fn
        if seed_workers and init is None:
            init = functools.partial(worker_init, rank=rank_zero_only.rank)
        part.worker_init_fn = Sheltered(init) if part.num_workers else init
        track(part)


class Sheltered:
    """A ``worker_init_fn`` that keeps signals from a worker: they are for the run, which needs it until its boundary.

    A terminal's Ctrl-C and ``timeout`` signal a whole group of processes; so a worker makes a group of its own, where
    the system has them. What reaches it by other ways has no effect, but SIGTERM, by which its DataLoader ends it.

    Args:
        init: the user's ``worker_init_fn``, or None.
    """

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self.init = init

    def __call__(self, worker_id: int) -> None:
        """Called in the worker, after torch has installed its handlers."""
        if hasattr(os, "setpgid"):
            os.setpgid(0, 0)
        for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):  # a function, since programs that a worker starts would inherit SIG_IGN
                signal.signal(getattr(signal, name), _ignore)
        if self.init is not None:
            self.init(worker_id)


def _ignore(number: int, frame: Any) -> None:
    pass
