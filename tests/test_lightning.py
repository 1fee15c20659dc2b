"""Lightning 2.6.6 is the oracle: the cases of ``cases.py`` that 2.x can run, on both, with the same bits.

Left out is where leyden departs on purpose, and what 2.x does not have:

- the last window of an epoch is never short here, because Lightning dilutes it (V2), and weights and missing losses
  come without accumulation (V2, V3);
- a missing loss comes without schedulers of interval "step", which Lightning steps all the same (V4);
- closure optimizers come without accumulation, because Lightning's closures pile gradients up (V5);
- two updates in one training_step come without autocast, because Lightning's second forward uses weights that were
  cast before the first update (V9);
- a fused optimizer comes without clipping under autocast, which Lightning refuses even where nothing is scaled (V8);
- several optimizers in automatic mode are gone from 2.x, except for a Joint, which it takes for one optimizer: so it
  comes without clipping, which acts on each member, and without schedulers, which belong to members (V16);
- the mean of an epoch is compared up to the rounding of Lightning's sum in single precision; leyden's is double.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, Case, build, data, seed
from leyden import LightningModule, Trainer
from outcomes import assert_same, outcome

pytestmark = pytest.mark.filterwarnings("ignore:.*training-step-none")

TRAINED_BY_2 = {"Alone", "Skipping", "Weighing", "Replaying", "Together", "ByHand"}


def runs_on_lightning(case: Case) -> bool:
    """Whether 2.x can run it, and leyden does not do better on purpose."""
    kind, options = case.kind.__name__, case.options
    if kind in ("Replaying", "ByHand", "Weighing", "Skipping") and options.accumulate > 1:
        return False
    if kind == "Skipping" and options.schedule == "step":
        return False
    if kind == "ByHand" and options.precision == "bf16-mixed":
        return False
    if case.name == "adam fused" and options.clip is not None and options.precision == "bf16-mixed":
        return False
    if kind == "Together" and (options.clip is not None or options.schedule is not None):
        return False
    return kind in TRAINED_BY_2


SHARED = [name for name, case in CASES.items() if runs_on_lightning(case)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def run(case: Case, base: type[Any], trainer_class: type[Any]) -> tuple[Any, dict[str, Tensor]]:
    module = build(case, base)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = trainer_class(accelerator="cpu", **silent, **case.arguments)
    seed(2)
    trainer.fit(module, data(case))
    return outcome(module, trainer.global_step), dict(trainer.callback_metrics)


@pytest.mark.parametrize("name", SHARED)
def test_lightning_leaves_the_same_bits(name: str) -> None:
    """R40, R52, R90, R100, R113, R117, R127: weights, optimizer state, schedulers, losses, global_step, metrics."""
    import pytorch_lightning

    case = replace(CASES[name], batches=6)  # no short window
    expected, expected_metrics = run(case, pytorch_lightning.LightningModule, pytorch_lightning.Trainer)
    found, metrics = run(case, LightningModule, Trainer)
    assert_same(expected, found)
    assert_same(expected_metrics["loss_step"], metrics["loss_step"])
    assert expected_metrics.keys() == metrics.keys() == {"loss", "loss_step", "loss_epoch"}
    for key, value in expected_metrics.items():
        torch.testing.assert_close(metrics[key], value, rtol=2e-6, atol=0, msg=key)
