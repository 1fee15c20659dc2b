"""The evaluation loop: validation inside of a fit, ``validate``, ``test``, and the sanity check.

::

    eval mode · on_validation_start · on_validation_epoch_start
    for loader in loaders:
        for batch in loader:
            on_validation_batch_start · validation_step · on_validation_batch_end
    on_validation_epoch_end · on_validation_end · modes restored
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from leyden.data.loaders import Batches, set_epoch
from leyden.data.transfer import Transfer
from leyden.hooks.dispatch import Hooks, RunState
from leyden.loops.modes import Modes
from leyden.results.collect import Results


@dataclass(kw_only=True)
class EvaluationParts:
    """What an evaluation is made of.

    Attributes:
        name: "validation" or "test": the middle of its hooks' names.
        loaders: the loaders, in order.
        limits: batches of each loader at most; inf for all.
        step: ``(batch, batch_idx, dataloader_idx)`` -> output, in the precision's context.
        hooks: the users' hooks.
        state: where the run is.
        results: collects ``self.log``.
        modes: switches the module to evaluation and back.
        gradients: context without gradients: ``torch.no_grad`` or ``torch.inference_mode``.
        transfer: brings a batch to the device; None if it is there.
        write_row: writes values to the loggers at a step, given whether it is a step's row; None without loggers.
        epoch_end: the module's 1.x ``validation_epoch_end(outputs)``, or None.
        epoch: tells samplers which epoch it is.
    """

    name: str
    loaders: Sequence[Any]
    limits: Sequence[int | float]
    step: Callable[[Any, int, int], Any]
    hooks: Hooks
    state: RunState
    results: Results
    modes: Modes
    gradients: Callable[[], AbstractContextManager[Any]]
    transfer: Transfer | None = None
    write_row: Callable[[Mapping[str, Any], bool], None] | None = None
    epoch_end: Callable[[Any], Any] | None = None
    epoch: int = 0


class EvaluationLoop:
    """Runs evaluations; remembers where the one in progress is.

    Attributes:
        num_batches: batches of each loader of the current or last evaluation.
    """

    def __init__(self) -> None:
        self.num_batches: list[int | float] = []

    def run(self, parts: EvaluationParts) -> list[dict[str, float]]:
        """Run one evaluation; returns what was logged, a dict for each loader."""
        name, hooks, state, results = parts.name, parts.hooks, parts.state, parts.results
        self.num_batches = list(parts.limits)
        surrounding, state.results = state.results, results
        try:
            with parts.gradients():
                parts.modes.switch_to_eval()
                hooks.call(f"on_{name}_start")
                hooks.call("on_epoch_start")
                hooks.call(f"on_{name}_epoch_start")
                outputs = [self._run_loader(parts, index) for index in range(len(parts.loaders))]
                results.end_epoch()
                if parts.epoch_end is not None:
                    parts.epoch_end(outputs if len(outputs) > 1 else outputs[0])
                hooks.call(f"on_{name}_epoch_end")
                hooks.call("on_epoch_end")
                values = results.evaluation_results()
                if parts.write_row is not None:
                    parts.write_row(results.epoch_metrics(), False)
                hooks.call(f"on_{name}_end")
        finally:
            parts.modes.restore()
            results.reset()
            state.results = surrounding
        return values

    def _run_loader(self, parts: EvaluationParts, index: int) -> list[Any]:
        name, hooks, state, results, step = parts.name, parts.hooks, parts.state, parts.results, parts.step
        several = len(parts.loaders) > 1
        more = (index,) if several else ()
        start = getattr(hooks, f"on_{name}_batch_start")
        end = getattr(hooks, f"on_{name}_batch_end")
        outputs = []
        results.dataloader_idx = index if several else None
        loader = parts.loaders[index]
        set_epoch(loader, parts.epoch)
        for batch_idx, batch in enumerate(Batches(loader, parts.limits[index])):
            if parts.transfer is not None:
                batch = parts.transfer(batch, index)
            results.batch = batch
            if start is not None:
                start(batch, batch_idx, *more)
            state.hook = f"{name}_step"
            output = step(batch, batch_idx, index)
            state.hook = None
            if end is not None:
                end(output, batch, batch_idx, *more)
            if parts.write_row is not None:
                parts.write_row(results.step_metrics(), True)
            if parts.epoch_end is not None and output is not None:
                outputs.append(output)
        return outputs
