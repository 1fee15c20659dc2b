"""``LearningRateFinder`` beside Lightning's, in all modes, and the traces that it must not leave."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader

import leyden
from leyden import Callback, LightningModule, Trainer
from leyden.callbacks import LearningRateFinder
from leyden.errors import InvalidValueError, MisconfigurationException, OrderError
from modes import BATCHES, DATA, MODES, build

BATCHES_OF_NOISE = [
    (torch.randn(8, 3, generator=torch.Generator().manual_seed(i)), torch.ones(8, 1)) for i in range(60)
]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    **dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}


def regression(framework: Any, **attributes: Any) -> Any:
    class Regression(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
            self.learning_rate = 0.02
            self.__dict__.update(attributes)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return nn.functional.mse_loss(self.net(x), y)

        def configure_optimizers(self) -> Any:
            return Adam(self.parameters(), lr=self.learning_rate)

    return Regression()


@pytest.mark.parametrize(
    ("finder", "arguments"),
    [
        ({"num_training_steps": 50, "min_lr": 1e-4}, {}),
        ({"num_training_steps": 40, "min_lr": 1e-3, "max_lr": 0.5, "mode": "linear"}, {}),
        ({"num_training_steps": 50, "min_lr": 1e-4, "max_lr": 1e6, "early_stop_threshold": 1.2}, {}),
        ({"num_training_steps": 50, "min_lr": 1e-4, "early_stop_threshold": None}, {}),
        ({"num_training_steps": 30, "min_lr": 1e-4, "update_attr": False}, {}),
        ({"num_training_steps": 25, "min_lr": 1e-4}, {"accumulate_grad_batches": 2}),
        ({"num_training_steps": 30, "min_lr": 1e-4, "attr_name": "rate"}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_curve_the_suggestion_and_the_fit_are_lightnings(
    finder: dict[str, Any], arguments: dict[str, Any], tmp_path: Any
) -> None:
    """Rates, smoothed losses, suggestion, and the weights of the fit that follows."""
    found, weights = {}, {}
    for framework in (leyden, pytorch_lightning):
        callback = framework.callbacks.LearningRateFinder(**finder)
        module = regression(framework, **({"rate": 0.1} if "attr_name" in finder else {}))
        trainer = framework.Trainer(max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, **QUIET, **arguments)
        trainer.fit(module, DataLoader(BATCHES_OF_NOISE, batch_size=None))
        curve = callback.optimal_lr
        found[framework] = (curve.results, curve.suggestion(), module.learning_rate, getattr(module, "rate", None))
        weights[framework] = [parameter.detach() for parameter in module.parameters()]
    ours, theirs = found[leyden], found[pytorch_lightning]
    assert ours[0]["lr"] == pytest.approx(theirs[0]["lr"], rel=1e-12)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
    assert [value is None for value in ours] == [value is None for value in theirs]
    assert [value or 0 for value in ours[1:]] == pytest.approx([value or 0 for value in theirs[1:]], rel=1e-12)
    if "attr_name" not in finder:  # an attribute that configure_optimizers reads is used, not only written
        assert all(map(torch.equal, weights[leyden], weights[pytorch_lightning]))


class Trial(Callback):
    """Trains for a few updates at a rate that would ruin everything, when the fit begins."""

    def __init__(self, callbacks: Any = ()) -> None:
        self.callbacks = callbacks
        self.ran = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        outer = self

        class Ruin(Callback):
            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                outer.ran += 1
                for optimizer in trainer.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = 100.0

        trainer.trial(2 * BATCHES + 1, [Ruin(), *self.callbacks])


@pytest.mark.parametrize("mode", MODES)
def test_a_trial_leaves_no_trace(mode: str) -> None:
    """Weights, buffers, optimizers, schedulers, clocks, logs, the module's own attributes: all as without a trial."""
    ends = []
    for callbacks in ([], [Trial()]):
        module = build(mode)
        module.count, module.seen = 0, []

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                pl_module.count += 1
                pl_module.seen.append(trainer.global_step)

        torch.manual_seed(2)
        trainer = Trainer(max_epochs=2, callbacks=[Watch(), *callbacks], **QUIET, **MODES[mode][1])
        loader = DataLoader(DATA, batch_size=None, shuffle=True, generator=torch.Generator().manual_seed(4))
        trainer.fit(module, loader)
        ends.append(
            (
                module.state_dict(),
                [optimizer.state_dict() for optimizer in trainer.optimizers],
                [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                trainer.callback_metrics,
                (trainer.global_step, trainer.current_epoch, trainer.num_updates, module.count, module.seen),
                [(clock.attempted, clock.applied) for clock in trainer.clocks.optimizers],
            )
        )
        assert not callbacks or callbacks[0].ran > 2 * BATCHES
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


def test_a_trial_that_fails_leaves_no_trace_either() -> None:
    """An exception goes on, and the state is put back first."""

    class Break(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("out of something")

    module = build("one")
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="out of something"):
        Trainer(max_epochs=1, callbacks=[Trial([Break()])], **QUIET).fit(module, DATA)
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


def test_a_trial_has_its_place() -> None:
    """In the middle of an epoch there is no state to come back to."""

    class Late(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.trial(1)

    with pytest.raises(OrderError, match="on_fit_start only"):
        Trainer(max_epochs=1, callbacks=[Late()], **QUIET).fit(build("one"), DATA)


def sweep(module: LightningModule, **arguments: Any) -> LearningRateFinder:
    finder = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=30, **arguments)
    Trainer(max_epochs=1, callbacks=[finder], limit_train_batches=1, **QUIET).fit(module, BATCHES_OF_NOISE)
    assert finder.optimal_lr is not None and len(finder.optimal_lr.results["lr"]) > 2
    return finder


def rates(module: LightningModule) -> list[float]:
    return [group["lr"] for optimizer in module.trainer.optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("alternating", 0, (True, False)),
        ("alternating", "head", (False, True)),
        ("joint", "0.0", (True, False)),
        ("joint", "SGD", (False, True)),
        ("manual", "1", (False, True)),
        ("manual", "head.bias", (False, True)),
    ],
)
def test_one_of_several_optimizers_is_named(mode: str, name: int | str, expected: tuple[bool, ...]) -> None:
    """By index, by label, by the part of the module that it has, by class; the others keep their rates."""
    plain = build(mode, scheduled=False)
    Trainer(max_epochs=1, limit_train_batches=1, **QUIET).fit(plain, DATA)
    module = build(mode, scheduled=False)
    suggestion = sweep(module, optimizer=name).optimal_lr.suggestion()  # type: ignore[union-attr]
    assert [rate == suggestion for rate in rates(module)] == list(expected)
    assert [a == b for a, b in zip(rates(module), rates(plain), strict=True)] == [not it for it in expected]


@pytest.mark.parametrize(("mode", "name"), [("alternating", None), ("alternating", "decoder"), ("joint", None)])
def test_several_optimizers_and_none_is_meant(mode: str, name: str | None) -> None:
    """Nothing is guessed: the error lists what there is."""
    with pytest.raises(MisconfigurationException, match=r"works on one optimizer .* there are: 0"):
        sweep(build(mode), optimizer=name)


def test_schedules_start_from_what_was_found() -> None:
    """With an attribute configure_optimizers is called again; else base rates follow, a warm-up keeps its share."""
    for attribute in (True, False):

        class Scheduled(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(3, 1)
                self.other = nn.Linear(1, 1)
                self.lr = 0.03

            def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:
                return (self.other(self.net(batch[0])) - batch[1]).square().mean()

            def configure_optimizers(self) -> Any:
                first, second = SGD(self.net.parameters(), lr=self.lr), SGD(self.other.parameters(), lr=0.01)
                return [first, second], [LambdaLR(first, lambda epoch: 0.1 + epoch), StepLR(second, 1)]

        module = Scheduled()
        finder = sweep(module, optimizer="net", attr_name="lr" if attribute else "")
        suggestion = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
        scheduler = module.trainer.lr_scheduler_configs[0].scheduler
        assert scheduler.base_lrs == [suggestion]
        assert rates(module)[0] == pytest.approx(suggestion * 1.1)  # one epoch has passed
        assert module.lr == (suggestion if attribute else 0.03)


def test_a_one_cycle_schedule_gets_its_peak_from_the_attribute() -> None:
    """What configure_optimizers computes from the attribute is computed again."""

    class Cycle(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            self.net = nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self.net(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=1.0)
            schedule = OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=20)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = Cycle()
    suggestion = sweep(module).optimal_lr.suggestion()  # type: ignore[union-attr]
    assert module.hparams.lr == suggestion
    assert module.trainer.optimizers[0].param_groups[0]["max_lr"] == suggestion


def test_without_an_attribute_it_says_so_before_any_update() -> None:
    """The names that it looks for are in the text."""
    module = build("one")
    with pytest.raises(MisconfigurationException, match="'lr' or 'learning_rate'"):
        sweep(module)
    assert module.global_step == 0


def test_a_sweep_too_short_for_a_suggestion_changes_nothing() -> None:
    """It warns, and the fit goes on at the user's own rate."""
    module = regression(leyden)
    with pytest.warns(UserWarning, match="no learning rate can be suggested"):
        Trainer(max_epochs=1, callbacks=[LearningRateFinder(num_training_steps=5)], **QUIET).fit(
            module, BATCHES_OF_NOISE
        )
    assert rates(module) == [0.02]


def test_a_run_that_looks_for_mistakes_is_left_alone() -> None:
    """fast_dev_run trains one batch, not a sweep."""
    finder = LearningRateFinder()
    Trainer(fast_dev_run=True, callbacks=[finder], **QUIET).fit(regression(leyden), BATCHES_OF_NOISE)
    assert finder.optimal_lr is None


def test_the_curve_is_drawn() -> None:
    """With a mark at the suggestion."""
    pytest.importorskip("matplotlib").use("Agg")
    finder = sweep(regression(leyden))
    figure = finder.optimal_lr.plot(suggest=True)  # type: ignore[union-attr]
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "Learning rate" and len(axes.lines) == 2


@pytest.mark.parametrize(
    "arguments",
    [{"mode": "cubic"}, {"min_lr": 1.0, "max_lr": 0.1}, {"min_lr": 0.0}, {"num_training_steps": 0}],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    """Refused when it is built."""
    with pytest.raises(InvalidValueError, match="LearningRateFinder"):
        LearningRateFinder(**arguments)
