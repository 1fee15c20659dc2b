"""Properties of every case of the table in ``cases.py``, most of all: bit for bit the loop written by hand."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cases import CASES, Case, Options, build, data, merged
from leyden import Callback, LightningModule, Trainer
from leyden.hooks import events
from twins import TWINS

pytestmark = pytest.mark.filterwarnings("ignore:.*training-step-none", "ignore:.*accumulation-override")

every_case = pytest.mark.parametrize("name", CASES)


@dataclass(frozen=True)
class Outcome:
    """All that a run leaves behind, in plain containers."""

    weights: dict[str, Tensor]
    optimizers: list[Any]
    schedulers: list[Any]
    trace: list[Any]
    updates: int


def outcome(module: Any, updates: int) -> Outcome:
    return Outcome(
        weights=dict(module.state_dict()),
        optimizers=[optimizer.state_dict() for optimizer in module.made],
        schedulers=[scheduler.state_dict() for scheduler in module.schedulers],
        trace=module.trace,
        updates=updates,
    )


def train(case: Case, batches: Any = None, callbacks: Any = None, base: type[Any] = LightningModule) -> Outcome:
    module = build(case, base)
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False, callbacks=callbacks, **case.arguments)
    torch.manual_seed(2)
    trainer.fit(module, data(case) if batches is None else batches)
    return outcome(module, trainer.global_step)


@functools.cache
def trained(name: str) -> Outcome:
    """The run of a case, for all properties."""
    return train(CASES[name])


def assert_same(expected: Any, found: Any, place: str = "") -> None:
    """Equal in every bit: tensors, numbers, and whatever contains them."""
    assert type(expected) is type(found), place
    if isinstance(expected, Outcome):
        assert_same(vars(expected), vars(found))
    elif isinstance(expected, Tensor):
        assert expected.dtype == found.dtype, place
        assert torch.equal(expected, found), f"{place}: {expected} != {found}"
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), place
        for key, value in expected.items():
            assert_same(value, found[key], f"{place}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), place
        for index, value in enumerate(expected):
            assert_same(value, found[index], f"{place}[{index}]")
    else:
        assert expected == found, place


def assert_trained(found: Outcome, case: Case) -> None:
    """Something moved; the comparison with the twin would hold for two loops that do nothing, too."""
    start = build(case, nn.Module).state_dict()
    moved = [name for name, value in found.weights.items() if not torch.equal(start[name], value)]
    assert len(moved) >= 2
    assert all(value.isfinite().all() for value in found.weights.values())


@every_case
def test_a_run_has_the_bits_of_the_loop_written_by_hand(name: str) -> None:
    """R40, R100, R113, V2, R27-R31, R117: weights, optimizer state, learning rates, every loss, schedulers."""
    case = CASES[name]
    twin = build(case, nn.Module)
    torch.manual_seed(2)
    updates = TWINS[case.kind.__name__](twin, data(case), case.options)
    found = trained(name)
    assert_same(outcome(twin, updates), found)
    assert_trained(found, case)


@every_case
def test_two_runs_have_the_same_events_and_listeners_change_nothing(name: str) -> None:
    """R44: every hook, with what it was given; and weights that are those of the run to which nobody listened."""
    first, second = Recorder(), Recorder()
    found = train(CASES[name], callbacks=[first], base=Overriding)
    train(CASES[name], callbacks=[second], base=Overriding)
    assert first.events == second.events
    seen = {event[0] for event in first.events}
    assert {"on_train_batch_end", "on_after_backward", "on_before_optimizer_step", "on_train_epoch_end"} <= seen
    assert_same(trained(name), found)


ACCUMULATING = [
    name for name, case in CASES.items() if case.options.accumulate > 1 and not case.draws and case.name != "no loss"
]


@pytest.mark.parametrize("name", ACCUMULATING)
def test_k_micro_batches_are_one_k_fold_batch(name: str) -> None:
    """V2: also in the last short window."""
    case = CASES[name]
    big = replace(case, options=replace(case.options, accumulate=1))
    found, expected = trained(name), train(big, merged(case))
    assert expected.updates == found.updates
    for key, value in expected.weights.items():
        torch.testing.assert_close(found.weights[key], value, **tolerance(case.options), msg=key)


def tolerance(options: Options) -> dict[str, float]:
    return {"rtol": 0.0, "atol": 0.0}


# ---------------------------------------------------------------------------------------------------- listeners


class Recorder(Callback):
    """Listens to every hook and notes what it was given."""

    def __init__(self) -> None:
        self.events: list[Any] = []


def _noting(name: str) -> Any:
    def hook(self: Recorder, trainer: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        self.events.append((name, *(plain(value) for value in args), trainer.global_step))

    return hook


for hook_name in (*events.SHARED, *events.CALLBACK_ONLY):
    setattr(Recorder, hook_name, _noting(hook_name))


def plain(value: Any) -> Any:
    """A value that can be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Optimizer):
        return type(value).__name__
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class Overriding(LightningModule):
    """Overrides what can be overridden in an update, and does what the base class does."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        super().configure_gradient_clipping(
            optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        super().lr_scheduler_step(scheduler, metric)

    def toggle_optimizer(self, optimizer: Any) -> None:
        super().toggle_optimizer(optimizer)

    def untoggle_optimizer(self, optimizer: Any) -> None:
        super().untoggle_optimizer(optimizer)
