"""The loop of evaluations and predictions: a fit's validations, its sanity check, ``validate``, ``test``, ``predict``.

::

    eval mode; on_validation_start; on_validation_epoch_start
    for loader in loaders:
        for batch in loader:
            on_validation_batch_start; validation_step; on_validation_batch_end
    on_validation_epoch_end; on_validation_end; modes restored

A prediction differs in two things: nothing can be logged, and what the steps return is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, final

from torch import nn

from leyden import checkpoint
from leyden import results as tables  # imported where one is printed
from leyden.data.loaders import Batches, Copier, RecordedLoader, set_epoch
from leyden.data.transfer import Transfer
from leyden.errors import warn
from leyden.hooks.dispatch import Hooks, RunState, Watch
from leyden.results.collect import Results


@final
class Modes:
    """Switches a module to evaluation and gives every submodule its own mode back.

    Args:
        module: the module.
        to_eval: the user's override of ``on_*_model_eval``, or None.
        to_train: the user's override of ``on_*_model_train``, or None.

    Attributes:
        before: every submodule with its mode before the evaluation. No dict: the hash of a metric object changes with
            what it has accumulated.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        to_eval: Callable[[], Any] | None = None,
        to_train: Callable[[], Any] | None = None,
    ) -> None:
        self._module = module
        self._to_eval = to_eval
        self._to_train = to_train
        self.before: list[tuple[nn.Module, bool]] = []

    def switch_to_eval(self) -> None:
        """Remember every submodule's mode and switch to evaluation."""
        self.before = [(module, module.training) for module in self._module.modules()]
        (self._to_eval or self._module.eval)()

    def restore(self) -> None:
        """Give every submodule back the mode that it had."""
        if self._to_train is not None:
            self._to_train()
            return
        for module, training in self.before:
            module.training = training


@dataclass
class Position:
    """Where an evaluation is.

    Attributes:
        loader: index of the loader at hand.
        done: its batches that are through.
        ended: the last one begun of what comes after all batches; 0 while they run.
        before: what the order of the loader's data comes from.
        rest: what is left of the loader, in an evaluation that goes on from a checkpoint.
    """

    loader: int = 0
    done: int = 0
    ended: int = 0
    before: Any = None
    rest: Any = None

    def begins(self, part: int) -> bool:
        """Whether a part of what comes after all batches is still to be done; it has begun then."""
        if self.ended >= part:
            return False
        self.ended = part
        return True


#: The last part of an evaluation: the hook at its end.
_LAST_PART: Final = 5


@dataclass(kw_only=True)
class EvaluationParts:
    """What an evaluation or a prediction is made of.

    Attributes:
        name: "validation", "test" or "predict": the middle of its hooks' names.
        loaders: the loaders, in order.
        limits: batches of each loader at most; inf for all.
        step: ``(batch, batch_idx, dataloader_idx)`` -> output, in the precision's context.
        hooks: the users' hooks.
        state: where the run is.
        modes: switches the module to evaluation and back.
        gradients: context without gradients: ``torch.no_grad`` or ``torch.inference_mode``.
        results: collects ``self.log``; None in a prediction.
        transfer: brings a batch to the device; None if it is there.
        copier: does so ahead of time; None if that is of no use.
        watch: hands a loader's iterator on, perhaps profiled.
        write_row: gives values to the loggers, at a step or (None) as the epoch's row; None without loggers.
        rows: batches that the current run has evaluated, by loader: the steps of the rows.
        epoch_end: the module's 1.x ``validation_epoch_end(outputs)``, or None.
        epoch: tells samplers which epoch it is.
        keeps: whether somebody wants the outputs of all steps.
        returns: whether somebody wants what ``run`` returns.
        records: whether to tell which samples a batch is made of: "batch", "epoch" for all batches so far, "" for no.
        mark: returns what the order of a loader's data comes from; None if nobody will go on from its middle.
    """

    name: str
    loaders: Sequence[Any]
    limits: Sequence[int | float]
    step: Callable[[Any, int, int], Any]
    hooks: Hooks
    state: RunState
    modes: Modes
    gradients: Callable[[], AbstractContextManager[Any]]
    results: Results | None = None
    transfer: Transfer | None = None
    copier: Copier | None = None
    watch: Watch = iter
    write_row: Callable[[Mapping[str, Any], int | None], None] | None = None
    rows: dict[str, int] = field(default_factory=dict)
    epoch_end: Callable[[Any], Any] | None = None
    epoch: int = 0
    keeps: bool = False
    returns: bool = True
    records: str = ""
    mark: Callable[[Any], Any] | None = None


