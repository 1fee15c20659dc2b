"""``configure_optimizers() -> Plan``: R8-R17, V1, V15, V16, and the plan as a table."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

import leyden
from given import Given, Manual, fit, given
from leyden import Joint, LightningOptimizer, MisconfigurationException, Trainer
from leyden.errors import OptimizerIdxError
from leyden.optimization.optimizer import NoOptimizer
from leyden.optimization.plan import Plan, build_plan, check_optimizer_idx, with_optimizers
from leyden.optimization.schedulers import LRSchedulerConfig


class Parts:
    """A network, an optimizer for each half of it, and schedulers on them."""

    def __init__(self) -> None:
        self.net = nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(2, 1)})
        self.a = SGD(self.net["left"].parameters(), lr=0.1)
        self.b = Adam(self.net["right"].parameters(), lr=0.01)
        self.step = StepLR(self.a, 1)
        self.slow = StepLR(self.a, 2)
        self.decay = ExponentialLR(self.b, 0.5)

    def plan(self, returned: Any, **options: Any) -> Plan:
        return build_plan(returned, module=self.net, **options)


@pytest.fixture
def parts() -> Parts:
    return Parts()


Form = Callable[[Parts], Any]

#: name -> (what is returned, its optimizers, its schedulers)
OF_ONE: dict[str, tuple[Form, str]] = {
    "one optimizer": (lambda p: p.a, ""),
    "list of one optimizer": (lambda p: [p.a], ""),
    "tuple of one optimizer": (lambda p: (p.a,), ""),
    "tuple of two lists": (lambda p: ([p.a], [p.step]), "step"),
    "list of two lists": (lambda p: [[p.a], [p.step]], "step"),
    "no schedulers": (lambda p: ([p.a], []), ""),
    "bare scheduler in second place": (lambda p: ([p.a], p.step), "step"),
    "scheduler dict in second place": (lambda p: ([p.a], {"scheduler": p.step, "interval": "step"}), "step"),
    "several schedulers of one optimizer": (lambda p: ([p.a], [p.step, {"scheduler": p.slow}]), "step slow"),
    "dict": (lambda p: {"optimizer": p.a}, ""),
    "dict with scheduler": (lambda p: {"optimizer": p.a, "lr_scheduler": p.step}, "step"),
    "dict with scheduler dict": (lambda p: {"optimizer": p.a, "lr_scheduler": {"scheduler": p.slow}}, "slow"),
    "list of one dict": (lambda p: [{"optimizer": p.a, "lr_scheduler": p.step}], "step"),
}
LIGHTNING_FAILS: dict[str, tuple[Form, str]] = {
    "tuple of schedulers": (lambda p: ([p.a], (p.step, p.slow)), "step slow"),
    "dict with None as scheduler": (lambda p: {"optimizer": p.a, "lr_scheduler": None}, ""),
}
OF_TWO: dict[str, tuple[Form, str]] = {
    "list of two optimizers": (lambda p: [p.a, p.b], ""),
    "tuple of two optimizers": (lambda p: (p.a, p.b), ""),
    "two lists": (lambda p: ([p.a, p.b], [p.step, {"scheduler": p.decay}]), "step decay"),
    "two optimizers, one scheduler dict": (lambda p: ([p.a, p.b], {"scheduler": p.decay}), "decay"),
    "two dicts": (lambda p: ({"optimizer": p.a, "lr_scheduler": p.slow}, {"optimizer": p.b}), "slow"),
}


@pytest.mark.parametrize("name", [*OF_ONE, *LIGHTNING_FAILS, *OF_TWO])
def test_legal_forms(parts: Parts, name: str) -> None:
    """R9: every form, R14: several schedulers of one optimizer, R11: a tuple of schedulers, None as a scheduler."""
    form, schedulers = {**OF_ONE, **LIGHTNING_FAILS, **OF_TWO}[name]
    plan = parts.plan(form(parts))
    assert plan.optimizers == ((parts.a, parts.b) if name in OF_TWO else (parts.a,))
    assert [config.scheduler for config in plan.schedulers] == [getattr(parts, s) for s in schedulers.split()]


QUIET: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False} | {
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


@pytest.mark.parametrize("name", OF_ONE)
def test_legal_forms_mean_what_they_mean_in_lightning(name: str) -> None:
    """R9, R17: the optimizers and the scheduler configs, field by field, that Lightning 2.6 makes of a return."""

    def run(library: Any) -> tuple[list[str], list[dict[str, Any]]]:
        class Module(library.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.parts = Parts()
                self.net = self.parts.net

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return self.net["left"](torch.ones(1, 2)).sum()  # type: ignore[no-any-return]

            def configure_optimizers(self) -> Any:
                return OF_ONE[name][0](self.parts)

        trainer = library.Trainer(**QUIET)
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(1)))
        names = ("name", "interval", "frequency", "reduce_on_plateau", "monitor", "strict")
        configs = [{field: getattr(config, field) for field in names} for config in trainer.lr_scheduler_configs]
        steps = [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs]
        return [type(o).__name__ for o in trainer.optimizers], [*configs, {"last_epoch": steps}]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = run(pytorch_lightning)
    assert run(leyden) == theirs


ILLEGAL: dict[str, tuple[Form, str]] = {
    "a string": (lambda p: "x", "returned str 'x'"),
    "a number": (lambda p: 0.1, "returned float 0.1"),
    "a scheduler": (lambda p: p.step, "returned StepLR"),
    "optimizer and scheduler": (lambda p: (p.a, p.step), r"item 1 .* is StepLR, not an optimizer"),
    "optimizer and schedulers": (lambda p: (p.a, [p.step]), r"item 1 .* \(list\) holds StepLR"),
    "tuple of optimizers, schedulers": (lambda p: ((p.a,), [p.step]), r"item 0 .* \(tuple\)"),
    "three lists": (lambda p: ([p.a], [p.step], []), r"item 0 .* \(list\)"),
    "dict and optimizer": (lambda p: [{"optimizer": p.a}, p.b], "a mix: dict, Adam"),
    "empty list": (lambda p: [], "an empty list"),
    "empty tuple": (lambda p: (), "an empty tuple"),
    "lists of nothing": (lambda p: ([], []), r"item 0 .* \(list\)"),
    "None as schedulers": (lambda p: ([p.a], None), "returned None in place of the schedulers"),
    "scheduler as optimizer": (lambda p: {"optimizer": p.step}, "has StepLR under 'optimizer'"),
    "scheduler among optimizers": (lambda p: {"optimizer": [p.a, p.step]}, "has list under 'optimizer'"),
    "nothing to join": (lambda p: {"optimizer": []}, "has list under 'optimizer'"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_forms(parts: Parts, name: str) -> None:
    """R9, R11: MisconfigurationException that names the offending item and lists the legal forms."""
    form, text = ILLEGAL[name]
    with pytest.raises(MisconfigurationException, match=text) as caught:
        parts.plan(form(parts))
    assert "configure_optimizers may return" in str(caught.value)
    assert caught.value.code == "plan-form"


def test_a_list_under_lr_scheduler(parts: Parts) -> None:
    """R11: several schedulers of one dict: the error shows how to return them."""
    with pytest.raises(MisconfigurationException, match=r"a list under 'lr_scheduler'.*\(\[optimizer\], \[sched"):
        parts.plan({"optimizer": parts.a, "lr_scheduler": [parts.step]})


@pytest.mark.parametrize("returned", [{"lr_scheduler": None}, [{"monitor": "x"}]])
def test_a_dict_without_an_optimizer(parts: Parts, returned: Any) -> None:
    """R11, V15: KeyError as in Lightning, and MisconfigurationException."""
    with pytest.raises(KeyError, match="no key 'optimizer'; its keys are") as caught:
        parts.plan(returned)
    assert isinstance(caught.value, MisconfigurationException)


def test_unknown_keys_of_an_optimizer_dict(parts: Parts) -> None:
    """R9: RuntimeWarning that names them; they are ignored."""
    with pytest.warns(RuntimeWarning, match=r"mean nothing there: \['lr', 'scheduler'\]"):
        plan = parts.plan({"optimizer": parts.a, "lr": 3, "scheduler": parts.step})
    assert plan.optimizers == (parts.a,)
    assert plan.schedulers == ()


@pytest.mark.parametrize(
    ("returned", "hint"),
    [
        (
            lambda p: {"optimizer": p.a, "scheduler": p.step},
            "the scheduler under 'scheduler' is not used: did you mean",
        ),
        (lambda p: {"optimizer": p.a, "lr_schedulers": p.step}, "'lr_schedulers' is not used: did you mean"),
        (lambda p: [{"optimizer": p.a, "lr_sched": p.step}], "'lr_sched' is not used: did you mean 'lr_scheduler'"),
        (lambda p: {"optimizer": p.a, "frequencies": 1}, "'frequencies' is not used: did you mean 'frequency'"),
        (
            lambda p: {"optimizer": p.a, "lr_scheduler": {"scheduler": p.step, "intervall": "step"}},
            "'intervall' is not used: did you mean 'interval'",
        ),
    ],
)
def test_misspelt_keys(parts: Parts, returned: Form, hint: str) -> None:
    """R9: a key that resembles a known one is likely meant to be it, and what stands there is lost."""
    with pytest.warns(RuntimeWarning, match=rf"{hint}.*\[plan-unknown-key\]"):
        parts.plan(returned(parts))


def test_a_key_that_resembles_one_that_is_there(parts: Parts) -> None:
    """R9: what is given already was not meant."""
    with pytest.warns(RuntimeWarning, match="plan-unknown-key") as caught:
        parts.plan({"optimizer": parts.a, "lr_scheduler": parts.step, "scheduler": parts.slow})
    assert "did you mean" not in str(caught[0].message)


# -- when it is called ------------------------------------------------------------------------------------------------


class Asked(Given):
    """Notes around ``configure_optimizers``."""

    def setup(self, stage: str) -> None:
        self.events.append("setup")

    def configure_optimizers(self) -> Any:
        self.events.append(("configure_optimizers", self.trainer.estimated_stepping_batches))
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        self.events.append("on_fit_start")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("validation_step")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("test_step")

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.events.append("predict_step")


def test_called_once_per_fit_between_setup_and_on_fit_start() -> None:
    """R8: and it may use the Trainer, which knows the number of batches by then."""
    module = Asked()
    trainer = fit(module, given(1, 2, 3), max_epochs=2)
    assert module.events == ["setup", ("configure_optimizers", 6), "on_fit_start"]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, given(1, 2, 3))
    assert module.events[3:] == ["setup", ("configure_optimizers", 9), "on_fit_start"]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_not_called_outside_of_fit(stage: str) -> None:
    """R8: there are no optimizers and schedulers then."""
    module = Asked()
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False)
    getattr(trainer, stage)(module, given(1))
    assert module.events == ["setup", f"{stage.replace('validate', 'validation')}_step"]
    assert trainer.optimizers == []
    assert trainer.lr_scheduler_configs == []


def test_log_in_configure_optimizers() -> None:
    """R8: MisconfigurationException."""

    class Logs(Given):
        def configure_optimizers(self) -> Any:
            self.log("x", 1.0)

    with pytest.raises(MisconfigurationException, match=r"self\.log\('x', \.\.\.\) cannot be used"):
        fit(Logs(), given(1))


# -- optimizers -------------------------------------------------------------------------------------------------------


class Returns(Given):
    """A module that returns what a test says."""

    def __init__(self, returned: Callable[[nn.Parameter], Any]) -> None:
        super().__init__()
        self.returned = returned

    def configure_optimizers(self) -> Any:
        return self.returned(self.weight)


def test_no_optimizer() -> None:
    """R10: a warning; training_step and backward run, gradients pile up, global_step counts, nothing moves."""
    module = Returns(lambda weight: None)
    with pytest.warns(UserWarning, match=r"without an optimizer and updates nothing .*\[plan-no-optimizer\]"):
        trainer = fit(module, given(1, 2, 4))
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [7.0]
    assert module.weight.tolist() == [0.0]
    assert trainer.global_step == 3


def test_the_optimizer_of_none() -> None:
    """R10: step runs the closure and returns its value; the other methods do nothing."""
    optimizer = NoOptimizer()
    assert optimizer.step(lambda: 5) == 5
    assert optimizer.step() is None
    optimizer.zero_grad()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.load_state_dict({"state": {}})
    assert optimizer.state_dict() == {}
    assert optimizer.param_groups == []


class Duck:
    """An optimizer by its methods only."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self.param_groups = [{"params": [weight], "lr": 1.0}]
        self.state: dict[Any, Any] = {}
        self.defaults: dict[str, Any] = {}

    def step(self, closure: Callable[[], Any]) -> None:
        closure()
        with torch.no_grad():
            self.weight -= 2 * self.weight.grad  # type: ignore[operator]

    def zero_grad(self) -> None:
        self.weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def test_an_optimizer_of_any_class() -> None:
    """R12: whatever has an optimizer's methods and attributes; without one of them it is none."""
    module = Returns(Duck)
    fit(module, given(1, 2))
    assert module.gradients == [[2.0], [4.0]]
    duck = Duck(module.weight)
    del duck.defaults
    with pytest.raises(MisconfigurationException, match="returned Duck"):
        build_plan(duck, module=module)


