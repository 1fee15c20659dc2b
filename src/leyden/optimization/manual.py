"""Manual optimization: one batch, run by the user, with the same parts.

``training_step`` calls ``manual_backward``, ``optimizer.step()`` and whatever else it likes; windows, clipping, loss
scaling, verdicts and clocks go on working underneath.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from leyden.errors import InvalidValueError, MisconfigurationException, OrderError
from leyden.hooks.dispatch import RunState
from leyden.optimization.automatic import Calls
from leyden.optimization.bare import backward
from leyden.optimization.clocks import Clocks
from leyden.optimization.gradients import gradients_of, scale_gradients
from leyden.optimization.turns import Turn, Turns
from leyden.optimization.update import Updates
from leyden.optimization.window import Weight, Window
from leyden.precision.base import Precision


class Place(NamedTuple):
    """Where in its window a micro-batch of ``accumulate`` is.

    Attributes:
        opens: it is the first: gradients were cleared.
        closes: it is the last: step now.
        size: micro-batches of the window.
    """

    opens: bool
    closes: bool
    size: int


@final
class ManualOptimization:
    """Gives the user's ``training_step`` the parts that automatic optimization is made of.

    Args:
        turns: the optimizers.
        updates: performs the updates.
        calls: the user's methods; of these ``training_step``, ``backward`` and the backward hooks are used.
        clocks: counts updates.
        state: remembers that ``training_step`` runs, for ``self.log``.
        precision: autocast is left for backward and update, and entered again in closures.
        no_sync: context of micro-batches that only accumulate, or None if gradients are not reduced.
        batches_left: batches of the epoch from the current one on; an epoch's last window closes with it.

    Attributes:
        turns: see above.
        tells: whether ``manual_backward`` was called, so that turns know about their gradients.
    """

    def __init__(
        self,
        turns: Turns,
        updates: Updates,
        calls: Calls,
        *,
        clocks: Clocks,
        state: RunState,
        precision: Precision,
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
        batches_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.turns = turns
        self.tells = False
        self._updates = updates
        self._calls = calls
        self._clocks = clocks
        self._state = state
        self._precision = precision
        self._no_sync = no_sync
        self._batches_left = batches_left
        self._open_window: Window | None = None
        self._weight: Weight | None = None
        self._is_stepping = False
        self._judged: list[Turn] = []
        self._is_counted = False  # whether the micro-batch of the open window has had a loss
        self._last_batch: dict[int, int] = {}  # by optimizer: the batch that `accumulate` was called on last

    def run(self, batch: Any, batch_idx: int, *_window: Any) -> dict[str, Any]:
        """Run ``training_step``; what windows there are is the user's affair.

        Raises:
            MisconfigurationException: it returned something else than a tensor, a mapping or None.
        """
        before, self._state.hook = self._state.hook, "training_step"
        try:
            output = self._calls.training_step(batch, batch_idx)
        except StopIteration:  # the documented way to leave one step early
            return {}
        finally:
            self._state.hook = before
        return _outputs(output)

    def observe(self) -> None:
        """From now on run ``training_step`` without backward and updates; closures are evaluated."""
        self._calls = self._calls.without_backward()
        for turn in self.turns:
            turn.handle._perform = _only_evaluate

    def step(self, turn: Turn, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        """``optimizer.step()`` as the user calls it; counts for ``global_step``."""
        if turn.window.is_open:
            self._close(turn.window, "step")
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            evaluations += 1
            with torch.enable_grad(), self._inside_step():
                return closure()  # type: ignore[misc]

        self._is_stepping = True
        try:
            with self._outside_step():
                value = self._updates.perform(turn, None if closure is None else evaluate, **kwargs)
                if closure is not None and evaluations == 0:  # it ignored its closure; the hooks run all the same
                    self._updates.make_ready(turn)
        finally:
            self._is_stepping = False
        self._clocks.global_step += 1
        turn.clock.tick(turn.verdict)
        if not turn.is_finite:
            self._judged.append(turn)
        return value

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """``manual_backward``: the loss's share of its window, scaled, hooks, backward."""
        calls, scale = self._calls, self._precision.loss_scale
        self.tells = True
        for turn in self.turns:
            turn.is_fresh = True
        if self._open_window is not None:
            loss = self._share(self._open_window, loss)
        if scale is not None:
            if not self._is_stepping:  # one update has one scale, however often it evaluates its closure
                scale.update()
            loss = scale.scale(loss)
            scale.gradients_made([turn.optimizer for turn in self.turns])
        with self._outside_step():
            if calls.on_before_backward is not None:
                calls.on_before_backward(loss)
            if calls.backward is not None:
                calls.backward(loss, *args, **kwargs)
            elif args or kwargs:
                loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            else:
                backward(loss)
            if calls.on_after_backward is not None:
                calls.on_after_backward()

    @contextmanager
    def accumulate(self, optimizers: Sequence[Any], batches: int, weight: Weight | None = None) -> Iterator[Place]:
        """One micro-batch of a window that the given optimizers share. See ``LightningModule.accumulate``."""
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise InvalidValueError(
                f"accumulate(batches={batches!r}) must be an int >= 1: the micro-batches of one update",
                code="accumulate-batches",
            )
        turns = [self.turns[self.turns.index_of(optimizer)] for optimizer in optimizers]
        self._check_window(turns, batches)
        window = turns[0].window
        opens = not window.is_open
        if opens:
            window = Window()
            window.begin(int(min(batches, self._batches_left())))
            for turn in turns:
                turn.window = window
                turn.contract.zero_grad()
        window.micro_batches += 1
        closes = self._is_complete(window)
        self._open_window, self._weight, self._is_counted = window, weight, False
        try:
            with ExitStack() as stack:
                if not closes and self._no_sync is not None:
                    stack.enter_context(self._no_sync())
                yield Place(opens, closes, window.size)
        finally:
            self._open_window, self._weight = None, None
        if closes and window.is_open:
            self._close(window, "accumulate")

    def _check_window(self, turns: Sequence[Turn], batches: int) -> None:
        """Refuse what would make a window of another size than the user thinks."""
        if not turns:
            raise InvalidValueError("accumulate([]) names no optimizer; pass one or a list", code="accumulate-nothing")
        is_other = any(turn.window.is_open and self._sharing(turn.window) != set(turns) for turn in turns)
        if is_other or self._open_window is not None:
            raise OrderError(
                "accumulate was called inside of another accumulate, or while one of its optimizers is in a window "
                "with others; pass optimizers that share a window as one list: self.accumulate([a, b], n)",
                code="accumulate-overlap",
            )
        now = self._clocks.micro_batches
        if batches > 1 and any(self._last_batch.get(turn.index) == now for turn in turns):
            raise OrderError(
                "accumulate was called twice for one optimizer on one batch, but it counts batches to know where an "
                "epoch's last window ends. Call it once per training_step; to split a batch, divide the losses by "
                "hand and step after the last part",
                code="accumulate-twice",
            )
        self._last_batch.update({turn.index: now for turn in turns})

    def _share(self, window: Window, loss: Tensor) -> Tensor:
        """The share of a loss in the open window; a micro-batch counts once, however many losses it has."""
        counted = window.losses, window.total
        share = window.share(loss, self._weight)
        if self._is_counted:
            window.losses, window.total = counted
        self._is_counted = True
        return share

    def _sharing(self, window: Window) -> set[Turn]:
        return {turn for turn in self.turns if turn.window is window}

    def _is_complete(self, window: Window) -> bool:
        return bool(window.micro_batches >= window.size or self._batches_left() <= 1)

    def _close(self, window: Window, caller: str) -> None:
        """Bring the gradients of a complete window to their mean, when it ends or when they are used before."""
        if not self._is_complete(window):
            raise OrderError(
                f"{caller} was called on an optimizer in the middle of its window, after {window.micro_batches} of "
                f"{window.size} micro-batches; call it only `if window.closes`, the value of "
                "`with self.accumulate(...) as window`",
                code="accumulate-open",
            )
        sharing = self._sharing(window)
        if window.losses == 0 and any(gradients_of(turn.optimizer) for turn in sharing):
            raise OrderError(
                "an accumulation window closes with gradients that no self.manual_backward(loss) inside of `with "
                "self.accumulate(...)` has made, so they are not divided by its size; call it inside",
                code="accumulate-without-backward",
            )
        correction = window.correction()
        if correction is not None:
            for turn in sharing:
                scale_gradients(turn.optimizer, correction)
        window.is_open = False
        window.restart()

    @property
    def keeps_gradients(self) -> bool:
        """Whether there are gradients that no step has used, as far as is known."""
        return not self.tells or any(turn.is_fresh or turn.window.is_open for turn in self.turns)

    def make_clippable(self, optimizer: Any) -> None:
        """Make the gradients of an optimizer what they will be in its step, before the user clips them."""
        turn = self.turns.find(optimizer)
        if turn is None:  # one that configure_optimizers did not return: neither scaled nor in a window
            return
        if turn.window.is_open:
            self._close(turn.window, "clip_gradients")
        self._updates.unscale(turn)

    def end_batch(self, closes: bool) -> None:
        """Let the verdicts of this batch change the loss scale."""
        if self._precision.loss_scale is not None:
            self._precision.loss_scale.update()
        while self._judged:  # a verdict is over with its batch; gradients set by hand later have their own
            self._judged.pop().is_finite = True

    def _outside_step(self) -> AbstractContextManager[None]:
        """Leave autocast, which surrounds ``training_step`` but must not reach backward or the optimizer."""
        autocasts = self._precision.autocasts and torch.is_autocast_enabled(self._precision.device_type)
        return self._without_autocast() if autocasts else _NOTHING

    @contextmanager
    def _without_autocast(self) -> Iterator[None]:
        with self._precision.update_context():
            yield
        # Autocast keeps cast copies of the weights until its outermost context ends; an update makes them stale.
        torch.clear_autocast_cache()

    @contextmanager
    def _inside_step(self) -> Iterator[None]:
        """Enter the precision's context again, for a closure that runs inside of an update."""
        if not self._precision.autocasts:
            yield
            return
        torch.clear_autocast_cache()
        with self._precision.forward_context():
            yield


_NOTHING = nullcontext()


def _only_evaluate(closure: Callable[[], Any] | None, **_: Any) -> Any:
    return None if closure is None else closure()


def _outputs(output: Any) -> dict[str, Any]:
    """What hooks get to see of a manual ``training_step``: its values, the loss detached."""
    if output is None:
        return {}
    if isinstance(output, Tensor):
        return {"loss": output.detach()}
    if isinstance(output, Mapping):
        loss = output.get("loss")
        return {**output, "loss": loss.detach()} if isinstance(loss, Tensor) else dict(output)
    raise MisconfigurationException(
        f"training_step returned {type(output).__name__}; in manual optimization it may return a tensor, a dict or "
        "None",
        code="training-step-output",
    )
