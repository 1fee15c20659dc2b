"""Lightning's import paths: modules that are made when they are imported, and hold leyden's objects.

A name means the same object in whatever module it is looked up, so that the many moves between 1.5 and 2.6 do not
matter; :mod:`leyden.compat.paths` has the modules, :mod:`leyden.compat.names` the names.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from email.message import Message
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, cast

from leyden.compat import names, paths

#: Packages that are aliases, and the tree that they show.
ROOTS: Final = {
    "pytorch_lightning": "pytorch",
    "lightning.pytorch": "pytorch",
    "lightning_fabric": "fabric",
    "lightning.fabric": "fabric",
    "lightning": "lightning",
}
#: Distributions that are said to be installed, for code that looks for their versions.
_DISTRIBUTIONS: Final = {"pytorch-lightning", "lightning", "lightning-fabric"}


def owner_of(name: str) -> tuple[str, str] | None:
    """The tree and the place in it that a module's full name means; None for modules that are no aliases.

    >>> owner_of("lightning.pytorch.callbacks.progress"), owner_of("lightning.app"), owner_of("lightning_utilities")
    (('pytorch', 'callbacks.progress'), ('lightning', 'app'), None)
    """
    for root, tree in ROOTS.items():
        if name == root or name.startswith(f"{root}."):
            return tree, name[len(root) + 1 :]
    return None


class AliasModule(ModuleType):
    """A module of Lightning's, with leyden's objects."""

    def __getattr__(self, name: str) -> Any:
        tree, place = owner_of(self.__name__) or ("", "")
        child = f"{place}.{name}".lstrip(".")
        if child in paths.TREES[tree]:
            return importlib.import_module(f"{self.__name__}.{name}")
        if name == "__all__":
            return names.names_of(tree, place)
        if name == "__version__" and not place:
            return self.__spec__.loader.version  # type: ignore[union-attr]
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            value = names.find(tree, place, name, version=self.__spec__.loader.version)  # type: ignore[union-attr]
        except LookupError:
            raise AttributeError(missing(self.__name__, name)) from None
        setattr(self, name, value)
        return value

    def __dir__(self) -> Iterable[str]:
        tree, place = owner_of(self.__name__) or ("", "")
        return sorted({*super().__dir__(), *names.names_of(tree, place), *paths.children(tree, place)})


class Finder(MetaPathFinder):
    """Finds Lightning's modules and distributions, and loads them.

    Args:
        version: of Lightning, as told to those who ask.
    """

    def __init__(self, version: str) -> None:
        self.version = version

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module ``fullname``, if it is one of Lightning's; None if there is no such module.

        Raises:
            ModuleNotFoundError: the same, where an import asks: its text says why.
        """
        found = owner_of(fullname)
        if found is None:
            return None
        tree, place = found
        if place and place not in paths.TREES[tree]:
            if sys._getframe(2).f_globals.get("__name__") != "importlib._bootstrap":
                return None  # only asked for, as by importlib.util.find_spec
            parent, _, name = fullname.rpartition(".")
            raise ModuleNotFoundError(missing(parent, name))
        loader = cast(Loader, self)  # it has a loader's methods
        return ModuleSpec(fullname, loader, origin="leyden's alias", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module: it looks its names up when they are asked for."""
        return AliasModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Give it a file that exists, for programs that look at it; nothing is to be run."""
        module.__file__ = __file__

    def has_made(self, module: Any) -> bool:
        """Whether a module is one of this finder's."""
        return isinstance(module, AliasModule) or getattr(module, "__loader__", None) is self

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        """What ``importlib.metadata.version("lightning")`` finds."""
        wanted = getattr(context, "name", None)
        name = None if wanted is None else wanted.lower().replace("_", "-")
        return [_Distribution(known, self.version) for known in sorted(_DISTRIBUTIONS) if name in (None, known)]


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, name: str, version: str) -> None:
        self._name, self._version = name, version

    @property
    def metadata(self) -> Any:
        message = Message()
        message["Name"], message["Version"] = self._name, self._version
        return message

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        return path


def missing(module: str, name: str) -> str:
    """The text for a name that is not there."""
    told = "`leyden migrate FILE` tells what a program uses of Lightning, and what of it is not here"
    return f"leyden has no {name!r} in {module!r}{f'; {why}' if (why := hint(module, name)) else ''} ({told})"


def hint(module: str, name: str) -> str:
    """The name that is likely meant by one that is not there, or else why it is not; "" where nobody has said."""
    tree, place = owner_of(module) or ("", "")
    known = [*names.names_of(tree, place), *paths.children(tree, place)]
    close = [] if name in names.ABSENT else difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {close[0]!r}?" if close else names.reason(place, name)