def test_a_handle_is_accepted_and_reused() -> None:
    """R12: the plan has the optimizer itself, and ``self.optimizers()`` gives the user's handle back."""
    handles: list[LightningOptimizer] = []

    def configure(weight: nn.Parameter) -> LightningOptimizer:
        handles.append(LightningOptimizer(SGD([weight], lr=1.0)))
        return handles[0]

    module = Returns(configure)
    trainer = fit(module, given(1, 2))
    assert module.gradients == [[1.0], [2.0]]
    assert trainer.optimizers == [handles[0].optimizer]
    assert module.optimizers() is handles[0]


# -- frequencies ------------------------------------------------------------------------------------------------------


def test_frequencies(parts: Parts) -> None:
    """R13, R17: a list of ints, one for each optimizer; empty if unused."""
    plan = parts.plan([{"optimizer": parts.a, "frequency": 1}, {"optimizer": parts.b, "frequency": 5}])
    assert plan.frequencies == (1, 5)
    assert parts.plan([parts.a, parts.b]).frequencies == ()


def test_frequency_on_some_dicts_only(parts: Parts) -> None:
    """R13: ValueError; None counts as not given."""
    dicts = [{"optimizer": parts.a, "frequency": 2}, {"optimizer": parts.b}]
    with pytest.raises(ValueError, match="1 of the 2 dicts .* have a 'frequency'; give it to all of them or to none"):
        parts.plan(dicts)
    with pytest.raises(ValueError, match="1 of the 2 dicts"):
        parts.plan([dicts[0], {**dicts[1], "frequency": None}])
    both = [{**config, "frequency": None} for config in dicts]
    assert parts.plan(both).frequencies == ()


