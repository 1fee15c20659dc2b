"""What a repository uses of Lightning, found by reading its code, and what becomes of each use on leyden."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, Final

from torch import nn

from leyden import former
from leyden.callback import Callback
from leyden.compat import names, paths
from leyden.compat.aliases import hint, owner_of
from leyden.compat.hardware import ParallelStrategy
from leyden.datamodule import LightningDataModule
from leyden.errors import InvalidValueError, MisconfigurationException, OrderError
from leyden.former_trainer import GONE
from leyden.hooks.events import HISTORICAL
from leyden.module import LightningModule
from leyden.precision import Precision
from leyden.strategies import Strategy, resolve_device
from leyden.strategies.devices import ACCELERATORS, DISTRIBUTED
from leyden.strategies.uncalled import UNCALLED
from leyden.trainer import Trainer

#: What becomes of a use, from the best to the worst.
SAME: Final = "as it is"
DIFFERENT: Final = "with a difference"
ABSENT: Final = "not at all"
VERDICTS: Final = (SAME, DIFFERENT, ABSENT)

_ONE_DEVICE: Final = "this version of leyden runs on one device"
_UNKNOWN: Final[Any] = object()  # what only a run would tell
#: Methods that run, but count or mean something else than in the version that they are from; with the rule's number.
_DIFFERENT_METHODS: Final = {
    "tbptt_split_batch": "each part is an update of its own (R145)",
    "training_epoch_end": "of several optimizers, its outputs have the form of 1.5: [optimizer][batch] (R66)",
}
#: Names of objects that are a Trainer by custom.
_TRAINERS: Final = frozenset({"trainer", "self.trainer", "pl_module.trainer", "model.trainer", "module.trainer"})
_FOLDERS_LEFT_OUT: Final = frozenset({".git", ".venv", "venv", "node_modules", "__pycache__", "site-packages"})


@dataclass(frozen=True, order=True)
class Use:
    """A use of Lightning.

    Attributes:
        file: relative to what was surveyed.
        line: in that file, from 1.
        what: "import", "Trainer argument", "Trainer attribute" or "method".
        name: what is used.
        verdict: how it runs on leyden, one of VERDICTS.
        reason: what the difference is, or what to do; "" where it runs as it is.
    """

    file: str
    line: int
    what: str
    name: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        uses: in the order of files and lines.
        unread: files that are no Python of today, with what Python says.
    """

    uses: Sequence[Use]
    unread: Mapping[str, str]


def survey(path: str | Path) -> Survey:
    """Read a file, or all Python files below a folder, and tell what they use of Lightning.

    Nothing is imported or run. What is only known at run time (a Trainer in a variable of another name, arguments in a
    dict) is not seen.
    """
    root = Path(path)
    uses: list[Use] = []
    own: set[str] = set()
    unread: dict[str, str] = {}
    for file in [root] if root.is_file() else sorted(_python_files(root)):
        shown = file.name if root.is_file() else str(file.relative_to(root))
        try:
            tree = ast.parse(file.read_text(encoding="utf-8-sig"))
        except (SyntaxError, ValueError) as error:
            unread[shown] = str(error)
            continue
        reader = _Reader(tree)
        uses += {Use(shown, *found) for found in reader.find()}
        own |= reader.own
    return Survey(sorted(use for use in uses if not (use.verdict == ABSENT and use.name in own)), unread)


def _python_files(root: Path) -> Iterator[Path]:
    for file in root.rglob("*.py"):
        if not _FOLDERS_LEFT_OUT & set(file.relative_to(root).parts):
            yield file


#: line, what, name, verdict, reason
_Found = tuple[int, str, str, str, str]


