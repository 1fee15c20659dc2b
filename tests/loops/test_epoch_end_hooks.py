"""The epoch-end hooks of 1.x: what they are given, when, in every mode, and what they may return."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS

import modes
from given import Given, Manual, fit, given
from leyden import Callback, LightningModule, MisconfigurationException, Trainer
from leyden.errors import LeydenWarning
from modes import BATCHES, MODES


def with_methods(name: str, **methods: Any) -> Any:
    """The module of a mode, with methods of a user's class on top."""
    return type("Module", (type(modes.build(name)),), methods)()


def trainer_for(**arguments: Any) -> Trainer:
    return Trainer(accelerator="cpu", enable_progress_bar=False, **arguments)


# -- R140: training_epoch_end -----------------------------------------------------------------------------------------


class Batches(Callback):
    """Keeps what every on_train_batch_end was given, epoch by epoch."""

    def __init__(self) -> None:
        self.outputs: list[list[Any]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.outputs.append([])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.outputs[-1].append(outputs)


@pytest.mark.parametrize("name", MODES)
def test_outputs_of_an_epoch(name: str) -> None:
    """R140, R66: the dicts that on_train_batch_end saw, one for each batch; of several optimizers by optimizer."""
    given_to_it: list[Any] = []

    def training_epoch_end(self: Any, outputs: Any) -> None:
        given_to_it.append(outputs)

    batches = Batches()
    modes.run(name, [batches], module=with_methods(name, training_epoch_end=training_epoch_end), max_epochs=2)
    if name == "manual":  # its training_step returns nothing
        assert batches.outputs == [[{}] * BATCHES] * 2
        assert given_to_it == [[], []]
    elif name == "alternating":
        assert given_to_it == [[[batch[index] for batch in epoch] for index in range(2)] for epoch in batches.outputs]
        assert all(set(output) == {"loss"} for epoch in given_to_it for each in epoch for output in each)
    else:
        assert given_to_it == batches.outputs
        assert [len(epoch) for epoch in given_to_it] == [BATCHES, BATCHES]
        assert all(set(output) == {"loss"} for epoch in given_to_it for output in epoch)


@pytest.mark.parametrize("name", MODES)
def test_the_losses_of_an_epoch(name: str) -> None:
    """R140, R54: losses are detached and divided by the accumulation; extras come along untouched."""
    losses: list[float] = []
    seen: list[Any] = []
    base = MODES[name][0]

    def training_step(self: Any, batch: Any, batch_idx: int, *index: int) -> Any:
        loss = base.training_step(self, batch, batch_idx, *index) if self.automatic_optimization else self.loss(batch)
        losses.append(loss.item())
        return {"loss": loss, "place": (batch_idx, *index)}

    def training_epoch_end(self: Any, outputs: Any) -> None:
        seen.extend(outputs if name != "alternating" else [o for pair in zip(*outputs, strict=True) for o in pair])

    module = with_methods(name, training_step=training_step, training_epoch_end=training_epoch_end)
    modes.run(name, [], module=module, max_epochs=1)
    size = MODES[name][1].get("accumulate_grad_batches", 1)
    assert [output["loss"].item() for output in seen] == pytest.approx([loss / size for loss in losses], rel=1e-6)
    assert not any(output["loss"].requires_grad for output in seen)
    indices = range(2) if name == "alternating" else [None]
    places = [(batch,) if index is None else (batch, index) for batch in range(BATCHES) for index in indices]
    assert [output["place"] for output in seen] == places


@pytest.mark.filterwarnings("ignore:training_step returned None")
@pytest.mark.parametrize("base", [Given, Manual])
def test_nothing_returned_is_an_empty_list(base: Any) -> None:
    """R140: it is called although no step returned anything."""

    class Module(base):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            """Returns nothing."""

        def training_epoch_end(self, outputs: Any) -> None:
            self.events.append(outputs)

    module = Module()
    fit(module, given(1, 2), max_epochs=2)
    assert module.events == [[], []]


@pytest.mark.filterwarnings("ignore:training_step returned None")
def test_skipped_batches_leave_no_output() -> None:
    """R140: only the batches with a loss are there."""

    class Module(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else {"loss": self.loss(batch), "batch_idx": batch_idx}

        def training_epoch_end(self, outputs: Any) -> None:
            self.events.append([output["batch_idx"] for output in outputs])

    module = Module()
    fit(module, given(1, 2, 3))
    assert module.events == [[0, 2]]


@pytest.mark.parametrize("name", MODES)
def test_it_comes_before_on_train_epoch_end_and_may_log(name: str) -> None:
    """R140, R139: the epoch's values are there for it, and what it logs is there for all that come after it."""
    events: list[Any] = []

    def training_epoch_end(self: Any, outputs: Any) -> None:
        events.append(("training_epoch_end", "train_loss" in self.trainer.callback_metrics))
        self.log("mean", 2.0)

    class Later(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            events.append(("on_train_epoch_end", trainer.callback_metrics["mean"].item()))

    module = with_methods(name, training_epoch_end=training_epoch_end)
    trainer, _, rows = modes.run(name, [Later()], module=module, max_epochs=1)
    assert events == [("training_epoch_end", True), ("on_train_epoch_end", 2.0)]
    assert trainer.logged_metrics["mean"].item() == 2.0
    assert [row["mean"] for _, row in rows.of("mean")] == [2.0]


@pytest.mark.parametrize(("stops_at", "count"), [(0, 1), (1, 2)])
def test_an_epoch_that_is_left_early(stops_at: int, count: int) -> None:
    """R140: it gets what there was."""

    class Module(Given):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.trainer.should_stop = batch_idx == stops_at

        def training_epoch_end(self, outputs: Any) -> None:
            self.events.append(len(outputs))

    module = Module()
    fit(module, given(1, 2, 3))
    assert module.events == [count]


def test_outputs_are_kept_only_for_those_who_look() -> None:
    """R140: without the hook nothing is collected, so what a step returned is gone when the next one begins."""

    class Module(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.events.append([kept() is not None for kept in self.kept])
            extra = torch.ones(1)
            self.kept.append(weakref.ref(extra))
            return {"loss": self.loss(batch), "extra": extra}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Somebody looks at a batch's outputs, nobody at an epoch's."""

    class Collects(Module):
        def training_epoch_end(self, outputs: Any) -> None:
            """Somebody looks at an epoch's."""

    for kind, collected in ((Module, False), (Collects, True)):
        module = kind()
        module.kept = []
        fit(module, given(1, 2, 3))
        assert module.events[2][0] is collected


@pytest.mark.parametrize("name", MODES)
def test_training_epoch_end_returns_none(name: str) -> None:
    """R140: anything else is an error that says what to do instead."""
    module = with_methods(name, training_epoch_end=lambda self, outputs: {"log": 1})
    with pytest.raises(MisconfigurationException, match=r"must return None.*self\.log \[epoch-end-output\]"):
        modes.run(name, [], module=module, max_epochs=1)


# -- R141: validation, test, predict ----------------------------------------------------------------------------------


class Evaluated(Given):
    """Returns the batch and its places; nothing for batch 1 of a validation."""

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return None if batch_idx == 1 else (batch.item(), batch_idx, dataloader_idx)

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"value": batch.item()}

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch.item() + 100 * dataloader_idx

    def validation_epoch_end(self, outputs: Any) -> None:
        self.events.append(("validation", outputs))

    def test_epoch_end(self, outputs: Any) -> None:
        self.events.append(("test", outputs))

    def on_predict_epoch_end(self, results: Any) -> None:
        self.events.append(("predict", results))


ONE = given(1, 2, 3)
TWO = [torch.utils.data.DataLoader(torch.tensor(values), batch_size=1) for values in ([1.0, 2.0, 3.0], [4.0])]


def test_one_loader_gives_a_flat_list() -> None:
    """R141: what the steps returned, without those that returned nothing."""
    module, trainer = Evaluated(), trainer_for()
    trainer.validate(module, ONE)
    trainer.test(module, ONE)
    assert module.events == [
        ("validation", [(1.0, 0, 0), (3.0, 2, 0)]),
        ("test", [{"value": 1.0}, {"value": 2.0}, {"value": 3.0}]),
    ]


def test_several_loaders_give_a_list_each() -> None:
    """R141: one list per loader, of their own lengths."""
    module, trainer = Evaluated(), trainer_for()
    trainer.validate(module, TWO)
    trainer.test(module, TWO)
    assert module.events == [
        ("validation", [[(1.0, 0, 0), (3.0, 2, 0)], [(4.0, 0, 1)]]),
        ("test", [[{"value": 1.0}, {"value": 2.0}, {"value": 3.0}], [{"value": 4.0}]]),
    ]


@pytest.mark.parametrize("loaders", [ONE, TWO])
def test_predictions_are_by_loader(loaders: Any) -> None:
    """R141: on_predict_epoch_end takes a list for each loader, also for one; trainer.predict returns it flat then."""
    module, trainer = Evaluated(), trainer_for()
    returned = trainer.predict(module, loaders)
    by_loader = [[1.0, 2.0, 3.0]] if loaders is ONE else [[1.0, 2.0, 3.0], [104.0]]
    assert module.events == [("predict", by_loader)]
    assert returned == (by_loader if loaders is TWO else by_loader[0])


def test_predictions_that_nobody_wants_are_not_kept() -> None:
    """R141: return_predictions=False keeps none, so the hook sees none."""
    module, trainer = Evaluated(), trainer_for()
    assert trainer.predict(module, ONE, return_predictions=False) is None
    assert module.events == [("predict", [[]])]


def test_callbacks_may_take_the_predictions_too() -> None:
    """R141: in 1.x a callback's hook takes them as well; the 2.x form does not."""
    seen: list[Any] = []

    class Old(Callback):
        def on_predict_epoch_end(self, trainer: Any, pl_module: Any, outputs: Any) -> None:  # type: ignore[override]
            seen.append(outputs)

    class New(Callback):
        def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append("new")

    trainer_for(callbacks=[Old(), New()]).predict(Evaluated(), ONE)
    assert seen == [[[1.0, 2.0, 3.0]], "new"]


@pytest.mark.parametrize("name", MODES)
def test_validations_inside_of_a_fit(name: str) -> None:
    """R141: in every mode, sanity check included, before on_validation_epoch_end; what it logs is monitored."""
    events: list[Any] = []

    def validation_step(self: Any, batch: Any, batch_idx: int) -> int:
        return batch_idx

    def validation_epoch_end(self: Any, outputs: Any) -> None:
        events.append((self.trainer.sanity_checking, outputs))
        self.log("score", float(len(events)))

    def on_validation_epoch_end(self: Any) -> None:
        events.append(self.trainer.callback_metrics["score"].item())

    methods = (validation_step, validation_epoch_end, on_validation_epoch_end)
    module = with_methods(name, **{method.__name__: method for method in methods})
    trainer, _, _ = modes.run(name, [], module=module, max_epochs=2)
    assert events == [(True, [0, 1]), 1.0, (False, [0, 1]), 3.0, (False, [0, 1]), 5.0]
    assert trainer.callback_metrics["score"].item() == 5.0


@pytest.mark.parametrize(("stage", "name"), [("validate", "validation"), ("test", "test")])
def test_a_value_returned_by_an_evaluation_s_end_is_told(stage: str, name: str) -> None:
    """R141: 1.x took no notice, so the run goes on; but what was meant to be logged is lost, which is said."""
    module = type("Module", (Evaluated,), {f"{name}_epoch_end": lambda self, outputs: {"val_loss": 1.0}})()
    with pytest.warns(LeydenWarning, match=rf"{name}_epoch_end returned a value.*self\.log.*\[epoch-end-output\]"):
        getattr(trainer_for(), stage)(module, ONE)


# -- R142: *_step_end -------------------------------------------------------------------------------------------------


def test_step_end_is_inside_of_the_closure() -> None:
    """R142: an optimizer that evaluates its closure again gets it again, and trains on what it returns."""

    class Module(Given):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.events.append("step")
            return (self.weight - batch).pow(2).sum()

        def training_step_end(self, output: Tensor) -> Tensor:
            self.events.append("end")
            return 3 * output

        def on_before_backward(self, loss: Tensor) -> None:
            self.events.append("backward")

        def configure_optimizers(self) -> Any:
            return LBFGS(self.parameters(), lr=0.1, max_iter=3)

    module, twin = Module(), Given()
    fit(module, given(4))
    optimizer = LBFGS(twin.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 3 * (twin.weight - 4.0).pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert module.events == ["step", "end", "backward"] * 3
    assert torch.equal(module.weight, twin.weight)


@pytest.mark.parametrize("name", MODES)
def test_step_end_in_every_mode(name: str) -> None:
    """R142: its value takes the place of the step's: of the loss, for hooks, for training_epoch_end."""
    base = MODES[name][0]

    def training_step(self: Any, batch: Any, batch_idx: int, *index: int) -> Any:
        output = base.training_step(self, batch, batch_idx, *index)
        return {"loss": self.loss(batch) if output is None else output, "mark": "step"}

    def training_step_end(self: Any, output: Any) -> Any:
        return {"loss": output["loss"] * 0.5, "mark": "end"}

    def halved(self: Any, batch: Any, batch_idx: int, *index: int) -> Any:
        output = base.training_step(self, batch, batch_idx, *index)
        return None if output is None else output * 0.5

    batches = Batches()
    module = with_methods(name, training_step=training_step, training_step_end=training_step_end)
    twin = with_methods(name, training_step=halved)
    modes.run(name, [batches], module=module)
    modes.run(name, [], module=twin)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    flat = [o for epoch in batches.outputs for batch in epoch for o in (batch if name == "alternating" else [batch])]
    assert {output["mark"] for output in flat} == {"end"}


@pytest.mark.parametrize(("stage", "name"), [("validate", "validation"), ("test", "test")])
def test_step_end_of_an_evaluation(stage: str, name: str) -> None:
    """R142: *_batch_end and *_epoch_end see its value."""
    ends: list[Any] = []
    methods: dict[str, Callable[..., Any]] = {
        f"{name}_step": lambda self, batch, batch_idx, dataloader_idx=0: batch.item(),
        f"{name}_step_end": lambda self, output: 10 * output,
        f"on_{name}_batch_end": lambda self, outputs, *_: ends.append(outputs),
        f"{name}_epoch_end": lambda self, outputs: ends.append(outputs),
    }
    getattr(trainer_for(), stage)(type("Module", (Given,), methods)(), TWO)
    assert ends == [10.0, 20.0, 30.0, 40.0, [[10.0, 20.0, 30.0], [40.0]]]


def test_step_end_that_returns_none_changes_nothing() -> None:
    """R142: from 1.6 on, one that only looks leaves the step's output as it is."""

    class Module(Evaluated):
        def training_step_end(self, output: Any) -> None:
            self.events.append(output.item())

        def test_step_end(self, output: Any) -> None:
            """Only looks."""

    module = Module()
    fit(module, given(1, 2))
    assert module.gradients == [[1.0], [2.0]]
    assert module.events == [0.0, -2.0]
    trainer_for().test(module, given(7))
    assert module.events[2:] == [("test", [{"value": 7.0}])]


def test_step_end_may_log() -> None:
    """R142, R126: with the defaults of its step."""

    class Module(Evaluated):
        def training_step_end(self, output: Any) -> Any:
            self.log("train", output)
            return output

        def validation_step_end(self, output: Any) -> Any:
            self.log("val", 3.0)
            return output

    trainer = trainer_for(max_epochs=1)
    trainer.fit(Module(), given(1, 2), given(5))
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == {"train": -2.0, "val": 3.0}


# -- R143: none of them in the base classes ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["_epoch_end", "_step_end"])
@pytest.mark.parametrize("stage", ["training", "validation", "test", "predict"])
def test_base_classes_have_none(stage: str, suffix: str) -> None:
    """R143: they are called where a user's class has them, wherever it has them from."""
    assert not hasattr(LightningModule, stage + suffix)
    assert not hasattr(Callback, stage + suffix)


def test_they_may_come_from_a_mixin_or_an_instance() -> None:
    """R143: what counts is that the module has them."""

    class Ends:
        def training_epoch_end(self, outputs: Any) -> None:
            self.events.append(len(outputs))  # type: ignore[attr-defined]

    class Module(Ends, Given):
        pass

    module = Module()
    module.validation_epoch_end = lambda outputs: module.events.append(outputs)
    module.validation_step = lambda batch, batch_idx: batch_idx  # type: ignore[method-assign]
    trainer_for(max_epochs=1, num_sanity_val_steps=0).fit(module, given(1, 2), given(3))
    assert module.events == [[0], 2]