@pytest.mark.parametrize("frequency", [0, -1, 1.5, True, "2"])
def test_frequency_must_be_a_positive_int(parts: Parts, frequency: Any) -> None:
    """R13: said when the plan is made."""
    with pytest.raises(MisconfigurationException, match=r"'frequency' of dict 1 is .*; it must be an int >= 1"):
        parts.plan([{"optimizer": parts.a, "frequency": 1}, {"optimizer": parts.b, "frequency": frequency}])


def test_where_frequency_means_nothing(parts: Parts) -> None:
    """R13: in a dict that stands alone, and in manual mode."""
    assert parts.plan({"optimizer": parts.a, "frequency": 3}).frequencies == ()
    dicts = [{"optimizer": parts.a, "frequency": 1}, {"optimizer": parts.b, "frequency": 5}]
    assert parts.plan(dicts, automatic=False).frequencies == ()


# -- optimizers and training_step -------------------------------------------------------------------------------------


class TwoWeights(Given):
    """Two optimizers, and a ``training_step`` that does not take ``optimizer_idx``."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.zeros(1))

    def configure_optimizers(self) -> Any:
        return [SGD([self.weight], lr=1.0), SGD([self.other], lr=1.0)]

    def on_train_start(self) -> None:
        self.events.append("on_train_start")


@pytest.mark.parametrize("era", [ValueError, RuntimeError, MisconfigurationException])
def test_several_optimizers_without_optimizer_idx(era: type[Exception]) -> None:
    """R15, V1: an error of both eras at the start of the fit, with three remedies."""
    module = TwoWeights()
    with pytest.raises(era) as caught:
        fit(module, given(1))
    for remedy in ("batch_idx, optimizer_idx)", "Joint([...])", "automatic_optimization = False"):
        assert remedy in str(caught.value)
    assert module.events == []


def test_every_remedy_works() -> None:
    """V1: optimizer_idx, Joint and manual mode; each with one optimizer per weight."""

    class Alternating(TwoWeights):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return self.loss(batch) if optimizer_idx == 0 else (self.other * batch * 10).sum()

    class Together(TwoWeights):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) + (self.other * batch * 10).sum()

        def configure_optimizers(self) -> Any:
            return Joint(super().configure_optimizers())

    class ByHand(TwoWeights):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss(batch) + (self.other * batch * 10).sum())
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    for kind in (Alternating, Together, ByHand):
        module = kind()
        fit(module, given(1, 2))
        assert (module.weight.item(), module.other.item()) == (-3.0, -30.0), kind


@pytest.mark.parametrize("era", [ValueError, RuntimeError, MisconfigurationException])
def test_optimizer_idx_in_manual_mode(era: type[Exception]) -> None:
    """R16: with several optimizers, an error of both eras at the start of the fit."""

    class ByHand(TwoWeights):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> None: ...

    module = ByHand()
    with pytest.raises(era, match="takes optimizer_idx, but automatic_optimization is False"):
        fit(module, given(1))
    assert module.events == []


def test_what_fits_together(parts: Parts) -> None:
    """R15, R16: a name, ``*args`` or one optimizer in automatic mode; several without the name in manual mode."""
    two, one = parts.plan([parts.a, parts.b]), parts.plan(parts.a)
    by_hand = parts.plan([parts.a, parts.b], automatic=False)
    check_optimizer_idx(two, takes_optimizer_idx=True, takes_any=False)
    check_optimizer_idx(two, takes_optimizer_idx=False, takes_any=True)
    check_optimizer_idx(one, takes_optimizer_idx=False, takes_any=False)
    check_optimizer_idx(by_hand, takes_optimizer_idx=False, takes_any=False)
    with pytest.raises(OptimizerIdxError):
        check_optimizer_idx(two, takes_optimizer_idx=False, takes_any=False)
    with pytest.raises(OptimizerIdxError):
        check_optimizer_idx(by_hand, takes_optimizer_idx=True, takes_any=False)


# -- what users see of it ---------------------------------------------------------------------------------------------


def test_optimizers_and_schedulers_of_the_trainer() -> None:
    """R17: raw optimizers; one list of configs under both names; frequencies as a list of ints."""

    class Alternating(TwoWeights):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return ((self.weight, self.other)[optimizer_idx] * batch).sum()

        def configure_optimizers(self) -> Any:
            self.a, self.b = super().configure_optimizers()
            self.scheduler = StepLR(self.b, 1)
            return (
                {"optimizer": self.a, "frequency": 1},
                {"optimizer": self.b, "frequency": 2, "lr_scheduler": self.scheduler},
            )

    module = Alternating()
    trainer = fit(module, given(1, 2, 3))
    assert trainer.optimizers == [module.a, module.b]
    assert [type(optimizer) for optimizer in trainer.optimizers] == [SGD, SGD]
    assert trainer.lr_schedulers == trainer.lr_scheduler_configs
    assert [config.scheduler for config in trainer.lr_scheduler_configs] == [module.scheduler]
    assert trainer.optimizer_frequencies == [1, 2]
    assert isinstance(trainer.optimizer_frequencies, list)
    assert fit(Given(), given(1)).optimizer_frequencies == []


def test_a_config_answers_like_an_object_and_like_a_dict(parts: Parts) -> None:
    """R17: attributes, keys, ``get``, ``in``, ``dict(...)``."""
    (config,) = parts.plan(([parts.a], [{"scheduler": parts.step, "name": "warm-up"}])).schedulers
    assert config.scheduler is config["scheduler"] is config.get("scheduler") is parts.step
    assert "name" in config
    assert "nonsense" not in config
    assert config.get("nonsense", 7) == 7
    with pytest.raises(KeyError):
        config["nonsense"]
    assert dict(config) == {
        "scheduler": parts.step,
        "name": "warm-up",
        "interval": "epoch",
        "frequency": 1,
        "reduce_on_plateau": False,
        "monitor": None,
        "strict": True,
        "opt_idx": 0,
    }


def test_configs_are_compared_without_opt_idx(parts: Parts) -> None:
    """R17: with a config or a plain dict, whose opt_idx may be None, 0 or absent."""
    (config,) = parts.plan(([parts.a], [parts.step])).schedulers
    for opt_idx in (None, 0, 1):
        assert config == LRSchedulerConfig(parts.step, opt_idx=opt_idx)
        assert config == {**dict(config), "opt_idx": opt_idx}
    plain = dict(config)
    del plain["opt_idx"]
    assert config == plain
    assert config != {**plain, "frequency": 2}
    assert config != LRSchedulerConfig(parts.slow)
    assert config != parts.step


def test_the_plan_is_immutable(parts: Parts) -> None:
    """R17: what a fit was started with cannot change under it."""
    plan = parts.plan(parts.a)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.optimizers = ()  # type: ignore[misc]


def test_the_plan_of_a_trainer() -> None:
    """R17: there from fit on, with the Trainer's own part in it."""
    trainer = Trainer(enable_progress_bar=False)
    with pytest.raises(RuntimeError, match=r"trainer\.plan is there from trainer\.fit"):
        _ = trainer.plan
    trainer = fit(Given(), given(1), gradient_clip_val=0.5, accumulate_grad_batches=4)
    assert trainer.plan.gradient_clip_val == 0.5
    assert trainer.plan.accumulate_grad_batches == 4
    assert trainer.plan.names == ((("weight",),),)


@pytest.mark.parametrize(
    "form",
    [
        lambda p: [p.a, p.a],
        lambda p: [{"optimizer": p.a, "frequency": 1}, {"optimizer": p.a, "frequency": 2}],
        lambda p: [Joint([p.a, p.b]), p.b],
        lambda p: [joint := Joint([p.a]), joint],
        lambda p: [p.a, LightningOptimizer(p.a)],
    ],
    ids=["alone", "in dicts", "in a Joint", "a Joint", "behind a handle"],
)
@pytest.mark.parametrize("automatic", [True, False])
def test_an_optimizer_is_there_once(parts: Parts, form: Form, automatic: bool) -> None:
    """R9: else each batch would step it twice."""
    with pytest.raises(ValueError, match="is there twice, as optimizer 0") as caught:
        parts.plan(form(parts), automatic=automatic)
    assert caught.value.code == "plan-optimizer-twice"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="plan-optimizer-twice"):
        with_optimizers(parts.plan([parts.a, parts.b]), [parts.a, parts.a], parts.net)


# -- joint ------------------------------------------------------------------------------------------------------------


def test_a_list_under_optimizer_is_joint(parts: Parts) -> None:
    """V15: ``{"optimizer": [a, b]}`` is a Joint of a and b, ``[a]`` is just a."""
    (joint,) = parts.plan({"optimizer": [parts.a, parts.b]}).optimizers
    assert isinstance(joint, Joint)
    assert joint.optimizers == (parts.a, parts.b)
    assert parts.plan({"optimizer": [parts.a]}).optimizers == (parts.a,)


def test_joint_wherever_an_optimizer_may_stand(parts: Parts) -> None:
    """V1, V15: alone, in lists, in dicts, and beside an optimizer with which it takes turns."""
    joint = Joint([parts.a, parts.b])
    other = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    for returned in (joint, [joint], ([joint], []), {"optimizer": joint}, [{"optimizer": joint}]):
        assert parts.plan(returned).optimizers == (joint,)
    assert parts.plan([joint, other]).optimizers == (joint, other)
    plan = parts.plan([{"optimizer": [parts.a, parts.b], "frequency": 1}, {"optimizer": other, "frequency": 2}])
    assert plan.optimizers[0].optimizers == (parts.a, parts.b)
    assert plan.frequencies == (1, 2)


def test_schedulers_of_members(parts: Parts) -> None:
    """V16: a scheduler belongs to the member that it was built on; its index is the Joint's."""
    other = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    joint = Joint([parts.a, parts.b])
    plan = parts.plan(([other, joint], [parts.step, parts.decay, StepLR(other, 1), StepLR(joint, 1)]))
    assert [config.opt_idx for config in plan.schedulers] == [1, 1, 0, 1]


def test_a_scheduler_on_a_member_moves_that_member_only() -> None:
    """V16: ``return [Joint([a, b])], [StepLR(a, 2), ExponentialLR(b, 0.9)]``."""

    class Two(TwoWeights):
        def configure_optimizers(self) -> Any:
            self.a, self.b = super().configure_optimizers()
            return [Joint([self.a, self.b])], [StepLR(self.a, 2, gamma=0.1), ExponentialLR(self.b, 0.5)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return ((self.weight + self.other) * batch).sum()

    module = Two()
    fit(module, given(1), max_epochs=3)
    assert module.a.param_groups[0]["lr"] == pytest.approx(0.1)
    assert module.b.param_groups[0]["lr"] == 0.125


def test_what_cannot_be_joint(parts: Parts) -> None:
    """V15: nothing, LBFGS, and a parameter in two members, in either spelling."""
    with pytest.raises(ValueError, match="has no members"):
        Joint([])
    lbfgs = LBFGS(parts.net["right"].parameters())
    with pytest.raises(ValueError, match="evaluates its closure several times"):
        parts.plan({"optimizer": [parts.a, lbfgs]})
    with pytest.raises(ValueError, match="a parameter is in two members"):
        parts.plan({"optimizer": [parts.a, SGD(parts.net["left"].parameters(), lr=1.0)]})


# -- names and coverage -----------------------------------------------------------------------------------------------


def test_names(parts: Parts) -> None:
    """R17: the parameters of each optimizer by name, group by group; of a Joint, member after member."""
    groups = SGD([{"params": [parts.net["right"].bias]}, {"params": [parts.net["right"].weight]}], lr=1.0)
    assert parts.plan([parts.a, groups]).names == (
        (("left.weight", "left.bias"),),
        (("right.bias",), ("right.weight",)),
    )
    assert parts.plan(Joint([parts.a, groups])).names == (
        (("left.weight", "left.bias"), ("right.bias",), ("right.weight",)),
    )


def test_coverage(parts: Parts) -> None:
    """R17: what is in no optimizer, in two, frozen, or not the module's, in the module's order."""
    parts.net["left"].bias.requires_grad_(False)
    parts.net["right"].bias.requires_grad_(False)
    stranger = nn.Parameter(torch.ones(1))
    again = SGD([parts.net["left"].bias, parts.net["left"].weight, stranger], lr=1.0)
    coverage = parts.plan([parts.a, again]).coverage
    assert coverage.unassigned == ("right.weight",)
    assert coverage.shared == ("left.weight", "left.bias")
    assert coverage.frozen == ("left.bias",)
    assert coverage.foreign == 1
    clean = Parts()
    assert clean.plan([clean.a, clean.b]).coverage == ((), (), (), 0)


# -- as a table -------------------------------------------------------------------------------------------------------


def table(plan: Plan) -> list[list[str]]:
    """The printed plan: the cells of each row, and each note as one cell."""
    rows = [line for line in str(plan).splitlines() if not line.startswith("--")]
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows]


