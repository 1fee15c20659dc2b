"""Which actions of a run a profiler sees, how often, and that it changes nothing; Lightning 2.6.6 is the oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, IterableDataset

import leyden
import modes
from leyden.callbacks import Timer
from leyden.hooks.dispatch import unprofiled
from leyden.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, PyTorchProfiler, SimpleProfiler

STRATEGY = "[Strategy]SingleDeviceStrategy"
NEXT = "[_TrainingEpochLoop].train_dataloader_next"


class Count(Profiler):
    """Counts and, at the end, knows that everything was stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.order: list[str] = []
        self.running: list[str] = []

    def start(self, action_name: str) -> None:
        assert action_name not in self.running
        self.running.append(action_name)
        self.order.append(action_name)

    def stop(self, action_name: str) -> None:
        assert self.running.pop() == action_name
        self.counts[action_name] = self.counts.get(action_name, 0) + 1


def profiled(name: str, framework: Any, callbacks: Any = (), **arguments: Any) -> dict[str, int]:
    """Calls by action of a fit in one of the modes."""
    profiler = framework.profilers.SimpleProfiler(extended=False)
    modes.run(name, list(callbacks), framework, profiler=profiler, **arguments)
    return {action: len(durations) for action, durations in profiler.recorded_durations.items()}


def assert_same_counts(ours: dict[str, int], theirs: dict[str, int], expected: set[str]) -> None:
    """What both frameworks know has the same counts in both, and ``expected`` is known to both."""
    shared = set(ours) & set(theirs)
    assert expected <= shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


class Listening:
    """A callback that hears every batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pass


class OurListener(Listening, leyden.Callback):
    state_key = "Listener"


class TheirListener(Listening, pytorch_lightning.Callback):
    state_key = "Listener"


ALWAYS = {
    "run_training_epoch",
    "run_training_batch",
    NEXT,
    f"{STRATEGY}.training_step",
    f"{STRATEGY}.validation_step",
    "[_EvaluationLoop].val_next",
    "[LightningModule]Module.configure_optimizers",
    "[Callback]Listener.on_train_batch_end",
    "[Callback]Listener.on_validation_end",
}
AUTOMATIC = {
    f"{STRATEGY}.backward",
    "[LightningModule]Module.optimizer_step",
    "[LightningModule]Module.optimizer_zero_grad",
    "[LightningModule]Module.lr_scheduler_step",
}


@pytest.mark.parametrize("name", modes.SHARED)
def test_counts_are_lightnings(name: str, capsys: Any) -> None:
    """With one optimizer, accumulated, and by hand."""
    expected = ALWAYS | ({"optimizer_step"} if name == "manual" else AUTOMATIC)
    ours, theirs = profiled(name, leyden, [OurListener()]), profiled(name, pytorch_lightning, [TheirListener()])
    assert_same_counts(ours, theirs, expected)


@pytest.mark.parametrize("name", ["alternating", "joint"])
def test_counts_of_several_optimizers(name: str, capsys: Any) -> None:
    """Optimizers that take turns have a step each on every batch, a Joint has one."""
    counts, batches = profiled(name, leyden, max_epochs=2), 2 * modes.BATCHES
    steps = 2 * batches if name == "alternating" else batches
    assert {action: counts[action] for action in ("run_training_epoch", "run_training_batch", NEXT)} == {
        "run_training_epoch": 2,
        "run_training_batch": batches,
        NEXT: batches,
    }
    actions = [f"{STRATEGY}.training_step", *AUTOMATIC - {"[LightningModule]Module.lr_scheduler_step"}]
    assert {counts[action] for action in actions} == {steps}


def with_overrides(framework: Any) -> Any:
    """A module that overrides what leyden would profile by itself, and hooks."""

    class Module(modes.Steps, framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.build()

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer.step(closure=optimizer_closure)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad()

        def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward(*args, **kwargs)

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step()

        def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, **_: Any) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            pass

        def on_after_backward(self) -> None:
            pass

        def configure_model(self) -> None:
            pass

        def setup(self, stage: str) -> None:
            pass

    return Module()


def test_overridden_methods_are_profiled_once(capsys: Any) -> None:
    """An override takes the place of what is profiled without it, under the same name."""
    profiler = Count()
    modes.run("one", [], leyden, profiler=profiler, module=with_overrides(leyden))
    ours = profiler.counts
    assert ours["[LightningModule]Module.backward"] == ours[f"{STRATEGY}.backward"]
    theirs = profiled("one", pytorch_lightning, module=with_overrides(pytorch_lightning))
    hooks = {"on_before_optimizer_step", "on_after_backward", "configure_model", "setup", "configure_gradient_clipping"}
    names = AUTOMATIC | {f"[LightningModule]Module.{name}" for name in hooks} | {f"{STRATEGY}.batch_to_device"}
    assert_same_counts(ours, theirs, names)


def test_default_clipping_is_profiled(capsys: Any) -> None:
    """Clipping that the Trainer's argument asks for, in the middle of a fit too."""
    arguments: dict[str, Any] = {"gradient_clip_val": 0.5, "max_epochs": 1}
    ours, theirs = (profiled("one", framework, **arguments) for framework in (leyden, pytorch_lightning))
    assert_same_counts(ours, theirs, {"[LightningModule]Module.configure_gradient_clipping"})


