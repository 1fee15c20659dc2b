"""Figures that keep the code small and the way of a batch short. They change only in a commit that has the reason."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import torch

import leyden
from leyden import LightningModule, Trainer

SOURCE = Path(leyden.__file__).parent
DATA = [(torch.ones(2, 3), torch.ones(2, 1)) for _ in range(6)]


class Plain(LightningModule):
    """One optimizer, nothing overridden, nothing logged."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.mse_loss(self.layer(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(module: LightningModule) -> None:
    Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False).fit(module, DATA)


def our_frames() -> list[str]:
    """Functions of ours on the stack, outermost last."""
    frame = sys._getframe(1)
    names = []
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(SOURCE):
            names.append(frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return names


def hops_since_fit_loop(names: list[str]) -> int:
    return next(i for i, name in enumerate(names) if name.endswith("run_epoch")) + 2


def test_hops_from_the_fit_loop_to_torchs_optimizer_step() -> None:
    """At most 6 functions of ours stand between the loop and an optimizer's own step."""
    seen: list[list[str]] = []

    class Probe(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(our_frames())
            return super().step(closure)

    class Probed(Plain):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Probe(self.parameters(), lr=0.1)

    fit(Probed())
    assert len(seen) == len(DATA)
    assert hops_since_fit_loop(seen[0]) <= 6


def test_hops_from_the_fit_loop_to_the_training_step() -> None:
    """At most 9 functions of ours stand between the loop and the user's training_step."""
    seen: list[list[str]] = []

    class Probed(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(our_frames())
            return super().training_step(batch, batch_idx)

    fit(Probed())
    assert hops_since_fit_loop(seen[0]) <= 9


def calls_of_one_step(module_class: type[Plain]) -> Counter[tuple[str, str]]:
    """Python calls into our files between two training_steps in the middle of an epoch, by file and function."""
    calls: Counter[tuple[str, str]] = Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE):
            calls[str(path.relative_to(SOURCE)), frame.f_code.co_name] += 1

    class Profiled(module_class):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            sys.setprofile(profile if batch_idx == 3 else None)
            return super().training_step(batch, batch_idx)

    try:
        fit(Profiled())
    finally:
        sys.setprofile(None)
    return calls


def test_python_calls_of_a_plain_step() -> None:
    """A step that nobody listens to makes at most 40 Python calls of ours in at most 8 files."""
    calls = calls_of_one_step(Plain)
    assert 0 < sum(calls.values()) <= 40, calls
    assert len({file for file, _ in calls}) <= 8, sorted({file for file, _ in calls})


def test_an_import_brings_few_modules() -> None:
    """`import leyden` and its Trainer bring at most 75 modules beyond torch's."""
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import leyden\n"
        "bare = len(set(sys.modules) - before)\n"
        "leyden.Trainer, leyden.LightningModule\n"
        "print(bare, len(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    bare, with_trainer = map(int, done.stdout.split())
    assert bare <= 3
    assert with_trainer <= 75


def functions() -> Iterator[tuple[str, int]]:
    """Name and length in lines of every function, without its docstring."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                yield f"{path.relative_to(SOURCE)}:{node.name}", (node.end_lineno or 0) - first.lineno + 1


def test_functions_are_short() -> None:
    """95 % of the functions have at most 30 lines of code, none more than 60."""
    lengths = dict(functions())
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert sorted(lengths.values())[int(len(lengths) * 0.95)] <= 30


def lines_of_code(path: Path) -> int:
    """Lines of a file that hold code: no blank ones, no comments, no docstrings."""
    text = path.read_text()
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in silent)
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - docstrings)


def test_files_are_short() -> None:
    """A file of the library has at most 450 lines; the whole library less than 22,500 lines of code.

    12,000 were enough without checkpoints, profilers, finders, combined loaders, units and signals; 2,000 are for exact
    state: workers' generators, open windows, the comparison of a file with the run, its contents checked one by one;
    4,000 for what other programs import and call: aliases, the command line, Fabric, Lite, the tuner, plug-ins,
    Lightning's strategies, accelerators and files.
    """
    lengths = {str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 450} == {}
    assert sum(lines_of_code(path) for path in SOURCE.rglob("*.py")) < 22_500


def test_no_class_has_two_concrete_bases() -> None:
    """ABC, Generic, Protocol, enum's str, NamedTuple and nn.Module aside, a class derives from one class of ours."""
    allowed = {"ABC", "Protocol", "Generic", "nn.Module", "str", "Enum", "NamedTuple"}
    for path in SOURCE.rglob("*.py"):
        if path.name == "errors.py":  # where eras raised different classes, one error is both on purpose
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).split("[")[0] for base in node.bases]
                assert len([base for base in bases if base not in allowed]) <= 1, f"{path.name}: {node.name}"


def test_no_import_cycles() -> None:
    """No module of ours imports itself through others."""
    graph = grimp.build_graph("leyden", exclude_type_checking_imports=True)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            assert not graph.chain_exists(imported, module), f"{module} and {imported} import each other"