def test_the_table(parts: Parts) -> None:
    """R17: a row for each optimizer with its learning rates, parameters, turn and schedulers."""
    both = SGD([{"params": [parts.net["right"].weight]}, {"params": [parts.net["right"].bias], "lr": 2.0}], lr=1.0)
    watching = {"scheduler": ReduceLROnPlateau(both), "monitor": "loss", "interval": "step", "frequency": 3}
    plan = parts.plan(([parts.a, both], [parts.step, watching, parts.slow]))
    assert table(plan) == [
        ["optimizer", "lr", "parameters", "turn", "schedulers"],
        ["0", "SGD", "0.1", "left.weight, left.bias", "every batch", "StepLR every epoch, StepLR every epoch"],
        ["1", "SGD", "1, 2", "right.weight, right.bias", "every batch", "ReduceLROnPlateau every 3 steps on loss"],
    ]


def test_groups_that_are_added_in_a_run(parts: Parts) -> None:
    """R17: names and notes are those of now, and each member of a Joint keeps its own row."""
    left, right = parts.net["left"], parts.net["right"]
    a, b = SGD([left.weight], lr=0.1), SGD([right.weight], lr=0.2)
    plan = parts.plan(Joint([a, b]))
    assert table(plan)[1:] == [
        ["0.0", "SGD", "0.1", "left.weight", "joint, every batch", "-"],
        ["0.1", "SGD", "0.2", "right.weight", "joint, every batch", "-"],
        ["trainable, but in no optimizer: left.bias, right.bias"],
    ]
    a.add_param_group({"params": [left.bias], "lr": 0.5})
    left.weight.requires_grad_(False)
    assert plan.names == ((("left.weight",), ("left.bias",), ("right.weight",)),)
    assert table(plan)[1:] == [
        ["0.0", "SGD", "0.1, 0.5", "left.weight, left.bias", "joint, every batch", "-"],
        ["0.1", "SGD", "0.2", "right.weight", "joint, every batch", "-"],
        ["trainable, but in no optimizer: right.bias"],
        ["in an optimizer, but frozen: left.weight"],
    ]


