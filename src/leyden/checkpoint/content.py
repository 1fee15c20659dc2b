"""Whether the content of a file can be true: forms and counts, before anything is made of them.

A file may be whole to the last bit and still hold what no run has written: edited by hand, or by a hook. Whether what
it says fits the present run is another question (:mod:`leyden.checkpoint.compare`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from leyden.checkpoint.forms import Each, faults, is_count, is_number, is_size, shown
from leyden.checkpoint.layout import SCALERS
from leyden.checkpoint.position import unpack
from leyden.checkpoint.progress import PHASES, check_format, loops_of, place_of
from leyden.checkpoint.structure import outline_of, saved_members
from leyden.data.generators import is_state
from leyden.errors import CheckpointError
from leyden.optimization.clocks import Verdict
from leyden.results.collect import Results
from leyden.seed import isolate_rng, set_rng_state
from leyden.tree import map_tensors

#: Nothing is completed before it was processed, and so on.
_ORDER: Final = ("ready", "started", "processed", "completed")
#: Parts of ``loops`` that say where the run is; leyden's own part says it too.
_TOLD_TWICE: Final = (
    "epoch_progress",
    "epoch_loop.batch_progress",
    "epoch_loop.automatic_optimization.optim_progress",
    "epoch_loop.manual_optimization.optim_step_progress",
)

#: What is said, how it reads, and whether it can be.
Claim = tuple[str, Any, bool]


def _is_value(value: Any) -> bool:
    return isinstance(value, int | float | Tensor)


def _is_random_state(packed: Any) -> bool:
    """Whether the states of all global generators can be set."""
    with isolate_rng():
        set_rng_state(unpack({"global": packed, "own": []})["global"])
    return True


def _is_gradient(value: Any) -> bool:
    return bool(value.is_floating_point() or value.is_complex())


def _is_pair(value: Any) -> bool:
    name, flag = value
    return isinstance(name, str) and isinstance(flag, bool)


_OWN_GENERATORS: Final = {"own": [is_state], "workers?": [(None, list)]}
_MARK: Final = {"global": _is_random_state, **_OWN_GENERATORS}
_LOADER: Final = {"before": (None, _MARK), "now": (None, _MARK), "kept": {"ahead?": list}}
_ENTRY: Final = {"name": str, "hook": (None, str), "last": (None, _is_value), "reduction": [_is_value]}
_RESULTS: Final = (None, {"stepping": bool, "entries": [_ENTRY]})
_OUTPUTS: Final = (None, {"values": object, "on_cpu": [bool]})
_CLOCK: Final = {"attempted": is_count, "applied": is_count, "skipped": Each(is_count)}
_CLOCKS: Final = {
    **dict.fromkeys(("epoch", "batch_idx", "micro_batches", "updates", "global_step", "samples"), is_count),
    "seconds_before": is_number,
    "optimizers": [_CLOCK],
}
_WINDOW: Final = {
    **{"key": (None, is_count), "is_open": bool, "micro_batches": is_count, "size": is_size, "losses": is_count},
    **{"unit": (None, _is_value), "total": _is_value, "sum": (None, Tensor), "batches": list},
}
_TURN: Final = {"window": is_count, "is_fresh": bool, "is_finite": _is_value, "is_scaled": bool}
_PLAN: Final = {
    **{"automatic": bool, "accumulation": object, "frequencies": list, "precision": str, "world_size": is_size},
    "members": [{"label": str, "class": str, "names": [[str]]}],
    "schedulers": [{"class": str, "optimizer": (None, is_count)}],
    "configured": Each([Mapping]),
    "data": [{"class": str, "batches": (None, is_number)}],
}
#: What ``capture`` and ``describe`` write.
_OWN: Final = {
    **{"phase": PHASES.__contains__, "batches": is_count, "window_size": is_size, "clocks": _CLOCKS},
    **dict.fromkeys(("closes", "is_last", "is_complete", "should_stop"), bool),
    **{"steps_before": is_count, "loaded_in": (None, is_count), "val_loaded_in": (None, is_count)},
    **{"val_own": [_OWN_GENERATORS], **_LOADER, "run?": Mapping, "loggers?": [(None, Mapping)], "plan?": _PLAN},
    "verdicts": [[verdict.value for verdict in Verdict].__contains__],
    "results": _RESULTS,
    "views": {"callback": Each(_is_value), "logged": Each(_is_value), "progress_bar": Each(_is_value)},
    "eval_rows": Each(is_count),
    "schedules": Each(is_number),
    "metrics?": Each(Mapping),
    "outputs?": _OUTPUTS,
    "validation?": (
        None,
        {"loader": is_count, "done": is_count, "ended": is_count, **_LOADER, "results": _RESULTS, "outputs": _OUTPUTS},
    ),
    "samples_in_hand?": is_count,
    "switches?": {"trained": Each(bool), "training": Each(bool)},
    "toggles?": [{"optimizer": is_count, "foreign": [_is_pair], "own": [_is_pair]}],
    "windows?": {"gradients": Each(_is_gradient), "windows": [_WINDOW], "turns": [_TURN]},
}
_FILE: Final = {
    "state_dict": Mapping,
    **{"epoch?": is_count, "global_step?": is_count, "loops?": {"fit_loop": Mapping}},
    **{"optimizer_states?": [Mapping], "lr_schedulers?": [Mapping], "callbacks?": (None, Mapping)},
    **{f"{key}?": (None, Mapping) for key in SCALERS},
    "leyden?": _OWN,
}


def check_content(checkpoint: Mapping[str, Any], name: str) -> None:
    """Refuse a file for a fit that holds what cannot be.

    Args:
        checkpoint: its content.
        name: the file, for the text.

    Raises:
        CheckpointError: with everything that was found (``checkpoint-content``), or a later version of leyden wrote it
            (``checkpoint-format``).
    """
    check_format(checkpoint, name)
    findings = list(faults(checkpoint, _FILE, ""))
    for part, claims in _CLAIMS.items() if not findings else ():
        try:
            findings += [f"{what} is {shown(value)}" for what, value, is_true in claims(checkpoint) if not is_true]
        except Exception as cause:  # whatever Python says of something that is not what it should be
            findings.append(f"{part} cannot be read: {type(cause).__name__}: {cause}")
    if findings:
        raise CheckpointError(
            f"the checkpoint {name!r} holds what no run writes:\n  - " + "\n  - ".join(findings) + "\nIt was changed "
            "after it was written; take another file, or only its weights: Module.load_from_checkpoint(path)",
            code="checkpoint-content",
        )


def _optimizers(checkpoint: Mapping[str, Any]) -> Iterator[Claim]:
    members, told = saved_members(checkpoint), outline_of(checkpoint).get("members")
    if told is not None:
        yield "the number of optimizers", len(members), len(members) == len(told)
    for one in members:
        known, what = {"state", "param_groups"} & set(one.state), f"optimizer {one.label}"
        if not known:
            continue  # of another form, which only its optimizer knows
        yield f"{what}: all of its state", sorted(known), len(known) == 2
        groups = one.state["param_groups"]
        keys = [key for group in groups for key in group["params"]]
        yield f"{what}: its list of parameters", keys, len(set(keys)) == len(keys)
        for key in one.state["state"]:
            yield f"{what}: the parameter of a state", key, not isinstance(key, int) or key in keys
        sizes = [len(group["params"]) for group in groups]
        yield f"{what}: the list of names", one.names, one.names is None or sizes == list(map(len, one.names))


def _holders(checkpoint: Mapping[str, Any]) -> Iterator[Claim]:
    told, states = outline_of(checkpoint).get("schedulers"), checkpoint.get("lr_schedulers", [])
    if told is not None:
        yield "the number of schedulers", len(states), len(states) == len(told)
    for key, state in (checkpoint.get("callbacks") or {}).items() if "leyden" in checkpoint else ():
        yield f"the state of {key}", state, isinstance(state, Mapping)


def _scaler(checkpoint: Mapping[str, Any]) -> Iterator[Claim]:
    for key in SCALERS:
        for name, value in (checkpoint.get(key) or {}).items():
            yield f"{name} of the loss scale", value, is_number(value) and (value > 0 or name.startswith("_"))


def _loops(checkpoint: Mapping[str, Any]) -> Iterator[Claim]:
    if "loops" not in checkpoint:
        return
    yield from _progress(checkpoint["loops"]["fit_loop"], "fit_loop")
    if "leyden" not in checkpoint:
        for name, value in place_of(checkpoint)["clocks"].items():
            yield name, value, is_count(value)


def _progress(value: Any, place: str) -> Iterator[Claim]:
    if isinstance(value, Mapping) and {"ready", "completed"} <= set(value):
        counts = [value[key] for key in _ORDER if value.get(key) is not None]
        yield place, dict(value), all(map(is_count, counts)) and counts == sorted(counts, reverse=True)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _progress(inner, f"{place}.{key}")


def _own(checkpoint: Mapping[str, Any]) -> Iterator[Claim]:
    if "leyden" not in checkpoint:
        return
    place, own = checkpoint["leyden"], outline_of(checkpoint)
    clocks, turns = place["clocks"], len(place["verdicts"])
    for clock in clocks["optimizers"]:
        is_known = set(clock["skipped"]) <= {verdict.value for verdict in Verdict}
        is_whole = clock["attempted"] == clock["applied"] + sum(clock["skipped"].values())
        yield "the clock of an optimizer", clock, is_known and is_whole
    for key in ("epoch", "global_step"):
        yield f"{key}, where leyden's part says {clocks[key]},", checkpoint[key], checkpoint[key] == clocks[key]
    told = loops_of(place, automatic=own["automatic"])["fit_loop"] if own else {}
    for key in _TOLD_TWICE if own else ():
        there = checkpoint["loops"]["fit_loop"][key]
        yield f"{key}, where leyden's part says {told[key]},", there, there == told[key]
    labels = {one["label"].partition(".")[0] for one in own.get("members", ())}
    is_over = place["phase"] == "between" and not turns  # nobody has asked while the fit ran
    yield "the number of verdicts", turns, not own or is_over or turns == len(labels)
    for toggle in place.get("toggles", ()):
        yield "the optimizer of a toggle", toggle["optimizer"], toggle["optimizer"] < turns


def _in_epoch(checkpoint: Mapping[str, Any]) -> Iterator[Claim]:
    """What was collected in the middle of an epoch."""
    place = checkpoint.get("leyden", {"phase": "between"})
    is_open = place["phase"] not in ("between", "epoch_end") and not place["closes"] and bool(place["verdicts"])
    windows = place.get("windows", {"turns": [], "windows": []})
    yield "what an open window has", None, "windows" in place or not is_open
    yield "the number of turns", len(windows["turns"]), "windows" not in place or _are_turns(windows, place)
    for part in (place, place.get("validation") or {}):
        if part.get("results") is not None:
            Results(training=True).load_state_dict(part["results"])
        if part.get("outputs") is not None:
            yield "the number of devices of outputs", len(part["outputs"]["on_cpu"]), _fits_its_tensors(part["outputs"])


def _fits_its_tensors(outputs: Mapping[str, Any]) -> bool:
    """Whether for each tensor of kept outputs it is told where it was."""
    seen: list[Tensor] = []
    map_tensors(seen.append, outputs["values"])
    return len(seen) == len(outputs["on_cpu"])


def _are_turns(windows: Mapping[str, Any], place: Mapping[str, Any]) -> bool:
    known = range(len(windows["windows"]))
    return len(windows["turns"]) == len(place["verdicts"]) and all(turn["window"] in known for turn in windows["turns"])


_CLAIMS: Final = {
    "the optimizers": _optimizers,
    "schedulers and callbacks": _holders,
    "the loss scale": _scaler,
    "'loops'": _loops,
    "leyden's part": _own,
    "what an epoch has so far": _in_epoch,
}