class _Reader:
    """Finds the uses in one file."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        #: Names that stand for something of Lightning's: "pl" -> "pytorch_lightning".
        self._known: dict[str, str] = {}
        #: "trainer.name" of what the program itself sets on a Trainer.
        self.own: set[str] = set()

    def find(self) -> Iterator[_Found]:
        """All uses."""
        nodes = list(ast.walk(self._tree))
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from self._import(node)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield from self._import_from(node, node.module)
        for name in _foreign(nodes):
            self._known.pop(name, None)  # it stands for something else somewhere in this file
        for node in nodes:
            if isinstance(node, ast.Attribute):
                yield from self._attribute(node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.ClassDef):
                yield from self._class(node)

    def _import(self, node: ast.Import) -> Iterator[_Found]:
        for alias in node.names:
            if owner_of(alias.name) is not None:
                self._known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield (node.lineno, "import", alias.name, *_judge_path(alias.name))

    def _import_from(self, node: ast.ImportFrom, module: str) -> Iterator[_Found]:
        if owner_of(module) is None:
            return
        for alias in node.names:
            full = f"{module}.{alias.name}"
            self._known[alias.asname or alias.name] = full
            yield (node.lineno, "import", full, *_judge_path(module if alias.name == "*" else full))

    def _attribute(self, node: ast.Attribute) -> Iterator[_Found]:
        text = _dotted(node)
        if text is None:
            return
        first, _, rest = text.partition(".")
        holder = next((known for known in _TRAINERS if text.startswith(f"{known}.")), "")
        path = text[len(holder) + 1 :]
        if first in self._known and rest:
            full = f"{self._known[first]}.{rest}"
            shown = _as_far_as_classes(full)
            verdict, reason = _judge_path(shown)
            if verdict != SAME:  # the rest has been told by its import
                yield node.lineno, "import", shown, verdict, reason
        elif holder and isinstance(node.ctx, ast.Store):
            self.own.add(f"trainer.{path}")
        elif holder and not path.rpartition(".")[2].startswith("_"):
            verdict, reason = _judge_attribute(path)
            if verdict != SAME or "." not in path:
                yield node.lineno, "Trainer attribute", f"trainer.{path}", verdict, reason

    def _call(self, node: ast.Call) -> Iterator[_Found]:
        called = _dotted(node.func) or ""
        first, _, rest = called.partition(".")
        full = f"{self._known[first]}.{rest}".rstrip(".") if first in self._known else called
        if full.rpartition(".")[2] != "Trainer" or owner_of(full) is None:
            return
        for keyword in node.keywords:
            if keyword.arg is not None:
                judged = _judge_argument(keyword.arg, _literal(keyword.value))
                yield (keyword.value.lineno, "Trainer argument", keyword.arg, *judged)

    def _class(self, node: ast.ClassDef) -> Iterator[_Found]:
        bases = [_dotted(base) or "" for base in node.bases]
        known = [".".join([self._known.get(first, ""), *rest]) for first, *rest in (base.split(".") for base in bases)]
        if not any(owner_of(name) is not None for name in known):
            return
        part = next(filter(None, map(_part, known)), "")
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
        turns = {item.name for item in methods if "optimizer_idx" in _arguments(item)}
        for item in methods:
            verdict, reason = _judge_method(item.name, part)
            if item.name == "training_epoch_end" and "training_step" not in turns:
                verdict, reason = SAME, ""
            if reason or (item.name in _methods() and _can_be_called(item, 2 if part == "callback" else 0)):
                shown = f"{item.name}(optimizer_idx)" if item.name in turns else item.name
                yield item.lineno, "method", shown, verdict, reason


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of what a method takes by position, without its first argument."""
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)][1:]


def _can_be_called(node: ast.FunctionDef | ast.AsyncFunctionDef, num_values: int) -> bool:
    """Whether a method takes what its hook of 1.x was given; else it is the class's own, as at run time."""
    if node.name not in HISTORICAL:
        return True
    most = len(_arguments(node))
    return most - len(node.args.defaults) <= num_values and (num_values <= most or node.args.vararg is not None)