def test_the_table_of_turns(parts: Parts) -> None:
    """R17, V16: frequencies, members with their own schedulers, manual mode."""
    third = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    dicts = [{"optimizer": [parts.a, parts.b], "frequency": 1}, {"optimizer": third, "frequency": 5}]
    assert [row[-2] for row in table(parts.plan(dicts))[1:4]] == [
        "joint, 1 of 6 batches",
        "joint, 1 of 6 batches",
        "5 of 6 batches",
    ]
    joint = Joint([parts.a, parts.b])
    rows = table(parts.plan(([joint], [parts.decay, StepLR(joint, 1)])))[1:]
    assert [(row[0], row[1], *row[-2:]) for row in rows] == [
        ("0.0", "SGD", "joint, every batch", "StepLR every epoch"),
        ("0.1", "Adam", "joint, every batch", "ExponentialLR every epoch"),
    ]
    by_hand = parts.plan(([parts.a], [parts.step]), automatic=False)
    assert table(by_hand)[1][-2:] == ["manual", "StepLR"]


def test_the_notes_under_the_table(parts: Parts) -> None:
    """R17: clipping, accumulation and what is odd about the parameters; nothing if nothing is."""
    assert len(table(parts.plan([parts.a, parts.b]))) == 3
    parts.net["left"].bias.requires_grad_(False)
    stranger = SGD([nn.Parameter(torch.ones(1)), parts.net["left"].weight], lr=1.0)
    plan = parts.plan([parts.a, stranger], gradient_clip_val=0.5, accumulate_grad_batches=4)
    assert table(plan)[3:] == [
        ["clipping: norm 0.5, each optimizer by itself"],
        ["accumulation: 4 micro-batches per update"],
        ["trainable, but in no optimizer: right.weight, right.bias"],
        ["in more than one optimizer: left.weight"],
        ["in an optimizer, but frozen: left.bias"],
        ["optimized, but not parameters of the module: 1"],
    ]


