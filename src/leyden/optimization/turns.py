"""The optimizers of a run and how they take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from leyden.errors import MisconfigurationException
from leyden.optimization.clocks import UpdateClock, Verdict
from leyden.optimization.contract import Contract, contract_of
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import LightningOptimizer, unwrap
from leyden.optimization.window import Window


class Turn:
    """One optimizer (or Joint) in a run: its handle, its window, its clock and the verdict on its last update.

    Attributes:
        index: position among the configured optimizers.
        optimizer: the user's own object.
        handle: the ``LightningOptimizer`` that users get.
        contract: how the optimizer wants to be driven.
        window: the micro-batches whose gradients make its next update.
        clock: counts its updates.
        arguments: what ``training_step`` gets behind ``batch, batch_idx``: ``(index,)`` or nothing.
        is_fresh: whether there are gradients that have not been made ready for a step.
        is_finite: what unscaling found; True where nothing is scaled.
        verdict: what became of the last update.
        keeps_batches: whether the window keeps its batches, because the closure may be evaluated again.
        wants_value: whether anybody reads the closure's value.
    """

    __slots__ = (
        "arguments",
        "clock",
        "contract",
        "handle",
        "index",
        "is_finite",
        "is_fresh",
        "keeps_batches",
        "optimizer",
        "verdict",
        "wants_value",
        "window",
    )

    def __init__(self, index: int, handle: LightningOptimizer, clock: UpdateClock) -> None:
        self.index = index
        self.handle = handle
        self.optimizer: Any = handle.optimizer
        self.contract: Contract = contract_of(self.optimizer)
        self.window = Window()
        self.clock = clock
        self.arguments: tuple[int, ...] = ()
        self.is_fresh = False
        self.is_finite = True
        self.verdict = Verdict.APPLIED
        self.keeps_batches = False
        self.wants_value = True


class Turns(Sequence[Turn]):
    """All turns of a run.

    Args:
        handles: one for each configured optimizer.
        clocks: one for each configured optimizer.
        frequencies: batches in a row for each optimizer; empty if all of them are active on every batch.
        automatic: whether leyden runs the updates; only then is there an active turn.
    """

    def __init__(
        self,
        handles: Sequence[LightningOptimizer],
        clocks: Sequence[UpdateClock],
        *,
        frequencies: Sequence[int] = (),
        automatic: bool = True,
    ) -> None:
        self._turns = [Turn(i, h, c) for i, (h, c) in enumerate(zip(handles, clocks, strict=True))]
        self._ends = list(accumulate(frequencies))
        self._index = {id(m): turn.index for turn in self._turns for m in members_of(turn.optimizer)}
        self._index.update({id(turn.optimizer): turn.index for turn in self._turns})
        self.automatic = automatic
        self.current: Turn | None = None

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: Any) -> Any:
        return self._turns[index]

    def __iter__(self) -> Iterator[Turn]:
        return iter(self._turns)

    def on_batch(self, batch: int) -> Sequence[Turn]:
        """The turns that are active on the ``batch``-th batch since the first epoch.

        With frequencies the cycle goes on across epochs, so that schedulers and optimizers never part.
        """
        if not self._ends:
            return self._turns
        place = batch % self._ends[-1]
        return [self._turns[next(i for i, end in enumerate(self._ends) if place < end)]]

    def index_of(self, optimizer: Any) -> int:
        """Position of an optimizer, of its handle, or of the Joint that has it as a member.

        Raises:
            MisconfigurationException: the run does not know it.
        """
        turn = self.find(optimizer)
        if turn is None:
            raise MisconfigurationException(
                f"{type(unwrap(optimizer)).__name__} is none of the optimizers that configure_optimizers returned; "
                "take it from self.optimizers()",
                code="optimizer-unknown",
            )
        return turn.index

    def find(self, optimizer: Any) -> Turn | None:
        """The turn of an optimizer, of its handle, or of the Joint that has it as a member; None if there is none."""
        index = self._index.get(id(unwrap(optimizer)))
        return None if index is None else self._turns[index]

    def active(self) -> tuple[Any, int | None]:
        """The optimizer whose turn it is and its index; ``(None, None)`` in manual mode."""
        if self.current is None or not self.automatic:
            return None, None
        return self.current.optimizer, self.current.index
