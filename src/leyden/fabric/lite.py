"""``LightningLite`` of 1.5 to 1.9, which is :class:`leyden.fabric.Fabric` since."""

from __future__ import annotations

from os import PathLike
from typing import Any

from leyden.fabric.fabric import Fabric
from leyden.former import meaning


class LightningLite(Fabric):
    """A Fabric with the arguments of 1.x, whose loop is the method ``run`` of a subclass.

    Args:
        accelerator: as for the Fabric; None is "auto".
        strategy: likewise.
        devices: likewise.
        num_nodes: likewise.
        precision: likewise.
        plugins: likewise.
        gpus: as for the Trainer of 1.x: 0 is the CPU.
        tpu_cores: refused, unless there are none.

    >>> class Doubling(LightningLite):
    ...     def run(self, number):
    ...         return 2 * number
    >>> Doubling(gpus=0, precision=32).run(3)
    6
    """

    def __init__(
        self,
        accelerator: Any = None,
        strategy: Any = None,
        devices: Any = None,
        num_nodes: int = 1,
        precision: int | str = 32,
        plugins: Any = None,
        gpus: Any = None,
        tpu_cores: Any = None,
    ) -> None:
        today = {"accelerator": accelerator or "auto", "devices": devices or "auto", "strategy": strategy or "auto"}
        today |= meaning("gpus", gpus)[0] | meaning("tpu_cores", tpu_cores)[0]
        super().__init__(num_nodes=num_nodes, precision=precision, plugins=plugins, **today)

    def setup_dataloaders(  # type: ignore[override]
        self, *dataloaders: Any, replace_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """As the Fabric's; ``replace_sampler`` is its ``use_distributed_sampler``."""
        return super().setup_dataloaders(
            *dataloaders, use_distributed_sampler=replace_sampler, move_to_device=move_to_device
        )

    def save(self, content: dict[str, Any], filepath: str | PathLike[str]) -> None:  # type: ignore[override]
        """Write ``content`` to a file, as the Fabric does."""
        super().save(filepath, content)

    def load(self, filepath: str | PathLike[str], *, trust: bool = False) -> Any:  # type: ignore[override]
        """What a file holds, read as the Fabric reads it."""
        return super().load(filepath, trust=trust)
