"""Whose parameters require a gradient now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.nn import Parameter

from leyden.errors import OrderError
from leyden.optimization.optimizer import parameters_of, unwrap


class _Frame(NamedTuple):
    optimizer: Any
    foreign: list[tuple[Parameter, bool]]
    own: list[tuple[Parameter, bool]]


class Toggler:
    """Freezes the parameters that the active optimizer does not own, and gives back what it froze.

    A parameter of two optimizers stays trainable for both; one that the user froze stays frozen; parameters of no
    optimizer are never touched. Toggles nest, and may overlap.

    Args:
        optimizers: all optimizers of the run.
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self._optimizers = [unwrap(optimizer) for optimizer in optimizers]
        self._stack: list[_Frame] = []
        self._plans: dict[int, tuple[int, list[Parameter]]] = {}

    def toggle(self, optimizer: Any) -> None:
        """Let only the parameters of ``optimizer`` require gradients."""
        optimizer = unwrap(optimizer)
        foreign = [(p, p.requires_grad) for p in self._foreign(optimizer)]
        own: list[tuple[Parameter, bool]] = []
        if self._stack:  # an outer toggle may have frozen what is ours: find out what it was before
            own = [(p, p.requires_grad) for p in parameters_of(optimizer)]
            before = {id(p): value for frame in reversed(self._stack) for p, value in frame.foreign}
            for parameter, value in own:
                parameter.requires_grad = before.get(id(parameter), value)
        for parameter, value in foreign:
            if value:
                parameter.requires_grad = False
        self._stack.append(_Frame(optimizer, foreign, own))

    def untoggle(self, optimizer: Any) -> None:
        """Undo the last ``toggle`` of ``optimizer``.

        What the user changed on the optimizer's own parameters in between stays changed.
        """
        optimizer = unwrap(optimizer)
        place = next((i for i in reversed(range(len(self._stack))) if self._stack[i].optimizer is optimizer), None)
        if place is None:
            return
        frame = self._stack.pop(place)
        if place < len(self._stack):
            _hand_up(frame, self._stack[place])
            return
        for parameter, value in (*frame.foreign, *frame.own):
            parameter.requires_grad = value

    def restore(self) -> bool:
        """Undo all toggles that are still on, the last one first; returns whether there were any."""
        were_any = bool(self._stack)
        while self._stack:
            self.untoggle(self._stack[-1].optimizer)
        return were_any

    def frames(self) -> list[tuple[int, list[tuple[Parameter, bool]], list[tuple[Parameter, bool]]]]:
        """The toggles that are on: position of the optimizer; foreign and own parameters with what they had before."""
        position = {id(optimizer): index for index, optimizer in enumerate(self._optimizers)}
        known = [frame for frame in self._stack if id(frame.optimizer) in position]
        return [(position[id(frame.optimizer)], frame.foreign, frame.own) for frame in known]

    def load_frames(self, frames: Sequence[tuple[int, list[Any], list[Any]]]) -> None:
        """Take toggles over that are on already."""
        self._stack = [_Frame(self._optimizers[index], foreign, own) for index, foreign, own in frames]

    def by_index(self, index: int) -> Any:
        """The optimizer at ``index``; 1.x untoggles by index.

        Raises:
            OrderError: there is none.
        """
        if not 0 <= index < len(self._optimizers):
            raise OrderError(f"there is no optimizer {index}; the run has {len(self._optimizers)}", code="toggle-index")
        return self._optimizers[index]

    def _foreign(self, optimizer: Any) -> list[Parameter]:
        """Parameters of the other optimizers, found once and again when a group or a parameter was added."""
        size = sum(len(group["params"]) for other in self._optimizers for group in other.param_groups)
        known = self._plans.get(id(optimizer))
        if known is not None and known[0] == size:
            return known[1]
        own = {id(p) for p in parameters_of(optimizer)}
        others = {id(p): p for other in self._optimizers for p in parameters_of(other) if id(p) not in own}
        self._plans[id(optimizer)] = (size, list(others.values()))
        return self._plans[id(optimizer)][1]


def _hand_up(frame: _Frame, above: _Frame) -> None:
    """Let the toggle that outlives ``frame`` bring back what ``frame`` had found."""
    found = {id(parameter): value for parameter, value in (*frame.foreign, *frame.own)}
    for records in (above.foreign, above.own):
        records[:] = [(parameter, found.get(id(parameter), value)) for parameter, value in records]
