"""Code that was written for Lightning 1.5 to 2.6 runs on leyden, with no line changed and no Lightning installed.

::

    leyden run train.py --lr 0.1                      a script, as `python train.py --lr 0.1` would run it
    python -m leyden run -m package.train             a module
    import leyden.compat; leyden.compat.install()     the same inside a program, above its imports
    pytest -p leyden.compat.pytest                    the tests of a library

While the aliases are on, ``import pytorch_lightning``, ``lightning`` and ``lightning_fabric`` give leyden's own
classes, under every path that they had in 1.5, 1.9 or 2.6. There is one set of classes: ``isinstance`` holds across
all names. A name that leyden does not have gives an ``ImportError`` that says so.
"""

from __future__ import annotations

import sys

from leyden.checkpoint.encoding import Pickled
from leyden.compat import former_hooks, processes, torch_names
from leyden.compat.aliases import Finder, owner_of
from leyden.errors import InvalidValueError, OrderError
from leyden.optimization.clocks import Clocks

__all__ = ["install", "is_installed", "uninstall"]

#: The version that client code sees, for each way of counting steps.
_VERSIONS = {"1.5": "1.5.10", "2.6": "2.6.0"}
_installed: list[Finder] = []


def install(version: str | None = None, *, era: str = "2.6") -> None:
    """Switch the aliases on, for this process and those that it starts.

    Args:
        version: what ``pytorch_lightning.__version__`` says, for code that asks. None: 2.6.0, or 1.5.10 in that era.
        era: "1.5": ``trainer.global_step`` and ``max_steps`` count batches that stepped, as until 1.5. "2.6", the
            default: they count the steps of all optimizers, as since 1.6. Everything else is told from the code itself:
            hooks of 1.x and 2.x work in either.

    Raises:
        InvalidValueError: another era (``compat-era``), or what is no version (``compat-version``).
        OrderError: Lightning itself is imported already (``compat-imported``).

    A second call changes version and era, and leaves the modules that are imported. Above all other imports::

        import leyden.compat

        leyden.compat.install(era="1.5")
        from pytorch_lightning import Trainer  # leyden.Trainer
    """
    if era not in _VERSIONS:
        raise InvalidValueError(f"install(era={era!r}): expected one of {', '.join(_VERSIONS)}", code="compat-era")
    version = version or _VERSIONS[era]
    if not version[:1].isdigit():
        raise InvalidValueError(
            f"install(version={version!r}): expected a version of Lightning, as '1.9.5'", code="compat-version"
        )
    if [finder.version for finder in _installed] == [version] and Clocks.batches_are_steps == (era == "1.5"):
        return
    imported = next((name for name in [*sys.modules] if owner_of(name) is not None), None)
    if imported is not None and not _installed:
        raise OrderError(
            f"{imported!r} is imported already, so code has Lightning's own classes; call leyden.compat.install() "
            "above the imports, or start the program by `leyden run`",
            code="compat-imported",
        )
    if not _installed:
        _installed.append(Finder(version))
        sys.meta_path.insert(0, _installed[0])
    _installed[0].version = version
    torch_names.provide()
    processes.provide(version, era)
    Pickled.kept = True
    former_hooks.provide(version)
    Clocks.batches_are_steps = era == "1.5"


def uninstall() -> None:
    """Switch the aliases off, and forget the modules that they made; nothing happens if they are not on."""
    for finder in _installed:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if owner_of(name) and finder.has_made(module)]:
            del sys.modules[name]
        torch_names.withdraw()
        former_hooks.withdraw()
        processes.withdraw()
        Clocks.batches_are_steps = False
        Pickled.kept = False
    _installed.clear()


def is_installed() -> bool:
    """Whether the aliases are on."""
    return bool(_installed)
