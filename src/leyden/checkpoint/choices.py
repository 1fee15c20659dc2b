"""What a resume takes from the file and what from this run: ``fit(..., resume={"lr": "replace"})``.

===========================  ====================================================================================
"weights", "weights.head"    reset: this run's own, for all tensors or for those below a name
"optimizers", "optimizers.1"  reset: no state from the file. An optimizer is told by its place ("0", "0.1" in a
                             Joint), by the part of the module that it is for ("generator"), or by its class
"lr", "weight_decay", ...    replace: the options of groups as this run's code has them, with the moments kept
"schedulers", "schedulers.0"  reset: from their beginning. replace: this run's settings, at the file's position
"scaler"                     reset: the loss scale of this run
"clocks"                     reset: epoch 0, step 0
"data"                       reset: the epoch that was broken off, if any, begins once more
"random"                     reset: the random generators go on as they are
"callbacks", "callbacks.EMA"  reset: no state from the file, by class or ``state_key``
===========================  ====================================================================================

What is not named is kept. To say "keep" is to insist: what else would be refused, because the class of an optimizer is
another one or because values are not finite, is taken as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from leyden.checkpoint.structure import NOT_GIVEN
from leyden.errors import InvalidTypeError, InvalidValueError

_TAKEN_OR_NOT: Final = ("keep", "reset")
_COMPONENTS: Final = {
    **dict.fromkeys(("weights", "optimizers", "callbacks", "scaler", "clocks", "data", "random"), _TAKEN_OR_NOT),
    "schedulers": ("keep", "replace", "reset"),
}
#: What can be said of everything else, which is an option of the groups.
_OF_OPTION: Final = ("keep", "replace")


class Choices:
    """The ``resume`` argument of ``fit``.

    Args:
        given: choices by component.

    Raises:
        InvalidValueError: a value means nothing there (``resume-choice``).
        InvalidTypeError: these are no choices by name (``resume-choice``).

    >>> choices = Choices({"optimizers": "reset", "optimizers.0": "keep", "lr": "replace"})
    >>> choices.of("optimizers", "0", "SGD"), choices.of("optimizers", "1", "Adam"), choices.of("lr")
    ('keep', 'reset', 'replace')
    """

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        if not isinstance(given, Mapping | None) or not all(isinstance(key, str) for key in given or ()):
            raise InvalidTypeError(
                f"resume={given!r}: expected choices by names of components, as in {{'lr': 'replace'}}",
                code="resume-choice",
            )
        self._given = dict(given or {})
        self._asked: dict[str, None] = dict.fromkeys(_COMPONENTS)
        for key, value in self._given.items():
            component = key.partition(".")[0]
            if component in NOT_GIVEN:
                raise InvalidValueError(
                    f"resume={{{key!r}: {value!r}}} means nothing: {key!r} is no option that a user gives to a group; "
                    "'lr' is the rate, with all that schedulers derive from it",
                    code="resume-choice",
                )
            allowed = _COMPONENTS.get(component, _OF_OPTION)
            if value not in allowed:
                close = [] if component in _COMPONENTS else difflib.get_close_matches(component, _COMPONENTS, n=1)
                raise InvalidValueError(
                    f"resume={{{key!r}: {value!r}}} means nothing; "
                    + (f"did you mean {close[0]!r}?" if close else f"{key!r} takes {' or '.join(map(repr, allowed))}"),
                    code="resume-choice",
                )

    def of(self, component: str, *names: str) -> str | None:
        """What was chosen for a part, by the first of its names that is there; None if nothing was.

        Args:
            component: such as "optimizers".
            names: all names of the part, the most special one first.
        """
        keys = [*(f"{component}.{name}" for name in names), component]
        self._asked.update(dict.fromkeys(keys))
        return next((self._given[key] for key in keys if key in self._given), None)

    def check_known(self, options: Iterable[str]) -> None:
        """Refuse what names nothing, when everything was asked for.

        Args:
            options: of the optimizers' groups.

        Raises:
            InvalidValueError: with the known names (``resume-choice``).
        """
        known = [*dict.fromkeys((*self._asked, *options))]
        for key in self._given:
            if key not in known:
                alike = [name for name in known if name.partition(".")[0] == key.partition(".")[0]]
                alike = alike or [name for name in known if "." not in name]
                close = difflib.get_close_matches(key, known, n=3) or alike[:30]
                raise InvalidValueError(
                    f"resume={{{key!r}: ...}} names nothing in the file or in this run; known are {', '.join(close)}",
                    code="resume-choice",
                )


def aliases(names: Iterable[str]) -> list[str]:
    """The parts of the module that all these names are below, the deepest first.

    >>> aliases(["net.generator.0.weight", "net.generator.1.weight"])
    ['net.generator', 'net']
    """
    above = [paths(name)[1:] for name in names]
    return [path for path in above[0] if all(path in others for others in above)] if above else []


def paths(name: str) -> list[str]:
    """A name, and everything that it is below.

    >>> paths("head.0.weight")
    ['head.0.weight', 'head.0', 'head']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
