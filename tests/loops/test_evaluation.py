"""The loop of evaluations and predictions: what it returns, what it leaves behind, what a batch costs."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import leyden
from leyden import Callback, LightningModule
from leyden.results.collect import Results

SOURCE = Path(leyden.__file__).parent
STAGES = ("validate", "test", "predict")


def loader(*numbers: float) -> DataLoader[Any]:
    return DataLoader(torch.tensor(numbers, dtype=torch.float32), batch_size=1)


def trainer_of(library: Any = leyden, **arguments: Any) -> Any:
    silent = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    given = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "num_sanity_val_steps": 0, **silent}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.Trainer(**{**given, **arguments})


def build(library: Any = leyden, **methods: Any) -> Any:
    """A module with all kinds of steps; ``methods`` go on top."""

    class Module(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(), nn.BatchNorm1d(1))
            self.frozen = nn.BatchNorm1d(1).eval()
            self.seen: list[Any] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net[0](batch.reshape(1, 1)).sum()  # type: ignore[no-any-return]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("mean", batch.mean(), batch_size=1)
            self.log("most", batch.mean(), batch_size=1, reduce_fx="max", on_step=True)
            self.log(f"alone_{dataloader_idx}", 1.0, add_dataloader_idx=False, batch_size=1)
            return batch.mean() if batch_idx != 1 else None

        test_step = validation_step

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return (dataloader_idx, batch.tolist()) if batch_idx != 1 else None

        def on_validation_epoch_end(self) -> None:
            self.log("around", 2.0)

        on_test_epoch_end = on_validation_epoch_end

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return type("Module", (Module,), methods)()


DATA: dict[str, Callable[[], Any]] = {
    "one": lambda: loader(1, 2, 4),
    "one in a list": lambda: [loader(1, 2, 4)],
    "two": lambda: [loader(1, 2, 4), loader(5)],
    "an empty one between": lambda: [loader(1), loader(), loader(3)],
}


# -- R138: what comes back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("name", [name for name in DATA if "empty" not in name])
def test_a_dict_of_floats_for_each_loader(name: str, stage: str) -> None:
    """R138: the epoch's values under their keys, those of the hooks around all loaders in each; as in Lightning."""

    def run(library: Any) -> Any:
        return getattr(trainer_of(library), stage)(build(library), DATA[name](), verbose=False)

    ours = run(leyden)
    assert ours == run(pytorch_lightning)
    assert all(type(value) is float for row in ours for value in row.values())
    mean, most = ("mean/dataloader_idx_0", "most_epoch/dataloader_idx_0") if name == "two" else ("mean", "most_epoch")
    assert ours[0] == {mean: pytest.approx(7 / 3), most: 4.0, "alone_0": 1.0, "around": 2.0}


def test_an_empty_loader_keeps_its_place() -> None:
    """R138: a dict for it too, so that positions are those of the loaders."""
    first, empty, last = trainer_of().validate(build(), DATA["an empty one between"](), verbose=False)
    assert (first["mean/dataloader_idx_0"], last["mean/dataloader_idx_2"]) == (1.0, 3.0)
    assert empty == {"around": 2.0}


@pytest.mark.parametrize("name", DATA)
def test_predictions(name: str) -> None:
    """R138, for predictions: what the steps returned, None included; a list for each loader if there are several."""
    ours, theirs = (
        trainer_of(library).predict(build(library), DATA[name]()) for library in (leyden, pytorch_lightning)
    )
    assert ours == theirs


def test_nothing_logged_is_an_empty_dict() -> None:
    def quiet_step(self: Any, batch: Any, batch_idx: int) -> None:
        """Logs nothing."""

    def quiet_end(self: Any) -> None:
        """Logs nothing."""

    for library in (leyden, pytorch_lightning):
        module = build(library, validation_step=quiet_step, on_validation_epoch_end=quiet_end)
        assert trainer_of(library).validate(module, loader(1)) == [{}]


def test_a_validation_inside_of_a_fit_reads_nothing_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """R138: floats are made for ``validate`` and ``test``; a fit would wait for the device, and look at none."""

    def fail(self: Results) -> Any:
        raise AssertionError("read")

    monkeypatch.setattr(Results, "evaluation_results", fail)
    trainer = trainer_of()
    trainer.fit(build(), loader(1, 2), loader(3))
    assert trainer.callback_metrics["mean"] == 3.0
    with pytest.raises(AssertionError, match="read"):
        trainer.validate(build(), loader(3), verbose=False)


