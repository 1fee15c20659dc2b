"""From ``Trainer(accelerator=, devices=, strategy=, plugins=)`` to a device, a strategy, plug-ins: before any run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch

from leyden import errors
from leyden.precision import Precision
from leyden.rank import rank_zero_info, rank_zero_warn, world_size_from_environment
from leyden.strategies.base import Strategy
from leyden.strategies.single import SingleDeviceStrategy
from leyden.strategies.uncalled import refuse_uncalled

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
#: Strategies that 1.x took for accelerators, on whatever devices there are: one replica of many is the module itself.
_STRATEGIES_OF_1X = ("ddp", "dp", "horovod")


def resolve_device(
    accelerator: Any = "auto", devices: int | str | Sequence[int] | None = "auto"
) -> tuple[str, list[torch.device]]:
    """The accelerator's name and the devices that the Trainer's arguments ask for.

    Args:
        accelerator: ``"auto"`` (None) takes CUDA, else MPS, else the CPU; ``"gpu"`` takes CUDA, else MPS. An object
            chooses the device by its ``parse_devices`` and ``get_parallel_devices``.
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
    if hasattr(accelerator, "get_parallel_devices"):
        asked = accelerator.parse_devices(1 if devices in (None, "auto") else devices)
        found = list(map(torch.device, accelerator.get_parallel_devices(asked)))
        if len(found) != 1:
            _refuse(f"{type(accelerator).__qualname__}.get_parallel_devices returns {found}", "pass devices=1")
        return found[0].type, found
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
    accelerator: Any = None,
) -> Strategy:
    """The strategy that the Trainer's ``strategy`` argument names.

    Args:
        strategy: ``"auto"`` (None), ``"single_device"``, or a Strategy, which is returned as it is.
        devices: what :func:`resolve_device` found.
        num_nodes: number of machines.
        accelerator: is told of the device, if it is an object.

    Raises:
        MisconfigurationException: anything that needs several processes (code ``distribution-not-yet``); with
            ``"auto"`` also a launcher that has started several, as each would train a model of its own; a Strategy
            with methods that are never called (``strategy-method``).
        InvalidValueError: an unknown name (``strategy``).
    """
    built = strategy if isinstance(strategy, Strategy) else _build(strategy, devices[0], num_nodes)
    refuse_uncalled(built, "strategy")
    if hasattr(accelerator, "setup_device"):
        built.accelerator = accelerator
    return built


def _build(strategy: Any, device: torch.device, num_nodes: int) -> Strategy:
    if num_nodes != 1:
        _refuse(f"num_nodes={num_nodes} asks for several machines", "pass num_nodes=1")
    if strategy is None or strategy == "auto":
        started = world_size_from_environment()
        if started > 1:
            _refuse(
                f"a launcher has started {started} processes (WORLD_SIZE or SLURM_STEP_NUM_TASKS)",
                "start one; or pass strategy='single_device' if each process shall train a model of its own",
            )
        return SingleDeviceStrategy(device)
    if strategy == "single_device":
        return SingleDeviceStrategy(device)
    name = strategy if isinstance(strategy, str) else getattr(strategy, "strategy_name", type(strategy).__name__)
    if hasattr(strategy, "strategy_name") or name.lower().startswith(DISTRIBUTED):
        rank_zero_info(f"strategy={name!r} has one device to distribute to, so nothing is distributed")
        methods = strategy.added_methods() if hasattr(strategy, "added_methods") else ()
        if methods:
            rank_zero_warn(
                f"{name!r} is for several devices, and on one none of the methods of {type(strategy).__qualname__} is "
                f"called: {', '.join(methods)}. Override those of the LightningModule, or of SingleDeviceStrategy",
                code="strategy-method",
            )
        return SingleDeviceStrategy(device)  # one replica of many is the module itself
    message = f"expected strategy to be 'auto', 'single_device' or a Strategy, got {strategy!r}"
    raise errors.InvalidValueError(f"{message}: pass strategy='auto'", code="strategy")


def _resolve_accelerator(accelerator: Any) -> str:
    available = _available()
    if accelerator is None:
        accelerator = "auto"
    name = accelerator.lower() if isinstance(accelerator, str) else accelerator
    if name == "auto" or (isinstance(name, str) and name.startswith(_STRATEGIES_OF_1X)):
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


# -- plug-ins -----------------------------------------------------------------------------------------------------


class Plugins(NamedTuple):
    """One plug-in of each kind, or None; precisions are counted by who chooses one.

    Attributes:
        precisions: how numbers are represented.
        strategy: where the model lives; 1.5 took it as a plug-in.
        checkpoint_io: writes, reads and removes checkpoints.
        environment: knows the processes of the run, of which there is one; its ``auto_requeue`` counts.
        layer_sync: synchronises layers between processes; on one device there is nothing to do.
    """

    precisions: list[Precision]
    strategy: Any = None
    checkpoint_io: Any = None
    environment: Any = None
    layer_sync: Any = None


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda plugin: all(callable(getattr(plugin, name, None)) for name in names)


_KINDS: Final[dict[str, Callable[[Any], bool]]] = {
    "precisions": lambda plugin: isinstance(plugin, Precision),
    "strategy": lambda plugin: isinstance(plugin, Strategy) or hasattr(plugin, "strategy_name"),
    "checkpoint_io": _has("save_checkpoint", "load_checkpoint", "remove_checkpoint"),
    "environment": _has("global_rank", "world_size"),
    "layer_sync": _has("apply", "revert"),
}
#: What strategies for several processes hold for the plug-ins of a run.
_OF_STRATEGIES: Final = ("checkpoint_io", "precision_plugin", "cluster_environment")


def resolve_plugins(plugins: Any, strategy: Any = "auto") -> Plugins:
    """Sort plug-ins by kind.

    Args:
        plugins: one or a list, or None.
        strategy: the argument of that name; what was given to it counts as well.

    Raises:
        InvalidTypeError: something else, or a class in place of an object (``trainer-plugins``).
        MisconfigurationException: two of a kind (``trainer-plugins``).

    >>> resolve_plugins("ddp_sharded").strategy
    'ddp_sharded'
    """
    given = list(plugins) if isinstance(plugins, Sequence) and not isinstance(plugins, str) else [plugins]
    chosen = next((one for one in given if one is not None and _kind_of(one) == "strategy"), strategy)
    given += [strategy] if strategy not in (None, "auto") and chosen is not strategy else []
    given += [getattr(chosen, name, None) for name in _OF_STRATEGIES]
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for plugin in given:
        if plugin is not None:
            found[_kind_of(plugin)].append(plugin)
    for kind, some in found.items():
        if len(some) > 1 and kind != "precisions":
            raise errors.MisconfigurationException(
                f"Trainer(plugins=..., strategy=...): two of a kind ({kind}) were given, {some[0]!r} and {some[1]!r}; "
                "keep one",
                code="trainer-plugins",
            )
    precisions = found.pop("precisions")
    return Plugins(precisions, **{kind: some[0] for kind, some in found.items() if some})


def _kind_of(plugin: Any) -> str:
    if isinstance(plugin, str) and plugin.startswith(DISTRIBUTED):
        return "strategy"
    kind = next((kind for kind, fits in _KINDS.items() if fits(plugin)), None)
    if kind is None or isinstance(plugin, type):
        what = "the class " * isinstance(plugin, type) + repr(plugin)
        raise errors.InvalidTypeError(
            f"Trainer(plugins=...) takes objects: a Precision, a CheckpointIO, a cluster environment, a layer sync or, "
            f"as in 1.5, a strategy; got {what}",
            code="trainer-plugins",
        )
    return kind
