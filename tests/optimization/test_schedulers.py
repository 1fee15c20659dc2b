"""Learning-rate schedulers: their configuration (R18-R26), when they step (R27-R39, V4), and a Joint's (V16)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset

import leyden
from given import Given, Manual, fit, given
from leyden import Joint, MisconfigurationException
from leyden.optimization.plan import build_plan
from leyden.optimization.schedulers import LRSchedulerConfig
from leyden.precision import MixedPrecision

# -- configuration ----------------------------------------------------------------------------------------------------


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def configs(returned: Any, **options: Any) -> list[LRSchedulerConfig]:
    """The configs that a plan makes of what ``configure_optimizers`` returned."""
    return list(build_plan(returned, module=nn.Module(), **options).schedulers)


def config(item: Any, **options: Any) -> LRSchedulerConfig:
    """The config of one scheduler, or of one scheduler dict."""
    scheduler = item["scheduler"] if isinstance(item, dict) else item
    (only,) = configs(([scheduler.optimizer], [item]), **options)
    return only


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"scheduler": s}], ids=["bare", "dict"])
def test_defaults(wrap: Callable[[Any], Any]) -> None:
    """R18: and opt_idx, which is filled in (R24)."""
    scheduler = StepLR(optimizer(), 1)
    assert dict(config(wrap(scheduler))) == {
        "scheduler": scheduler,
        "name": None,
        "interval": "epoch",
        "frequency": 1,
        "reduce_on_plateau": False,
        "monitor": None,
        "strict": True,
        "opt_idx": 0,
    }


def test_every_key() -> None:
    """R18: what is given is kept."""
    given_keys = {"name": "n", "interval": "step", "frequency": 3, "reduce_on_plateau": True, "monitor": "m"}
    made = dict(config({"scheduler": StepLR(optimizer(), 1), **given_keys, "strict": False}))
    assert {**made, **given_keys, "strict": False} == made


def test_unknown_keys() -> None:
    """R19: RuntimeWarning that names them; they are dropped."""
    with pytest.warns(RuntimeWarning, match=r"mean nothing there: \['intervall', 'foo'\]; known are \['scheduler', "):
        made = config({"scheduler": StepLR(optimizer(), 1), "intervall": "step", "foo": 1})
    assert "foo" not in made
    assert made.interval == "epoch"


@pytest.mark.parametrize("item", [{}, {"interval": "step"}, {"scheduler": None}])
def test_a_dict_without_scheduler(item: dict[str, Any]) -> None:
    """R19: MisconfigurationException."""
    with pytest.raises(MisconfigurationException, match="must have the key 'scheduler'"):
        configs(([optimizer()], [item]))


@pytest.mark.parametrize("interval", ["batch", "Epoch", None, 1])
def test_unknown_interval(interval: Any) -> None:
    """R19: MisconfigurationException naming the value."""
    with pytest.raises(MisconfigurationException, match=f"'interval' of StepLR is {interval!r}; it must be 'step' or"):
        config({"scheduler": StepLR(optimizer(), 1), "interval": interval})


def test_order_of_the_checks() -> None:
    """R19: unknown keys, then the missing scheduler, then the interval, then the missing monitor."""
    with (
        pytest.warns(RuntimeWarning, match="mean nothing there"),
        pytest.raises(MisconfigurationException, match="must have the key 'scheduler'"),
    ):
        configs(([optimizer()], [{"foo": 1, "interval": "x"}]))
    with pytest.raises(MisconfigurationException, match="'interval' of ReduceLROnPlateau is 'x'"):
        config({"scheduler": ReduceLROnPlateau(optimizer()), "interval": "x"})


def test_one_cycle_every_epoch() -> None:
    """R19: RuntimeWarning that suggests "step"; none with "step"."""
    with pytest.warns(RuntimeWarning, match='give it as .*"interval": "step"'):
        config(OneCycleLR(optimizer(), max_lr=1.0, total_steps=5))
    config({"scheduler": OneCycleLR(optimizer(), max_lr=1.0, total_steps=5), "interval": "step"})


def test_reduce_on_plateau() -> None:
    """R20: by class if it is not said, else as the user says, either way."""
    assert config({"scheduler": ReduceLROnPlateau(optimizer()), "monitor": "x"}).reduce_on_plateau is True
    assert config({"scheduler": StepLR(optimizer(), 1)}).reduce_on_plateau is False
    own = {"scheduler": StepLR(optimizer(), 1), "reduce_on_plateau": True, "monitor": "x"}
    assert config(own).reduce_on_plateau is True
    assert config({"scheduler": ReduceLROnPlateau(optimizer()), "reduce_on_plateau": False}).reduce_on_plateau is False


def plateau_forms(monitor: str | None) -> dict[str, Any]:
    """Returns with a ReduceLROnPlateau, by where ``monitor`` stands."""
    o = optimizer()
    plateau = ReduceLROnPlateau(o)
    return {
        "outer key, bare scheduler": {"optimizer": o, "lr_scheduler": plateau, "monitor": monitor},
        "inner key": {"optimizer": o, "lr_scheduler": {"scheduler": plateau, "monitor": monitor}},
        "scheduler dict": ([o], {"scheduler": plateau, "monitor": monitor}),
        "outer key, scheduler dict": {"optimizer": o, "lr_scheduler": {"scheduler": plateau}, "monitor": monitor},
        "outer key in a list": [{"optimizer": o, "lr_scheduler": plateau, "monitor": monitor}],
        "nowhere": ([o], [plateau]),
    }


@pytest.mark.parametrize("form", ["outer key, bare scheduler", "inner key", "scheduler dict"])
def test_where_monitor_is_found(form: str) -> None:
    """R21: beside a bare scheduler in a single optimizer dict, and in the scheduler's own dict."""
    (made,) = configs(plateau_forms("loss")[form])
    assert made.monitor == "loss"
    assert made.reduce_on_plateau


