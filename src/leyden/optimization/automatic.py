"""Automatic optimization: one batch, run by leyden.

::

    for turn in the turns of this batch:
        toggle                                           only if several optimizers take turns
        closure = training_step, zero_grad (first micro-batch of a window), backward
        on the window's last micro-batch:  optimizer_step(..., closure)
        on the others:                     closure()
        untoggle
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from leyden.errors import MisconfigurationException, OrderError, warn
from leyden.hooks.dispatch import Hook, RunState
from leyden.optimization.bare import backward
from leyden.optimization.clocks import Clocks, Verdict
from leyden.optimization.toggling import Toggler
from leyden.optimization.turns import Turn, Turns
from leyden.optimization.update import Updates
from leyden.optimization.window import Weight
from leyden.precision.scaling import LossScale


class Calls(NamedTuple):
    """The user's methods that run inside of a batch, adapted and bound; None where nobody overrides.

    Attributes:
        training_step: ``(batch, batch_idx[, optimizer_idx])``, in the precision's context.
        optimizer_step: ``(epoch, batch_idx, handle, closure)``.
        optimizer_zero_grad: ``(epoch, batch_idx, optimizer)``.
        backward: ``(loss)``.
        toggle: ``(optimizer)``.
        untoggle: ``(optimizer)``.
        on_before_zero_grad: ``(optimizer)``.
        on_before_backward: ``(loss)``.
        on_after_backward: ``()``.
    """

    training_step: Callable[..., Any]
    optimizer_step: Callable[..., Any] | None = None
    optimizer_zero_grad: Callable[..., Any] | None = None
    backward: Callable[..., Any] | None = None
    toggle: Callable[..., Any] | None = None
    untoggle: Callable[..., Any] | None = None
    on_before_zero_grad: Hook | None = None
    on_before_backward: Hook | None = None
    on_after_backward: Hook | None = None

    def without_backward(self) -> Calls:
        """The same for passes over the data that train nothing."""
        return self._replace(backward=lambda *_, **__: None, on_before_backward=None, on_after_backward=None)


@final
class AutomaticOptimization:
    """Runs the optimizers of a batch.

    Args:
        turns: the optimizers.
        updates: performs the updates.
        calls: the user's methods.
        clocks: counts updates.
        state: remembers that ``training_step`` runs, for ``self.log``.
        toggler: freezes foreign parameters; None with one optimizer.
        loss_scale: float16's loss scaler, or None.
        no_sync: context of micro-batches that only accumulate, or None if gradients are not reduced.
        wants_outputs: whether anybody looks at what ``training_step`` returned.

    Attributes:
        keeps_gradients: whether those of a closed window may be used again: what clears them is the user's.
        output_indices: whose outputs the last batch of several optimizers returned.
        run: ``(batch, batch_idx, window, size, closes)`` -> outputs: runs one batch. ``window`` tells the window that
            the batch is part of from others, ``size`` is its true size, ``closes`` says that this is its last
            micro-batch. A batch that is None has no ``training_step``; it only closes the window that it ends.
    """

    def __init__(
        self,
        turns: Turns,
        updates: Updates,
        calls: Calls,
        *,
        clocks: Clocks,
        state: RunState,
        toggler: Toggler | None = None,
        loss_scale: LossScale | None = None,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
        wants_outputs: bool = True,
    ) -> None:
        self.turns = turns
        self.wants_outputs = wants_outputs
        self._updates = updates
        self._calls = calls
        self._clocks = clocks
        self._state = state
        if toggler is not None:
            self._toggle = calls.toggle or toggler.toggle
            self._untoggle = calls.untoggle or toggler.untoggle
        self._loss_scale = loss_scale
        self._no_sync = no_sync
        self.keeps_gradients = calls.optimizer_zero_grad is not None
        self.output_indices: list[int] = []
        self._closes = True
        self._zero_grads = [_zero_grad(turn, calls) for turn in turns]
        for turn in turns:
            once = turn.contract.bare_step is not None and calls.optimizer_step is None
            turn.keeps_batches = not once
            turn.wants_value = not once
        alone = len(turns) == 1 and toggler is None
        self.run: Callable[..., Any] = partial(self._update, turns[0]) if alone else self._take_turns

    def observe(self) -> None:
        """From the next epoch on run ``training_step`` without backward and updates."""
        run = self.run
        self._calls = self._calls.without_backward()
        for turn in self.turns:
            turn.keeps_batches = False
        self.run = lambda batch, batch_idx, window, size, closes: run(batch, batch_idx, window, size, False)

    def _take_turns(self, batch: Any, batch_idx: int, window: int, size: int, closes: bool) -> list[dict[str, Any]]:
        outputs = []
        self.output_indices = []
        for turn in self.turns.on_batch(self._clocks.micro_batches - 1):
            self._toggle(turn.optimizer)
            try:
                output = self._update(turn, batch, batch_idx, window, size, closes)
            finally:
                self._untoggle(turn.optimizer)
            if output:
                outputs.append(output)
                self.output_indices.append(turn.index)
        return outputs

    def _update(self, turn: Turn, batch: Any, batch_idx: int, key: int, size: int, closes: bool) -> dict[str, Any]:
        """The part of one optimizer in one batch; returns ``{"loss", **extras}``, or an empty dict."""
        self.turns.current = turn
        self._closes = closes
        window = turn.window
        opens = window.key != key
        if opens:
            window.begin(size, key)
        if turn.keeps_batches:
            window.batches.append((batch, batch_idx))
        evaluations = 0
        loss: Tensor | None = None
        extras: Mapping[str, Any] = {}

        def closure(*_: Any) -> Tensor | None:
            # Does not name itself: a cycle would keep batch and graph alive until Python's next garbage collection.
            nonlocal evaluations, loss, extras
            had_grad = torch.is_grad_enabled()
            if not had_grad:
                torch.set_grad_enabled(True)
            try:
                evaluations += 1
                zero = opens if evaluations == 1 else self._replay(turn)
                loss, extras = self._accumulate(turn, batch, batch_idx, zero=zero)
            finally:
                if not had_grad:
                    torch.set_grad_enabled(False)
            if loss is not None and self.wants_outputs:
                loss = loss.detach().clone()  # before the step: it may be a view of a parameter
            return self._value(turn, loss) if turn.wants_value else None

        if closes:
            turn.verdict = Verdict.APPLIED
            if self._calls.optimizer_step is None:
                turn.handle.step(closure)
            else:
                self._calls.optimizer_step(self._clocks.epoch, batch_idx, turn.handle, closure)
            if evaluations == 0:
                raise _closure_unused(turn)
            self._count(turn)
            if turn.keeps_batches:
                window.batches.clear()
        elif self._no_sync is None:
            closure()
        else:
            with self._no_sync():
                closure()
        if loss is None or not self.wants_outputs:
            return {}
        return {"loss": loss, **extras}

    def _accumulate(
        self, turn: Turn, batch: Any, batch_idx: int, *, zero: bool
    ) -> tuple[Tensor | None, Mapping[str, Any]]:
        """One micro-batch: training_step, zero_grad on a window's first, backward. The loss is its share."""
        calls, state = self._calls, self._state
        before, state.hook = state.hook, "training_step"
        try:
            output = calls.training_step(batch, batch_idx, *turn.arguments) if batch is not None else _NOTHING
        finally:
            state.hook = before
        loss, weight, extras = (output, None, {}) if isinstance(output, Tensor) else unpack(output)
        if zero:
            self._zero_grads[turn.index](self._clocks.epoch, batch_idx)
        if loss is None:
            return None, extras
        loss = share = turn.window.share(loss, weight)
        if turn.keeps_batches:
            turn.window.sum = share.detach().clone() if turn.window.sum is None else turn.window.sum + share.detach()
        if self._loss_scale is not None:
            share = self._loss_scale.scale(share)
            self._loss_scale.gradients_made([turn.optimizer])
        if calls.on_before_backward is not None:
            calls.on_before_backward(share)
        (calls.backward or backward)(share)
        turn.is_fresh = True
        if calls.on_after_backward is not None:
            calls.on_after_backward()
        return loss, extras

    def _replay(self, turn: Turn) -> bool:
        """Run the window's earlier micro-batches again: a closure stands for the whole window at each evaluation.

        Returns:
            Whether there were none, so that the current one is the first and clears the gradients.
        """
        turn.window.restart()
        *earlier, _ = turn.window.batches
        for place, (batch, batch_idx) in enumerate(earlier):
            self._accumulate(turn, batch, batch_idx, zero=place == 0)
        return not earlier

    def _value(self, turn: Turn, loss: Tensor | None) -> Tensor | None:
        """What the closure returns to an optimizer or an override that reads it."""
        value = turn.window.value(loss, whole=turn.contract.bare_step is None)
        # A window without a loss has no gradients, so any number ends a line search at once.
        return torch.zeros(()) if value is None and turn.contract.reads_value else value

    def _count(self, turn: Turn) -> None:
        """Count an ``optimizer_step``; one that only ran the closure counts as well."""
        self._clocks.global_step += 1
        if turn.window.losses == 0:
            turn.verdict = Verdict.NO_LOSS
        elif turn.is_fresh and turn.verdict is Verdict.APPLIED:
            turn.verdict = Verdict.NOT_STEPPED
        if turn.verdict is Verdict.APPLIED:  # what clock.tick does, without its call
            turn.clock.attempted += 1
            turn.clock.applied += 1
        else:
            turn.clock.tick(turn.verdict)

    def make_clippable(self, optimizer: Any) -> None:
        """Make the gradients of an optimizer what they will be in its step, before a user's hook clips them.

        Raises:
            OrderError: under loss scaling in the middle of a window, whose gradients are not complete.
        """
        turn = self.turns.find(optimizer)
        if turn is None or self._loss_scale is None:
            return
        if not self._closes:
            raise OrderError(
                "clip_gradients was called in the middle of an accumulation window, where gradients still carry the "
                "loss scale; clip in configure_gradient_clipping, which is called when they are complete",
                code="clip-mid-window",
            )
        self._updates.unscale(turn)

    def end_batch(self, closes: bool) -> None:
        """Let the verdicts of a window change the loss scale, once for all optimizers."""
        if closes and self._loss_scale is not None:
            self._loss_scale.update()
            self._updates.overflowed = False


