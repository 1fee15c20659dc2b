"""Helpers of ``pytorch_lightning.utilities`` that client code calls."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp
from torch.utils.data import IterableDataset

from leyden.checkpoint import places
from leyden.data.loaders import length_of
from leyden.errors import InvalidTypeError, MissingKeyError
from leyden.rank import rank_zero_warn
from leyden.seed import seed_everything, workers_are_seeded
from leyden.tree import first_batch_size, map_children, move_to_device

__all__ = [
    "AMPType",
    "Interval",
    "LightningDeprecationWarning",
    "LightningEnum",
    "PossibleUserWarning",
    "ReduceOp",
    "WarningCache",
    "SIGTERMException",
    "apply_to_collection",
    "disable_possible_user_warnings",
    "distributed_available",
    "extract_batch_size",
    "garbage_collection_cuda",
    "get_filesystem",
    "has_iterable_dataset",
    "has_len",
    "is_oom_error",
    "move_data_to_device",
    "rank_prefixed_message",
    "rank_zero_deprecation",
    "reset_seed",
    "suggested_max_num_workers",
    "sync_ddp",
    "sync_ddp_if_available",
]


class LightningEnum(str, Enum):
    """A text; compared with texts without regard to case."""

    @classmethod
    def from_str(cls, value: str) -> Any:
        """The member of this value or name, or None."""
        return next((one for one in cls if value.lower() in (one.value.lower(), one.name.lower())), None)

    def __eq__(self, other: object) -> bool:
        other = other.value if isinstance(other, Enum) else other
        return isinstance(other, str) and self.value.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.value.lower())


class AMPType(LightningEnum):
    """Who made mixed precision, in 1.x."""

    APEX = "apex"
    NATIVE = "native"


class Interval(LightningEnum):
    """How often a Timer looks at the clock."""

    step = "step"
    epoch = "epoch"


class PossibleUserWarning(UserWarning):
    """A warning that may be none."""


class LightningDeprecationWarning(DeprecationWarning):
    """A warning that something will go."""


class SIGTERMException(SystemExit):
    """Lightning raises it when SIGTERM comes; leyden saves, and exits with 128 + 15, which is a SystemExit as well."""


class WarningCache(set[str]):
    """Warns of each text once."""

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Warn, if it is new."""
        if message not in self:
            self.add(message)
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Warn, as a deprecation."""
        self.warn(message, stacklevel + 1, category=LightningDeprecationWarning, **kwargs)


def rank_zero_deprecation(message: Any, stacklevel: int = 5, **kwargs: Any) -> None:
    """Warn of a deprecation in the process of rank 0."""
    rank_zero_warn(str(message), stacklevel=stacklevel, category=LightningDeprecationWarning, **kwargs)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """A message that begins with its rank, where there are several."""
    return message if rank is None else f"[rank: {rank}] {message}"


def disable_possible_user_warnings(module: str = "") -> None:
    """Silence the warnings that may be none."""
    import warnings

    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)


# -- collections ---------------------------------------------------------------------------------------------------


def apply_to_collection(
    data: Any,
    dtype: Any,
    function: Callable[..., Any],
    *args: Any,
    wrong_dtype: Any = None,
    include_none: bool = True,
    **kwargs: Any,
) -> Any:
    """Apply a function to everything of a type in a nest of containers.

    >>> apply_to_collection({"a": 1, "b": [2, "x"]}, int, lambda value: value + 1)
    {'a': 2, 'b': [3, 'x']}
    """
    if isinstance(data, dtype) and (wrong_dtype is None or not isinstance(data, wrong_dtype)):
        return function(data, *args, **kwargs)
    if include_none or not isinstance(data, Mapping):
        return map_children(
            lambda child: apply_to_collection(
                child, dtype, function, *args, wrong_dtype=wrong_dtype, include_none=include_none, **kwargs
            ),
            data,
        )
    applied = {
        key: apply_to_collection(value, dtype, function, *args, wrong_dtype=wrong_dtype, include_none=False, **kwargs)
        for key, value in data.items()
    }
    return type(data)({key: value for key, value in applied.items() if value is not None})  # type: ignore[call-arg]


def move_data_to_device(batch: Any, device: Any) -> Any:
    """A batch with every tensor on a device."""
    return move_to_device(batch, torch.device(device))


# -- data ----------------------------------------------------------------------------------------------------------


def extract_batch_size(batch: Any) -> int:
    """The size of a batch: the first dimension of the first tensor in it.

    Raises:
        MissingKeyError: there is none (``batch-size``).
    """
    size = first_batch_size(batch)
    if size is None:
        raise MissingKeyError("the batch has no tensor to tell its size by; pass batch_size=...", code="batch-size")
    return size


def has_len(dataloader: Any) -> bool:
    """Whether a loader knows its length."""
    return length_of(dataloader) is not None


def has_iterable_dataset(dataloader: Any) -> bool:
    """Whether a loader reads from a stream."""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def suggested_max_num_workers(local_world_size: int) -> int:
    """Workers for each process of this machine."""
    if local_world_size < 1:
        raise InvalidTypeError(f"local_world_size={local_world_size}: expected at least 1", code="workers")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // local_world_size - 1)


# -- processes, memory, files --------------------------------------------------------------------------------------


def distributed_available() -> bool:
    """Whether torch's default process group is there."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sync_ddp_if_available(result: Tensor, group: Any = None, reduce_op: Any = None) -> Tensor:
    """Reduce a tensor over all processes, if there are several."""
    return sync_ddp(result, group, reduce_op) if distributed_available() else result


def sync_ddp(result: Tensor, group: Any = None, reduce_op: Any = None) -> Tensor:
    """Reduce a tensor over all processes: a sum, or with "avg" or "mean" the mean."""
    is_mean = isinstance(reduce_op, str) and reduce_op.lower() in ("avg", "mean")
    operation = reduce_op if reduce_op is not None and not isinstance(reduce_op, str) else ReduceOp.SUM
    reduced = result.clone()
    torch.distributed.all_reduce(reduced, op=operation, group=group)
    return reduced / torch.distributed.get_world_size(group) if is_mean else reduced


def reset_seed() -> None:
    """Seed all generators as the last ``seed_everything`` has."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    if seed is not None:
        seed_everything(int(seed), workers=workers_are_seeded())


def garbage_collection_cuda() -> None:
    """Collect garbage, and give unused GPU memory back."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def is_oom_error(exception: BaseException) -> bool:
    """Whether memory has run out, of a GPU or of the machine."""
    signs = ("out of memory", "CUDNN_STATUS_NOT_SUPPORTED", "DefaultCPUAllocator: can't allocate memory")
    return isinstance(exception, RuntimeError) and any(sign in str(exception) for sign in signs)


def get_filesystem(path: Any, **_: Any) -> Any:
    """The file system of a path, as fsspec has it.

    Raises:
        MissingExtraError: fsspec is not installed.
    """
    return places.system_of(path)
