"""Runs in each Python process that a program on the aliases starts; nothing is imported before it is needed."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_PACKAGES = ("lightning", "lightning_fabric", "pytorch_lightning")


class Waiting(MetaPathFinder):
    """Finds Lightning's packages and distributions, by switching the aliases on; torch gets its former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package, if it is one of Lightning's, or torch; None where this Python has no leyden."""
        is_wanted = fullname in (*_PACKAGES, "torch") and "LEYDEN_COMPAT" in os.environ
        if not is_wanted or importlib.util.find_spec("leyden") is None:
            return None
        if fullname == "torch":
            return _with_former_names(PathFinder.find_spec(fullname))
        sys.meta_path.remove(self)
        from leyden import compat

        version, _, era = os.environ["LEYDEN_COMPAT"].partition(" ")
        compat.install(version, era=era)
        return importlib.util.find_spec(fullname)

    def find_distributions(self, context: object = None) -> Iterable[object]:
        """What ``importlib.metadata.version("lightning")`` finds."""
        name = str(getattr(context, "name", None)).lower().replace("-", "_")
        is_switched_on = name in _PACKAGES and self.find_spec(name) is not None
        return sys.meta_path[0].find_distributions(context) if is_switched_on else ()  # type: ignore[attr-defined]


def _with_former_names(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Let torch get them as soon as it is imported, by their file alone: leyden is not imported for that."""
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module = functools.partial(_load, spec.loader.exec_module)  # type: ignore[method-assign]
    return spec


def _load(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    import runpy

    load(module)
    runpy.run_path(f"{os.path.dirname(__file__)}/../torch_names.py")["provide"]()


sys.meta_path.insert(0, Waiting())

# The one that would have run without this.
_others = [path for path in sys.path if path != os.path.dirname(__file__)]
_spec = PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