@pytest.mark.parametrize("form", plateau_forms("loss"))
def test_where_monitor_is_not_found(form: str) -> None:
    """R19, R21: MisconfigurationException; the outer key reaches neither a scheduler dict nor a list of dicts."""
    monitor = "loss" if form.startswith(("outer key, scheduler", "outer key in", "nowhere")) else None
    with pytest.raises(MisconfigurationException, match="ReduceLROnPlateau must know which value to watch"):
        configs(plateau_forms(monitor)[form])


def test_manual_mode_checks_less() -> None:
    """R22: a plateau needs no monitor, an interval no known name; interval and frequency are kept."""
    assert config(ReduceLROnPlateau(optimizer()), automatic=False).monitor is None
    made = config({"scheduler": StepLR(optimizer(), 1), "interval": "x", "frequency": 3}, automatic=False)
    assert (made.interval, made.frequency) == ("x", 3)


@pytest.mark.parametrize(("key", "value"), [("reduce_on_plateau", True), ("monitor", "x"), ("strict", False)])
def test_manual_mode_ignores_keys(key: str, value: Any) -> None:
    """R22: with a RuntimeWarning that names them."""
    scheduler = StepLR(optimizer(), 1)
    with pytest.warns(RuntimeWarning, match=rf"\['{key}'\] of a scheduler dict are ignored in manual optimization"):
        made = config({"scheduler": scheduler, key: value}, automatic=False)
    assert made == LRSchedulerConfig(scheduler)


class Own:
    """A scheduler that is not torch's: halves the learning rate."""

    def __init__(self, optimizer: Any = None) -> None:
        self.optimizer = optimizer

    def step(self, metric: Any = None) -> None:
        self.optimizer.param_groups[0]["lr"] /= 2

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def test_a_scheduler_must_have_a_state() -> None:
    """R23: TypeError, in both modes, also if ``lr_scheduler_step`` is overridden."""

    class Stateless:
        def step(self) -> None: ...

    for options in ({}, {"automatic": False}, {"custom_scheduler_step": True}):
        for item in (Stateless(), {"scheduler": Stateless()}):
            with pytest.raises(TypeError, match="Stateless is no scheduler: it has no state_dict") as caught:
                configs(([optimizer()], [item]), **options)  # type: ignore[arg-type]
            assert isinstance(caught.value, MisconfigurationException)


def test_a_scheduler_of_the_users_own_class() -> None:
    """R23: in automatic mode only with an overridden ``lr_scheduler_step``; bare and in a dict alike."""
    o = optimizer()
    for item in (Own(o), {"scheduler": Own(o)}):
        with pytest.raises(MisconfigurationException, match="Own is not one of torch's .*; override lr_scheduler_step"):
            configs(([o], [item]))
        assert configs(([o], [item]), custom_scheduler_step=True)[0].opt_idx == 0
        assert configs(([o], [item]), automatic=False)[0].opt_idx == 0


def test_a_scheduler_of_the_users_own_class_steps() -> None:
    """R23: by ``lr_scheduler_step``."""

    class Module(Given):
        def configure_optimizers(self) -> Any:
            self.optimizer = super().configure_optimizers()
            return [self.optimizer], [{"scheduler": Own(self.optimizer), "interval": "step"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step()

    module = Module()
    fit(module, given(1, 2))
    assert module.optimizer.param_groups[0]["lr"] == 0.25


def test_opt_idx() -> None:
    """R24: filled in from the optimizer that the scheduler was built on; one that disagrees is refused."""
    a, b = optimizer(), optimizer()
    on_b = StepLR(b, 1)
    assert [made.opt_idx for made in configs(([a, b], [on_b, StepLR(a, 1)]))] == [1, 0]
    assert configs(([a, b], {"scheduler": on_b, "opt_idx": 1}))[0].opt_idx == 1
    with pytest.raises(MisconfigurationException, match="given opt_idx 0, but it was built on optimizer 1"):
        configs(([a, b], {"scheduler": on_b, "opt_idx": 0}))


def test_a_scheduler_of_a_foreign_optimizer() -> None:
    """R14: MisconfigurationException, bare and in a dict, in both modes."""
    for item in (StepLR(optimizer(), 1), {"scheduler": StepLR(optimizer(), 1)}):
        for automatic in (True, False):
            with pytest.raises(MisconfigurationException, match=r"StepLR belongs to an optimizer \(SGD\) that"):
                configs(([optimizer()], [item]), automatic=automatic)


@pytest.mark.parametrize("frequency", [0, -1, 1.5, True, None])
def test_frequency(frequency: Any) -> None:
    """R25: refused when the plan is made, not at the first use."""
    with pytest.raises(MisconfigurationException, match=f"'frequency' of the scheduler StepLR is {frequency}; it must"):
        config({"scheduler": StepLR(optimizer(), 1), "frequency": frequency})


@pytest.mark.parametrize("base", [Given, Manual])
def test_lr_schedulers(base: type[Given]) -> None:
    """R26: None, the one scheduler, or a list in configured order; the objects themselves, in both modes."""

    class Module(base):  # type: ignore[misc, valid-type]
        def __init__(self, count: int) -> None:
            super().__init__()
            self.count = count

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.made = [StepLR(optimizer, 1) for _ in range(self.count)]
            return [optimizer], [self.made[0], *({"scheduler": s} for s in self.made[1:])] if self.made else []

        def on_train_start(self) -> None:
            self.events.append(self.lr_schedulers())

    none, one, two = Module(0), Module(1), Module(2)
    for module in (none, one, two):
        fit(module, given(1))
    assert none.events == [None]
    assert one.events == one.made
    assert two.events == [two.made]


# -- when they step: the same as in Lightning -------------------------------------------------------------------------


class Endless(IterableDataset[Tensor]):
    """Batches without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter(torch.ones(self.count, 1))


def traced(library: Any, case: dict[str, Any]) -> list[Any]:
    """What happens in a fit of ``case``, scheduler steps and what is around them, in this library."""
    events: list[Any] = []

    class Module(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", float(10 * self.current_epoch + batch_idx))
            return (self.weight * batch).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("validated_at", float(self.global_step))

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=1.0)
            made = [{"scheduler": _scheduler(optimizer, c), **c} for c in case["schedulers"]]
            self.names = {id(c["scheduler"]): c["name"] for c in made}
            return [optimizer], made

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            events.append((self.names[id(scheduler)], None if metric is None else float(metric)))
            super().lr_scheduler_step(scheduler, metric)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            events.append(f"batch {batch_idx}")
            if batch_idx == case.get("should_stop_at"):
                self.trainer.should_stop = True
            return -1 if batch_idx == case.get("leave_epoch_at") else None

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            events.append("end")

        def on_validation_end(self) -> None:
            events.append("validated")

        def on_train_epoch_end(self) -> None:
            events.append("epoch end")

    arguments: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False}
    arguments |= {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    count = case.get("batches", 3)
    data: Any = DataLoader(Endless(count) if case.get("unsized") else torch.ones(count, 1), batch_size=None)
    validation = DataLoader(torch.ones(1, 1), batch_size=None) if case.get("validate") else None
    trainer = library.Trainer(**{**arguments, **case.get("trainer", {})})
    trainer.fit(Module(), data, validation)
    return events


def _scheduler(optimizer: Any, config: dict[str, Any]) -> Any:
    return ReduceLROnPlateau(optimizer) if "monitor" in config else LambdaLR(optimizer, lambda step: 1.0)


def by_step(**keys: Any) -> dict[str, Any]:
    return {"name": "step", "interval": "step", **keys}


def by_epoch(**keys: Any) -> dict[str, Any]:
    return {"name": "epoch", "interval": "epoch", **keys}


def plateau(monitor: str, interval: str, **keys: Any) -> dict[str, Any]:
    return {"name": f"plateau by {interval}", "interval": interval, "monitor": monitor, **keys}


ALL_FOUR = [by_epoch(), plateau("validated_at", "epoch"), plateau("loss", "step"), by_step()]

CASES: dict[str, dict[str, Any]] = {
    "R27, R28: all kinds": {"schedulers": ALL_FOUR, "validate": True},
    "R29: limit_train_batches": {"schedulers": ALL_FOUR, "validate": True, "trainer": {"limit_train_batches": 2}},
    "R29: no length": {"schedulers": [by_step(), by_epoch(), plateau("loss", "epoch")], "unsized": True},
    "R29: no length, limit": {
        "schedulers": [by_step(), by_epoch()],
        "unsized": True,
        "trainer": {"limit_train_batches": 2},
    },
    "R29: max_steps in mid-epoch": {
        "schedulers": [by_step(), by_epoch(), plateau("loss", "epoch")],
        "trainer": {"max_steps": 4},
    },
    "R29: max_steps at an epoch's end": {
        "schedulers": [by_step(), by_epoch(), plateau("loss", "epoch")],
        "trainer": {"max_steps": 3},
    },
    "R29: should_stop in mid-epoch": {
        "schedulers": [by_step(), by_epoch(), plateau("loss", "epoch")],
        "should_stop_at": 1,
    },
    "R29: should_stop on the last batch": {
        "schedulers": [by_step(), by_epoch(), plateau("loss", "epoch")],
        "should_stop_at": 2,
    },
    "R30: frequency": {"schedulers": [by_step(frequency=2)]},
    "R30: frequency beyond the epoch": {"schedulers": [by_step(frequency=4)]},
    "R30: accumulation": {"schedulers": [by_step()], "trainer": {"accumulate_grad_batches": 2}},
    "R30: accumulation and frequency": {
        "schedulers": [by_step(frequency=3)],
        "batches": 8,
        "trainer": {"accumulate_grad_batches": 2},
    },
    "R30: plateau by step and accumulation": {
        "schedulers": [plateau("loss", "step")],
        "batches": 5,
        "trainer": {"accumulate_grad_batches": 2},
    },
    "R31: frequency": {
        "schedulers": [by_epoch(frequency=2), plateau("loss", "epoch", frequency=3)],
        "trainer": {"max_epochs": 6},
    },
    "R32: the epoch is left": {"schedulers": [by_step(), by_epoch(), plateau("loss", "epoch")], "leave_epoch_at": 1},
    "R32: the epoch is left, accumulation": {
        "schedulers": [by_step(), by_epoch()],
        "leave_epoch_at": 1,
        "trainer": {"accumulate_grad_batches": 3},
    },
    "R34: a validation's value between validations": {
        "schedulers": [plateau("validated_at", "step", strict=False)],
        "batches": 4,
        "validate": True,
        "trainer": {"val_check_interval": 2},
    },
    "R35: matching frequency": {
        "schedulers": [plateau("validated_at", "epoch", frequency=2)],
        "validate": True,
        "trainer": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    },
    "R36: val_check_interval": {
        "schedulers": [plateau("validated_at", "epoch"), by_epoch(), by_step()],
        "batches": 4,
        "validate": True,
        "trainer": {"val_check_interval": 3},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_scheduler_steps_are_lightnings(name: str) -> None:
    """R27-R36: which schedulers step, between which events, and with which value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = traced(pytorch_lightning, CASES[name])
        ours = traced(leyden, CASES[name])
    assert ours == theirs
    assert any(isinstance(event, tuple) for event in ours) or name == "R30: frequency beyond the epoch"


# -- when they step: written down -------------------------------------------------------------------------------------


def events(name: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are not there yet (R34)
        return traced(leyden, CASES[name])


def steps(name: str) -> list[Any]:
    return [event for event in events(name) if isinstance(event, tuple)]


def test_schedulers_step_before_on_train_batch_end_and_validation() -> None:
    """R27, R28: "step" before "epoch", both before the batch's end; metric-driven ones after their values exist."""
    assert events("R27, R28: all kinds")[:17] == [
        "batch 0",
        ("step", None),
        "end",
        ("plateau by step", 0.0),
        "batch 1",
        ("step", None),
        "end",
        ("plateau by step", 1.0),
        "batch 2",
        ("step", None),
        ("epoch", None),
        "end",
        "validated",
        ("plateau by step", 2.0),
        "epoch end",
        ("plateau by epoch", 3.0),
        "batch 0",
    ]


@pytest.mark.parametrize("name", ["R29: limit_train_batches", "R29: no length, limit"])
def test_a_limit_ends_the_epoch(name: str) -> None:
    """R29: its last batch is the epoch's last."""
    assert steps(name).count(("epoch", None)) == 2
    assert steps(name).count(("step", None)) == 4


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("R29: max_steps in mid-epoch", 1),
        ("R29: should_stop in mid-epoch", 0),
        ("R29: should_stop on the last batch", 1),
    ],
)
def test_an_epoch_that_is_not_finished(name: str, epochs: int) -> None:
    """R29: no step of interval "epoch" for it, metric-driven or not."""
    assert [step for step, _ in steps(name) if step == "epoch"] == ["epoch"] * epochs
    assert [step for step, _ in steps(name) if step == "plateau by epoch"] == ["plateau by epoch"] * epochs


def test_frequency_counts_batches_of_the_epoch() -> None:
    """R30: 3 batches, frequency 2: one step per epoch, on its second batch."""
    assert (
        events("R30: frequency")
        == ["batch 0", "end", "batch 1", ("step", None), "end", "batch 2", "end", "epoch end"] * 2
    )
    assert steps("R30: frequency beyond the epoch") == []


def test_frequency_with_accumulation() -> None:
    """R30: accumulation 2, frequency 3, 8 batches: one step, on the 6th; nothing on batches that only accumulate."""
    one_epoch = events("R30: accumulation and frequency")[: 8 * 2 + 1]
    assert one_epoch[one_epoch.index(("step", None)) - 1] == "batch 5"
    assert one_epoch.count(("step", None)) == 1
    assert events("R30: accumulation")[:8] == [
        "batch 0",
        "end",
        "batch 1",
        ("step", None),
        "end",
        "batch 2",
        ("step", None),
        "end",
    ]


def test_frequency_of_epochs() -> None:
    """R31: every second, every third of 6 epochs."""
    assert steps("R31: frequency") == [
        ("epoch", None),
        ("plateau by epoch", 22.0),
        ("epoch", None),
        ("epoch", None),
        ("plateau by epoch", 52.0),
    ]


def test_leaving_an_epoch() -> None:
    """R32: the batch whose start hook returned -1 counts as the epoch's last."""
    assert events("R32: the epoch is left")[:8] == [
        "batch 0",
        ("step", None),
        "end",
        "batch 1",
        ("step", None),
        ("epoch", None),
        "epoch end",
        ("plateau by epoch", 0.0),
    ]


def test_every_step_goes_through_the_hook() -> None:
    """R33: ``lr_scheduler_step(scheduler, metric)``; one that steps nothing holds the schedulers back."""

    class Held(Given):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.made = [StepLR(optimizer, 1), ReduceLROnPlateau(optimizer)]
            return [optimizer], [self.made[0], {"scheduler": self.made[1], "monitor": "x"}]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", batch_idx)
            return super().training_step(batch, batch_idx)

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.events.append((scheduler, metric))

    module = Held()
    fit(module, given(1, 2))
    assert module.events == [(module.made[0], None), (module.made[1], torch.tensor(1.0))]
    assert [scheduler.last_epoch for scheduler in module.made] == [0, 0]


def test_the_default_hook() -> None:
    """R33: ``step()``, or ``step(metric)`` if there is one."""

    class Noting(Own):
        calls: list[Any] = []  # noqa: RUF012

        def step(self, *args: Any) -> None:
            self.calls.append(args)

    module = leyden.LightningModule()
    module.lr_scheduler_step(Noting(), None)
    module.lr_scheduler_step(Noting(), 3.0)
    assert Noting.calls == [(), (3.0,)]


class Watching(Given):
    """A metric-driven scheduler; the value is logged by validation, and other values by training."""

    def __init__(self, **keys: Any) -> None:
        super().__init__()
        self.keys = {"monitor": "seen", **keys}

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], {"scheduler": ReduceLROnPlateau(optimizer), **self.keys}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("a", 1.0)
        self.log("b", 1.0)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("seen", float(self.global_step))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.events.append((self.global_step, metric.item()))

    def fit(self, batches: int, **arguments: Any) -> None:
        """Train with this many batches, and validate with one."""
        quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0}
        trainer = leyden.Trainer(**{"max_epochs": 1, **quiet, **arguments})
        trainer.fit(self, given(*range(1, batches + 1)), given(1))


def test_a_missing_value() -> None:
    """R34: MisconfigurationException naming the key and the keys that there are."""
    for interval in ("step", "epoch"):
        with pytest.raises(
            MisconfigurationException, match=r"the value 'x', which was not logged; available: 'a', 'b'"
        ):
            Watching(monitor="x", interval=interval).fit(2)


def test_a_missing_value_that_is_not_strict() -> None:
    """R34: RuntimeWarning, and this scheduler is left out this time."""
    module = Watching(monitor="x", strict=False)
    with pytest.warns(RuntimeWarning, match=r"'x', which was not logged.*; the scheduler is left out this time"):
        module.fit(2)
    assert module.events == []


def test_a_validations_value_by_step() -> None:
    """R34: strict fails on the first batch; else the last known value is used between validations."""
    with pytest.raises(MisconfigurationException, match="the value 'seen', which was not logged"):
        Watching(interval="step").fit(4, val_check_interval=2)
    module = Watching(interval="step", strict=False)
    with pytest.warns(RuntimeWarning, match="left out this time"):
        module.fit(5, val_check_interval=2)
    assert module.events == [(2, 2.0), (3, 2.0), (4, 4.0), (5, 4.0)]


def test_validation_every_second_epoch() -> None:
    """R35: the scheduler's frequency must match; else the first epoch has no value."""
    with pytest.raises(MisconfigurationException, match="or a 'frequency' that matches the validations"):
        Watching().fit(2, max_epochs=4, check_val_every_n_epoch=2)
    module = Watching(frequency=2)
    module.fit(2, max_epochs=4, check_val_every_n_epoch=2)
    assert module.events == [(4, 4.0), (8, 8.0)]


def test_several_validations_in_an_epoch() -> None:
    """R36: one step per epoch, with the last validation's value."""
    module = Watching()
    module.fit(5, max_epochs=2, val_check_interval=2)
    assert module.events == [(5, 4.0), (10, 9.0)]


# -- several optimizers -----------------------------------------------------------------------------------------------


class Two(Given):
    """Two optimizers with one scheduler each, by step and by epoch; ``configured`` may change what is returned."""

    def __init__(self, configured: Callable[[Any], Any] = lambda returned: returned) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.zeros(1))
        self.configured = configured

    def configure_optimizers(self) -> Any:
        self.a, self.b = SGD([self.weight], lr=1.0), SGD([self.other], lr=1.0)
        self.names: dict[int, str] = {}
        schedulers = []
        for letter, o in (("b", self.b), ("a", self.a)):
            for interval in ("epoch", "step"):
                scheduler = LambdaLR(o, lambda step: 1.0)
                self.names[id(scheduler)] = f"{letter} by {interval}"
                schedulers.append({"scheduler": scheduler, "interval": interval})
        return self.configured(([self.a, self.b], schedulers))

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return ((self.weight, self.other)[optimizer_idx] * batch).sum()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.events.append(self.names[id(scheduler)])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.events.append("end")


def test_schedulers_of_several_optimizers() -> None:
    """R37: each by itself, in the order of configuration, after all optimizers."""
    module = Two()
    fit(module, given(1, 2))
    assert module.events == [
        *("b by step", "a by step", "end"),
        *("b by step", "a by step", "b by epoch", "a by epoch", "end"),
    ]


def with_frequencies(*frequencies: int) -> Callable[[Any], Any]:
    """Returns the optimizers as dicts with frequencies, and the first scheduler by step of each."""

    def configured(returned: Any) -> Any:
        optimizers, schedulers = returned
        own = {
            id(o): next(s for s in schedulers if s["scheduler"].optimizer is o and s["interval"] == "step")
            for o in optimizers
        }
        return [
            {"optimizer": o, "frequency": f, "lr_scheduler": own[id(o)]}
            for o, f in zip(optimizers, frequencies, strict=True)
        ]

    return configured


def test_schedulers_with_frequencies() -> None:
    """R38, R64: only those of the optimizer that is active; the cycle goes on across epochs."""
    module = Two(with_frequencies(1, 2))
    fit(module, given(1, 2), max_epochs=3)
    cycle = ["a by step", "end", "b by step", "end", "b by step", "end"]
    assert module.events == cycle * 2


def test_epoch_schedulers_with_frequencies() -> None:
    """R38, R64: of interval "epoch": those of the optimizer that is active on the epoch's last batch."""

    def configured(returned: Any) -> Any:
        optimizers, schedulers = returned
        own = {id(s["scheduler"].optimizer): s for s in schedulers if s["interval"] == "epoch"}
        return [{"optimizer": o, "frequency": 1, "lr_scheduler": own[id(o)]} for o in optimizers]

    module = Two(configured)
    fit(module, given(1, 2, 3), max_epochs=2)
    assert module.events == ["end", "end", "a by epoch", "end"] + ["end", "end", "b by epoch", "end"]


# -- skipped updates --------------------------------------------------------------------------------------------------


class Halving(Given):
    """The learning rate is halved after every update; a nan stands for a batch without a loss."""

    def configure_optimizers(self) -> Any:
        self.optimizer = super().configure_optimizers()
        return [self.optimizer], {"scheduler": StepLR(self.optimizer, 1, gamma=0.5), "interval": "step"}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if math.isnan(batch[0].item()) else super().training_step(batch, batch_idx)

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


NO_LOSS = math.nan


def half_precision() -> MixedPrecision:
    """float16's precision with a scaler that works on CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_an_update_without_a_loss_does_not_advance_schedulers() -> None:
    """V4, R39: it would be the schedule of updates that never were. It counts for global_step all the same."""
    module = Halving()
    trainer = fit(module, given(1, NO_LOSS, NO_LOSS, 1))
    assert module.rate == 0.25
    assert trainer.global_step == 4


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_a_window_without_a_loss_does_not_advance_schedulers() -> None:
    """V4: a window with one loss is an update; one without is none."""
    module = Halving()
    fit(module, given(1, NO_LOSS, NO_LOSS, NO_LOSS, NO_LOSS, 1), accumulate_grad_batches=2)
    assert module.rate == 0.25


def test_a_skipped_float16_update_does_not_advance_schedulers() -> None:
    """V4, R39: with gradients that are not finite nothing moves, the learning rate neither."""
    module = Halving()
    trainer = fit(module, given(1, math.inf, 1), plugins=half_precision())
    assert module.rate == 0.25
    assert module.gradients == [[1.0], [0.5]]
    assert trainer.global_step == 3


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_only_schedulers_of_the_skipped_optimizer_rest() -> None:
    """V4: and only those of interval "step"; an epoch is over whatever became of its updates."""

    class OneRests(Two):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return None if optimizer_idx == 0 else super().training_step(batch, batch_idx, optimizer_idx)

    module = OneRests()
    fit(module, given(1))
    assert module.events == ["b by step", "b by epoch", "a by epoch", "end"]


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_a_metric_driven_scheduler_of_a_skipped_update() -> None:
    """V4: of interval "step" it rests as well."""

    class Skips(Watching):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    module = Skips(monitor="a", interval="step")
    module.fit(3)
    assert [step for step, _ in module.events] == [1, 3]


def test_a_closure_alone_advances_schedulers() -> None:
    """R39, V4: an ``optimizer_step`` that chooses not to step is no skipped update."""

    class EvenOnly(Halving):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:  # type: ignore[override]
            if batch_idx % 2:
                optimizer_closure()
            else:
                optimizer.step(closure=optimizer_closure)

    module = EvenOnly()
    fit(module, given(1, 1, 1, 1))
    assert module.rate == 1 / 16


# -- joint ------------------------------------------------------------------------------------------------------------


class Joined(Two):
    """Both optimizers in one Joint; the gradients are the batch's two numbers."""

    def __init__(self) -> None:
        super().__init__()

    def configure_optimizers(self) -> Any:
        self.a, self.b = SGD([self.weight], lr=1.0), SGD([self.other], lr=1.0)
        schedulers = [StepLR(self.a, 2, gamma=0.1), ExponentialLR(self.b, 0.5)]
        return [Joint([self.a, self.b])], [{"scheduler": s, "interval": "step"} for s in schedulers]

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return self.weight * batch[0] + self.other * batch[1]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()

    @property
    def rates(self) -> list[float]:
        return [o.param_groups[0]["lr"] for o in (self.a, self.b)]


def test_schedulers_of_members() -> None:
    """V16: each moves the member that it was built on."""
    module = Joined()
    fit(module, given([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]))
    assert module.rates == [0.1, 0.125]


def test_schedulers_of_a_joint_share_its_verdict() -> None:
    """V4, V16: a float16 update that one member's gradients spoil is skipped for all, and so are their schedulers."""
    module = Joined()
    fit(module, given([1.0, 1.0], [1.0, math.inf]), plugins=half_precision())
    assert module.rates == [1.0, 0.5]
    assert (module.weight.item(), module.other.item()) == (-1.0, -1.0)


def test_manual_mode_steps_no_scheduler() -> None:
    """R22: none is stepped there, whatever its interval."""

    class ByHand(Manual):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.made = [StepLR(optimizer, 1), StepLR(optimizer, 1)]
            return [optimizer], [self.made[0], {"scheduler": self.made[1], "interval": "step"}]

    module = ByHand()
    fit(module, given(1, 2))
    assert [scheduler.last_epoch for scheduler in module.made] == [0, 0]


def test_learning_rates_of_a_fit() -> None:
    """R27: the rate that a batch trains with: bit for bit that of a loop written by hand."""

    class Module(Given):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [
                {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"},
                {"scheduler": StepLR(optimizer, 2, gamma=0.3), "interval": "epoch"},
            ]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.events.append(self.optimizers().param_groups[0]["lr"])

    module, twin = Module(), optimizer()
    fit(module, given(1, 2, 3), max_epochs=4)
    by_hand = []
    exponential, step = ExponentialLR(twin, 0.9), StepLR(twin, 2, gamma=0.3)
    for _ in range(4):
        for _ in range(3):
            by_hand.append(twin.param_groups[0]["lr"])
            twin.step()
            exponential.step()
        step.step()
    assert module.events == by_hand
