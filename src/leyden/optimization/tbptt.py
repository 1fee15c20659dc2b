"""Truncated backpropagation through time: what 1.x does for a module with ``truncated_bptt_steps``.

A batch of long sequences is cut along the time, and each split runs like a batch of its own::

    hiddens = None
    for split in tbptt_split_batch(batch, truncated_bptt_steps):
        training_step(split, batch_idx[, optimizer_idx], hiddens), zero_grad, backward, optimizer_step
        hiddens = detach(what training_step returned as "hiddens")

Each split is an update. Under accumulation the splits of all batches of a window are its micro-batches: one update,
whose gradient is the mean over all of them. All this is built around the way of a batch, which knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any, NamedTuple, final

from torch import Tensor

from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.hooks.dispatch import RunState
from leyden.optimization.automatic import AutomaticOptimization
from leyden.tree import detach, map_children


class Split(NamedTuple):
    """A part of a batch, and what each optimizer's ``training_step`` gets as ``hiddens``, however often it runs."""

    batch: Any
    hiddens: Mapping[int, Any]


@final
class TruncatedBackpropagation:
    """Cuts batches and hands hidden states on, for each optimizer its own.

    Args:
        length: returns the time steps of a split; asked for every batch.
        split: ``(batch, length)`` -> the splits.
        state: tells whether gradients are accumulated.
    """

    def __init__(
        self, *, length: Callable[[], Any], split: Callable[[Any, int], Iterable[Any]] | None, state: RunState
    ) -> None:
        self._length = length
        self._split = split or split_batch
        self._state = state
        self._hiddens: dict[int, Any] = {}
        self._windows = 0

    def length(self) -> int:
        """Time steps of a split.

        Raises:
            InvalidValueError: not an int >= 1 (``tbptt-steps``).
        """
        length = self._length()
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise InvalidValueError(
                f"truncated_bptt_steps is {length!r}; it must be an int >= 1, the time steps of a split. A module that "
                "does without it leaves it out, or has 0 there when the fit starts",
                code="tbptt-steps",
            )
        return length

    def adapt(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        """``training_step`` for a ``Split`` in the place of a batch."""

        @wraps(training_step)
        def on_split(split: Split, batch_idx: int, *index: int) -> Any:
            turn = index[0] if index else 0
            output = training_step(split.batch, batch_idx, *index, split.hiddens.get(turn))
            if output is None:  # a split that is skipped; the hidden states of the one before stay
                return None
            if not isinstance(output, Mapping) or "hiddens" not in output:
                came = f"a dict with the keys {list(output)}" if isinstance(output, Mapping) else type(output).__name__
                raise MisconfigurationException(
                    f"training_step returned {came}, but truncated_bptt_steps is {self.length()}: return "
                    '{"loss": loss, "hiddens": hiddens}, so that the next split goes on with the hidden states',
                    code="tbptt-hiddens",
                )
            self._hiddens[turn] = detach(output["hiddens"])
            return {key: value for key, value in output.items() if key != "hiddens"}

        return on_split

    def attach(self, optimization: AutomaticOptimization) -> None:
        """Let the splits of a batch run in its place."""
        optimization.run = partial(self._run, optimization, optimization.run)

    def _run(
        self,
        optimization: AutomaticOptimization,
        run: Callable[..., Any],
        batch: Any,
        batch_idx: int,
        window: int,
        size: int,
        closes: bool,
    ) -> list[Any]:
        """Run a batch; returns the outputs of its splits, for several optimizers as ``outputs[optimizer][split]``."""
        self._hiddens.clear()
        splits = [None] if batch is None else self._cut(batch)  # without a batch, the window of those before closes
        accumulates = self._state.window_size != 1
        outputs: dict[int, list[Any]] = {}
        for place, part in enumerate(splits, start=1):
            split = None if batch is None else Split(part, dict(self._hiddens))
            if accumulates:
                output = run(split, batch_idx, window, size * len(splits), closes and place == len(splits))
            else:
                self._windows -= 1  # a window of its own; those of batches are counted upwards
                output = run(split, batch_idx, self._windows, 1, closes)
                optimization.end_batch(closes)
            for index, one in _by_optimizer(optimization, output):
                outputs.setdefault(index, []).append(one)
        if len(optimization.turns) == 1:
            return outputs.get(0, [])
        optimization.output_indices = sorted(outputs)
        return [outputs[index] for index in optimization.output_indices]

    def _cut(self, batch: Any) -> list[Any]:
        length = self.length()
        splits = list(self._split(batch, length))
        if not splits:
            raise MisconfigurationException(
                f"tbptt_split_batch(batch, {length}) returned no split; it must return at least one", code="tbptt-split"
            )
        return splits


def _by_optimizer(optimization: AutomaticOptimization, output: Any) -> Iterable[tuple[int, Any]]:
    """What a split returned, by the index of the optimizer; nothing where it was skipped."""
    if isinstance(output, list):
        return zip(optimization.output_indices, output, strict=True)
    return [(0, output)] if output else []


def build_truncated(module: Any, state: RunState, *, automatic: bool) -> TruncatedBackpropagation:
    """What cuts the batches of a module that has ``truncated_bptt_steps``.

    Raises:
        MisconfigurationException: in manual optimization, where batches are the user's (``tbptt-manual``), or the
            attribute makes no sense (``tbptt-steps``).
    """
    if not automatic:
        raise MisconfigurationException(
            f"truncated_bptt_steps = {module.truncated_bptt_steps} does nothing in manual optimization: cut the batch "
            "in training_step, run zero_grad, manual_backward and step for each part, and detach the hidden states "
            "before the next",
            code="tbptt-manual",
        )
    truncated = TruncatedBackpropagation(
        length=lambda: module.truncated_bptt_steps, split=getattr(module, "tbptt_split_batch", None), state=state
    )
    truncated.length()
    return truncated


def split_batch(batch: Any, length: int) -> list[Any]:
    """Cut a batch along the time: tensors along dimension 1, sequences of samples sample by sample.

    Args:
        batch: a tensor of shape ``(batch, time, ...)``, or a tuple, list or mapping of such tensors and of sequences
            that hold one sequence of length ``time`` per sample. Whatever else it holds goes to every split.
        length: time steps of a split; the last may be shorter.

    Raises:
        MisconfigurationException: there is no time to cut along, or more than one (``tbptt-split``).

    >>> import torch
    >>> inputs, names = torch.arange(6).reshape(1, 6), ["a"]
    >>> [split[0].tolist() for split in split_batch((inputs, names), 4)]
    [[[0, 1, 2, 3]], [[4, 5]]]
    """
    durations: set[int] = set()
    _map_fields(lambda field: durations.update(_durations(field)), batch)
    if len(durations) != 1:
        found = f"several lengths, {sorted(durations)}" if durations else "nothing with a dimension 1"
        raise MisconfigurationException(
            f"truncated_bptt_steps cuts batches along dimension 1, the time, but found {found} in a "
            f"{type(batch).__name__}; define tbptt_split_batch(self, batch, split_size) to cut it in another way",
            code="tbptt-split",
        )
    (duration,) = durations
    starts = range(0, duration, length)
    return [_map_fields(partial(_take, slice(start, start + length)), batch) for start in starts]


def _map_fields(function: Callable[[Any], Any], data: Any, *, nested: bool = False) -> Any:
    """Apply a function to what a batch consists of; a list inside of it is one sequence per sample."""
    holds_fields = isinstance(data, Mapping) or hasattr(data, "_fields")  # the latter are named tuples
    if holds_fields or (not nested and isinstance(data, list | tuple)):
        return map_children(partial(_map_fields, function, nested=True), data)
    return function(data)


def _durations(field: Any) -> set[int]:
    """Time steps of one field of a batch; none if it has no time."""
    if isinstance(field, Tensor):
        return {field.shape[1]} if field.ndim > 1 else set()
    samples = field if isinstance(field, list | tuple) else ()
    return {len(s) for s in samples if isinstance(s, list | tuple) or (isinstance(s, Tensor) and s.ndim)}


def _take(time: slice, field: Any) -> Any:
    if not _durations(field):
        return field
    return field[:, time] if isinstance(field, Tensor) else map_children(lambda sample: sample[time], field)
