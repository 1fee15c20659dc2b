"""``Results``: what may be logged where, under which key it is found, and what is refused."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from leyden.errors import (
    InvalidTypeError,
    InvalidValueError,
    LeydenError,
    MisconfigurationException,
    OrderError,
)
from leyden.hooks.events import LOGGING
from leyden.results import Results, Views


def build(**options: Any) -> Results:
    return Results(**{"training": True, **options})


def in_step(**options: Any) -> Results:
    results = build(**options)
    results.batch = torch.zeros(4, 2)
    return results


def code_of(call: Any) -> str:
    with pytest.raises(MisconfigurationException) as caught:
        call()
    assert isinstance(caught.value, LeydenError)
    return caught.value.code


def test_first_value_can_be_seen_within_the_step() -> None:
    """R96."""
    results = in_step()
    results.log("training_step", "loss", torch.tensor(1.5, requires_grad=True))
    assert results.callback_metrics() == {"loss": torch.tensor(1.5)}
    assert not results.callback_metrics()["loss"].requires_grad


def test_every_option_has_lightnings_default() -> None:
    """R125."""
    import inspect

    parameters = inspect.signature(Results.log).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert defaults == {
        "prog_bar": False,
        "logger": None,
        "on_step": None,
        "on_epoch": None,
        "reduce_fx": "mean",
        "enable_graph": False,
        "sync_dist": False,
        "sync_dist_group": None,
        "add_dataloader_idx": True,
        "batch_size": None,
        "metric_attribute": None,
        "rank_zero_only": False,
    }


@pytest.mark.parametrize("hook", LOGGING)
def test_defaults_of_a_hook(hook: str) -> None:
    """R126: by step in training, by epoch in evaluation and in epoch hooks."""
    results = in_step()
    results.log(hook, "x", 1.0)
    by_step = bool(results.step_metrics())
    results.end_epoch()
    assert (by_step, bool(results.epoch_metrics())) == (LOGGING[hook].on_step, LOGGING[hook].on_epoch)


@pytest.mark.parametrize("hook", [hook for hook, rule in LOGGING.items() if rule.allowed == {"epoch"}])
def test_epoch_hooks_have_no_step(hook: str) -> None:
    """R126."""
    assert code_of(lambda: build().log(hook, "x", 1.0, on_step=True)) == "log-level"
    assert code_of(lambda: build().log(hook, "x", 1.0, on_step=True, on_epoch=True)) == "log-level"
    with pytest.raises(MisconfigurationException, match="set on_epoch to True"):
        build().log(hook, "x", 1.0, on_epoch=False)


@pytest.mark.parametrize("hook", ["setup", "configure_optimizers", "on_fit_start", "on_train_end", "predict_step"])
def test_hooks_that_cannot_log(hook: str) -> None:
    """R126."""
    with pytest.raises(OrderError, match=rf"'x'.*in {hook}") as caught:
        build().log(hook, "x", 1.0)
    assert caught.value.code == "log-hook"


def test_outside_of_any_hook() -> None:
    """R136."""
    with pytest.raises(MisconfigurationException, match="outside of any hook"):
        build().log(None, "x", 1.0)


def test_keys_of_both_levels() -> None:
    """R127: ``name`` is the step value during the epoch and the epoch value after it."""
    results = in_step()
    for value in (1.0, 3.0):
        results.log("training_step", "x", value, on_epoch=True, prog_bar=True)
    assert results.callback_metrics() == {"x": 3.0, "x_step": 3.0}
    assert results.step_metrics() == {"x_step": 3.0}
    assert results.progress_bar_metrics() == {"x_step": 3.0}
    results.end_epoch()
    assert results.callback_metrics() == {"x": 2.0, "x_step": 3.0, "x_epoch": 2.0}
    assert results.epoch_metrics() == {"x_epoch": 2.0}
    assert results.progress_bar_metrics() == {"x_step": 3.0, "x_epoch": 2.0}


def test_evaluation_shows_no_step_to_callbacks() -> None:
    """R127."""
    results = in_step(training=False)
    results.log("validation_step", "x", 1.0, on_step=True)
    assert results.callback_metrics() == {}
    assert results.step_metrics() == {"x_step": 1.0}
    results.end_epoch()
    assert results.callback_metrics() == {"x": 1.0, "x_epoch": 1.0}


def test_several_loaders_get_a_suffix() -> None:
    """R127, R138."""
    results = build(training=False, several_loaders=True)
    results.log("on_validation_epoch_start", "start", 0.5)
    for index, value in enumerate((1.0, 2.0)):
        results.dataloader_idx = index
        results.batch = torch.zeros(2)
        results.log("validation_step", "x", value)
        results.log("validation_step", f"only {index}", value, add_dataloader_idx=False)
    results.end_epoch()
    results.log("on_validation_epoch_end", "end", 9.0)
    assert results.evaluation_results() == [
        {"x/dataloader_idx_0": 1.0, "only 0": 1.0, "start": 0.5, "end": 9.0},
        {"x/dataloader_idx_1": 2.0, "only 1": 2.0, "start": 0.5, "end": 9.0},
    ]


def test_one_loader_gets_no_suffix() -> None:
    """R127, R138: loops may set its index all the same."""
    results = build(training=False)
    results.dataloader_idx = 0
    results.log("test_step", "x", 1.0)
    results.end_epoch()
    assert results.evaluation_results() == [{"x": 1.0}]


def test_an_empty_loader_keeps_its_place() -> None:
    """R138."""
    results = build(training=False, several_loaders=True)
    results.dataloader_idx = 1
    results.log("test_step", "x", 1.0)
    results.end_epoch()
    assert results.evaluation_results() == [{}, {"x/dataloader_idx_1": 1.0}]


def test_nothing_logged_is_an_empty_dict() -> None:
    """R138."""
    results = build(training=False)
    results.end_epoch()
    assert results.evaluation_results() == [{}]


def test_what_does_not_go_to_loggers_is_not_returned() -> None:
    """R138."""
    results = build(training=False)
    results.log("test_step", "x", 1.0, logger=False)
    results.end_epoch()
    assert results.evaluation_results() == [{}]
    assert results.callback_metrics() == {"x": 1.0}


def test_kinds_of_metrics() -> None:
    """R128: tensors for callbacks and loggers, floats for the bar."""
    results = in_step()
    results.log("training_step", "x", 1, prog_bar=True)
    assert results.callback_metrics()["x"].dtype is torch.float32
    assert results.logged_metrics()["x"].shape == ()
    assert type(results.progress_bar_metrics()["x"]) is float


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1, torch.float32),
        (True, torch.float32),
        (1.5, torch.float32),
        (torch.tensor(1.5, dtype=torch.float16), torch.float32),
        (torch.tensor(1.5, dtype=torch.bfloat16), torch.float32),
        (torch.tensor(1.5, dtype=torch.float64), torch.float64),
        (torch.tensor([[1.5]]), torch.float32),
        (torch.nn.Parameter(torch.tensor(1.5)), torch.float32),
    ],
)
def test_values_that_can_be_logged(value: Any, dtype: torch.dtype) -> None:
    """R134."""
    results = in_step()
    for _ in range(2):  # the second one takes the short way
        results.log("training_step", "x", value, on_epoch=True)
    assert results.callback_metrics()["x"].dtype is dtype
    results.end_epoch()
    epoch = results.callback_metrics()["x_epoch"]
    expected = value.item() if isinstance(value, torch.Tensor) else float(value)
    assert (epoch.item(), epoch.dtype, epoch.shape) == (expected, dtype, ())


def test_numpy_scalars() -> None:
    """R134."""
    numpy = pytest.importorskip("numpy")
    results = in_step()
    for value in (numpy.float32(1.5), numpy.float64(1.5), numpy.int64(3)):
        results.log("training_step", "x", value, on_epoch=True)
    results.end_epoch()
    assert results.callback_metrics()["x_epoch"].item() == 2.0


@pytest.mark.parametrize("value", ["1", None, [1.0], (1.0,), object(), 1j, torch.tensor(1j)])
def test_values_that_cannot_be_logged(value: Any) -> None:
    """R134."""
    results = in_step()
    for _ in range(2):
        with pytest.raises(ValueError, match="'x'.*expects a number") as caught:
            results.log("training_step", "x", value)
        assert isinstance(caught.value, InvalidValueError) and caught.value.code == "log-value"
        results.log("training_step", "x", torch.tensor(1.0))


def test_a_dict_is_for_log_dict() -> None:
    """R134."""
    with pytest.raises(ValueError, match="log_dict") as caught:
        build().log("training_step", "x", {"a": 1.0})
    assert isinstance(caught.value, InvalidValueError) and caught.value.code == "log-dict"


def test_several_elements() -> None:
    """R134: also when single elements were logged before."""
    results = in_step()
    for value in (torch.zeros(2), torch.zeros(0), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"shape \(\d,\).*mean") as caught:
            results.log("training_step", "x", value)
        assert isinstance(caught.value, InvalidValueError) and caught.value.code == "log-shape"
        results.log("training_step", "x", torch.tensor(1.0))


def test_integer_tensors_are_told_about_once() -> None:
    """R134."""
    results = in_step()
    with pytest.warns(UserWarning, match="log-integer"):
        results.log("training_step", "x", torch.tensor(1), on_epoch=True)
    results.log("training_step", "x", torch.tensor(2), on_epoch=True)
    results.log("training_step", "step only", torch.tensor(2))
    results.end_epoch()
    assert results.callback_metrics()["x_epoch"] == 1.5


def test_a_name_may_change_its_dtype() -> None:
    results = in_step()
    for value in (torch.tensor(1.0), 2, torch.tensor(3.0, dtype=torch.float64), torch.tensor(4.0)):
        results.log("training_step", "x", value, on_epoch=True)
    results.end_epoch()
    assert results.callback_metrics()["x_epoch"] == torch.tensor(2.5, dtype=torch.float64)


def test_mean_is_weighted_by_the_batch() -> None:
    """R132."""
    results = build()
    for size in (3, 1):
        results.batch = {"ids": ["a"], "x": torch.zeros(size, 7)}
        results.log("training_step", "x", float(size), on_epoch=True)
        results.log("training_step", "given", float(size), on_epoch=True, batch_size=1)
        results.log("training_step", "sum", float(size), on_epoch=True, reduce_fx="sum", batch_size=5)
    results.end_epoch()
    expected = {"x": 2.5, "given": 2.0, "sum": 4.0}
    assert {name: results.callback_metrics()[f"{name}_epoch"].item() for name in expected} == expected


def test_the_size_of_a_batch_is_inferred_once_and_only_for_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """R132."""
    asked = []
    monkeypatch.setattr("leyden.results.collect.first_batch_size", lambda batch: asked.append(batch) or 4)
    results = build()
    for batch in ("first", "second"):
        results.batch = batch
        results.log("training_step", "step", 1.0)
        results.log("training_step", "sum", 1.0, on_epoch=True, reduce_fx="sum")
        results.log("training_step", "given", 1.0, on_epoch=True, batch_size=2)
        assert asked.count(batch) == 0
        results.log("training_step", "x", 1.0, on_epoch=True)
        results.log("training_step", "y", 1.0, on_epoch=True)
        assert asked.count(batch) == 1


def test_a_batch_without_tensors_counts_once() -> None:
    """R132: with a warning, since batches of different sizes would count alike."""
    results = build()
    with pytest.warns(UserWarning, match="log-batch-size"):
        for value in (1.0, 3.0):
            results.batch = ["a", "b"]
            results.log("training_step", "x", value, on_epoch=True)
    results.end_epoch()
    assert results.callback_metrics()["x_epoch"] == 2.0


def test_without_a_batch_values_count_alike() -> None:
    """R132."""
    results = in_step()
    results.end_epoch()
    for value in (1.0, 3.0):
        results.log("on_train_epoch_end", "x", value)
    assert results.callback_metrics()["x"] == 2.0


@pytest.mark.parametrize("batch_size", [-1, "4", torch.zeros(2), [4]])
def test_batch_sizes_that_cannot_be(batch_size: Any) -> None:
    """R132."""
    results = in_step()
    for _ in range(2):
        call = lambda: results.log("training_step", "x", 1.0, on_epoch=True, batch_size=batch_size)  # noqa: E731
        assert code_of(call) == "log-batch-size"


@pytest.mark.parametrize("batch_size", [2, 2.0, torch.tensor(2), torch.tensor([2.0])])
def test_batch_sizes_that_can_be(batch_size: Any) -> None:
    """R132."""
    results = in_step()
    results.log("training_step", "x", 1.0, on_epoch=True, batch_size=batch_size)
    results.log("training_step", "x", 4.0, on_epoch=True, batch_size=1)
    results.end_epoch()
    assert results.callback_metrics()["x_epoch"] == 2.0


def test_weights_of_zero_give_nan() -> None:
    """R132."""
    results = in_step()
    results.log("training_step", "x", 1.0, on_epoch=True, batch_size=0)
    results.end_epoch()
    assert math.isnan(results.callback_metrics()["x_epoch"])


@pytest.mark.parametrize("reduce_fx", ["median", "meen", torch.median, len, None])
def test_unknown_reductions(reduce_fx: Any) -> None:
    """R132."""
    assert code_of(lambda: build().log("training_step", "x", 1.0, reduce_fx=reduce_fx)) == "log-reduce-fx"


def test_nowhere() -> None:
    """R133."""
    assert code_of(lambda: build().log("training_step", "x", 1.0, on_step=False, on_epoch=False)) == "log-nowhere"
    assert code_of(lambda: build().log("training_step", "x", 1.0, on_step=False)) == "log-nowhere"


@pytest.mark.parametrize(
    "options",
    [{"on_epoch": True}, {"prog_bar": True}, {"reduce_fx": "sum"}, {"logger": False}, {"sync_dist": True}],
)
def test_one_name_with_other_options(options: dict[str, Any]) -> None:
    """R133."""
    results = in_step()
    results.log("training_step", "x", 1.0)
    with pytest.raises(MisconfigurationException, match="|".join(options)) as caught:
        results.log("training_step", "x", 1.0, **options)
    assert caught.value.code == "log-options"
    results.log("on_train_batch_end", "x", 1.0, **options)  # another hook may


def test_one_name_with_the_same_options_spelt_differently() -> None:
    """R133."""
    results = in_step()
    results.log("training_step", "x", 1.0, on_epoch=True)
    results.log("training_step", "x", 2.0, on_epoch=True, on_step=True, logger=True, reduce_fx=torch.mean)
    results.log("training_step", "x", 6.0, on_epoch=True)
    results.end_epoch()
    assert results.callback_metrics()["x_epoch"] == 3.0


@pytest.mark.parametrize("option", ["prog_bar", "logger", "on_step", "on_epoch", "sync_dist", "rank_zero_only"])
def test_options_must_be_bools(option: str) -> None:
    with pytest.raises(InvalidTypeError, match=f"{option}='yes'"):
        build().log("training_step", "x", 1.0, **{option: "yes"})


def test_names() -> None:
    """R135."""
    results = build()
    name = "x/dataloader_idx_0"
    assert code_of(lambda: results.log("training_step", name, 1.0)) == "log-name"
    results.log("training_step", name, 1.0, add_dataloader_idx=False)
    with pytest.raises(TypeError, match="expected a str"):
        results.log("training_step", 3, 1.0)  # type: ignore[arg-type]


def test_without_the_suffix_names_must_differ_per_loader() -> None:
    """R127, R133."""
    results = build(training=False, several_loaders=True)
    results.dataloader_idx = 0
    results.log("test_step", "x", 1.0, add_dataloader_idx=False)
    results.dataloader_idx = 1
    call = lambda: results.log("test_step", "x", 1.0, add_dataloader_idx=False)  # noqa: E731
    assert code_of(call) == "log-options"


def test_a_step_value_is_there_at_the_end_of_the_epoch() -> None:
    """R139: the seed's plateau example reads a step value after the epoch."""
    results = in_step()
    for value in (1.0, 2.0):
        results.log("training_step", "loss", value)
    results.end_epoch()
    assert results.callback_metrics()["loss"] == 2.0
    results.reset()
    assert results.callback_metrics()["loss"] == 2.0


