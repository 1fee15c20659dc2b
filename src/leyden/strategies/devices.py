"""From ``Trainer(accelerator=, devices=, strategy=)`` to a device and a strategy, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from leyden import errors
from leyden.rank import rank_zero_warn, world_size_from_environment
from leyden.strategies.base import Strategy
from leyden.strategies.single import SingleDeviceStrategy

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")

# What the names of strategies for several processes begin with, here and in code written for Lightning.
DISTRIBUTED = (
    "ddp",
    "dp",
    "fsdp",
    "deepspeed",
    "model",
    "horovod",
    "bagua",
    "colossal",
    "hpu",
    "tpu",
    "xla",
    "ray",
)


def resolve_device(
    accelerator: str | None = "auto", devices: int | str | Sequence[int] | None = "auto"
) -> tuple[str, list[torch.device]]:
    """The accelerator's name and the devices that the Trainer's arguments ask for.

    Args:
        accelerator: ``"auto"`` (None) takes CUDA, else MPS, else the CPU; ``"gpu"`` takes CUDA, else MPS.
        devices: ``"auto"`` (None) takes one device. An int is a number of devices, -1 (or ``"-1"``) all; a
            list or a string with a comma holds indices, so ``[1]`` and ``"1,"`` are the second GPU and
            ``"1"`` is one GPU. On the CPU it is a number of processes.

    Returns:
        ``("cpu" | "cuda" | "mps", [device])``; GPUs with their index.

    Raises:
        InvalidValueError: a value that does not exist (codes ``accelerator``, ``devices``).
        MisconfigurationException: an accelerator that is not there (``accelerator``), or more than one device
            (``distribution-not-yet``).

    >>> resolve_device("cpu", 1)
    ('cpu', [device(type='cpu')])
    """
    name = _resolve_accelerator(accelerator)
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": 1}[name]
    wanted = _parse_devices(devices, name=name, count=count)
    if wanted is None:
        wanted = [0]
        if count > 1:
            rank_zero_warn(
                f"devices='auto' uses 1 of {count} CUDA devices: this version runs on one device. Pass "
                "devices=1, or a list as devices=[1], to choose it and silence this",
                code="distribution-not-yet",
                stacklevel=3,
            )
    if len(wanted) > 1:
        _refuse(
            f"devices={devices!r} asks for {len(wanted)} {'processes' if name == 'cpu' else 'devices'}",
            "pass devices=1",
        )
    return name, [torch.device("cpu") if name == "cpu" else torch.device(name, index) for index in wanted]


def build_strategy(
    strategy: str | Strategy | None = "auto",
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    *,
    num_nodes: int = 1,
) -> Strategy:
    """The strategy that the Trainer's ``strategy`` argument names.

    Args:
        strategy: ``"auto"`` (None), ``"single_device"``, or a Strategy, which is returned as it is.
        devices: what :func:`resolve_device` found.
        num_nodes: number of machines.

    Raises:
        MisconfigurationException: anything that needs several processes (code ``distribution-not-yet``); with
            ``"auto"`` also a launcher that has started several, as each would train a model of its own.
        InvalidValueError: an unknown name (``strategy``).
    """
    if isinstance(strategy, Strategy):
        return strategy
    if num_nodes != 1:
        _refuse(f"num_nodes={num_nodes} asks for several machines", "pass num_nodes=1")
    if strategy is None or strategy == "auto":
        started = world_size_from_environment()
        if started > 1:
            _refuse(
                f"a launcher has started {started} processes (WORLD_SIZE or SLURM_STEP_NUM_TASKS)",
                "start one; or pass strategy='single_device' if each process shall train a model of its own",
            )
        return SingleDeviceStrategy(devices[0])
    if strategy == "single_device":
        return SingleDeviceStrategy(devices[0])
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name.lower().startswith(DISTRIBUTED):
        _refuse(f"strategy={name!r} distributes training", "pass strategy='auto'")
    message = f"expected strategy to be 'auto', 'single_device' or a Strategy, got {strategy!r}"
    raise errors.InvalidValueError(f"{message}: pass strategy='auto'", code="strategy")


def _resolve_accelerator(accelerator: Any) -> str:
    available = _available()
    if accelerator is None:
        accelerator = "auto"
    name = accelerator.lower() if isinstance(accelerator, str) else accelerator
    if name == "auto":
        return available[0]
    if name == "gpu":
        name = next((gpu for gpu in available if gpu != "cpu"), "gpu")
    if name in available:
        return str(name)
    exists = ", ".join(repr(other) for other in available)
    if name in ACCELERATORS:
        found = f"torch {torch.__version__} finds only {exists}"
        message = f"accelerator={accelerator!r} is not available here, where {found}: pass one of these, or 'auto'"
        raise errors.MisconfigurationException(message, code="accelerator")
    expected = ", ".join(repr(other) for other in ACCELERATORS)
    message = f"expected accelerator to be one of {expected}, got {accelerator!r}: available here is {exists}"
    raise errors.InvalidValueError(
        message + "; which of several GPUs to use is said by devices=[index]", code="accelerator"
    )


def _available() -> list[str]:
    """The accelerators of this machine, the preferred first. Counting devices does not start CUDA."""
    gpus = [("cuda", torch.cuda.device_count() > 0), ("mps", torch.backends.mps.is_available())]
    return [name for name, there in gpus if there] + ["cpu"]


def _parse_devices(devices: Any, *, name: str, count: int) -> list[int] | None:
    """Indices of devices (for the CPU: of processes), None if the choice is left to leyden."""
    if devices is None or devices == "auto":
        return None
    parsed = _parse_text(devices) if isinstance(devices, str) else devices
    if isinstance(parsed, (list, tuple)):
        indices = list(parsed)
        integers = all(type(index) is int for index in indices)
        distinct = len(set(indices)) == len(indices)
        if indices and integers and distinct and name != "cpu" and set(indices) <= set(range(count)):
            return indices
    elif type(parsed) is int:
        number = count if parsed == -1 and name != "cpu" else parsed
        if number >= 1 and (name == "cpu" or number <= count):
            return list(range(number))
    raise _bad_devices(devices, name, count)


def _parse_text(devices: str) -> Any:
    try:
        if "," in devices:
            return [int(part) for part in devices.split(",") if part.strip()]
        return int(devices)
    except ValueError:
        return devices


def _bad_devices(devices: Any, name: str, count: int) -> errors.InvalidValueError:
    if name == "cpu":
        expected, there = "'auto' or a number of processes >= 1", "indices and -1 make no sense on the CPU"
    else:
        expected = "'auto', a number of devices, -1 for all, or a list of different indices"
        there = "there is one here, with index 0" if count == 1 else f"here are {count}, 0 to {count - 1}"
    message = f"expected devices to be {expected}, got {devices!r} for accelerator {name!r}: {there}"
    return errors.InvalidValueError(message, code="devices")


def _refuse(what: str, remedy: str) -> None:
    message = f"{what}, and leyden runs on one device in this version: {remedy}"
    raise errors.MisconfigurationException(message, code="distribution-not-yet")
