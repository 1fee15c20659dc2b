"""``Fabric``: devices, precision and checkpoints for a training loop that users write themselves."""

from leyden.fabric.fabric import Fabric
from leyden.fabric.wrappers import is_wrapped

__all__ = ["Fabric", "is_wrapped"]