def test_many_parameters_are_counted_by_part() -> None:
    """R17: so that the table of a large network stays readable."""
    net = nn.ModuleDict({"body": nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]), "head": nn.Linear(1, 1)})
    plan = build_plan(SGD(net.parameters(), lr=1.0), module=net)
    assert table(plan)[1][3] == "10: body (8), head (2)"


def test_a_scheduler_without_an_optimizer_is_shown(parts: Parts) -> None:
    """R23: a scheduler of the user's own, stepped by ``lr_scheduler_step``, belongs to no row."""

    class Own:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    plan = parts.plan(([parts.a, parts.b], [Own()]), custom_scheduler_step=True)
    assert table(plan)[3:] == [["schedulers of no optimizer: Own every epoch"]]


def test_the_table_of_no_optimizer(parts: Parts) -> None:
    """R10: says so instead of failing."""
    with pytest.warns(UserWarning, match="plan-no-optimizer"):
        plan = parts.plan(None)
    assert table(plan)[1] == ["0", "NoOptimizer", "none", "every batch", "-"]


def test_manual_mode_prints_too() -> None:
    """R17: ``print(trainer.plan)`` after a manual fit."""
    assert table(fit(Manual(), given(1)).plan)[1] == ["0", "SGD", "1", "weight", "manual", "-"]