# -- R141: what the 1.x epoch-end hooks are given ---------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize(
    ("name", "expected"), [("one", [1.0, 4.0]), ("one in a list", [1.0, 4.0]), ("two", [[1.0, 4.0], [5.0]])]
)
def test_epoch_end_gets_what_the_steps_returned(name: str, expected: Any, stage: str) -> None:
    """R141: without the Nones; one list per loader if there are several."""
    outputs: list[Any] = []

    def epoch_end(self: Any, given: Any) -> None:
        outputs.append([[o.item() for o in each] if isinstance(each, list) else each.item() for each in given])
        self.log("at_the_end", 3.0)

    hook = {"validate": "validation_epoch_end", "test": "test_epoch_end"}[stage]
    returned = getattr(trainer_of(), stage)(build(**{hook: epoch_end}), DATA[name](), verbose=False)
    assert outputs == [expected]
    assert all(row["at_the_end"] == 3.0 for row in returned)


@pytest.mark.parametrize("name", DATA)
def test_on_predict_epoch_end_gets_the_results(name: str) -> None:
    """R141: always one list per loader; 2.x's form takes nothing."""
    given: list[Any] = []
    module = build(on_predict_epoch_end=lambda self, results: given.append(results))
    returned = trainer_of().predict(module, DATA[name]())
    assert given == [returned if len(given[0]) > 1 else [returned]]
    trainer_of().predict(build(on_predict_epoch_end=lambda self: None), DATA[name]())


def test_outputs_are_kept_only_for_whom_wants_them() -> None:
    """R141: a step's output is free again when the next step runs."""
    import weakref

    alive: list[Any] = []

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        assert all(reference() is None for reference in alive[:-1])
        output = torch.zeros(3)
        alive.append(weakref.ref(output))
        return output

    trainer_of().validate(build(validation_step=step), loader(1, 2, 3, 4), verbose=False)
    assert len(alive) == 4


# -- R164, R165, R166: no gradients, modes ----------------------------------------------------------------------------


def contexts(library: Any, stage: str, **arguments: Any) -> list[tuple[bool, bool]]:
    """(inference mode, gradients) in the step of a run, and in the hook after it."""
    seen = []

    def note(self: Any, *given: Any) -> None:
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    name = {"fit": "validation", "validate": "validation"}.get(stage, stage)
    module = build(library, **{f"{name}_step": note, f"on_{name}_end": note, f"on_{name}_start": note})
    trainer = trainer_of(library, **arguments)
    data = (loader(1, 2), loader(3)) if stage == "fit" else (loader(3),)
    getattr(trainer, stage)(module, *data)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return seen


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["fit", *STAGES])
def test_evaluations_run_without_gradients(stage: str, inference_mode: bool) -> None:
    """R164: validate, test, predict in inference mode unless told otherwise; validation inside of fit in no_grad."""
    ours = contexts(leyden, stage, inference_mode=inference_mode)
    assert ours == [(inference_mode and stage != "fit", False)] * 3
    assert ours == contexts(pytorch_lightning, stage, inference_mode=inference_mode)


def modes(module: nn.Module) -> list[bool]:
    return [child.training for child in module.modules()]


class Modes(Callback):
    """Notes the modes of all submodules."""

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *given: Any) -> None:
        self.seen.append(modes(pl_module))

    on_test_batch_end = on_predict_batch_end = on_train_batch_end = on_validation_batch_end


@pytest.mark.parametrize("stage", ["fit", *STAGES])
def test_every_module_gets_its_own_mode_back(stage: str) -> None:
    """R165: what the user has set is kept in training, is eval in an evaluation, and is restored after it."""
    module, watch = build(), Modes()
    before = modes(module)
    assert True in before and False in before
    data = (loader(1, 2), loader(3)) if stage == "fit" else (loader(3),)
    trainer = trainer_of(callbacks=watch, val_check_interval=1)
    getattr(trainer, stage)(module, *data)
    evaluated = [False] * len(before)
    assert watch.seen == ([before, evaluated] * 2 if stage == "fit" else [evaluated])
    assert modes(module) == before


