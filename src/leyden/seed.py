"""Seeds and states of the random generators of Python, NumPy and torch."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from leyden import errors
from leyden.rank import rank_zero_info, rank_zero_only

# The names that Lightning uses: launchers hand them on, and users' own workers read them.
SEED_VARIABLE = "PL_GLOBAL_SEED"
WORKERS_VARIABLE = "PL_SEED_WORKERS"

MAX_SEED = 2**32 - 1  # NumPy's global generator takes no more


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed the global generators of Python, NumPy (if installed) and torch, on all devices.

    Args:
        seed: from 0 to 2**32 - 1. None takes the environment variable PL_GLOBAL_SEED, or else draws a random
            one.
        workers: whether ``DataLoader`` workers get seeds of their own, different in each worker and rank,
            unless the loader has a ``worker_init_fn``. Without it workers that use ``random`` or NumPy may
            repeat each other's numbers.
        verbose: whether to log the seed.

    Returns:
        The seed, which is also put into PL_GLOBAL_SEED so that processes started from here use the same.

    Raises:
        InvalidValueError: not an integer, or out of bounds (code ``seed``).

    >>> seed_everything(7, verbose=False), random.random() == random.Random(7).random()
    (7, True)
    """
    given: Any = seed
    if given is None:
        given = os.environ.get(SEED_VARIABLE, int.from_bytes(os.urandom(4), "big"))
    seed = _checked(given)
    if verbose:
        rank_zero_info("seed set to %d", seed)
    os.environ[SEED_VARIABLE] = str(seed)
    os.environ[WORKERS_VARIABLE] = str(int(workers))
    random.seed(seed)
    torch.manual_seed(seed)  # CUDA included; where CUDA has not started yet, the seed waits for it
    numpy = _numpy()
    if numpy is not None:
        numpy.random.seed(seed)
    return seed


def workers_are_seeded() -> bool:
    """Whether ``seed_everything(workers=True)`` was called, in this process or in the one that started it."""
    return os.environ.get(WORKERS_VARIABLE, "0") == "1"


def worker_init(worker_id: int, rank: int | None = None) -> None:
    """Seed one ``DataLoader`` worker; a ``worker_init_fn``.

    The seeds are hashes of torch's base seed (new in every epoch), the worker and the rank, so that no two
    workers of a run share a stream of random numbers, nor do torch, Python and NumPy within one worker.

    Args:
        worker_id: position of the worker in its loader.
        rank: global rank of the process that owns the loader; None asks the environment.
    """
    base_seed = torch.initial_seed() - worker_id  # torch gives worker i the seed base + i
    rank = rank_zero_only.rank if rank is None else rank
    random.seed(_derive("python", base_seed, worker_id, rank))
    torch.manual_seed(_derive("torch", base_seed, worker_id, rank) % 2**64)
    numpy = _numpy()
    if numpy is not None:
        bits = _derive("numpy", base_seed, worker_id, rank)
        numpy.random.seed([(bits >> shift) % 2**32 for shift in (0, 32, 64, 96)])


def rng_state() -> dict[str, Any]:
    """States of the global generators of Python, torch, CUDA (a list, by device) and NumPy.

    CUDA is left out where it has not started (asking would start it), NumPy where nobody has imported
    ``numpy.random``.
    """
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if _cuda_started():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy.random" in sys.modules:
        state["numpy"] = sys.modules["numpy.random"].get_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators to what :func:`rng_state` returned; those without an entry stay."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        sys.modules["numpy.random"].set_state(state["numpy"])


@contextmanager
def isolate_rng() -> Iterator[None]:
    """What is drawn inside leaves no trace outside: the generators continue as if the block had not been.

    >>> before = torch.get_rng_state()
    >>> with isolate_rng():
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
        if "cuda" not in state and _cuda_started():
            # CUDA started inside the block. Outside it would have started from torch's seed.
            torch.cuda.manual_seed_all(torch.initial_seed())


def _checked(seed: Any) -> int:
    try:
        value = int(seed)
    except (TypeError, ValueError):
        value = -1
    if 0 <= value <= MAX_SEED:
        return value
    message = f"expected a seed from 0 to {MAX_SEED}, got {seed!r}"
    raise errors.InvalidValueError(f"{message}: correct the argument, or {SEED_VARIABLE}", code="seed")


def _derive(purpose: str, base_seed: int, worker_id: int, rank: int) -> int:
    """128 well mixed bits; seeds that differ in one place have nothing in common."""
    text = f"{purpose}/{base_seed}/{worker_id}/{rank}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def _cuda_started() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _numpy() -> Any:
    """NumPy, if it is installed: a script that imports it later expects it to be seeded."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy
