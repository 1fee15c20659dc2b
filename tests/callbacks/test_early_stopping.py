"""``EarlyStopping``: R149, R161, R162."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning
import torch

import leyden
from leyden.callbacks import EarlyStopping
from leyden.callbacks.early_stopping import EarlyStoppingReason
from leyden.errors import InvalidValueError, MisconfigurationException
from modes import MODES, SHARED, build, run

NAN, INF = float("nan"), float("inf")


class Told:
    """Logs given values: one for every epoch, and one for every validation."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("val", self.told[min(self.validations, len(self.told) - 1)], batch_size=2)

    def on_validation_epoch_end(self: Any) -> None:
        self.validations += not self.trainer.sanity_checking

    def on_train_epoch_end(self: Any) -> None:
        self.log("late", self.told[min(self.trainer.current_epoch, len(self.told) - 1)])


def stop(
    told: list[float], framework: Any = leyden, *, kind: str = "one", trainer: Any = None, **arguments: Any
) -> Any:
    """Fit with these values; returns the callback, and how long the fit took."""
    class_ = EarlyStopping if framework is leyden else pytorch_lightning.callbacks.EarlyStopping
    callback = class_(**{"monitor": "val", **arguments})
    module = build(kind, framework)
    module.__class__ = type("Telling", (Told, type(module)), {})
    module.told, module.validations = told, 0
    ran, _, _ = run(kind, [callback], framework, module=module, **{"max_epochs": 9, **(trainer or {})})
    return callback, ran.current_epoch, ran.global_step


RUNS: dict[str, tuple[list[float], dict[str, Any], dict[str, Any]]] = {
    "never": ([9, 8, 7, 6, 5, 4, 3, 2, 1], {}, {}),
    "patience": ([5, 4, 4, 4, 4, 4, 4], {}, {}),
    "patience 1": ([5, 4, 3, 3.5, 2], {"patience": 1}, {}),
    "patience 0": ([5, 4, 3, 3.5, 2], {"patience": 0}, {}),
    "delta": ([5, 4.9, 4.8, 4.7, 3, 2.95], {"min_delta": 0.5, "patience": 2}, {}),
    "greater is better": ([1, 2, 3, 3, 3, 3, 4], {"mode": "max", "min_delta": 0.1}, {}),
    "nan": ([5, 4, NAN, 3], {}, {}),
    "infinity": ([5, INF, 4, 3], {"mode": "max"}, {}),
    "nan is no reason": ([5, 4, NAN, 3, NAN, NAN], {"check_finite": False}, {}),
    "threshold": ([5, 4, 3, 2, 1], {"stopping_threshold": 2.5}, {}),
    "threshold from below": ([1, 2, 3, 4], {"stopping_threshold": 2.5, "mode": "max"}, {}),
    "divergence": ([5, 4, 30, 2, 1], {"divergence_threshold": 20.0}, {}),
    "logged at the end of the epoch": ([5, 4, 4, 4, 4, 4, 4], {"monitor": "late"}, {}),
    "several validations": ([5, 4, 4, 4, 4, 4, 4], {}, {"val_check_interval": 0.5}),
    "validations, asked for": ([5, 4, 4, 4, 4, 4, 4], {"check_on_train_epoch_end": False}, {}),
    "few validations": ([5, 4, 4, 4, 4, 4], {"patience": 1}, {"check_val_every_n_epoch": 2}),
    "min_epochs": ([5, 6, 7, 8, 9], {"patience": 1}, {"min_epochs": 6}),
}


@pytest.mark.filterwarnings("ignore:.*stop-before-minimum")
@pytest.mark.parametrize("name", RUNS)
def test_stops_where_lightning_stops(name: str) -> None:
    told, arguments, trainer = RUNS[name]
    theirs, *their_end = stop(told, pytorch_lightning, trainer=trainer, **arguments)
    ours, *our_end = stop(told, trainer=trainer, **arguments)
    assert their_end == our_end
    expected, found = theirs.state_dict(), ours.state_dict()
    assert found.pop("stopping_reason_message") is not None or expected["stopping_reason_message"] is None
    del expected["stopping_reason_message"]
    assert expected == found
    assert theirs.state_key == ours.state_key


@pytest.mark.parametrize("mode", MODES)
def test_in_all_modes(mode: str) -> None:
    callback, epochs, _ = stop([5, 4, 4, 4, 4, 4], kind=mode)
    assert (epochs, callback.stopped_epoch) == (5, 4)
    assert callback.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    if mode in SHARED:
        assert stop([5, 4, 4, 4, 4, 4], pytorch_lightning, kind=mode)[1] == 5


def test_an_interval_in_batches_checks_validations() -> None:
    """Lightning takes ``val_check_interval=1``, every batch, for 1.0, every epoch."""
    _, _, steps = stop([5, 4, 4, 4, 4], trainer={"val_check_interval": 1})
    assert steps == 5


def test_a_misspelt_monitor() -> None:
    with pytest.raises(RuntimeError, match=r"Logged were: late, train_loss, val\. Did you mean 'val'\?") as caught:
        stop([1], monitor="vall")
    assert isinstance(caught.value, MisconfigurationException)
    assert caught.value.code == "early-stopping-monitor"


def test_a_monitor_that_may_be_missing() -> None:
    assert stop([1], monitor="vall", strict=False)[1] == 9
    with pytest.warns(RuntimeWarning, match="no such value"):
        stop([1], monitor="vall", strict=False, verbose=True, trainer={"max_epochs": 1})


def test_mode() -> None:
    with pytest.raises(InvalidValueError, match="mode='auto'"):
        EarlyStopping("val", mode="auto")


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    stop([5, 4, 4, 4], patience=2, verbose=True)
    out = capsys.readouterr().out
    assert "val has improved from 5 to 4." in out
    assert "val has not improved in 2 checks; its best is 4. The fit ends." in out


def test_state() -> None:
    callback, *_ = stop([5, 4, 4, 4, 4], patience=2)
    state = callback.state_dict()
    restored = EarlyStopping("val", patience=2)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    old = {key: state[key] for key in ("wait_count", "stopped_epoch", "best_score", "patience")}
    restored.load_state_dict(old)
    assert restored.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    theirs = pytorch_lightning.callbacks.EarlyStopping("val")
    theirs.load_state_dict(state)
    assert theirs.best_score == torch.tensor(4.0)


def test_neither_in_evaluations_nor_while_debugging() -> None:
    callback = EarlyStopping("nothing", check_on_train_epoch_end=False)
    trainer, module, _ = run("one", [callback], fast_dev_run=True)
    trainer.validate(module, [(torch.ones(2, 3), torch.ones(2, 1))], verbose=False)