def test_epochs_are_kept_apart() -> None:
    """R139."""
    results = build()
    for epoch, value in enumerate((1.0, 5.0)):
        results.batch = torch.zeros(1)
        if epoch == 1:
            results.log("training_step", "second", 1.0, on_epoch=True)
        results.log("training_step", "x", value, on_epoch=True)
        results.end_epoch()
        assert results.epoch_metrics()["x_epoch"] == value
        results.reset()
        assert results.epoch_metrics() == results.step_metrics() == {}


def test_the_validation_has_the_last_word_about_a_common_name() -> None:
    """R139: on_train_epoch_end sees the validation's value, as a monitor of it must."""
    views = Views()
    training, validation = build(views=views), build(training=False, views=views)
    training.batch = torch.zeros(1)
    training.log("training_step", "loss", 1.0)
    training.log("training_step", "other", 1.5)
    validation.batch = torch.zeros(1)
    validation.log("validation_step", "loss", 2.0)
    validation.end_epoch()
    assert validation.callback_metrics() == {"loss": 2.0, "other": 1.5}
    validation.reset()
    training.end_epoch()
    assert training.callback_metrics() == {"loss": 2.0, "other": 1.5}
    assert views.callback is training.callback_metrics()


def test_the_training_has_it_again_after_another_step() -> None:
    """R139: nobody need have looked in between."""
    views = Views()
    training, validation = build(views=views), build(training=False, views=views)
    for value in (1.0, 3.0):
        training.batch = torch.zeros(1)
        training.log("training_step", "loss", value)
        training.log("training_step", "other", value)
        if value == 1.0:
            validation.batch = torch.zeros(1)
            validation.log("validation_step", "loss", 2.0)
            validation.end_epoch()
            validation.reset()
    training.end_epoch()
    assert training.callback_metrics() == {"loss": 3.0, "other": 3.0}


