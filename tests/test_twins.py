"""Properties of every case of the table in ``cases.py``, most of all: bit for bit the loop written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cases import CASES, Case, build, data, merged, seed
from leyden import Callback, LightningModule
from leyden.hooks import events
from outcomes import Outcome, assert_same, outcome, train, trained
from twins import TWINS

pytestmark = pytest.mark.filterwarnings("ignore:.*training-step-none", "ignore:.*accumulation-override")


def assert_trained(found: Outcome, case: Case) -> None:
    """Something moved; the comparison with the twin would hold for two loops that do nothing, too."""
    start = build(case, nn.Module).state_dict()
    moved = [name for name, value in found.weights.items() if not torch.equal(start[name], value)]
    assert len(moved) >= 2
    assert all(value.isfinite().all() for value in found.weights.values())


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_bits_of_the_loop_written_by_hand(name: str) -> None:
    """R40, R100, R113, V2, R27-R31, R117: weights, optimizer state, learning rates, every loss, schedulers."""
    case = CASES[name]
    twin = build(case, nn.Module)
    seed(2)
    updates = TWINS[case.kind.__name__](twin, data(case), case.options)
    found = trained(name)
    assert_same(outcome(twin, updates), found)
    assert_trained(found, case)


#: Each optimizer is at 36 points; 5 shares no factor with that, so all optimizers and all points come up.
EVERY_FIFTH = list(CASES)[::5]


@pytest.mark.parametrize("name", EVERY_FIFTH)
def test_two_runs_have_the_same_events_and_listeners_change_nothing(name: str) -> None:
    """R44: every hook, with what it was given; and weights that are those of the run to which nobody listened."""
    first, second = Recorder(), Recorder()
    found = train(CASES[name], callbacks=[first], base=Overriding)
    train(CASES[name], callbacks=[second], base=Overriding)
    assert first.events == second.events
    seen = {event[0] for event in first.events}
    assert {"on_train_batch_end", "on_after_backward", "on_before_optimizer_step", "on_train_epoch_end"} <= seen
    assert_same(trained(name), found)


#: They decide by small numbers about large steps: in bfloat16 the order of a sum is too much for them.
AMPLIFYING = {"muon", "lbfgs"}

ACCUMULATING = [
    name
    for name, case in CASES.items()
    if case.kind.is_one_big_batch and case.options.accumulate > 1 and not case.draws
    if case.options.precision == "32-true" or case.name not in AMPLIFYING
]


@pytest.mark.parametrize("name", ACCUMULATING)
def test_k_micro_batches_are_one_k_fold_batch(name: str) -> None:
    """V2: also in the last short window.

    The order of sums differs. Where the case says 32-true both runs are in double precision, so that a part in 1e9 of
    the way that the weights went is a generous tolerance; with bfloat16 it is a twentieth of that way.
    """
    case = CASES[name]
    is_exact = case.options.precision == "32-true"
    options = replace(case.options, precision="64-true") if is_exact else case.options
    case = replace(case, options=options)
    found = train(case)
    expected = train(replace(case, options=replace(options, accumulate=1)), merged(case))
    assert expected.updates == found.updates
    start = build(case, nn.Module).state_dict()
    way = max((value - start[key]).abs().max().item() for key, value in expected.weights.items())
    for key, value in expected.weights.items():
        tolerance = way * (1e-9 if is_exact else 0.05)
        torch.testing.assert_close(found.weights[key], value, rtol=0, atol=tolerance, msg=key)


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
