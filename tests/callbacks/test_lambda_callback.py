"""``LambdaCallback``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import pytorch_lightning
import torch

from leyden import Callback
from leyden.callbacks import LambdaCallback
from leyden.errors import InvalidTypeError
from modes import MODES, run

HOOKS = [name for name in inspect.signature(pytorch_lightning.callbacks.LambdaCallback).parameters]


def recorder(names: list[str]) -> tuple[LambdaCallback, list[tuple[str, int]]]:
    calls: list[tuple[str, int]] = []
    functions: dict[str, Any] = {n: (lambda *args, n=n: calls.append((n, len(args)))) for n in names}
    return LambdaCallback(**functions), calls


@pytest.mark.parametrize("mode", MODES)
def test_calls_functions_as_a_callback_is_called(mode: str) -> None:
    expected: list[tuple[str, int]] = []

    def spy(name: str) -> Any:
        return lambda self, *args: expected.append((name, len(args)))

    plain = type("Plain", (Callback,), {name: spy(name) for name in HOOKS})()
    callback, calls = recorder(HOOKS)
    trainer, module, _ = run(mode, [plain, callback], max_epochs=1)
    batch = [(torch.ones(2, 3), torch.ones(2, 1))]
    trainer.validate(module, batch, verbose=False)
    assert expected == calls
    assert {"setup", "on_before_optimizer_step", "on_train_epoch_end", "teardown"} <= {name for name, _ in calls}


def test_none_is_no_hook() -> None:
    run("one", [LambdaCallback(on_fit_start=None)], max_epochs=1)


def test_an_unknown_hook() -> None:
    with pytest.raises(TypeError, match="callbacks have no such hook; they have .*on_fit_end"):
        LambdaCallback(on_fit_finish=print)
    with pytest.raises(InvalidTypeError, match="expected a function, got int"):
        LambdaCallback(on_fit_end=3)  # type: ignore[arg-type]


def test_all_hooks_of_lightning() -> None:
    LambdaCallback(**dict.fromkeys(HOOKS))