def test_later_changes_of_a_tensor_do_not_count() -> None:
    """The user may go on computing in place with what was logged."""
    results = in_step()
    loss, weight = torch.tensor(1.0), torch.nn.Parameter(torch.tensor(1.0))
    for _ in range(2):
        results.log("training_step", "loss", loss, on_epoch=True)
        results.log("training_step", "weight", weight, on_epoch=True)
        loss += 1
        weight.data += 1
    results.end_epoch()
    assert results.callback_metrics()["loss_epoch"] == results.callback_metrics()["weight_epoch"] == 1.5


def test_graph_is_kept_on_request() -> None:
    results = in_step()
    x = torch.tensor(2.0, requires_grad=True)
    results.log("training_step", "x", x * 3, enable_graph=True, on_epoch=True)
    results.callback_metrics()["x_step"].backward()
    assert x.grad == 3.0
    results.end_epoch()
    assert results.epoch_metrics()["x_epoch"] == 6.0 and not results.epoch_metrics()["x_epoch"].requires_grad


class Processes:
    """Two processes of which the other one logs ten times as much."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __call__(self, tensor: torch.Tensor, op: str, group: Any) -> torch.Tensor:
        self.calls.append((op, group))
        other = tensor * 10
        tensor.zero_()  # a collective works in place
        return {"mean": (other * 1.1) / 2, "sum": other * 1.1, "min": other / 10, "max": other}[op]


def test_sync_dist_reduces_steps_and_epochs() -> None:
    """R137."""
    processes = Processes()
    results = in_step(reduce=processes)
    value = torch.tensor(2.0)
    for name in ("mean", "sum", "min", "max"):
        results.log("training_step", name, value, on_epoch=True, sync_dist=True, reduce_fx=name, sync_dist_group="g")
    assert results.step_metrics() == {
        "mean_step": pytest.approx(11.0),
        "sum_step": pytest.approx(22.0),
        "min_step": 2.0,
        "max_step": 20.0,
    }
    assert processes.calls == [(op, "g") for op in ("mean", "sum", "min", "max")]
    results.end_epoch()
    count = len(processes.calls)
    metrics = results.epoch_metrics()
    results.callback_metrics()
    assert len(processes.calls) == count  # reading is no matter of all processes
    assert metrics["mean_epoch"] == pytest.approx(2.0)  # total and weight are both ten times as much
    assert metrics["sum_epoch"] == pytest.approx(22.0)
    assert (metrics["min_epoch"], metrics["max_epoch"]) == (2.0, 20.0)
    assert value == 2.0


def test_sync_dist_in_an_epoch_hook_is_reduced_at_once() -> None:
    """R137: all processes log; perhaps only one of them reads."""
    processes = Processes()
    results = build(reduce=processes)
    results.end_epoch()
    results.log("on_train_epoch_end", "x", 1.0, sync_dist=True, reduce_fx="sum")
    assert len(processes.calls) == 1
    assert results.callback_metrics()["x"] == pytest.approx(11.0)
    assert len(processes.calls) == 1


def test_rank_zero_only_is_never_reduced() -> None:
    """R137."""
    processes = Processes()
    results = in_step(reduce=processes)
    results.log("training_step", "x", 1.0, on_epoch=True, sync_dist=True, rank_zero_only=True)
    results.end_epoch()
    assert processes.calls == []


def test_epoch_values_of_one_process_are_told_about_once() -> None:
    """R137."""
    results = in_step(reduce=Processes())
    with pytest.warns(UserWarning, match="log-sync-dist") as caught:
        results.log("training_step", "x", 1.0, on_epoch=True)
        results.log("training_step", "y", 1.0, on_epoch=True)
    assert len(caught) == 1


def test_one_process_needs_no_reduction() -> None:
    """R137."""
    results = in_step()
    results.log("training_step", "x", 1.0, on_epoch=True, sync_dist=True)
    results.end_epoch()
    assert results.epoch_metrics() == {"x_epoch": 1.0}


def test_state_goes_on_in_the_middle_of_an_epoch() -> None:
    def log(results: Results, batches: range) -> None:
        for index in batches:
            results.batch = torch.zeros(index + 1)
            for reduce_fx in ("mean", "sum", "min", "max"):
                value = torch.tensor(float(index), dtype=torch.float64)
                results.log("training_step", reduce_fx, value, on_epoch=True, reduce_fx=reduce_fx, prog_bar=True)

    whole = build()
    whole.log("on_train_epoch_start", "start", 3.0)
    log(whole, range(5))

    first = build()
    first.log("on_train_epoch_start", "start", 3.0)
    log(first, range(2))
    second = build()
    second.load_state_dict(first.state_dict())
    log(second, range(2, 5))

    for results in (whole, second):
        results.end_epoch()
    assert whole.epoch_metrics() == second.epoch_metrics()
    assert whole.callback_metrics() == second.callback_metrics()
    assert whole.progress_bar_metrics() == second.progress_bar_metrics()
    assert second.epoch_metrics()["mean_epoch"].dtype is torch.float64


def test_state_is_plain() -> None:
    results = in_step()
    results.log("training_step", "x", torch.tensor(1.0), on_epoch=True)
    state = results.state_dict()

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]

    assert {type(leaf) for leaf in leaves(state)} <= {str, int, float, bool, type(None)}


def test_logging_works_in_inference_mode_and_is_read_outside() -> None:
    results = build(training=False)
    with torch.inference_mode():
        for value in (1.0, 2.0):
            results.batch = torch.zeros(2)
            results.log("validation_step", "x", torch.tensor(value))
    results.end_epoch()
    assert results.evaluation_results() == [{"x": 1.5}]


def test_logging_emits_no_warning_by_itself() -> None:
    results = in_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.log("training_step", "x", torch.ones(3, requires_grad=True).mean(), on_epoch=True)
        results.log("training_step", "x", torch.ones(3, requires_grad=True).mean(), on_epoch=True)