class EvaluationLoop:
    """Runs evaluations or predictions; remembers where the one in progress is.

    Libraries derive theirs from it, through ``leyden.compat.loops``.

    Attributes:
        num_batches: batches of each loader of the current or last run.
        dataloaders: its data as the user gave it; None before.
        current_batch_indices: the samples in the batch at hand; recorded for a ``BasePredictionWriter`` only.
        epoch_batch_indices: those of all batches so far, a list for each loader; for one that writes epochs only.
        parts: what the run in progress is made of; None outside of it.
        batches: those of the loader at hand.
        at: where the one in progress is.
        outputs: what the steps have returned so far, if it is kept, a list for each loader.
        loaded_in: epoch in which the loaders of a fit were asked for.
        loaders: those of the current or last run.
        own: what its loaders are to hold when the next run starts, by loader.
        is_defined: whether the fit in hand, or the last one, has data for it.
        go_on: puts the next run where a checkpoint was written in the middle of one; called once.
    """

    def __init__(self) -> None:
        self.parts: EvaluationParts | None = None
        self.at = Position()
        self.loaded_in: int | None = None
        self.loaders: Sequence[Any] = ()
        self.own: Sequence[Any] | None = None
        self.is_defined: Callable[[], bool] = bool
        self.go_on: Callable[[EvaluationParts, Position], None] | None = None
        self.batches: Batches | None = None
        self.num_batches: list[int | float] = []
        self.dataloaders: Any = None
        self.current_batch_indices: list[int] = []
        self.epoch_batch_indices: list[list[list[int]]] = []
        self.outputs: list[list[Any]] = []

    @property
    def _data_source(self) -> EvaluationLoop:
        return self  # Lightning's name for what knows whether there is data

    @property
    def is_over(self) -> bool:
        """Whether the one in progress has nothing left but the hook at its end."""
        return self.at.ended == _LAST_PART

    @property
    def predictions(self) -> list[Any]:
        """What the steps have returned so far, if it is kept; a list for each loader if there are several."""
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs

    def run(self, parts: EvaluationParts) -> list[Any]:
        """Run once; returns what was logged, a dict for each loader, or the predictions."""
        name, hooks, state, results = parts.name, parts.hooks, parts.state, parts.results
        self.parts, self.num_batches, self.at = parts, list(parts.limits), Position()
        surrounding, state.results = state.results, results
        self.loaders = parts.loaders
        own, go_on, self.own, self.go_on = self.own or (), self.go_on, None, None
        try:
            with parts.gradients():
                parts.modes.switch_to_eval()
                at = self.at
                for loader, states in zip(parts.loaders, own, strict=False):
                    checkpoint.restore_own(loader, states)
                if go_on is not None:
                    go_on(parts, at)
                else:
                    self._start(parts)
                if not at.ended:
                    self._run_loaders(parts, at)
                returned = self._end_prediction(parts) if results is None else self._end_evaluation(parts, results)
                if at.begins(_LAST_PART):
                    hooks.call(f"on_{name}_end")
        finally:
            parts.modes.restore()
            if self.batches is not None:
                self.batches.close()
            if results is not None:
                results.reset()
            state.results = surrounding
            self.parts, self.outputs, self.epoch_batch_indices = None, [], []
        return returned

    def show(self, values: list[dict[str, float]], stage: str) -> None:
        """Print what an evaluation has returned."""
        print(tables.results_table(values, stage))

    def _start(self, parts: EvaluationParts) -> None:
        parts.hooks.call(f"on_{parts.name}_start")
        if parts.results is not None:
            parts.hooks.call("on_epoch_start")
        parts.hooks.call(f"on_{parts.name}_epoch_start")
        parts.state.do_deferred()

    def _run_loaders(self, parts: EvaluationParts, at: Position) -> None:
        while at.loader < len(parts.loaders):
            loader = parts.loaders[at.loader]
            if at.rest is None:
                set_epoch(loader, parts.epoch)
                at.before = parts.mark(loader) if parts.mark is not None else None
            self._run_loader(parts, at.loader)
            if at.rest is not None:
                at.rest.finish()
            at.loader, at.done, at.rest = at.loader + 1, 0, None

    def _run_loader(self, parts: EvaluationParts, index: int) -> None:
        name, state, results, step, transfer = parts.name, parts.state, parts.results, parts.step, parts.transfer
        more = (index,) if len(parts.loaders) > 1 else ()
        start, end = getattr(parts.hooks, f"on_{name}_batch_start"), getattr(parts.hooks, f"on_{name}_batch_end")
        at, first = self.at, self.at.done
        loader, record = self._recorded(parts, index)
        write_row, rows_before, batch_idx = parts.write_row, parts.rows.get(str(index), 0), first - 1
        if len(self.outputs) == index:
            self.outputs.append([])
        keep = self.outputs[index].append if parts.keeps else None
        if results is not None:
            results.dataloader_idx = index if more else None
        loader, limit = loader if at.rest is None else at.rest, parts.limits[index] - first
        batches = self.batches = Batches(loader, limit, copier=parts.copier, watch=parts.watch)
        for batch_idx, batch in enumerate(batches, first):
            if transfer is not None:
                batch = transfer(batch, index)
            if results is not None:
                results.batch = batch
            if record is not None:
                record()
            if start is not None:
                start(batch, batch_idx, *more)
            state.hook = f"{name}_step"
            output = step(batch, batch_idx, index)
            state.hook = None
            if keep is not None:
                keep(output)
            if end is not None:
                end(output, batch, batch_idx, *more)
            if write_row is not None and results is not None and results.logs_by_step:
                write_row(results.step_metrics(), rows_before + batch_idx)
            at.done = batch_idx + 1
            if state.deferred:
                state.do_deferred()
            if state.interrupt is not None:
                state.interrupt()
        if write_row is not None:
            parts.rows[str(index)] = rows_before + batch_idx + 1

    def _end_evaluation(self, parts: EvaluationParts, results: Results) -> list[dict[str, float]]:
        at = self.at
        if at.begins(1):
            results.end_epoch()
            if parts.epoch_end is not None:
                outputs = [[output for output in each if output is not None] for each in self.outputs]
                _end_epoch(parts.epoch_end, parts.name, outputs)
            parts.state.do_deferred()
        if at.begins(2):
            parts.hooks.call(f"on_{parts.name}_epoch_end")
            parts.state.do_deferred()
        if at.begins(3):
            parts.hooks.call("on_epoch_end")
            parts.state.do_deferred()
        values = results.evaluation_results() if parts.returns else []  # reads from the device
        if parts.write_row is not None and at.begins(4):
            parts.write_row(results.epoch_metrics(), None)
        return values

    def _end_prediction(self, parts: EvaluationParts) -> list[Any]:
        parts.hooks.call("on_predict_epoch_end", self.outputs)
        return self.predictions

    def _recorded(self, parts: EvaluationParts, index: int) -> tuple[Any, Callable[[], None] | None]:
        """The loader to iterate, and what notes the samples of a batch in hand; None if nobody wants to know."""
        loader = parts.loaders[index]
        self.current_batch_indices = []
        if not parts.records:
            return loader, None
        in_epoch: list[list[int]] = []
        self.epoch_batch_indices.append(in_epoch)
        if not RecordedLoader.can_record(loader):
            warn(
                f"which samples the batches of {type(loader).__name__} {index} are made of is not known, so "
                "write_on_batch_end and write_on_epoch_end get no indices for them; it takes a DataLoader over a "
                "map-style dataset",
                code="prediction-indices",
            )
            return loader, None
        recorded = RecordedLoader(loader)

        def record() -> None:
            self.current_batch_indices = recorded.next_indices()
            if parts.records == "epoch":
                in_epoch.append(self.current_batch_indices)

        return recorded, record


def _end_epoch(hook: Callable[[Any], Any], name: str, outputs: list[list[Any]]) -> None:
    """Give a 1.x ``*_epoch_end`` what the steps returned: a list of it for each loader if there are several."""
    if hook(outputs if len(outputs) > 1 else outputs[0]) is not None:
        warn(
            f"{name}_epoch_end returned a value, which has no effect; log values with self.log and return None",
            code="epoch-end-output",
        )
