"""A process that has imported everything and forks a child for each start of the script; reads and answers in JSON.

It has one thread, so that a fork is safe. When a child stops itself, this process kills it: nothing in the child knows.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from reliability import program

#: Seconds that one start may take.
PATIENCE = 120.0


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Run the script in a child until it ends or stops."""
    settings = program.Settings(**request)
    if settings.moment is not None:
        settings.moment = program.Moment(**request["moment"])
    child = os.fork()
    if child == 0:
        run(settings)
    try:
        return wait(child)
    finally:
        with contextlib.suppress(ProcessLookupError):  # a loader's workers outlive their parent for some seconds
            os.killpg(child, signal.SIGKILL)


def run(settings: program.Settings) -> NoReturn:
    """What the child does."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        output = os.open(Path(settings.folder, "output"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        program.main(settings)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> dict[str, Any]:
    """Wait for a child; kill it when it has stopped."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WUNTRACED | os.WNOHANG)
        if pid == 0:
            time.sleep(0.002)
        elif os.WIFSTOPPED(status):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"end": "killed", "code": 128 + signal.SIGKILL}
        else:
            code = os.waitstatus_to_exitcode(status)
            return {"end": "finished" if code == 0 else "killed" if code > 128 else "failed", "code": code}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"end": "hung"}


def main(framework: str) -> None:
    """Import what a run needs; then answer requests until there are no more."""
    torch.set_num_threads(1)
    package = importlib.import_module(framework)
    parts = [part.name for part in pkgutil.walk_packages(package.__path__, f"{framework}.") if framework == "leyden"]
    more = (f"{framework}.callbacks", f"{framework}.loggers", "torch.optim.swa_utils", "torch._dynamo", "numpy.random")
    for name in (*parts, *more, "torch.utils.serialization.config"):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(start(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
