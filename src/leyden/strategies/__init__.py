"""Where the model lives and how ranks talk."""

from leyden.strategies.base import Strategy
from leyden.strategies.devices import Plugins, build_strategy, resolve_device, resolve_plugins
from leyden.strategies.single import SingleDeviceStrategy

__all__ = ["Plugins", "SingleDeviceStrategy", "Strategy", "build_strategy", "resolve_device", "resolve_plugins"]
