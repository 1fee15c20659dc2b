"""One update: gradients ready -> corrected -> unscaled -> hooks -> clipped -> verdict -> step.

Automatic and manual mode come here alike, through ``LightningOptimizer.step``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, final

import torch

from leyden.hooks.dispatch import Hook
from leyden.optimization.gradients import scale_gradients
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import parameters_of
from leyden.optimization.turns import Turn, Turns
from leyden.precision.scaling import LossScale

NON_FINITE = "non-finite gradients"
NO_LOSS = "no loss"
NO_STEP = "not stepped by its handle"


@final
class Updates:
    """Performs the updates of all optimizers of a run.

    Args:
        turns: the optimizers.
        before_step: the ``on_before_optimizer_step`` hook, or None.
        clip: clips one optimizer's gradients, or None if nothing clips.
        measure: is shown one turn before clipping, to log its gradients' norm, or None.
        loss_scale: float16's loss scaler, or None.
        reduce: reduces gradients over processes, or None.

    Attributes:
        overflowed: whether an update of this window had gradients that are not finite; the verdict then holds for all
            optimizers that still come in the window.
    """

    __slots__ = ("_automatic", "_before_step", "_clip", "_loss_scale", "_measure", "_reduce", "_turns", "overflowed")

    def __init__(
        self,
        turns: Turns,
        *,
        before_step: Hook | None = None,
        clip: Callable[[Any], None] | None = None,
        measure: Callable[[Turn], None] | None = None,
        loss_scale: LossScale | None = None,
        reduce: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._turns = list(turns)
        self._automatic = turns.automatic
        self._before_step = before_step
        self._clip = clip
        self._measure = measure
        self._loss_scale = loss_scale
        self._reduce = reduce
        self.overflowed = False

    def perform(self, index: int, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        """Run one update of the optimizer at ``index`` and return what its ``step`` returned."""
        turn = self._turns[index]
        turn.skipped = None
        contract = turn.contract
        if closure is None or contract.evaluates_once or not contract.takes_closure:
            value = closure() if closure is not None else None
            self.make_ready(turn)
            if self._loss_scale is not None and not self._may_step(turn):
                return None
            step = contract.bare_step if contract.evaluates_once and not kwargs else turn.optimizer.step
            returned = step(**kwargs)
            return returned if closure is None else value
        if self._loss_scale is not None:
            return self._perform_scaled(turn, closure, **kwargs)

        def evaluate() -> Any:
            value = closure()
            self.make_ready(turn)
            return value

        return turn.optimizer.step(closure=evaluate, **kwargs)

    def make_ready(self, turn: Turn) -> None:
        """Bring the gradients of a turn into the state in which hooks, clipping and the step want them."""
        if turn.is_fresh:
            self.complete(turn)
        if self._loss_scale is not None:
            self.unscale(turn)
        optimizer = turn.optimizer
        if self._before_step is not None:
            self._before_step(optimizer)
        if self._measure is not None:
            self._measure(turn)
        if self._clip is not None:
            self._clip(optimizer)

    def complete(self, turn: Turn) -> None:
        """Make the accumulated gradients those of the whole window, over all processes."""
        turn.is_fresh = False
        correction = turn.window.correction()
        if correction is not None:
            scale_gradients(turn.optimizer, correction)
        if self._reduce is not None:
            self._reduce(parameters_of(turn.optimizer))

    def unscale(self, turn: Turn) -> None:
        """Unscale the gradients of a turn, once for each time that they were made."""
        if self._loss_scale is not None and self._loss_scale.is_scaled(turn.optimizer):
            turn.is_finite = self._loss_scale.unscale(turn.optimizer)
            if not turn.is_finite:
                self.overflowed = True

    def _may_step(self, turn: Turn) -> bool:
        """The verdict under a scaler. Without one the step always runs, as torch's own would."""
        if self._automatic and turn.window.losses == 0:
            turn.skipped = NO_LOSS
        elif not turn.is_finite or (self.overflowed and self._automatic):
            turn.skipped = NON_FINITE
        return turn.skipped is None

    def _perform_scaled(self, turn: Turn, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """An update whose optimizer evaluates the closure by itself, with gradients unscaled inside of it.

        An evaluation that is not finite ends the update; parameters and state are what they were before it.
        """
        snapshot = Snapshot(turn.optimizer)

        def evaluate() -> Any:
            value = closure()
            self.make_ready(turn)
            if not self._may_step(turn):
                raise _UpdateSkipped
            return value

        try:
            return turn.optimizer.step(closure=evaluate, **kwargs)
        except _UpdateSkipped:
            snapshot.restore()
            return None


class _UpdateSkipped(Exception):
    """Leaves an optimizer's ``step`` from inside of its closure."""


class Snapshot:
    """Parameters and state of an optimizer, to be restored after an update that must not count.

    State is put back into the optimizer's own dicts: ``load_state_dict`` would make new ones and change types.
    """

    def __init__(self, optimizer: Any) -> None:
        self._members = members_of(optimizer)
        self._values = [(p, p.detach().clone()) for p in parameters_of(optimizer)]
        self._states = [{key: copy.deepcopy(value) for key, value in m.state.items()} for m in self._members]
        self._settings = [
            [{key: copy.deepcopy(value) for key, value in group.items() if key != "params"} for group in m.param_groups]
            for m in self._members
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring everything back."""
        for parameter, value in self._values:
            parameter.copy_(value)
        for member, state, settings in zip(self._members, self._states, self._settings, strict=True):
            member.state.clear()
            member.state.update(state)
            for group, values in zip(member.param_groups, settings, strict=True):
                group.update(values)