@pytest.mark.parametrize("stage", STAGES)
def test_modes_and_state_come_back_after_an_exception(stage: str) -> None:
    """R165: and the next run finds nothing of the broken one."""

    def fail(self: Any, *given: Any) -> None:
        raise ZeroDivisionError

    name = {"validate": "validation"}.get(stage, stage)
    module, trainer = build(**{f"{name}_step": fail}), trainer_of()
    before = modes(module)
    with pytest.raises(ZeroDivisionError):
        getattr(trainer, stage)(module, loader(1))
    assert modes(module) == before and torch.is_grad_enabled()
    assert trainer.predict_loop.predictions == []
    assert trainer.predict(build(), loader(1)) == [(0, [1.0])]


def test_gradients_are_cleared_before_a_validation_that_is_not_in_a_window() -> None:
    """R166: in the middle of a window they are needed; gradients before a fit or an evaluation are cleared too."""

    def run(library: Any) -> list[Any]:
        seen: list[Any] = []

        def start(self: Any) -> None:
            gradient = self.net[0].weight.grad
            seen.append(None if gradient is None else gradient.tolist())

        module = build(library, on_validation_start=start)
        trainer = trainer_of(library, accumulate_grad_batches=2, val_check_interval=1)
        trainer.fit(module, loader(1, 2, 3, 4), loader(3))
        module.net[0].weight.grad = torch.ones(1, 1)
        trainer.validate(module, loader(3), verbose=False)
        return seen

    assert run(leyden) == run(pytorch_lightning) == [[[0.5]], None, [[1.5]], None, None]


class Epochs(torch.utils.data.SequentialSampler):
    """Notes the epochs that it is told."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize("library", [leyden, pytorch_lightning])
@pytest.mark.parametrize("stage", ["fit", *STAGES])
def test_samplers_are_told_the_epoch(stage: str, library: Any) -> None:
    """Those of every loader: 0, or inside of a fit the epoch that runs."""
    numbers = torch.ones(1)
    samplers = [Epochs(numbers), Epochs(numbers)]
    data = [DataLoader(numbers, sampler=sampler) for sampler in samplers]
    trainer = trainer_of(library, max_epochs=2)
    getattr(trainer, stage)(build(library), *([loader(1), data] if stage == "fit" else [data]))
    assert [sampler.epochs for sampler in samplers] == [[0, 1] if stage == "fit" else [0]] * 2


# -- what a batch costs -----------------------------------------------------------------------------------------------


def calls_of_one_batch(stage: str, module: Any, **arguments: Any) -> Counter[str]:
    """Python calls into our files between two steps in the middle of a loader."""
    calls: Counter[str] = Counter()
    name = {"validate": "validation"}.get(stage, stage)
    step = getattr(type(module), f"{name}_step")

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(SOURCE):
            calls[frame.f_code.co_name] += 1

    def profiled(self: Any, batch: Any, batch_idx: int) -> Any:
        sys.setprofile(profile if batch_idx == 2 else None)
        return step(self, batch, batch_idx)

    setattr(type(module), f"{name}_step", profiled)
    try:
        getattr(trainer_of(**arguments), stage)(module, [torch.ones(1)] * 5)
    finally:
        sys.setprofile(None)
    return calls


class Rows:
    """A logger."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Keep nothing."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("logger", [False, Rows()])
def test_a_step_that_nobody_listens_to_costs_next_to_nothing(stage: str, logger: Any) -> None:
    """The iterator of batches goes on, the batch is noted for ``self.log``, the step is called. No row is built."""

    class Plain(LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            """Nothing to compute."""

        test_step = predict_step = validation_step

    calls = calls_of_one_batch(stage, Plain(), logger=logger)
    assert 1 <= sum(calls.values()) <= 4, calls


def test_rows_are_built_once_something_is_logged_by_step() -> None:
    """R129: with the batches of the run so far as their steps; an epoch's row with the updates."""
    rows: list[Any] = []

    class Keeping(Rows):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            rows.append((dict(metrics), step))

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            self.log("x", batch.mean(), on_step=True, on_epoch=False, batch_size=1)

    module = build(validation_step=step, on_validation_epoch_end=lambda self: None)
    trainer = trainer_of(logger=Keeping(), max_epochs=2)
    trainer.fit(module, loader(1), loader(5, 6, 7))
    assert rows == [({"x": 6.0}, 1), ({"x": 7.0}, 2), ({"x": 6.0}, 4), ({"x": 7.0}, 5)]