def _foreign(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The names that imports of other packages bind."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [(one.name, one.asname or one.name.partition(".")[0]) for one in node.names]
            yield from (bound for full, bound in names if owner_of(full) is None)
        elif isinstance(node, ast.ImportFrom) and (node.level or owner_of(node.module or "") is None):
            yield from (one.asname or one.name for one in node.names)


def _dotted(node: ast.AST) -> str | None:
    """Names with dots between them, as text; None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        holder = _dotted(node.value)
        return None if holder is None else f"{holder}.{node.attr}"
    return None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):
        return _UNKNOWN


def _as_far_as_classes(full: str) -> str:
    """A path up to its first name that begins with a capital letter: what is in a class is another question."""
    parts = full.split(".")
    capital = next((index for index, part in enumerate(parts) if part[:1].isupper()), len(parts) - 1)
    return ".".join(parts[: capital + 1])


@cache
def _judge_path(full: str) -> tuple[str, str]:
    """What becomes of an import."""
    found = owner_of(full)
    assert found is not None
    tree, place = found
    if not place or place in paths.TREES[tree] or place.startswith("__"):
        return SAME, ""
    parent, _, name = place.rpartition(".")
    inner = owner_of(full.rpartition(".")[0])
    if inner is not None and inner[1] not in paths.TREES[inner[0]] and inner[1]:
        return _judge_path(full.rpartition(".")[0])
    try:
        value = names.find(tree, parent, name)
    except LookupError:
        return ABSENT, hint(full.rpartition(".")[0], name) or "leyden has nothing for it"
    if getattr(value, "__module__", "") == "leyden.compat.hardware" and hasattr(value, "strategy_name"):
        return DIFFERENT, _ONE_DEVICE
    return SAME, ""


@cache
def _trainer() -> Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_epochs=1, **off)  # type: ignore[arg-type]


@cache
def _part(full: str) -> str:
    """Which kind of part a class of Lightning's is, or "" if that makes no difference to its methods."""
    tree, place = owner_of(full) or ("", "")
    parent, _, name = place.rpartition(".")
    try:
        value = names.find(tree, parent, name)
    except LookupError:
        return ""
    kinds = {"callback": Callback, "several": ParallelStrategy, "strategy": Strategy, "precision": Precision}
    return next((kind for kind, base in kinds.items() if isinstance(value, type) and issubclass(value, base)), "")


def _judge_method(name: str, part: str) -> tuple[str, str]:
    """What becomes of a method of a class; without a reason it may be none of Lightning's."""
    if part == "several" and not name.startswith("__"):
        return DIFFERENT, f"never called: {_ONE_DEVICE}"
    if name in UNCALLED.get(part, ()):
        return ABSENT, f"refused; write {UNCALLED[part][name]} in its place"
    reason = _DIFFERENT_METHODS.get(name, "")
    return (DIFFERENT if reason else SAME), reason


def _judge_attribute(path: str) -> tuple[str, str]:
    """What becomes of ``trainer.<path>``, as far as a Trainer tells that has not run."""
    *holders, name = path.split(".")
    holder: Any = _trainer()
    try:
        for part in holders:
            holder = getattr(holder, part, None)
    except OrderError:
        return SAME, ""
    kind = type(holder)
    if not kind.__module__.startswith("leyden.") or hasattr(kind, name) or hasattr(holder, name):
        return SAME, ""
    return ABSENT, GONE.get(name, f"no such attribute of leyden's {kind.__name__}")


def _judge_argument(name: str, value: Any) -> tuple[str, str]:
    """What becomes of an argument of the Trainer, by its value where that is written out."""
    is_former, known = name in former.DEFAULTS, signature(Trainer).parameters
    if not is_former and (name not in known or name == "former"):
        hint = former.meant(name, known)
        return ABSENT, f"no such argument of leyden's Trainer{f'; did you mean {hint}?' if hint else ''}"
    if value is _UNKNOWN:
        return (DIFFERENT, "of 1.x: a warning says what to write") if is_former else (SAME, "")
    try:
        today, told = former.meaning(name, value) if is_former else ({name: value}, "")
    except MisconfigurationException as error:
        return ABSENT, error.message
    verdict, reason = _judge_devices(
        **{"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto"} | today
    )
    return (verdict, reason) if verdict != SAME or not told else (DIFFERENT, told)


def _judge_devices(accelerator: Any, devices: Any, num_nodes: Any, strategy: Any, **others: Any) -> tuple[str, str]:
    """What becomes of arguments that ask for devices, if the machine has them."""
    try:
        resolve_device(accelerator, 1)
    except InvalidValueError as error:
        return ABSENT, error.message
    except MisconfigurationException:
        pass  # another machine has it
    if _count(devices) > 1 or _count(num_nodes) > 1:
        return ABSENT, _ONE_DEVICE
    if isinstance(strategy, str) and strategy not in ("auto", "single_device"):
        return (DIFFERENT, _ONE_DEVICE) if strategy.startswith(DISTRIBUTED) else (ABSENT, "no such strategy")
    is_strategy = isinstance(accelerator, str) and accelerator.lower() not in ACCELERATORS
    return (DIFFERENT, _ONE_DEVICE) if is_strategy else (SAME, "")


def _count(devices: Any) -> int:
    """How many devices a number, a list, or a text of either asks for; 1 where the machine decides."""
    if isinstance(devices, str):
        devices = int(devices) if devices.isdigit() else devices.strip(",").split(",")
    return len(devices) if isinstance(devices, list | tuple) else devices if isinstance(devices, int) else 1


@cache
def _methods() -> frozenset[str]:
    """The methods that Lightning's classes had, and a user may define."""
    public = {name for base in (LightningModule, LightningDataModule, Callback) for name in dir(base) if name[0] != "_"}
    steps = ("training_step_end", "validation_step_end", "test_step_end", "training_epoch_end")
    ends = ("validation_epoch_end", "test_epoch_end", "tbptt_split_batch")
    inherited = set(dir(nn.Module)) - {"forward"}
    return frozenset((public - inherited) | {*HISTORICAL, *steps, *ends})
