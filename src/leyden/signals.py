"""Signals: while a run is on they only set a flag, and the run answers at its next boundary.

::

    a signal comes         state.interrupt = answer        nothing else happens; the step in hand goes on
    the next boundary      state.interrupt()               save · requeue · leave the run, as the signal's action says

Boundaries are the end of a training batch, of a batch of a validation, test or prediction, and the start of an epoch.
A signal that wants to end the run, and comes again, ends it at once.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any, Final, final

from leyden.errors import InvalidValueError, LeydenWarning, RunInterrupted, warn
from leyden.hooks.dispatch import RunState
from leyden.rank import rank_zero_only

#: What is done about each signal unless ``Trainer(handle_signals=...)`` says otherwise.
DEFAULT_ACTIONS: Final[Mapping[str, str]] = {
    "SIGTERM": "exit",
    "SIGINT": "exit",
    "SIGHUP": "exit",
    "SIGUSR1": "requeue",
}
ACTIONS: Final = ("exit", "save", "requeue")
#: Name of the file that is saved for a signal.
INTERRUPTED: Final = "interrupted"
#: Seconds within which a signal that comes again counts once: terminals send Ctrl-C to every process of a job, and
#: launchers (``uv run``, ``torchrun``, ``timeout``) hand on to their child what it has got already.
_ECHO_S: Final = 1.0
#: Jobs that somebody types into; these are not started again by themselves.
_INTERACTIVE: Final = ("bash", "interactive")


def resolve_signals(value: Any, environment: Any = None) -> dict[int, str]:
    """Actions by the number of the signal, from ``Trainer(handle_signals=...)``.

    Args:
        value: True for all of ``DEFAULT_ACTIONS``, False for none, names of some of them, or names with actions.
        environment: a plug-in whose ``auto_requeue`` and ``requeue_signal`` say, unless ``value`` does, whether a job
            is requeued, and by which signal.

    Raises:
        InvalidValueError: a signal that does not exist or cannot be handled, or an unknown action
            (``handle-signals``).

    >>> {signal.Signals(number).name: action for number, action in resolve_signals({"SIGUSR2": "save"}).items()}
    {'SIGUSR2': 'save'}
    """
    if isinstance(value, bool):
        wanted = {name: action for name, action in DEFAULT_ACTIONS.items() if value and hasattr(signal, name)}
    elif isinstance(value, Mapping):
        wanted = dict(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        wanted = {name: DEFAULT_ACTIONS.get(name, "exit") for name in value}
    else:
        wanted = {str(value): ""}
    if value is True and hasattr(environment, "auto_requeue"):
        wanted = {name: "save" if action == "requeue" else action for name, action in wanted.items()}
        asked = getattr(environment, "requeue_signal", None) or getattr(signal, "SIGUSR1", None)
        wanted |= {signal.Signals(asked).name: "requeue"} if environment.auto_requeue and asked else {}
    unhandled = ("SIGKILL", "SIGSTOP")
    for name, action in wanted.items():
        if not (isinstance(name, str) and name in signal.Signals.__members__) or name in unhandled:
            raise _refused(value, f"{name!r} is no signal that can be handled")
        if action not in ACTIONS:
            raise _refused(value, f"{action!r} is no action")
    return {signal.Signals[name].value: action for name, action in wanted.items()}


def _refused(value: Any, why: str) -> InvalidValueError:
    return InvalidValueError(
        f"Trainer(handle_signals={value!r}): {why}; pass True, False, a list of names such as ['SIGTERM'], or a dict "
        f"from names to {', '.join(map(repr, ACTIONS))}",
        code="handle-signals",
    )


@final
class Signals:
    """Handles signals while a run is on.

    Args:
        actions: what to do about each signal, by its number.

    Attributes:
        received: the signals of the current or last run, in the order in which they came.
    """

    def __init__(self, actions: Mapping[int, str]) -> None:
        self._actions = actions
        self.received: list[int] = []
        self._pending: list[int] = []
        self._exit_asked_at: float | None = None
        self._former: dict[int, Any] = {}
        self._process = 0
        self._on_child: Any = None
        self._terminals: list[int] = []
        self._state: RunState
        self._save: Callable[[], str]
        self._can_save: Callable[[], bool]
        self._is_running: Callable[[], bool]

    @contextmanager
    def handled(
        self,
        state: RunState,
        *,
        save: Callable[[], str],
        can_save: Callable[[], bool],
        is_running: Callable[[], bool],
    ) -> Iterator[None]:
        """Handle signals inside of the block, if this is the main thread; a run within a run leaves them to the outer.

        Args:
            state: is given what the loops call at their boundaries.
            save: saves the run and returns the path.
            can_save: whether there is something to save now, and the user wants that.
            is_running: whether loops run, so that a boundary will come.
        """
        if threading.current_thread() is not threading.main_thread() or self._former or _is_handled(self._actions):
            yield
            return
        self._state, self._save, self._can_save, self._is_running = state, save, can_save, is_running
        self._process, self._exit_asked_at = os.getpid(), None
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self.received, self._pending, state.interrupt = [], [], None
        try:
            for number in self._actions:
                former = signal.getsignal(number)
                # Ignored on purpose (nohup, a job in the background), or not Python's: faulthandler.register
                if former is not None and former is not signal.SIG_IGN:
                    self._former[number] = former
                    signal.signal(number, self._receive)
            yield
        finally:
            former_ones, self._former, state.interrupt = self._former, {}, None
            if self._pending:
                _say(f"{_names(self._pending)}: no step came after it; the run is over, and nothing is saved for it")
            if self._on_child is not None:
                signal.signal(signal.SIGCHLD, self._on_child)
                self._on_child = None
            for number, former in former_ones.items():
                if signal.getsignal(number) == self._receive:
                    signal.signal(number, former)
        self._leave([number for number in self._pending if self._actions[number] == "exit"])  # it came too late to save

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. This is called between two instructions of whatever runs, a save included."""
        former, action = self._former.get(number, signal.SIG_DFL), self._actions[number]
        if os.getpid() != self._process:  # in a child that was forked from the run
            return _pass_on(number, frame, former)
        self.received.append(number)
        is_plain = former is signal.default_int_handler  # Python's own for Ctrl-C
        if callable(former) and not is_plain:
            former(number, frame)
        if action == "exit":
            now, asked_at = monotonic(), self._exit_asked_at
            if asked_at is None and is_plain and not self._is_running():
                raise _ctrl_c()  # there is nothing to save yet, and the next boundary may be far
            if asked_at is not None:
                is_echo = now - asked_at < _ECHO_S
                return None if is_echo else _pass_on(number, frame, former if is_plain else signal.SIG_DFL)
            self._exit_asked_at = now
            if hasattr(signal, "SIGCHLD"):  # workers that got it too end now; torch would raise that here, in the step
                self._on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if number == getattr(signal, "SIGHUP", None):
            _silence(self._terminals)
        self._pending.append(number)
        self._state.interrupt = self._answer
        _say(f"{signal.Signals(number).name}: {self._announced(action)}")
        return None

    def _announced(self, action: str) -> str:
        """What will be done about a signal."""
        is_saved, when, nothing = self._can_save(), "at the end of this step", ""
        if not is_saved:
            when = "with the next step that ends, or when it is over"
            nothing = "; nothing can be saved now (checkpoints are off, or no training step runs)"
        if action == "exit":
            return f"the run {'is saved and ' * is_saved}ends {when}{nothing}; once more ends it at once"
        if not is_saved:
            return f"the run goes on{nothing}"
        return f"the run is saved{' and requeued' if action == 'requeue' and slurm_job() else ''} {when}"

    def _answer(self) -> None:
        """Do what the signals ask for."""
        pending, self._pending, self._state.interrupt = self._pending, [], None
        names, path = _names(pending), None
        try:
            path = self._save() if self._can_save() else None
        except Exception as error:  # the run must end all the same, or go on
            with contextlib.suppress(LeydenWarning):  # where warnings are errors
                warn(f"{names}: the run could not be saved: {error}", code="signal-save")
        else:
            if path is not None:
                _say(f"{names}: the run is saved to {path!r}")
        # What was not saved would begin anew, for ever
        requeued = path is not None and any(self._actions[number] == "requeue" for number in pending) and _requeue()
        self._leave([n for n in pending if self._actions[n] == "exit" or (self._actions[n] == "requeue" and requeued)])

    def _leave(self, leaving: Sequence[int]) -> None:
        """Leave the run because of the first of these signals, if there are any.

        Raises:
            KeyboardInterrupt: Ctrl-C; in a script it is a SystemExit too.
            SystemExit: any other signal n, with the exit code 128 + n.
        """
        for number in leaving:
            if number != signal.SIGINT:
                raise SystemExit(128 + number)
            raise _ctrl_c()


