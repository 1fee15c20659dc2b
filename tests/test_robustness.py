"""A Trainer in the hands of real code: endless data, exceptions, settings changed in the middle, reuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from leyden import Callback, LightningModule, Trainer
from leyden.errors import LeydenWarning, OrderError

DATA = [torch.full((2, 3), float(value)) for value in range(1, 7)]


class Model(LightningModule):
    """Two layers and a record of what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
        self.steps = 0

    def loss(self, batch: Tensor) -> Tensor:
        return self.second(self.first(batch)).pow(2).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.steps += 1
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Two(Model):
    """Manual mode with two optimizers that are toggled by hand; fails where it is told to."""

    automatic_optimization = False
    fails_at: int | None = None
    untoggles = True

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            if batch_idx == self.fails_at:
                raise KeyboardInterrupt
            self.manual_backward(self.loss(batch))
            optimizer.step()
            if self.untoggles:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.first.parameters(), lr=0.01), torch.optim.SGD(self.second.parameters(), lr=0.01)


class Recorder(Callback):
    """The names of the hooks that ran, and whatever ``act`` does in one of them."""

    def __init__(self, hook: str = "", act: Any = None) -> None:
        self.hooks: list[str] = []
        for name in ("on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_validation_start"):
            setattr(self, name, self._recording(name, act if name == hook else None))
        self.on_train_end = self._recording("on_train_end", None)  # type: ignore[method-assign]

    def _recording(self, name: str, act: Any) -> Any:
        def hook(trainer: Trainer, *_: Any) -> None:
            self.hooks.append(name)
            if act is not None:
                act(trainer)

        return hook


def trainer_for(**arguments: Any) -> Trainer:
    return Trainer(**{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **arguments})


# -- data that ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"max_epochs": -1, "max_steps": 20}, {"max_epochs": 3}, {"max_epochs": -1}])
def test_an_iterator_that_is_used_up_is_an_error(arguments: dict[str, Any]) -> None:
    """It would make empty epochs for ever, or silently."""
    module = Model()
    with pytest.raises(OrderError, match=r"no batch in epoch 1.*used only once.*\[no-batches\]"):
        trainer_for(**arguments).fit(module, iter(DATA))
    assert module.steps == len(DATA)


@pytest.mark.parametrize("max_epochs", [-1, 3])
def test_a_loader_without_batches_trains_nothing(max_epochs: int) -> None:
    """The fit says so and ends, without the hooks of a training."""
    recorder = Recorder()
    trainer = trainer_for(max_epochs=max_epochs, callbacks=recorder)
    with pytest.warns(LeydenWarning, match=r"no batches.*\[no-batches\]"):
        trainer.fit(Model(), [])
    assert (recorder.hooks, trainer.current_epoch) == ([], 0)


def test_steps_that_do_not_count_are_told() -> None:
    """max_steps counts what goes through self.optimizers(); a raw step does not."""

    class Raw(Model):
        automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.optimizers(use_pl_optimizer=False).step()
            if self.trainer.current_epoch == 2:
                self.trainer.should_stop = True

    with pytest.warns(LeydenWarning, match=r"max_steps may never be reached.*\[no-steps\]"):
        trainer_for(max_epochs=None, max_steps=5).fit(Raw(), DATA)