def data_of(framework: Any) -> Any:
    class Data(framework.LightningDataModule):  # type: ignore[misc, name-defined]
        def prepare_data(self) -> None:
            pass

        def setup(self, stage: str) -> None:
            pass

        def train_dataloader(self) -> Any:
            return DataLoader(modes.DATA, batch_size=None)

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    return Data()


def test_all_runs_and_the_datamodule(capsys: Any) -> None:
    """Validate, test and predict; a datamodule's methods carry its name."""
    counts = []
    for framework in (leyden, pytorch_lightning):

        class Module(modes.Steps, framework.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.build()

            def test_step(self, batch: Any, batch_idx: int) -> None:
                pass

            def predict_step(self, batch: Any, batch_idx: int) -> None:
                pass

        profiler = framework.profilers.SimpleProfiler(extended=False)
        trainer = framework.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, profiler=profiler)
        for run in (trainer.validate, trainer.test, trainer.predict):
            run(Module(), datamodule=data_of(framework))
        counts.append({name: len(durations) for name, durations in profiler.recorded_durations.items()})
    steps = {f"{STRATEGY}.{name}_step" for name in ("validation", "test", "predict")}
    waits = {"[_EvaluationLoop].val_next", "[_EvaluationLoop].test_next", "[_PredictionLoop].predict_next"}
    methods = ("prepare_data", "setup", "val_dataloader", "test_dataloader", "predict_dataloader")
    assert_same_counts(*counts, expected=steps | waits | {f"[LightningDataModule]Data.{name}" for name in methods})


def test_a_loader_without_a_length_is_also_asked_for_its_end(capsys: Any) -> None:
    """Every question is an action, the last one too; the batches are all there."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(modes.DATA)

    profiler, module = Count(), modes.build("one")
    trainer = leyden.Trainer(max_epochs=2, profiler=profiler, accelerator="cpu", logger=False)
    trainer.fit(module, DataLoader(Stream(), batch_size=None))
    assert profiler.counts["run_training_batch"] == 2 * modes.BATCHES
    assert profiler.counts[NEXT] == 2 * (modes.BATCHES + 1)


def test_actions_lie_inside_of_each_other() -> None:
    """The first batch, in order; every action is stopped by what started it."""
    profiler, module = Count(), modes.build("one", scheduled=False)
    arguments: dict[str, Any] = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    trainer = leyden.Trainer(max_epochs=1, profiler=profiler, accelerator="cpu", **arguments)
    trainer.fit(module, modes.DATA[:1])
    assert profiler.running == []
    assert profiler.order[profiler.order.index("run_training_epoch") :] == [
        "run_training_epoch",
        NEXT,
        "run_training_batch",
        "[LightningModule]Module.optimizer_step",
        f"{STRATEGY}.training_step",
        "[LightningModule]Module.optimizer_zero_grad",
        f"{STRATEGY}.backward",
    ]


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
@pytest.mark.parametrize("name", list(modes.MODES))
def test_a_profiler_changes_no_bit(name: str, kind: type[Any], tmp_path: Any, capsys: Any) -> None:
    """Weights and logged values in every mode are those of a run without a profiler."""
    _, plain, plain_rows = modes.run(name, [], max_epochs=2)
    _, module, rows = modes.run(name, [], max_epochs=2, profiler=kind(tmp_path))
    weights = module.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())
    assert rows.rows == plain_rows.rows


class Bound(leyden.Callback):
    """Keeps what a fit has bound, by name."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        engine, parts = trainer._engine, trainer._parts
        turn, listeners = engine.turns[0], engine.hooks.on_train_batch_end.callbacks
        self.bound = {
            "calls": engine.optimization._calls,
            "perform": turn.handle._perform,
            "zero_grad": turn.contract.zero_grad,
            "run": parts.optimization.run,
            "listener": listeners[-1],
            "profile": parts.profile,
            "watch": parts.watch,
            "clip": engine.updates.clip,
            "hook": engine.hooks.on_train_epoch_start.module,
        }


