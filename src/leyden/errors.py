"""The exceptions and warnings of leyden, and the one way to emit a warning.

::

    Exception
     +-- LeydenError                            every error that leyden raises by itself
     |    +-- NonFiniteError                    ... also a FloatingPointError: a loss or a gradient is nan or infinite
     |    +-- MisconfigurationException         a setting, a return value or a call that cannot work
     |    |    +-- OptimizerIdxError            ... also a ValueError (1.x) and a RuntimeError (2.x)
     |    |    +-- InvalidValueError            ... also a ValueError
     |    |    +-- InvalidTypeError             ... also a TypeError
     |    |    +-- MissingKeyError              ... also a KeyError
     |    |    +-- OrderError                   ... also a RuntimeError: right call, wrong moment
     |    |         +-- NotRunningError         ... also an AttributeError: what is there only while a loop runs
     |    +-- MissingExtraError                 ... also an ImportError: names the `pip install` line
     |    +-- CheckpointError                   ... also a RuntimeError: a file that cannot be written, read or used
     |         +-- CheckpointNotFoundError      ... also a FileNotFoundError
    KeyboardInterrupt
     +-- RunInterrupted                         ... also a SystemExit: Ctrl-C has ended a run of a script
    UserWarning
     +-- LeydenWarning                          advice about a run that goes on

Code written for one era of Lightning catches the class that this era raised; where the eras differ, the class here
derives from both. Every message ends with its code in brackets: ``[plan-form]``. Codes are stable: search for them,
silence a warning by them, quote them in a bug report.
"""

from __future__ import annotations

import sys
import warnings
from typing import Final

#: Packages whose lines are not what a warning is about, whoever has called them.
_NOT_THE_USERS: Final = frozenset({"leyden", "torch", "contextlib", "functools", "importlib"})


class LeydenError(Exception):
    """Base of every error that leyden raises by itself.

    Args:
        message: what was expected, what came, and what to do.
        code: stable identifier, printed in brackets behind the message.

    >>> str(LeydenError("expected an int, got 'three'", code="example"))
    "expected an int, got 'three' [example]"
    """

    def __init__(self, message: str = "", *, code: str = "leyden") -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class MisconfigurationException(LeydenError):
    """A setting, a return value or a call that cannot work."""

    def __init__(self, message: str = "", *, code: str = "misconfiguration") -> None:
        super().__init__(message, code=code)


class OptimizerIdxError(MisconfigurationException, ValueError, RuntimeError):
    """``training_step`` and the number of optimizers do not fit together."""


class InvalidValueError(MisconfigurationException, ValueError):
    """A value outside of what the argument allows."""


class InvalidTypeError(MisconfigurationException, TypeError):
    """A value of the wrong type."""


class MissingKeyError(MisconfigurationException, KeyError):
    """A mapping without a key that it must have."""

    __str__ = LeydenError.__str__  # KeyError would print the repr of its argument


class OrderError(MisconfigurationException, RuntimeError):
    """The right call at a moment when it cannot work."""


class NotRunningError(OrderError, AttributeError):
    """An attribute that is there only while a loop runs; ``hasattr`` tells whether."""


class MissingExtraError(LeydenError, ImportError):
    """An optional dependency that is not installed.

    >>> str(MissingExtraError("rich", extra="rich"))
    "this feature needs the package 'rich': pip install 'leyden[rich]' [missing-extra]"
    """

    def __init__(self, package: str, *, extra: str) -> None:
        message = f"this feature needs the package '{package}': pip install 'leyden[{extra}]'"
        super().__init__(message, code="missing-extra")


class NonFiniteError(LeydenError, FloatingPointError):
    """A loss or a gradient is nan or infinite."""


class CheckpointError(LeydenError, RuntimeError):
    """A checkpoint that cannot be written, cannot be read, or does not fit the run."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class RunInterrupted(SystemExit, KeyboardInterrupt):
    """Ctrl-C has ended the run of a script, which leaves with the exit code 130 unless it handles this.

    A bare ``KeyboardInterrupt`` would leave with 1 where torch has optimizers: what torch does at the exit makes Python
    forget why it leaves.

    >>> RunInterrupted(130).code
    130
    """


class LeydenWarning(UserWarning):
    """Advice about a run that goes on; the text ends with its code in brackets."""


def warn(message: str, *, code: str, category: type[Warning] = LeydenWarning) -> None:
    r"""Emit ``message`` with its code, at the line of the user's code that has led to it.

    Args:
        message: what was found and what to do.
        code: stable identifier; silence it with ``warnings.filterwarnings("ignore", message=r".*\[code\]")``.
        category: class of the warning; ``RuntimeWarning`` and others where Lightning's users filter by them.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _NOT_THE_USERS:
        frame = frame.f_back
    names, file = frame.f_globals, frame.f_code.co_filename
    registry = names.setdefault("__warningregistry__", {})
    warnings.warn_explicit(f"{message} [{code}]", category, file, frame.f_lineno, names.get("__name__"), registry)