@pytest.mark.parametrize("missing", [1, 3, 5])
def test_a_missing_batch_does_not_drop_its_window(missing: int) -> None:
    """V3: a batch that the loader does not give leaves the window of the others, also at its end."""
    data: list[Any] = [None if place == missing else batch for place, batch in enumerate(DATA)]
    module, twin = Model(), Model()
    twin.load_state_dict(module.state_dict())
    with pytest.warns(LeydenWarning, match="batch-none"):
        trainer_for(accumulate_grad_batches=2).fit(module, data)
    optimizer = twin.configure_optimizers()
    for start in range(0, len(data), 2):
        window = [batch for batch in data[start : start + 2] if batch is not None]
        optimizer.zero_grad()
        for batch in window:
            (twin.loss(batch) / 2).backward()
        if len(window) == 1:
            for parameter in twin.parameters():
                parameter.grad.mul_(2.0)  # type: ignore[union-attr]
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("every", [2, 4])
def test_a_loader_that_ends_early_does_not_drop_its_window(every: int) -> None:
    """R113: the last window steps, also where the loader's length promised more."""

    class Short:
        def __len__(self) -> int:
            return 9

        def __iter__(self) -> Iterator[Tensor]:
            return iter(DATA[:5])

    module, twin = Model(), Model()
    twin.load_state_dict(module.state_dict())
    trainer = trainer_for(accumulate_grad_batches=every)
    with pytest.warns(LeydenWarning, match="loader-shorter-than-its-length"):
        trainer.fit(module, Short())
    optimizer = twin.configure_optimizers()
    for start in range(0, 5, every):
        window = DATA[start : min(start + every, 5)]
        optimizer.zero_grad()
        for batch in window:
            (twin.loss(batch) / every).backward()
        for parameter in twin.parameters():
            parameter.grad.mul_(every / len(window))  # type: ignore[union-attr]
        optimizer.step()
    assert trainer.global_step == trainer.num_updates == -(-5 // every)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


# -- the end of a run -------------------------------------------------------------------------------------------------


def test_toggles_are_undone_after_an_exception() -> None:
    """R62: Ctrl-C in the middle of a toggle leaves no parameter frozen, and the next fit trains all of them.

    Nothing is said, since nothing was forgotten.
    """
    module = Two()
    module.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        trainer_for().fit(module, DATA)
    assert all(parameter.requires_grad for parameter in module.parameters())
    module.fails_at = None
    before = copy.deepcopy(module.state_dict())
    trainer_for().fit(module, DATA)
    assert not any(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_forgotten_untoggle_is_told() -> None:
    """What stays frozen trains silently nothing, so the end of the fit says it and gives it back."""
    module = Two()
    module.untoggles = False
    with pytest.warns(LeydenWarning, match=r"without untoggle_optimizer.*\[toggle-left-on\]"):
        trainer_for().fit(module, DATA[:1])
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_handle_kept_beyond_its_fit_is_a_plain_optimizer() -> None:
    """It counts for no run any more."""
    module = Two()
    trainer = trainer_for()
    trainer.fit(module, DATA)
    steps = trainer.global_step
    module.optimizers()[0].step()
    assert trainer.global_step == steps == 2 * len(DATA)


def test_a_trainer_can_be_pickled_after_a_fit() -> None:
    """For process pools and notebooks; the module goes along and is not attached."""
    trainer = trainer_for()
    trainer.fit(Model(), DATA)
    assert pickle.loads(pickle.dumps(trainer)).global_step == trainer.global_step == len(DATA)


def test_a_fit_with_nothing_left_to_do_does_nothing() -> None:
    """V12: it says so, and the hooks of a training do not run again."""
    recorder = Recorder()
    trainer, module = trainer_for(callbacks=recorder), Model()
    trainer.fit(module, DATA)
    recorder.hooks.clear()
    with pytest.warns(LeydenWarning, match=r"fit_loop.max_epochs.*\[fit-nothing-to-do\]"):
        trainer.fit(module, DATA)
    assert (recorder.hooks, module.steps) == ([], len(DATA))


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_should_stop_before_the_first_batch_runs_none() -> None:
    """Set in on_train_epoch_start, no batch of that epoch runs."""
    module = Model()
    stop = Recorder("on_train_epoch_start", lambda trainer: setattr(trainer, "should_stop", True))
    trainer_for(max_epochs=3, callbacks=stop).fit(module, DATA)
    assert module.steps == 0


def test_a_stop_does_not_validate_in_an_epoch_that_does_not() -> None:
    """check_val_every_n_epoch holds for the last epoch as well."""

    class Validated(Model):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            """Nothing to compute."""

    stop = Recorder("on_train_batch_start", lambda trainer: setattr(trainer, "should_stop", True))
    arguments = {"max_epochs": 5, "check_val_every_n_epoch": 5, "num_sanity_val_steps": 0}
    trainer_for(callbacks=stop, **arguments).fit(Validated(), DATA, DATA)
    assert "on_validation_start" not in stop.hooks


# -- settings that change in a run ------------------------------------------------------------------------------------


def test_clipping_may_be_set_in_a_run() -> None:
    """trainer.gradient_clip_val = ... in a callback acts from the next update on."""
    module, twin = Model(), Model()
    twin.load_state_dict(module.state_dict())
    clip = Recorder("on_train_start", lambda trainer: setattr(trainer, "gradient_clip_val", 0.01))
    trainer_for(callbacks=clip).fit(module, DATA)
    trainer_for(gradient_clip_val=0.01).fit(twin, DATA)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


def test_accumulation_may_be_set_in_a_run() -> None:
    """trainer.accumulate_grad_batches = ... acts from the next batch on."""

    def accumulate(trainer: Trainer) -> None:
        trainer.accumulate_grad_batches = 2 if trainer.fit_loop.clocks.batch_idx >= 2 else 1

    trainer = trainer_for(callbacks=Recorder("on_train_batch_start", accumulate))
    trainer.fit(Model(), DATA)
    assert trainer.global_step == 5  # batches 0, 1 and 2 alone, batch 3 closes its window, then 4 and 5 together


def test_validation_may_be_set_in_a_run() -> None:
    """trainer.check_val_every_n_epoch = ... acts at once."""

    class Validated(Model):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            """Nothing to compute."""

    rarely = Recorder("on_train_start", lambda trainer: setattr(trainer, "check_val_every_n_epoch", 2))
    trainer_for(max_epochs=4, num_sanity_val_steps=0, callbacks=rarely).fit(Validated(), DATA, DATA)
    assert rarely.hooks.count("on_validation_start") == 2


def test_callbacks_may_bring_callbacks() -> None:
    """One that is appended in on_fit_start takes part in the fit."""
    recorder = Recorder()

    class Brings(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.callbacks.append(recorder)

    trainer_for(callbacks=Brings()).fit(Model(), DATA)
    assert recorder.hooks[0] == "on_train_start"
    assert recorder.hooks[-1] == "on_train_end"


# -- mistakes that would go unseen ------------------------------------------------------------------------------------


def test_stepping_in_an_automatic_training_step_is_refused() -> None:
    """The commonest mistake of newcomers would update twice per batch."""

    class ByHand(Model):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            optimizer, loss = self.optimizers(), self.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

    with pytest.raises(OrderError, match=r"automatic_optimization = False.*\[step-in-automatic\]"):
        trainer_for().fit(ByHand(), DATA)


@pytest.mark.parametrize("value", [True, False])
def test_the_mode_may_not_change_in_a_fit(value: bool) -> None:
    """The engine was built for the other one."""
    module = Two() if value else Model()

    class Switches(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.automatic_optimization = value

    with pytest.raises(OrderError, match=r"was (True|False) when the fit began.*\[mode-changed\]"):
        trainer_for(callbacks=Switches()).fit(module, DATA)


def test_optimizers_cannot_be_assigned_before_a_fit() -> None:
    """There is no plan that they could take part in."""
    with pytest.raises(OrderError, match="plan-before-fit"):
        trainer_for().optimizers = []


@pytest.mark.parametrize("backward", ["after", "plain"])
def test_an_accumulation_without_its_backward_is_refused(backward: str) -> None:
    """Gradients that manual_backward did not make inside of the window are not divided by its size."""

    class Outside(Model):
        automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            with self.accumulate(self.optimizers(), 2):
                loss = self.loss(batch)
                if backward == "plain":
                    loss.backward()
            if backward == "after":
                self.manual_backward(loss)

    with pytest.raises(OrderError, match=r"call it inside.*\[accumulate-without-backward\]"):
        trainer_for().fit(Outside(), DATA)