def _names(numbers: Sequence[int]) -> str:
    return ", ".join(signal.Signals(number).name for number in numbers)


def _is_handled(numbers: Mapping[int, str]) -> bool:
    """Whether a run around this one handles signals."""
    return any(isinstance(getattr(signal.getsignal(number), "__self__", None), Signals) for number in numbers)


def _pass_on(number: int, frame: FrameType | None, handler: Any) -> None:
    """Do what a handler would do, were it installed."""
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _ctrl_c() -> KeyboardInterrupt:
    """What Ctrl-C raises: whoever types into this process, in a notebook or at a prompt, wants it back."""
    is_interactive = hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")
    return KeyboardInterrupt() if is_interactive else RunInterrupted(128 + signal.SIGINT)


def _silence(terminals: Sequence[int]) -> None:
    """Let output go nowhere whose terminal was closed: the progress bar would fail on it before the run is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _say(text: str) -> None:
    """Tell the user; ``print`` must not be called while it runs already, as a handler may be."""
    if rank_zero_only.rank == 0:
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(2, f"\nleyden: {text}\n".encode())


# -- SLURM --------------------------------------------------------------------------------------------------------


def slurm_job() -> str | None:
    """Id of the batch job that this process belongs to; None outside of SLURM and in interactive jobs."""
    job = os.environ.get("SLURM_JOB_ID")
    return job if job and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE else None


def _requeue() -> bool:
    """Ask SLURM to start this job again; whether it will. Outside of a job there is nothing to ask for."""
    job = slurm_job()
    if job is None:
        return False
    array = [os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID")]
    job = "_".join(map(str, array)) if all(array) else job
    if rank_zero_only.rank != 0:
        return True
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        failure = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
    except OSError as error:
        failure = str(error)
    if failure:
        with contextlib.suppress(LeydenWarning):
            warn(
                f"'scontrol requeue {job}' failed ({failure}): the run goes on until SLURM ends it; start it again by "
                "hand",
                code="signal-requeue",
            )
    return not failure
