"""One update: gradients ready -> corrected -> unscaled -> hooks -> clipped -> verdict -> step.

Automatic and manual mode come here alike, through ``LightningOptimizer.step``. A turn remembers how far its gradients
have come:

    backward      is_fresh = True                       gradients of a window, perhaps scaled, perhaps to be corrected
    make_ready    is_fresh = False, is_finite = found   complete, unscaled, seen by hooks, clipped
    step          verdict = APPLIED, or why not         under a scaler the step only runs if is_finite
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, final

import torch

from leyden.errors import OrderError
from leyden.hooks.dispatch import Hook, RunState
from leyden.optimization.clocks import Verdict
from leyden.optimization.gradients import scale_gradients
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import parameters_of
from leyden.optimization.turns import Turn
from leyden.precision.scaling import LossScale


@final
class Updates:
    """Performs the updates of all optimizers of a run.

    Args:
        automatic: whether leyden runs the updates, and the user's ``training_step`` must not.
        state: tells where the run is.
        before_step: the ``on_before_optimizer_step`` hook, or None.
        clip: clips one optimizer's gradients, or None if nothing clips.
        measure: is shown one turn before clipping, to log its gradients' norm, or None.
        loss_scale: float16's loss scaler, or None.
        reduce: reduces gradients over processes, or None.

    Attributes:
        clip: as above; replaced when the Trainer's values change in the middle of a run.
        overflowed: whether an update of this window had gradients that are not finite; the verdict then holds for all
            optimizers that still come in the window.
    """

    __slots__ = ("_automatic", "_before_step", "_loss_scale", "_measure", "_reduce", "_state", "clip", "overflowed")

    def __init__(
        self,
        *,
        automatic: bool,
        state: RunState,
        before_step: Hook | None = None,
        clip: Callable[[Any], None] | None = None,
        measure: Callable[[Turn], None] | None = None,
        loss_scale: LossScale | None = None,
        reduce: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._automatic = automatic
        self._state = state
        self._before_step = before_step
        self.clip = clip
        self._measure = measure
        self._loss_scale = loss_scale
        self._reduce = reduce
        self.overflowed = False

    def perform(self, turn: Turn, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        """Run one update and return what the optimizer's ``step`` returned.

        Raises:
            OrderError: called by ``training_step`` in automatic optimization, which steps by itself.
        """
        if self._automatic and self._state.hook == "training_step":
            raise OrderError(
                "optimizer.step() was called in training_step, but automatic_optimization is True: leyden steps the "
                "optimizer after training_step has returned the loss. Return the loss, or set "
                "self.automatic_optimization = False in __init__ and step by hand",
                code="step-in-automatic",
            )
        turn.verdict = Verdict.APPLIED
        bare_step = turn.contract.bare_step
        if closure is None or bare_step is not None or not turn.contract.takes_closure:
            value = closure() if closure is not None else None
            self.make_ready(turn)
            if self._loss_scale is not None and not self._may_step(turn):
                return None
            step = turn.optimizer.step if bare_step is None or kwargs else bare_step
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
        if self.clip is not None:
            self.clip(optimizer)

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
            turn.verdict = Verdict.NO_LOSS
        elif not turn.is_finite or (self.overflowed and self._automatic):
            turn.verdict = Verdict.NON_FINITE
        return turn.verdict is Verdict.APPLIED

    def _perform_scaled(self, turn: Turn, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """An update whose optimizer evaluates the closure by itself, with gradients unscaled inside of it.

        How often it will do so is not known, so parameters and state are copied first: an evaluation that is not
        finite ends the update and leaves everything as it was.
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
