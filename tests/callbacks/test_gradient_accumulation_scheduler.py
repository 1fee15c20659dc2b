"""``GradientAccumulationScheduler``: R83, R111, R112."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leyden.callbacks import GradientAccumulationScheduler
from leyden.errors import MisconfigurationException


@pytest.mark.parametrize("scheduling", [{}, None, [1], 4])
def test_not_a_schedule(scheduling: Any) -> None:
    """R112."""
    with pytest.raises(TypeError, match="expected a dict") as caught:
        GradientAccumulationScheduler(scheduling)
    assert isinstance(caught.value, MisconfigurationException)


@pytest.mark.parametrize("scheduling", [{-1: 2}, {"0": 2}, {1.0: 2}, {True: 2}, {0: 0}, {0: 1.5}, {0: "2"}, {0: True}])
def test_bad_epochs_and_numbers(scheduling: Any) -> None:
    """R112."""
    with pytest.raises(MisconfigurationException, match=r"must be an int >= [01]"):
        GradientAccumulationScheduler(scheduling)


@pytest.mark.parametrize("scheduling", [{5: 2}, {0: 2, 5: 3}, {3: 4, 1: 2}, {0: 1}])
def test_factor_of_the_greatest_epoch_so_far(scheduling: dict[int, int]) -> None:
    """R112: like Lightning's, which changes the dict it is given."""
    from pytorch_lightning.callbacks import GradientAccumulationScheduler as Lightnings

    ours, theirs = GradientAccumulationScheduler(scheduling), Lightnings(dict(scheduling))
    expected = [theirs.get_accumulate_grad_batches(epoch) for epoch in range(8)]
    assert [ours.get_accumulate_grad_batches(epoch) for epoch in range(8)] == expected
    assert ours.going_to_accumulate_grad_batches() == theirs.going_to_accumulate_grad_batches()


def test_sets_the_trainers_number() -> None:
    """R111."""
    callback = GradientAccumulationScheduler({1: 2, 2: 4})
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, current_epoch=0)
    module: Any = SimpleNamespace(automatic_optimization=True)
    seen = []
    for _ in range(2):  # a second fit of the same Trainer finds what the first has set
        callback.on_train_start(trainer, module)
        for trainer.current_epoch in range(3):
            callback.on_train_epoch_start(trainer, module)
            seen.append(trainer.accumulate_grad_batches)
    assert seen == [1, 2, 4, 1, 2, 4]


def test_together_with_a_number_of_the_trainer() -> None:
    """R112."""
    trainer: Any = SimpleNamespace(accumulate_grad_batches=3)
    module: Any = SimpleNamespace(automatic_optimization=True)
    with pytest.raises(ValueError, match="keep one") as caught:
        GradientAccumulationScheduler({0: 2}).on_train_start(trainer, module)
    assert isinstance(caught.value, MisconfigurationException)


def test_manual_optimization() -> None:
    """R83."""
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1)
    module: Any = SimpleNamespace(automatic_optimization=False)
    with pytest.raises(RuntimeError, match="automatic optimization") as caught:
        GradientAccumulationScheduler({0: 2}).on_train_start(trainer, module)
    assert isinstance(caught.value, MisconfigurationException)
