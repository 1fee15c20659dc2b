"""``Joint``: several optimizers that share one backward and one verdict."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

from leyden.errors import InvalidTypeError, InvalidValueError
from leyden.optimization.optimizer import unwrap


class Joint(Optimizer):
    """Several optimizers that make one update: one backward, several steps.

    Muon for matrices with AdamW for the rest, or one optimizer per part of a network with one common loss. The
    members share the accumulation window and the verdict (under float16 all of them step or none does); learning-rate
    schedulers and clipping act on each member by itself. A Joint is a torch optimizer, so it can be returned from
    ``configure_optimizers`` alone or among alternating optimizers, driven by hand in manual mode, or used without a
    trainer.

    ::

        Joint([a, b]).step()  ==  a.step(); b.step()

    Args:
        optimizers: the members, at least one; of a Joint among them, its members. A parameter may belong to one
            member only.

    Raises:
        InvalidTypeError: something that is no optimizer.
        InvalidValueError: no members, one that cannot step without a closure of its own (LBFGS, SAM), or a parameter
            in two of them.

    >>> matrix, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    >>> joint = Joint([torch.optim.SGD([matrix], lr=0.1), torch.optim.AdamW([bias], lr=1e-3)])
    >>> [group["lr"] for group in joint.param_groups]
    [0.1, 0.001]
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self._members = tuple(member for optimizer in _checked(optimizers) for member in members_of(optimizer))
        if not self._members:
            raise InvalidValueError("Joint([]) has no members; give it at least one optimizer", code="joint-empty")
        if any(isinstance(member, LBFGS) for member in self._members):
            raise InvalidValueError(
                "LBFGS evaluates its closure several times while it steps, so it cannot share one backward with other "
                "optimizers; let it take turns with them instead of joining them",
                code="joint-lbfgs",
            )
        for member in self._members:
            if _needs_closure(member.step):
                raise InvalidValueError(
                    f"{type(member).__name__}.step cannot be called without a closure, which it evaluates by itself, "
                    "so it cannot share one backward with other optimizers; let it take turns with them instead of "
                    "joining them",
                    code="joint-closure",
                )
        parameters = [id(p) for group in self.param_groups for p in group["params"]]
        if len(parameters) != len(set(parameters)):
            raise InvalidValueError(
                "a parameter is in two members of a Joint, so one backward would update it twice; give each "
                "parameter to one member",
                code="joint-shared-parameter",
            )
        self.defaults: dict[str, Any] = {}
        # Built as an unpickled optimizer is: with torch's hooks, but without groups and state of its own.
        super().__setstate__({})

    @property
    def optimizers(self) -> tuple[Any, ...]:
        """The members."""
        return self._members

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The members' groups, one after the other; the dicts are the members' own."""
        return [group for member in self._members for group in member.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """The members' state in one new dict; its values are the members' own."""
        return {key: value for member in self._members for key, value in member.state.items()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure once, then step every member; returns the closure's value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self._members:
            member.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all members."""
        for member in self._members:
            if set_to_none:
                member.zero_grad()  # an optimizer of any class may join, and not all of them take the argument
            else:
                member.zero_grad(set_to_none=False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the Joint cannot know which member the group is for."""
        raise InvalidValueError(
            "a Joint cannot tell which member a new group belongs to; call add_param_group on the member",
            code="joint-add-group",
        )

    def state_dict(self) -> dict[str, Any]:
        """The members' state dicts in order, under "optimizers"."""
        return {"optimizers": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned.

        Raises:
            InvalidValueError: another number of members, or the state of another kind of optimizer.
        """
        if "optimizers" not in state_dict:
            raise InvalidValueError(
                f"the state is not of a Joint, whose key is 'optimizers': its keys are {list(state_dict)}",
                code="joint-state",
            )
        states = state_dict["optimizers"]
        if len(states) != len(self._members):
            raise InvalidValueError(
                f"the state is of a Joint of {len(states)} optimizers, this one has {len(self._members)}",
                code="joint-state",
            )
        for member, state in zip(self._members, states, strict=True):
            member.load_state_dict(state)

    def train(self) -> None:
        """Switch members that have modes (schedule-free) to training."""
        _switch(self._members, "train")

    def eval(self) -> None:
        """Switch members that have modes (schedule-free) to evaluation."""
        _switch(self._members, "eval")

    def __getstate__(self) -> dict[str, Any]:
        return {"_members": self._members, "defaults": self.defaults}

    def __repr__(self) -> str:
        return f"Joint({list(self._members)!r})"


def _checked(optimizers: Any) -> list[Any]:
    if not isinstance(optimizers, Iterable):
        raise InvalidTypeError(
            f"Joint takes a list of optimizers, got {type(unwrap(optimizers)).__name__}; write Joint([...])",
            code="joint-member",
        )
    members = [unwrap(optimizer) for optimizer in optimizers]
    for place, member in enumerate(members):
        if not all(hasattr(member, name) for name in ("step", "param_groups", "state_dict", "load_state_dict")):
            raise InvalidTypeError(
                f"member {place} of a Joint is {type(member).__name__}, not an optimizer", code="joint-member"
            )
    return members


def _needs_closure(step: Callable[..., Any]) -> bool:
    try:
        closure = inspect.signature(step).parameters.get("closure")
    except (TypeError, ValueError):  # not written in Python
        return False
    return closure is not None and closure.default is closure.empty


def _switch(optimizers: Sequence[Any], mode: str) -> None:
    for optimizer in optimizers:
        switch = getattr(optimizer, mode, None)
        if callable(switch):
            switch()


def members_of(optimizer: Any) -> tuple[Any, ...]:
    """The members of a Joint; any other optimizer is its own only member."""
    return optimizer.optimizers if isinstance(optimizer, Joint) else (optimizer,)
