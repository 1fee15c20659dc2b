"""A warning stands at the line of the user's that it is about, however deep in leyden, torch or contextlib it is found.

Below, a comment marks each line that warns, with the code of the warning.
"""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leyden import Callback, LightningModule, Trainer, errors, rank
from leyden.callbacks import ModelCheckpoint
from leyden.compat.utilities import WarningCache, rank_zero_deprecation

BATCHES = [torch.ones(2, 3)] * 2
#: A module that stands for one of leyden's.
INSIDE: dict[str, Any] = {"__name__": "leyden.example", "warn": errors.warn}
exec(
    "from contextlib import contextmanager\n"
    "def advise(*args): warn('advice', code='example')\n"
    "@contextmanager\n"
    "def advised():\n"
    "    yield\n"
    "    advise()\n",
    INSIDE,
)


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class InHook(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ModelCheckpoint(period=1)  # hook: checkpoint-argument-1x


class InConfigureOptimizers(Plain):
    def configure_optimizers(self) -> Any:
        self.save_hyperparameters()  # configure_optimizers: hparams-outside-init
        return super().configure_optimizers()


class InLog(Plain):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("loss", 0.0, tbptt_pad_token=0)  # self.log: log-old-option
        return super().training_step(batch, batch_idx)


class UnknownKey(Plain):
    def configure_optimizers(self) -> Any:
        return {"optimizer": super().configure_optimizers(), "scheduler": 1}


def in_constructor() -> None:
    Trainer(gpus=0)  # constructor: trainer-argument-1x


def fit(module: LightningModule, *callbacks: Callback) -> None:
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=list(callbacks))
    trainer.fit(module, BATCHES)  # what configure_optimizers returned: plan-unknown-key


def through_torch() -> None:
    layer = nn.Linear(3, 1)
    layer.register_forward_hook(INSIDE["advise"])
    layer(BATCHES[0])  # torch between: example


def through_contextlib() -> None:
    with INSIDE["advised"]():  # contextlib between: example
        torch.ones(1)


CASES: dict[str, Callable[[], Any]] = {
    "constructor: trainer-argument-1x": in_constructor,
    "hook: checkpoint-argument-1x": lambda: fit(Plain(), InHook()),
    "configure_optimizers: hparams-outside-init": lambda: fit(InConfigureOptimizers()),
    "what configure_optimizers returned: plan-unknown-key": lambda: fit(UnknownKey()),
    "self.log: log-old-option": lambda: fit(InLog()),
    "torch between: example": through_torch,
    "contextlib between: example": through_contextlib,
}


@pytest.mark.parametrize("case", CASES)
def test_a_warning_names_the_line_of_the_user(case: str) -> None:
    code = case.partition(": ")[2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CASES[case]()
    found = [warning for warning in caught if str(warning.message).endswith(f"[{code}]")]
    assert found
    for warning in found:
        assert warning.filename == __file__
        assert linecache.getline(warning.filename, warning.lineno).rstrip().endswith(f"# {case}")


def test_a_line_is_told_once_and_each_line_anew() -> None:
    """As with Python's own warnings: the registry is that of the module that the line is in."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            INSIDE["advise"]()
        INSIDE["advise"]()
    assert len(caught) == 2


def test_users_own_warnings_count_frames_as_lightning_does() -> None:
    """``stacklevel=4``, the default, is the line that calls; 5 the one that calls the function with that line."""

    def helper(**level: int) -> None:
        rank.rank_zero_warn("own", **level)  # type: ignore[arg-type]  # helper

    cache = WarningCache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        helper()
        helper(stacklevel=5)  # above
        cache.warn("once")  # cache
        cache.warn("once")
        cache.deprecation("old")  # deprecation
    ends = [linecache.getline(one.filename, one.lineno).split("# ")[-1].strip() for one in caught]
    assert ends == ["helper", "above", "cache", "deprecation"]
    with pytest.warns(DeprecationWarning, match="older"):
        rank_zero_deprecation("older")
