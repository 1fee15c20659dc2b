"""What the run of a case leaves behind, and whether two runs left the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cases import CASES, Case, build, data, seed
from leyden import LightningModule, Trainer


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
    seed(2)
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