#: Stands for what ``training_step`` would return for a batch that the loader did not give.
_NOTHING: Mapping[str, Any] = {"loss": None}


def unpack(output: Any) -> tuple[Tensor | None, Weight | None, Mapping[str, Any]]:
    """Loss, weight and extras of what ``training_step`` returned.

    Args:
        output: a tensor; a mapping with "loss", optionally "weight", and anything else; or None, to skip the batch.

    Raises:
        MisconfigurationException: anything else, naming what came.
    """
    if isinstance(output, Tensor):
        return output, None, {}
    if output is _NOTHING:
        return None, None, {}
    if output is None:
        warn("training_step returned None: this batch is skipped", code="training-step-none")
        return None, None, {}
    if not isinstance(output, Mapping):
        raise MisconfigurationException(
            f"training_step returned {type(output).__name__}; in automatic optimization it must return a tensor, a "
            "dict with the key 'loss', or None to skip the batch",
            code="training-step-output",
        )
    loss = output.get("loss")
    if not isinstance(loss, Tensor):
        came = f"its value there is {loss!r}" if "loss" in output else f"its keys are {list(output)}"
        raise MisconfigurationException(
            "training_step returned a dict; in automatic optimization it must have a tensor under the key 'loss': "
            f"{came}. To skip a batch, return None",
            code="training-step-output",
        )
    return loss, output.get("weight"), {key: value for key, value in output.items() if key != "loss"}


def _zero_grad(turn: Turn, calls: Calls) -> Callable[[int, int], Any]:
    """What clears the gradients of a turn: the user's hooks where there are any, else the plainest way."""
    optimizer, plain = turn.optimizer, turn.contract.zero_grad
    if calls.on_before_zero_grad is None and calls.optimizer_zero_grad is None:
        return lambda epoch, batch_idx: plain()

    def zero_grad(epoch: int, batch_idx: int) -> None:
        if calls.on_before_zero_grad is not None:
            calls.on_before_zero_grad(optimizer)
        if calls.optimizer_zero_grad is not None:
            calls.optimizer_zero_grad(epoch, batch_idx, optimizer)
        else:
            plain()

    return zero_grad


def _closure_unused(turn: Turn) -> MisconfigurationException:
    name = type(turn.optimizer).__name__
    return MisconfigurationException(
        f"optimizer {turn.index} ({name}) was stepped on this batch without calling the closure, so training_step "
        "never ran. Call `optimizer.step(closure=optimizer_closure)` in optimizer_step, or `optimizer_closure()` "
        "alone to leave the update out; an optimizer of your own must call the closure that its step() is given",
        code="closure-not-called",
    )
