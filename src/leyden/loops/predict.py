"""The prediction loop.

::

    eval mode · on_predict_start · on_predict_epoch_start
    for loader in loaders:
        for batch in loader:
            on_predict_batch_start · predict_step · on_predict_batch_end
    on_predict_epoch_end · on_predict_end · modes restored
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from leyden.data.loaders import Batches
from leyden.data.transfer import Transfer
from leyden.hooks.dispatch import Hooks, RunState
from leyden.loops.modes import Modes


@dataclass(kw_only=True)
class PredictParts:
    """What a prediction is made of.

    Attributes:
        loaders: the loaders, in order.
        limits: batches of each loader at most; inf for all.
        step: ``(batch, batch_idx, dataloader_idx)`` -> prediction, in the precision's context.
        hooks: the users' hooks.
        state: where the run is.
        modes: switches the module to evaluation and back.
        gradients: context without gradients.
        transfer: brings a batch to the device; None if it is there.
        keeps: whether predictions are returned.
    """

    loaders: Sequence[Any]
    limits: Sequence[int | float]
    step: Callable[[Any, int, int], Any]
    hooks: Hooks
    state: RunState
    modes: Modes
    gradients: Callable[[], AbstractContextManager[Any]]
    transfer: Transfer | None = None
    keeps: bool = True


class PredictLoop:
    """Runs predictions.

    Attributes:
        num_batches: batches of each loader of the current or last prediction.
    """

    def __init__(self) -> None:
        self.num_batches: list[int | float] = []

    def run(self, parts: PredictParts) -> list[Any] | None:
        """Predict for all batches; returns a list of predictions, or a list of lists for several loaders."""
        hooks = parts.hooks
        self.num_batches = list(parts.limits)
        try:
            with parts.gradients():
                parts.modes.switch_to_eval()
                hooks.call("on_predict_start")
                hooks.call("on_predict_epoch_start")
                predictions = [self._run_loader(parts, index) for index in range(len(parts.loaders))]
                hooks.call("on_predict_epoch_end", predictions)
                hooks.call("on_predict_end")
        finally:
            parts.modes.restore()
        if not parts.keeps:
            return None
        return predictions if len(predictions) != 1 else predictions[0]

    def _run_loader(self, parts: PredictParts, index: int) -> list[Any]:
        hooks, more = parts.hooks, (index,) if len(parts.loaders) > 1 else ()
        predictions = []
        for batch_idx, batch in enumerate(Batches(parts.loaders[index], parts.limits[index])):
            if parts.transfer is not None:
                batch = parts.transfer(batch, index)
            hooks.call("on_predict_batch_start", batch, batch_idx, *more)
            parts.state.hook = "predict_step"
            prediction = parts.step(batch, batch_idx, index)
            parts.state.hook = None
            hooks.call("on_predict_batch_end", prediction, batch, batch_idx, *more)
            if parts.keeps:
                predictions.append(prediction)
        return predictions