class Hooked(modes.Steps, leyden.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.build()

    def on_train_epoch_start(self) -> None:
        pass


@pytest.mark.parametrize("profiler", [None, PassThroughProfiler()])
def test_without_a_profiler_nothing_is_wrapped(profiler: Any) -> None:
    """What a fit calls are the module's, the optimizer's and leyden's own functions, the very same as ever."""
    callback = Bound()
    trainer, module, _ = modes.run(
        "one", callback, module=Hooked(), profiler=profiler, max_epochs=1, gradient_clip_val=1.0
    )
    bound = callback.bound
    assert type(trainer.profiler) is PassThroughProfiler
    assert bound["calls"].training_step == module.training_step
    assert bound["calls"].optimizer_step is bound["calls"].backward is bound["calls"].optimizer_zero_grad is None
    assert bound["perform"].func.__func__ is leyden.optimization.update.Updates.perform
    assert bound["zero_grad"].func is leyden.optimization.bare._drop_gradients
    assert bound["clip"].func is leyden.optimization.gradients.clip
    assert bound["listener"].func == callback.on_train_batch_end
    assert bound["hook"] == module.on_train_epoch_start
    assert bound["profile"] is unprofiled and bound["watch"] is iter


def test_with_a_profiler_everything_is_wrapped() -> None:
    """The same places hold something else; the test above could fail."""
    callback = Bound()
    _, module, _ = modes.run("one", callback, module=Hooked(), profiler=Count(), max_epochs=1, gradient_clip_val=1.0)
    bound = callback.bound
    assert bound["calls"].training_step != module.training_step
    assert bound["calls"].backward is not None
    for name in ("perform", "zero_grad", "clip", "listener", "hook"):
        function = getattr(bound[name], "func", bound[name])
        assert function.__name__ == "in_profile", name
    assert bound["profile"] is not unprofiled and bound["watch"] is not iter


def test_a_step_may_be_left_early_by_hand() -> None:
    """StopIteration out of a manual training_step passes through the profiler's block unchanged."""

    class Module(modes.ByHand, leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.build()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise StopIteration

    profiler = Count()
    modes.run("manual", [], module=Module(), profiler=profiler, max_epochs=1)
    assert profiler.counts[f"{STRATEGY}.training_step"] == modes.BATCHES


def test_optimizers_that_step_inside_of_each_other() -> None:
    """A closure may step another optimizer; the inner step is inside of the outer one."""

    class Module(modes.ByHand, leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.build()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            outer, inner = self.optimizers()

            def closure() -> Any:
                loss = self.loss(batch)
                self.manual_backward(loss)
                inner.step()
                return loss

            outer.step(closure)

    for kind in (SimpleProfiler, AdvancedProfiler):
        profiler = kind(filename=None)
        profiler.describe = lambda: None
        _, module, _ = modes.run("manual", [], module=Module(), profiler=profiler, max_epochs=1)


def test_profilers_of_users_own_blocks(capsys: Any) -> None:
    """``self.trainer.profiler.profile(...)`` works in every run; it is measured where something measures."""

    class Module(modes.Steps, leyden.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.build()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with self.trainer.profiler.profile("mine") as name:
                assert name == "mine"
                return super().training_step(batch, batch_idx)

    profiler = Count()
    modes.run("one", [], module=Module(), max_epochs=1)
    modes.run("one", [], module=Module(), max_epochs=1, profiler=profiler)
    assert profiler.counts["mine"] == modes.BATCHES


def test_callbacks_are_told_apart_by_their_state_key() -> None:
    """Two callbacks of one class have actions of their own if their keys differ."""

    class Keyed(Timer):
        state_key = "Timer{'duration': '00:01:00:00'}"

    profiler = Count()
    modes.run("one", [Timer("00:01:00:00"), Keyed("00:02:00:00")], profiler=profiler, max_epochs=1)
    assert {"[Callback]Timer.on_train_start", f"[Callback]{Keyed.state_key}.on_train_start"} <= set(profiler.counts)


def test_a_trainer_with_a_profiler_is_copied() -> None:
    """Profilers hold nothing that could not be copied between runs."""
    for profiler in (SimpleProfiler(), PyTorchProfiler(), PassThroughProfiler()):
        assert type(copy.deepcopy(profiler)) is type(profiler)
