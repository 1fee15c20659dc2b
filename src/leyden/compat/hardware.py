"""Strategies, accelerators and environments by Lightning's names. This version of leyden runs on one device."""

from __future__ import annotations

import signal
from typing import Any, ClassVar

import torch
from torch import nn

from leyden.rank import rank_from_environment, world_size_from_environment
from leyden.strategies import SingleDeviceStrategy, Strategy
from leyden.strategies.devices import resolve_device


class ParallelStrategy:
    """A strategy for several devices, which is a request: on one device there is nothing to distribute.

    Args:
        **settings: kept as attributes; they say how processes would talk.
    """

    strategy_name: ClassVar[str] = ""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    @classmethod
    def added_methods(cls) -> list[str]:
        """The methods that users' classes add, none of which is called."""
        users = [vars(kind) for kind in cls.__mro__[:-1] if kind.__module__ != __name__]
        return sorted({name for own in users for name in own if callable(own[name]) and name[:2] != "__"})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class DDPStrategy(ParallelStrategy):
    """Replicas in several processes; one device needs none."""

    strategy_name = "ddp"


class DDPSpawnStrategy(DDPStrategy):
    """Likewise, in processes that are spawned."""

    strategy_name = "ddp_spawn"


class DataParallelStrategy(ParallelStrategy):
    """Replicas in threads; one device needs none."""

    strategy_name = "dp"


class FSDPStrategy(ParallelStrategy):
    """Shards in several processes; one device holds all of them."""

    strategy_name = "fsdp"


class DeepSpeedStrategy(ParallelStrategy):
    """Shards in several processes; one device holds all of them."""

    strategy_name = "deepspeed"


DDPPlugin = DDP2Plugin = DDPStrategy
DDPSpawnPlugin = DDPSpawnStrategy
DataParallelPlugin = DataParallelStrategy
DDPShardedPlugin = DDPShardedStrategy = DDPSpawnShardedPlugin = DDPSpawnShardedStrategy = FSDPStrategy
DDPFullyShardedPlugin = DDPFullyShardedStrategy = DDPFullyShardedNativeStrategy = FSDPStrategy
DeepSpeedPlugin = DeepSpeedStrategy


class Accelerator:
    """A kind of device. A run calls ``parse_devices``, ``setup_device``, ``setup`` and ``teardown`` of an object."""

    device_type: ClassVar[str] = ""

    @classmethod
    def name(cls) -> str:
        """The kind of its devices."""
        return cls.device_type

    @classmethod
    def is_available(cls) -> bool:
        """Whether this machine has one."""
        return cls.auto_device_count() > 0

    @classmethod
    def auto_device_count(cls) -> int:
        """How many this machine has."""
        return 0

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        """What is given for ``devices``, as it is."""
        return devices

    @classmethod
    def get_parallel_devices(cls, devices: Any) -> list[torch.device]:
        """The devices that ``devices`` means."""
        return resolve_device(cls.device_type, devices)[1]

    def setup_device(self, device: torch.device) -> None:
        """Called when a run begins, before the module comes to the device."""

    def setup(self, trainer: Any) -> None:
        """Called likewise, after ``setup_device``."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Figures of a device, for code that asks; ``DeviceStatsMonitor`` takes its own."""
        return {}

    def teardown(self) -> None:
        """Called when a run ends."""


class CPUAccelerator(Accelerator):
    """The processor."""

    device_type = "cpu"

    @classmethod
    def auto_device_count(cls) -> int:
        """One."""
        return 1


class CUDAAccelerator(Accelerator):
    """GPUs of CUDA and ROCm."""

    device_type = "cuda"

    @classmethod
    def auto_device_count(cls) -> int:
        """How many CUDA finds."""
        return torch.cuda.device_count()


GPUAccelerator = CUDAAccelerator


class MPSAccelerator(Accelerator):
    """GPUs of Apple."""

    device_type = "mps"

    @classmethod
    def auto_device_count(cls) -> int:
        """One or none."""
        return int(torch.backends.mps.is_available())


class XLAAccelerator(Accelerator):
    """TPUs, which leyden does not run on."""

    device_type = "tpu"


TPUAccelerator = XLAAccelerator


class ClusterEnvironment:
    """Where ranks are told by: the environment's variables. A run on one device asks none of its methods."""

    creates_processes_externally = True

    @classmethod
    def detect(cls) -> bool:
        """Whether a launcher has announced several processes."""
        return world_size_from_environment() > 1

    def global_rank(self) -> int:
        """Rank of this process."""
        return rank_from_environment()

    def world_size(self) -> int:
        """Number of processes."""
        return world_size_from_environment()

    def local_rank(self) -> int:
        """Rank of this process on its machine."""
        return rank_from_environment()


class LightningEnvironment(ClusterEnvironment):
    """One process, which nobody has launched."""

    creates_processes_externally = False


class SLURMEnvironment(ClusterEnvironment):
    """What SLURM has announced.

    Args:
        auto_requeue: whether a signal queues the job again; False only saves then. ``Trainer(handle_signals=...)`` has
            precedence.
        requeue_signal: that signal; None is SIGUSR1.
    """

    def __init__(self, auto_requeue: bool = True, requeue_signal: Any = None) -> None:
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal


KubeflowEnvironment = LSFEnvironment = MPIEnvironment = TorchElasticEnvironment = ClusterEnvironment


class LayerSync:
    """Synchronises layers between processes; one device has nothing to synchronise, so a run calls neither method."""

    def apply(self, model: nn.Module) -> nn.Module:
        """The module with its layers synchronised."""
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """The module as it was."""
        return model


class TorchSyncBatchNorm(LayerSync):
    """Batch norms over all processes, by torch's own layers."""

    def apply(self, model: nn.Module) -> nn.Module:
        """The module with torch's own layers for it."""
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted


class AcceleratorConnector:
    """Chooses devices in Lightning; what libraries ask it is answered."""

    _choose_auto_accelerator = staticmethod(lambda: resolve_device()[0])
    _choose_gpu_accelerator_backend = staticmethod(lambda: resolve_device("gpu")[0])


class SignalConnector:
    """Handles signals in Lightning; here ``Trainer(handle_signals=...)`` chooses them, whatever is set on this."""

    _valid_signals = staticmethod(lambda: {one for one in signal.valid_signals() if isinstance(one, signal.Signals)})


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """Indices of the first CUDA devices; -1 for all."""
    found = list(range(torch.cuda.device_count()))
    return found if num_devices == -1 else found[:num_devices]


_OWN = [name for name, one in vars().items() if getattr(one, "__module__", "") == __name__]
__all__ = ["SingleDeviceStrategy", "Strategy", *_OWN]
