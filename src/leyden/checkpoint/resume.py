"""The exact place of a fit: captured for a checkpoint, and gone on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from leyden.checkpoint import switches
from leyden.checkpoint.encoding import is_data
from leyden.checkpoint.position import Rest, mark, own_of, pack, reopen, restore, restore_states, state_of_data, unpack
from leyden.checkpoint.progress import FORMAT
from leyden.checkpoint.windows import capture_windows, restore_windows
from leyden.data.loaders import Batches
from leyden.errors import MisconfigurationException, warn
from leyden.hooks.dispatch import RunState
from leyden.optimization.clocks import Clocks, UpdateClock, Verdict
from leyden.results.entry import load_states, metric_objects, states_of
from leyden.results.views import Views
from leyden.seed import isolate_rng
from leyden.tree import detach, first_batch_size, map_tensors, move_to_device
from leyden.units import Every

if TYPE_CHECKING:
    from leyden.loops.evaluate import EvaluationLoop, EvaluationParts, Position
    from leyden.loops.fit import FitLoop, FitParts

_VIEWS = ("callback", "logged", "progress_bar")
#: Bytes of kept outputs of steps, above which a checkpoint tells what makes it large.
_MANY: Final = 2**28


@dataclass(kw_only=True)
class Running:
    """A run, as far as its checkpoints are concerned.

    Attributes:
        loop: the fit loop.
        validation: the loop of its validations.
        state: which hook runs, and the window's size.
        module: the user's module.
        views: what was logged so far.
        eval_rows: rows of validation batches by loader.
        schedules: what recurs on clocks of its own, by name.
        engine: what runs the optimizers; None where nothing is trained.
        parts: what the fit in progress is made of; None outside of its loop.
        began: the module's switches when the fit began; None outside of a fit.
    """

    loop: FitLoop
    validation: EvaluationLoop
    state: RunState
    module: nn.Module
    views: Views
    eval_rows: dict[str, int]
    schedules: Mapping[str, Every]
    engine: Any = None
    parts: FitParts | None = None
    began: switches.Switches | None = None

    @property
    def turns(self) -> Sequence[Any]:
        """The optimizers."""
        return self.engine.turns if self.engine is not None else ()


# -- capture ------------------------------------------------------------------------------------------------------


def capture(run: Running) -> dict[str, Any]:
    """Where a run is, in plain data and tensors.

    Returns:
        "phase" says what was done last: "between" epochs nothing is to be finished; in a "batch" that batch is to be
        done again; after "batch_end" its row, its validation and its counting are to be done; in a "validation" what
        is left of it, and the counting; after "validated" the counting; after "batch_over" nothing of that batch;
        after "epoch_end" the epoch's row and counting.
    """
    loop, state, clocks, data = run.loop, run.state, run.loop.clocks, run.loop.data
    phase = phase_of(run)
    running = phase != "between"
    if phase in ("between", "epoch_end") and data.batches is not None:
        data.batches.close()  # an epoch that was left early is over for its workers too
    closes = data.is_last_batch or (clocks.batch_idx + 1) % state.window_size == 0
    if phase == "batch_end" and run.engine is not None:
        run.engine.optimization.end_batch(closes)  # so that its verdicts are in the loss scale
    place = {
        "format": FORMAT,
        "phase": phase,
        "batches": clocks.batch_idx + 1 if running or clocks.micro_batches else 0,
        "closes": closes,
        "is_last": data.is_last_batch,
        "is_complete": phase == "epoch_end" and loop.is_complete,
        "steps_before": loop.steps_before,
        "loaded_in": data.loaded_in,
        "val_loaded_in": run.validation.loaded_in,
        "val_own": run.validation.own or [own_of(loader) for loader in run.validation.loaders],
        "should_stop": state.should_stop,
        "clocks": _pack_clocks(clocks),
        "verdicts": [turn.verdict.value for turn in run.turns],
        "window_size": state.window_size,
        "before": pack(data.before) if data.before is not None and running else None,
        **_pack_place(data.loader, data.batches, clocks.batch_idx + (phase != "batch")),
        "results": None,
        "views": {name: dict(getattr(run.views, name)) for name in _VIEWS},
        "eval_rows": dict(run.eval_rows),
        "schedules": {name: schedule.last for name, schedule in run.schedules.items()},
    }
    if run.parts is not None:
        place.update(_capture_fit(run, run.parts, phase, closes=closes))
    if loop.go_on is not None:  # what is to be restored then is still in the place that it was called with
        waiting = loop.go_on.args[-1]
        kept = {"optimizers": place["clocks"]["optimizers"]}  # which may have other places now
        place.update(waiting, should_stop=state.should_stop, clocks={**place["clocks"], **waiting["clocks"], **kept})
    return place


def _capture_fit(run: Running, parts: FitParts, phase: str, *, closes: bool) -> dict[str, Any]:
    """What there is in a fit only."""
    running, module, engine = phase != "between", run.module, run.engine
    modes = run.validation.parts.modes.before if run.validation.parts is not None else ()
    kept: dict[str, Any] = {
        "results": parts.results.state_dict() if running else None,
        "metrics": states_of(metric_objects(module)),
        "outputs": _pack_outputs(parts.epoch_outputs.batches) if running and parts.epoch_outputs is not None else None,
        "validation": _capture_validation(run.validation) if run.loop.phase == "validation" else None,
    }
    if phase == "batch":  # it is counted once more
        kept["samples_in_hand"] = first_batch_size(parts.results.batch) or 0
    if run.began is not None:
        kept["switches"] = switches.changes(run.began, switches.look_at(module, modes))
    if engine is not None:
        kept["toggles"] = switches.toggles_of(engine.toggler, module)
        is_open = running and phase != "epoch_end" and not closes
        if is_open or engine.optimization.keeps_gradients:
            kept["windows"] = capture_windows(module, engine.turns, engine.loss_scale)
    return kept


def _capture_validation(loop: EvaluationLoop) -> dict[str, Any] | None:
    """Where a validation is; None if it has not begun."""
    parts, at = loop.parts, loop.at
    if parts is None:
        return None
    loader = parts.loaders[min(at.loader, len(parts.loaders) - 1)]
    return {
        "loader": at.loader,
        "done": at.done,
        "ended": at.ended,
        "before": pack(at.before) if at.before is not None else None,
        **_pack_place(loader, loop.batches if at.done else None, at.done),
        "results": parts.results.state_dict() if parts.results is not None else None,
        "outputs": _pack_outputs(loop.outputs) if parts.keeps else None,
    }


def phase_of(run: Running) -> str:
    """What a run was doing last; see :func:`capture`."""
    loop, validation = run.loop, run.validation
    if loop.phase == "batches":
        if loop.done != loop.clocks.batch_idx + 1:
            return "batch"
        return "batch_over" if loop.ended == loop.done else "batch_end"
    if loop.phase == "validation" and validation.parts is not None and validation.is_over:
        return "validated"
    return loop.phase


def is_mid_step(run: Running) -> bool:
    """Whether a step, or a hook in a validation, is half done, so that there is no exact state that could be kept."""
    if run.loop.phase == "validation":
        return run.validation.parts is not None and run.state.hook is not None and not run.validation.is_over
    return phase_of(run) == "batch"


def _pack_place(loader: Any, batches: Batches | None, used: int) -> dict[str, Any]:
    """The generators as they are now, and what is kept of a loader of which some batches were used."""
    with isolate_rng():
        kept = {} if batches is None else state_of_data(loader, used, is_data=is_data, ahead=batches.ahead)
    return {"kept": kept, "now": pack(mark(loader))}


def _pack_outputs(outputs: Any) -> dict[str, Any]:
    """What steps have returned, and where its tensors are: "cpu" or the device that the module is on."""
    on_cpu: list[bool] = []
    sizes: list[int] = []

    def note(tensor: Any) -> Any:
        on_cpu.append(tensor.device.type == "cpu")
        sizes.append(tensor.nbytes)
        return tensor

    values = map_tensors(note, detach(outputs))
    if sum(sizes) > _MANY:
        warn(
            f"the outputs that training_epoch_end or validation_epoch_end will get make {sum(sizes) / 2**20:,.0f} MiB "
            "of this checkpoint, which is written in the middle of an epoch; return less from the steps, or save at "
            "the end of epochs",
            code="checkpoint-outputs",
        )
    return {"values": values, "on_cpu": on_cpu}


def _unpack_outputs(saved: Mapping[str, Any], module: nn.Module) -> Any:
    on_cpu, device = iter(saved["on_cpu"]), next((p.device for p in module.parameters()), None)
    return map_tensors(
        lambda tensor: tensor if next(on_cpu) or device is None else move_to_device(tensor, device), saved["values"]
    )


def _pack_clocks(clocks: Clocks) -> dict[str, Any]:
    packed = {field.name: getattr(clocks, field.name) for field in fields(clocks)}
    packed["optimizers"] = [
        {"attempted": clock.attempted, "applied": clock.applied, "skipped": dict(clock.skipped)}
        for clock in clocks.optimizers
    ]
    packed["batch_idx"] = max(clocks.batch_idx, 0)  # -1 before the first batch of an epoch
    packed["seconds_before"] = clocks.seconds
    del packed["started"]
    return packed


# -- restore ------------------------------------------------------------------------------------------------------


def set_clocks(clocks: Clocks, place: Mapping[str, Any]) -> None:
    """Let the clocks go on where they were."""
    known = {field.name for field in fields(clocks)}
    for name, value in place["clocks"].items():
        if name in known and name != "optimizers":
            setattr(clocks, name, value)
    clocks.optimizers[:] = [UpdateClock(**packed) for packed in place["clocks"].get("optimizers", ())]
    if place["phase"] == "batch":  # it is started once more
        clocks.micro_batches -= 1
        clocks.samples = max(clocks.samples - place.get("samples_in_hand", 0), 0)


def check_limits(place: Mapping[str, Any], *, max_epochs: int, max_steps: int = -1) -> None:
    """Refuse to go on beyond the last epoch; tell that the last step is passed.

    Raises:
        MisconfigurationException: ``max_epochs`` is smaller than the epochs that are done (``resume-max-epochs``).
    """
    done = place["clocks"]["epoch"] + (place["phase"] == "epoch_end")
    if max_epochs != -1 and done > max_epochs:
        raise MisconfigurationException(
            f"the checkpoint was written after {done} epochs, and max_epochs is {max_epochs}; raise "
            "Trainer(max_epochs=...)",
            code="resume-max-epochs",
        )
    steps = place["clocks"]["global_step"]
    if steps > max_steps != -1 and place["phase"] != "between":  # between epochs the fit says so
        warn(
            f"the checkpoint was written after {steps} optimizer steps, and max_steps is {max_steps}: only its epoch "
            "is closed; raise Trainer(max_steps=...) to train on",
            code="resume-max-steps",
        )


def restore_place(run: Running, place: Mapping[str, Any]) -> None:
    """Restore what is read before the loop goes on, and let it go on there.

    Args:
        run: whose optimizers, schedules and loops these are.
        place: what :func:`capture` returned.
    """
    for name, schedule in run.schedules.items():
        schedule.last = place.get("schedules", {}).get(name, 0)
    for turn, verdict in zip(run.turns, place.get("verdicts", ()), strict=False):
        turn.verdict = Verdict(verdict)
    run.validation.loaded_in = place.get("val_loaded_in")
    run.loop.phase = "validation" if _is_in_validation(place) else "between"
    run.loop.go_on = partial(go_on, run, place)


def go_on(run: Running, place: Mapping[str, Any], parts: FitParts) -> None:
    """Finish what the fit that wrote a checkpoint was in the middle of.

    Args:
        run: the fit; its loop's clocks are set already.
        place: what :func:`capture` returned.
        parts: what the fit is made of.
    """
    loop, data, phase = run.loop, run.loop.data, place["phase"]
    first = place["batches"] - (phase == "batch")
    now = unpack(place["now"]) if place.get("now") is not None else None
    data.loaded_in = place.get("loaded_in", data.loaded_in)
    run.validation.own = place.get("val_own")
    _restore_fit(run, place, parts)
    if phase in ("between", "epoch_end"):
        restore_states(data.loader, place.get("kept", {}))
        if now is not None:
            restore(data.loader, now)
        if phase == "epoch_end":
            loop.finish_epoch(parts, place["is_complete"])
        return
    loop.steps_before = place.get("steps_before", loop.steps_before)
    data.before, left = _reopen(data.loader, place, loop.clocks.epoch, first)
    batches = data.open(left, data.num_batches - first, parts.watch)
    batches.is_last = place["is_last"]
    if now is not None:
        restore(data.loader, now)
    loop.end_epoch(parts, _finish_batches(run, parts, place, left, first))


def _reopen(loader: Any, place: Mapping[str, Any], epoch: int, handed_out: int) -> tuple[Any, Rest]:
    """What is left of an epoch of a loader, and what its order comes from."""
    before = unpack(place["before"]) if place.get("before") is not None else None
    return before, reopen(loader, before, handed_out, place.get("kept", {}), epoch=epoch)


def _restore_fit(run: Running, place: Mapping[str, Any], parts: FitParts) -> None:
    """Restore what the users' objects hold, and what was collected in the running epoch."""
    parts.state.window_size = place.get("window_size", parts.state.window_size)
    run.eval_rows.update(place.get("eval_rows", {}))
    for name in _VIEWS:
        getattr(run.views, name).update(place.get("views", {}).get(name, {}))
    load_states(metric_objects(run.module), place.get("metrics", {}))
    if place.get("results") is not None:
        parts.results.load_state_dict(place["results"])
    if place.get("outputs") is not None and parts.epoch_outputs is not None:
        parts.epoch_outputs.batches = _unpack_outputs(place["outputs"], run.module)
    if "switches" in place:
        switches.apply(place["switches"], run.module)
    if place.get("toggles"):
        switches.toggle(place["toggles"], run.engine.toggler, run.module)
    if "windows" in place:
        restore_windows(place["windows"], run.module, run.turns, run.engine.loss_scale)


def _finish_batches(run: Running, parts: FitParts, place: Mapping[str, Any], left: Rest, first: int) -> bool:
    """Finish the batch that the checkpoint was written after, then the epoch; returns whether all batches ran."""
    loop, phase, is_last = run.loop, place["phase"], place["is_last"]
    loop.phase, loop.done, loop.ended = "batches", first, first
    loop.clocks.batch_idx, rest = first - 1, parts
    if _is_in_validation(place):  # its row is written, and it was due
        loop.phase, rest = "validation", replace(parts, write_row=None)
        if place.get("validation") is not None:
            run.validation.go_on = partial(_resume_validation, run, place["validation"])
        if parts.validate is None and parts.switch is not None:
            parts.switch("train")
    elif phase == "validated":  # a file of Lightning's
        rest = replace(parts, write_row=None, validate=None)
    if phase in ("batch_end", "validation", "validated"):
        loop.ended = first - 1
        is_over = loop.end_batch(rest, closes=place["closes"], is_last=is_last)
        loop.phase, run.validation.go_on = "batches", None
        if is_over:
            return bool(is_last)
    if phase != "batch" and is_last:
        left.finish()
        return True
    return bool(parts.profile(None, "run_training_epoch", loop.run_epoch)(parts, first))


def _is_in_validation(place: Mapping[str, Any]) -> bool:
    return place["phase"] == "validation" or (place["phase"] == "validated" and place.get("validation") is not None)


def _resume_validation(run: Running, saved: Mapping[str, Any], parts: EvaluationParts, at: Position) -> None:
    """Put a validation where it was."""
    if saved["results"] is not None and parts.results is not None:
        parts.results.load_state_dict(saved["results"])
    if saved["outputs"] is not None and parts.keeps:
        run.validation.outputs = _unpack_outputs(saved["outputs"], run.module)
    at.loader, at.done, at.ended = saved["loader"], saved["done"], saved["ended"]
    loader = parts.loaders[min(at.loader, len(parts.loaders) - 1)]
    if saved["before"] is not None and not at.ended:
        at.before, at.rest = _reopen(loader, saved, parts.epoch, at.done)
    restore(loader, unpack(saved["now"]))
