"""Where the model lives and how ranks talk."""

from leyden.strategies.base import Strategy
from leyden.strategies.devices import build_strategy, resolve_device
from leyden.strategies.single import SingleDeviceStrategy

__all__ = ["SingleDeviceStrategy", "Strategy", "build_strategy", "resolve_device"]
