"""``leyden run``: a script, or a module with ``-m``, with Lightning's import paths leading to leyden."""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from leyden import compat
from leyden.errors import InvalidValueError, LeydenError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; what follows the script is the script's own."""
    parser.usage = "leyden run [--era {1.5,2.6}] [--version VERSION] (SCRIPT | -m MODULE) [ARGUMENTS ...]"
    parser.add_argument(
        "--era",
        default="2.6",
        choices=("1.5", "2.6"),
        help="1.5: trainer.global_step and max_steps count batches that stepped, as before Lightning 1.6",
    )
    parser.add_argument(
        "--version", help="what pytorch_lightning.__version__ says; default: 2.6.0, or 1.5.10 in era 1.5"
    )
    rest = argparse.REMAINDER
    parser.add_argument("-m", dest="module", nargs=rest, metavar="MODULE", help="run a module, as python -m does")
    parser.add_argument("script", nargs=rest, metavar="SCRIPT", help="the script and its own arguments")


def run(arguments: argparse.Namespace) -> int:
    """Run it in this process, as ``__main__``, which it stays; an error that ends it is shown as Python would show it.

    The exit code is 1 then, 130 for Ctrl-C.
    """
    is_module = arguments.module is not None
    given = list(arguments.module if is_module else arguments.script)
    if not given:
        raise InvalidValueError("expected a script, or -m MODULE", code="run-what")
    if not (is_module or Path(given[0]).is_file()):
        raise InvalidValueError(f"there is no script {given[0]!r}", code="run-what")
    compat.install(arguments.version, era=arguments.era)
    sys.argv = given
    sys.path.insert(0, os.getcwd() if is_module else str(Path(given[0]).resolve().parent))  # as Python itself has it
    try:
        code = _of_module(given) if is_module else _of_script(given[0])
        exec(code, vars(sys.modules["__main__"]))
    except SystemExit:
        raise
    except BaseException as error:
        shorten_tracebacks(error)
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _of_script(script: str) -> CodeType:
    """The code of a script, for which ``__main__`` is made; no bytecode is written, as Python writes none."""
    path = os.path.abspath(script)
    loader = SourceFileLoader("__main__", path)
    _make_main(path, loader)
    return loader.source_to_code(loader.get_data(path), path)


def _of_module(given: list[str]) -> CodeType:
    """The code of a module, or of a package's ``__main__``; ``sys.argv`` gets its file."""
    name = given[0]
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    code: CodeType | None = None if spec is None else getattr(spec.loader, "get_code", lambda _: None)(spec.name)
    if spec is None or spec.origin is None or code is None:
        raise InvalidValueError(f"there is no module {name!r} that can be run", code="run-what")
    given[0] = spec.origin
    _make_main(spec.origin, spec.loader, spec)
    return code


def _make_main(path: str, loader: object, spec: ModuleSpec | None = None) -> None:
    main = sys.modules["__main__"] = ModuleType("__main__")
    own = {"__file__": path, "__loader__": loader, "__spec__": spec, "__builtins__": builtins}
    vars(main).update(own, __package__=spec and spec.parent, __cached__=spec and spec.cached)


def shorten_tracebacks(error: BaseException) -> None:
    """Leave the program's own frames, in the tracebacks of an error and of those that led to it.

    What this command has put above the program goes, and the frames of leyden between the program's own. They stay
    where leyden itself has failed; where it tells of a mistake, the frames of torch go too.
    """
    seen: list[BaseException] = []
    led: BaseException | None = error
    while led is not None and led not in seen:
        seen.append(led)
        led.__traceback__ = _shortened(led.__traceback__, is_told=isinstance(led, LeydenError))
        led = led.__cause__ or led.__context__


def _shortened(trace: TracebackType | None, *, is_told: bool) -> TracebackType | None:
    frames: list[tuple[TracebackType, str]] = []
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        package = module.partition(".")[0]
        is_above = not frames and package in ("leyden", "importlib")
        if not is_above and module != "leyden.compat.aliases":
            frames.append((trace, package))
        trace = trace.tb_next
    failed = next((package for _, package in reversed(frames) if package != "torch"), "")
    left_out = ("leyden", "torch") if is_told else () if failed == "leyden" else ("leyden",)
    for frame, package in reversed(frames):
        if package not in left_out:
            trace = TracebackType(trace, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return trace
