"""Which process this is among those of a run, and doing things in the first one only.

The rank is read from the environment once, at import, and may be set by a strategy that knows better:
``rank_zero_only.rank = 3``.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from leyden import errors

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("leyden")


class _Terminal(logging.StreamHandler[Any]):
    """Shows what a run has to say where the program has set up no logging; on the stderr of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            self.stream = sys.stderr
            super().emit(record)


if not log.handlers:
    log.addHandler(_Terminal())
    log.setLevel(logging.INFO)

# SLURM_PROCID counts over all machines, LOCAL_RANK within one: only the former names a single process.
RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def rank_from_environment() -> int:
    """Global rank of this process as its launcher announced it; 0 if nothing is announced."""
    return _first_integer(RANK_VARIABLES, default=0)


def world_size_from_environment() -> int:
    """Number of processes that the launcher (torchrun, srun) announced; 1 if nothing is announced."""
    return _first_integer(WORLD_SIZE_VARIABLES, default=1)


def _first_integer(names: tuple[str, ...], *, default: int) -> int:
    for name in names:
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        try:
            return int(text)
        except ValueError:
            message = f"expected the environment variable {name} to be an integer, got {text!r}: unset it"
            raise errors.InvalidValueError(message, code="rank-variable") from None
    return default


class RankZeroOnly:
    """Decorator: the function runs in the process of rank 0; in all others the call returns None at once.

    >>> @rank_zero_only
    ... def announce():
    ...     return "said"
    >>> rank_zero_only.rank, announce()
    (0, 'said')
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, function: Callable[P, T]) -> Callable[P, T | None]:
        """``function``, silent in every rank but 0; the rank is looked up at each call."""

        @functools.wraps(function)
        def in_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return function(*args, **kwargs) if self.rank == 0 else None

        return in_rank_zero


rank_zero_only = RankZeroOnly(rank_from_environment())


def rank_zero_info(message: object, *args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """``logging.info`` on the logger ``leyden``, in rank 0 only."""
    if rank_zero_only.rank == 0:
        log.info(message, *args, stacklevel=stacklevel - 2, **kwargs)


def rank_zero_debug(message: object, *args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """``logging.debug`` on the logger ``leyden``, in rank 0 only."""
    if rank_zero_only.rank == 0:
        log.debug(message, *args, stacklevel=stacklevel - 2, **kwargs)


def rank_zero_warn(
    message: str,
    category: type[Warning] = errors.LeydenWarning,
    stacklevel: int = 4,
    *,
    code: str | None = None,
) -> None:
    """Warn in rank 0 only.

    Args:
        message: what was found and what to do.
        category: class of the warning.
        stacklevel: of users' own warnings the line that is shown, in Lightning's counting: 4 is this function's caller.
        code: leyden's stable identifier, printed behind the message; None for users' own warnings.
    """
    if rank_zero_only.rank != 0:
        return
    if code is None:
        warnings.warn(message, category, stacklevel=stacklevel - 2)
    else:
        errors.warn(message, code=code, category=category)
