"""What a file and the present run do not have in common around the optimizers: the Trainer's arguments, the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from leyden.checkpoint.compare import Report, listed
from leyden.checkpoint.forms import shown
from leyden.checkpoint.layout import SCALERS
from leyden.checkpoint.structure import outline_of
from leyden.results.entry import metric_objects

_BEGIN_AGAIN: Final = 'begin the epoch once more with resume={"data": "reset"}'
#: Kinds of values in the states of callbacks.
_KINDS: Final = (str, Mapping, list | tuple, int | float | Tensor)


def compare_setting(
    report: Report, checkpoint: Mapping[str, Any], here: Mapping[str, Any], *, callbacks: Sequence[Any], scaler: Any
) -> None:
    """Compare mode, precision, accumulation, callbacks: what a user may change, but should know of.

    Args:
        report: gets what was found.
        checkpoint: the file's content.
        here: the present run's outline.
        callbacks: of the present run.
        scaler: its loss scaler, or None.
    """
    there = {"automatic": _was_automatic(checkpoint), **outline_of(checkpoint)}
    for key, what in (
        ("automatic", "automatic_optimization"),
        ("precision", "the precision"),
        ("accumulation", "accumulate_grad_batches"),
        ("frequencies", "the frequency of optimizers"),
    ):
        if there.get(key, here[key]) not in (None, here[key]):
            report.choices.append(f"{what} was {there[key]!r} in the file, and is {here[key]!r}: this run's counts")
    has_scale = any(checkpoint.get(key) for key in SCALERS)
    if has_scale != (scaler is not None and scaler.is_enabled()):
        which = "a loss scale, but not" if has_scale else "no loss scale: it begins with"
        report.choices.append(f"the file has {which} this run's; Trainer(precision=...) says whether there is one")
    keys = {callback.state_key for callback in callbacks} | {type(callback) for callback in callbacks}
    left = [str(key) for key in checkpoint["callbacks"] if key not in keys]
    if left:
        report.choices.append(f"states of callbacks that this Trainer does not have: {listed(left)}; pass the same")


def _was_automatic(checkpoint: Mapping[str, Any]) -> bool | None:
    """Which of its two loops has made the steps of another framework's file; None if neither or nobody knows."""
    fit = checkpoint.get("loops", {}).get("fit_loop", {})
    by_hand = fit.get("epoch_loop.manual_optimization.optim_step_progress", {}).get("total", {}).get("completed", 0)
    by_loop = fit.get("epoch_loop.automatic_optimization.optim_progress", {}).get("optimizer", {})
    steps = by_loop.get("step", {}).get("total", {}).get("completed", 0)
    return None if bool(by_hand) == bool(steps) else bool(steps)


def unlike_states(callbacks: Sequence[Any], states: Mapping[Any, Any]) -> Iterator[str]:
    """Say which values of leyden's callbacks have another type in a file.

    Args:
        callbacks: of the present run.
        states: the file's, by key.
    """
    for callback in callbacks:
        state, name = states.get(callback.state_key), type(callback).__qualname__
        if not isinstance(state, Mapping) or not type(callback).__module__.startswith("leyden."):
            continue
        for key, own in callback.state_dict().items():
            there = state.get(key)
            if None not in (own, there) and any(isinstance(own, kind) != isinstance(there, kind) for kind in _KINDS):
                yield (
                    f"{key} of {name} is {shown(there)} in the file, and {shown(own)} here; begin it anew with "
                    f'resume={{"callbacks.{name}": "reset"}}'
                )


def compare_collected(
    report: Report, checkpoint: Mapping[str, Any], place: Mapping[str, Any], module: nn.Module
) -> None:
    """Compare what the middle of an epoch has collected with the module: gradients, metric objects.

    Args:
        report: gets what was found.
        checkpoint: the file's content.
        place: where the run goes on.
        module: the module, with its weights.
    """
    weights, metrics = {**dict(module.named_parameters()), **checkpoint["state_dict"]}, metric_objects(module)
    gradients = place.get("windows", {}).get("gradients", {})
    wrong = [
        f"the gradient of {name} is {tuple(gradient.shape)}"
        for name, gradient in gradients.items()
        if gradient.shape != getattr(weights.get(name), "shape", None)
    ] + [
        f"{key} of the metric {name} is no state"
        for name, state in place.get("metrics", {}).items()
        for key in state
        if name in metrics and hasattr(metrics[name], key) and key not in vars(metrics[name])
    ]
    if wrong:
        report.errors.append(f"what the epoch has so far does not fit the module: {listed(wrong)}; {_BEGIN_AGAIN}")


def compare_place(
    report: Report, checkpoint: Mapping[str, Any], here: Mapping[str, Any], place: Mapping[str, Any]
) -> None:
    """Compare what the middle of an epoch depends on, the training data and the window; between epochs it may differ.

    Args:
        report: gets what was found.
        checkpoint: the file's content.
        here: the present run's outline.
        place: where the run goes on.
    """
    there, size, used = outline_of(checkpoint), place.get("window_size", 1), place["batches"]
    is_inside = place["phase"] not in ("between", "epoch_end")
    kinds, differ = _kinds(there, here), _data(there, here)
    known = [one["batches"] for one in here["data"] if one["batches"] is not None]
    if is_inside and not there and len(known) == 1 and used > known[0]:
        differ.append(f"{used} batches were used, and the loader has {known[0]}")
    validation, counts = place.get("validation") or {"loader": 0, "done": 0, "ended": 1}, here.get("validation", ())
    loader, done = validation["loader"], validation["done"]
    is_missing = loader > len(counts) or (loader == len(counts) and not validation["ended"])
    if is_missing or (loader < len(counts) and done > counts[loader]):
        differ.append(f"batch {done} of validation loader {loader} is not there; the loaders have {list(counts)}")
    is_open = is_inside and used % size != 0 and not place["closes"]
    if is_open and there.get("accumulation", here["accumulation"]) != here["accumulation"]:
        differ.append(f"{used % size} of {size} micro-batches of a window were used, and windows have another size now")
    if differ and is_inside:
        report.errors.append(
            f"the file is from the middle of an epoch, which cannot go on: {'; '.join(differ)}; give the same, or "
            + _BEGIN_AGAIN
        )
        differ = []
    if kinds or differ:
        report.choices.append(f"the training data: {'; '.join((*kinds, *differ))}: this run's counts")


def _kinds(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    pairs = zip(there.get("data", ()), here["data"], strict=False)
    classes = [(one["class"], other["class"]) for one, other in pairs]
    return [f"a {before} then, a {now} now" for before, now in classes if before != now]


def _data(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What decides on the samples of a batch, as far as both know it, and is another one now."""
    if not there.get("data") or not here["data"]:
        return []
    values = [
        ("processes", there["world_size"], here["world_size"]),
        ("loaders", len(there["data"]), len(here["data"])),
        *(
            (f"{key} of the loader", one[key], other[key])
            for one, other in zip(there["data"], here["data"], strict=False)
            for key in one
            if key != "class" and key in other
        ),
    ]
    return [
        f"{key}: {before} then, {now} now" for key, before, now in values if before != now and None not in (before, now)
    ]
