"""Which of the file's states each optimizer and scheduler of a run gets, and whether it can take it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from leyden.checkpoint.by_name import Match, match
from leyden.checkpoint.choices import Choices, aliases
from leyden.checkpoint.compare import Report, is_finite, listed
from leyden.checkpoint.forms import is_count, is_number, shown
from leyden.checkpoint.structure import NOT_GIVEN, Member, kind_of, outline_of, present_members, saved_members
from leyden.optimization.plan import Plan
from leyden.units import Duration

if TYPE_CHECKING:
    from leyden.loops.cadence import Limits

#: Entries of torch's optimizers that have the shape of their parameter.
_MOMENTS: Final = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
        *("acc_delta", "sum", "ax", "prev", "step_size"),
    }
)
#: Those of them that are squares.
_SQUARES: Final = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum"})
#: Options that do not tell a class: some versions of torch, schedulers or users add them.
_ANYWHERE: Final = NOT_GIVEN | {
    *("name", "max_momentum", "base_momentum", "swa_lr"),
    *("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"),
}
#: Entries of schedulers that are no setting, or that only some versions of torch have.
_PASSING: Final = frozenset(
    {
        *("base_lrs", "max_lrs", "last_epoch", "T_cur", "T_i", "best", "num_bad_epochs", "cooldown_counter"),
        *("verbose", "default_min_lr", "use_beta1", "anneal_func"),
    }
)


class Timing(NamedTuple):
    """What a scheduler of a run gets.

    Attributes:
        place: which one it is.
        scheduler: the scheduler.
        state: the file's; None where there is none.
        choice: "keep", "replace" or "reset"; None where nothing was said.
    """

    place: int
    scheduler: Any
    state: Mapping[str, Any] | None
    choice: str | None


def find_states(
    report: Report, checkpoint: Mapping[str, Any], plan: Plan, choices: Choices, *, anew: Container[str] = ()
) -> list[Match]:
    """For every optimizer, a Joint's members one by one, what the file has for it.

    Args:
        report: gets what does not fit, and what begins anew.
        checkpoint: the file's content.
        plan: the optimizers of this run.
        choices: what the user wants.
        anew: names of parameters that begin without state.
    """
    saved, matches = saved_members(checkpoint), []
    for member in present_members(plan):
        choice = _choice(choices, member)
        found = match(member, saved, insists=choice == "keep").without(anew)
        if choice == "reset":
            found = found._replace(state=None)
            text = f"{member.kind} of {listed(member.all_names)} begins anew"
            report.lines.append((f"optimizers.{member.label}", "reset", text))
        elif (by_order := _by_order(found, saved)) is not None:
            found = by_order
            names = listed(by_order.origin.all_names if by_order.origin else ())
            report.errors.append(
                f"{_described(member)} is of {names} in the file, of the same number and shapes; if they "
                'were only renamed, take the state by order with resume={"optimizers": "keep"}'
            )
        elif member.optimizer.param_groups:
            if misfit := _misfit(found, insists=choice == "keep"):
                report.errors.append(
                    f"{_described(member)} {misfit}; return what there was, or begin it anew with "
                    f'resume={{"optimizers.{member.label}": "reset"}}'
                )
            report.choices += [*_conversions(found), *_lost(found, checkpoint)]
        matches.append(found)
    used = {label for found in matches for label in (found.origin and found.origin.label, *found.taken.values())}
    for one in saved:
        if _choice(choices, one) != "reset" and one.label not in used and one.state.get("param_groups") != []:
            report.errors.append(
                f"{_described(one)} is only in the file; return it, or leave it out with "
                f'resume={{"optimizers.{one.label}": "reset"}}'
            )
    _tell_rest(report, saved, [found for found in matches if found.state is not None])
    return matches


def _by_order(found: Match, saved: Sequence[Member]) -> Match | None:
    """The state in the same place, where no name was found and by its groups and shapes it could be the same."""
    if found.origin is not None or not found.member.all_names:
        return None
    by_order = match(found.member, saved, insists=True)
    return None if _misfit(by_order, insists=False) else by_order


def _choice(choices: Choices, member: Member) -> str | None:
    return choices.of("optimizers", member.label, *aliases(member.all_names), str(member.place), member.kind)


def _described(member: Member) -> str:
    of = f" ({member.kind} of {listed(member.all_names)})" if member.kind else ""
    return f"optimizer {member.label}{of}"


def _tell_rest(report: Report, saved: Sequence[Member], matches: Sequence[Match]) -> None:
    """Tell which optimizers and parameters have moved, which begin without state, and whose state is left."""
    taken = {(label, name) for found in matches for name, label in found.taken.items()}
    by_name = [found for found in matches if found.by_name]
    origins = [(found, found.origin.label) for found in by_name if found.origin is not None]
    rest = {
        "moved": [f"{f.member.label} was {label}" for f, label in origins if label != f.member.label],
        "from another optimizer": [n for f, label in origins for n, before in f.taken.items() if before != label],
        "anew": [name for found in by_name for name in found.member.all_names if name not in found.taken],
        "left in the file": [name for one in saved for name in one.all_names if (one.label, name) not in taken],
    }
    told = [f"{what}: {listed(names)}" for what, names in rest.items() if names and by_name]
    if told:
        report.lines.append(("optimizers", "by name", "; ".join(told)))


def _misfit(found: Match, *, insists: bool) -> str | None:
    """Why an optimizer cannot take what was found for it: the first reason, which others may come from."""
    member, origin, optimizer = found.member, found.origin, found.member.optimizer
    if origin is None:
        return "is not in the file"
    there, here = ([len(group["params"]) for group in groups] for groups in _groups(found))
    if there != here:
        return f"has groups of {here} parameters, and of {there} in the file"
    if found.by_name and isinstance(optimizer, LBFGS):
        return "has one state for its parameters in their order, which is another"
    if not insists and (origin.kind or member.kind) != member.kind:
        return f"is {origin.kind} in the file"
    if not insists and not _is_of_class(optimizer, origin.state):
        return "has other options than in the file, which is of another class"
    if wrong := list(_wrong_entries(found)):
        return f"does not fit its state: {listed(wrong)}"
    infinite = [name for name, _, entry in found.entries() if not all(map(is_finite, entry.values()))]
    if infinite and not insists:
        return f'has a state that is not finite (NaN or infinite) for {listed(infinite)}; "keep" takes it as it is'
    return None


def _groups(found: Match) -> tuple[Sequence[Any], Sequence[Any]]:
    """The groups of the state and of the optimizer; none where the state has another form than torch's."""
    state = found.state or {}
    return (state["param_groups"], found.member.optimizer.param_groups) if "param_groups" in state else ((), ())


def _is_of_class(optimizer: Any, state: Mapping[str, Any]) -> bool:
    """Whether a state can be of a class of torch, by the options in it."""
    if not type(optimizer).__module__.startswith("torch.optim") or not state.get("param_groups"):
        return True
    there, here = state["param_groups"][0], optimizer.param_groups[0]
    decoupled = "decoupled_weight_decay"  # which tells AdamW from Adam
    if there.get(decoupled, here.get(decoupled)) != here.get(decoupled):
        return False
    return not (set(there) - set(here) - _ANYWHERE and set(here) - set(there) - _ANYWHERE)


def _lost(found: Match, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """Whether an optimizer has updated and knows nothing of it: what it keeps was lost, or reset before the save."""
    clocks, origin = checkpoint.get("leyden", {}).get("clocks", {}).get("optimizers", ()), found.origin
    if origin is None or origin.place >= len(clocks) or origin.state.get("state", True):
        return
    optimizer = found.member.optimizer
    keeps = type(optimizer).__module__.startswith("torch.optim") and optimizer.param_groups[0].get("momentum", 1)
    if keeps and clocks[origin.place]["applied"]:
        yield f"optimizer {origin.label} has no state in the file, after {clocks[origin.place]['applied']} updates"


def _wrong_entries(found: Match) -> Iterator[str]:
    """Entries that an optimizer of torch, or derived from one, cannot have made."""
    if not _is_torchs(found.member.optimizer):
        return
    for name, parameter, entry in found.entries():
        for key, value in entry.items():
            is_moment = key in _MOMENTS and value is not None and not is_lazy(parameter)
            if is_moment and _form(value) != _form(parameter):
                yield f"{key} of {name} is {_form(value)} for {_form(parameter)}"
            if key in ("step", *_SQUARES) and not _is_amount(value):
                yield f"{key} of {name} is {shown(value)}"
    for group, own in zip(*_groups(found), strict=False):
        yield from (f"{key} is missing" for key in own if key not in group and key not in _ANYWHERE)
        yield from (f"{key} is {shown(group[key])}" for key in group if not _is_option(key, group[key], own.get(key)))
        kinds = {frozenset(entry) for key in group["params"] if (entry := (found.state or {})["state"].get(key))}
        if len(kinds) > 1:
            yield f"some of its parameters have {listed(sorted(frozenset.union(*kinds)))}, and some less"


def _is_torchs(optimizer: Any) -> bool:
    """Whether an optimizer is one of torch, or derived from one."""
    return any(base.__module__.startswith("torch.optim") and base is not Optimizer for base in type(optimizer).__mro__)


def _is_amount(value: Any) -> bool:
    """Whether a value is not negative; NaN and infinity are told elsewhere."""
    if isinstance(value, Tensor):
        return value.is_complex() or not bool((value < 0).any())
    return is_number(value)


def _is_option(key: str, value: Any, own: Any) -> bool:
    """Whether an option of a group can be; only numbers are looked at."""
    if key in ("lr", "initial_lr"):
        return _is_amount(value)
    if key in _ANYWHERE or not isinstance(own, int | float):
        return True
    return isinstance(value, int | float | Tensor) and bool(value == value)


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{'floating' if value.is_floating_point() else value.dtype} {tuple(value.shape)}"


def _conversions(found: Match) -> Iterator[str]:
    """Moments of another precision, which torch converts without a word."""
    types = [
        f"{key} of {name} from {value.dtype} to {parameter.dtype}"
        for name, parameter, entry in found.entries()
        for key, value in entry.items()
        if key in _MOMENTS and isinstance(value, Tensor) and value.dtype != parameter.dtype
    ]
    if types:
        yield f"the state of optimizer {found.member.label} is converted: {listed(types)}"


def find_timings(
    report: Report, checkpoint: Mapping[str, Any], plan: Plan, matches: Sequence[Match], choices: Choices
) -> list[Timing]:
    """For every scheduler what the file has for it: of its optimizer and class, of its class, or in its place.

    Args:
        report: gets what does not fit.
        checkpoint: the file's content.
        plan: the schedulers of this run.
        matches: what the optimizers get.
        choices: what the user wants.
    """
    states = checkpoint.get("lr_schedulers", [])
    told = outline_of(checkpoint).get("schedulers", [{}] * len(states))
    left, timings = dict(enumerate(zip(told, states, strict=False))), []
    owners = {found.member.place: found.origin.place for found in matches if found.origin is not None}
    for index, config in enumerate(plan.schedulers):
        kind, owner = kind_of(config.scheduler), owners.get(config.opt_idx or 0)
        alike = [place for place, (there, _) in left.items() if there.get("class") == kind]
        nearest = sorted(alike, key=lambda place: (left[place][0]["optimizer"] != owner, place != index))
        there, state = left.pop(nearest[0] if nearest else index, ({}, None))
        timing = Timing(index, config.scheduler, state, choices.of("schedulers", str(index), kind))
        report.errors += _unfit(timing, there.get("class", kind), regrouped=any(found.by_name for found in matches))
        timings.append(timing)
    for place, (there, _) in left.items():
        if choices.of("schedulers", str(place), there.get("class", "")) is None:
            report.errors.append(
                f"scheduler {place} ({there.get('class', 'of some class')}) is only in the file: it has {len(states)} "
                f"schedulers, and configure_optimizers returned {len(plan.schedulers)}; return it, or leave it out "
                f'with resume={{"schedulers.{place}": "reset"}}'
            )
    return timings


def _unfit(timing: Timing, kind: str, *, regrouped: bool) -> Iterator[str]:
    """Why a scheduler cannot take what was found for it."""
    scheduler, state, here = timing.scheduler, timing.state or {}, kind_of(timing.scheduler)
    what, key = f"scheduler {timing.place} ({here})", f'"schedulers.{timing.place}"'
    if timing.choice == "reset":
        return
    if timing.state is None:
        yield f'{what} is not in the file; return those that there were, or let it begin with resume={{{key}: "reset"}}'
    elif not is_count(state.get("last_epoch", 0)):
        yield f'{what} is at {state["last_epoch"]!r} in the file; let it begin with resume={{{key}: "reset"}}'
    elif timing.choice != "replace" and not _has_rates(scheduler, state, regrouped=regrouped):
        rates = {name: state[name] for name in ("base_lrs", "_last_lr") if name in state}
        yield f'{what} has other rates than this run\'s groups: {rates}; let it begin with resume={{{key}: "reset"}}'
    elif timing.choice == "replace" and not _can_advance(scheduler, state):
        yield f'{what} cannot be brought to the file\'s position; let it begin with resume={{{key}: "reset"}}'
    elif timing.choice != "replace" and (kind != here or settings(scheduler, state) is None):
        yield (
            f"{what} is {kind if kind != here else 'another one'} in the file; return the same, bring this one to the "
            f'file\'s position with resume={{{key}: "replace"}}, or let it begin with resume={{{key}: "reset"}}'
        )


def compare_lengths(
    report: Report,
    plan: Plan,
    timings: Sequence[Timing],
    place: Mapping[str, Any],
    *,
    limits: Limits,
    windows_until: Callable[[Duration], float],
) -> None:
    """Find schedules of a fixed length, which raise behind their last step, that are too short for this run.

    Args:
        report: gets them.
        plan: the schedulers of this run.
        timings: what they get.
        place: where the run goes on.
        limits: how long the run is.
        windows_until: says how many windows there are until a limit; inf if nobody knows.
    """
    for timing, config in zip(timings, plan.schedulers, strict=True):
        state, own = timing.state or {}, timing.scheduler
        total, done = state.get("total_steps"), state.get("last_epoch")
        if not isinstance(own, OneCycleLR) or timing.choice in ("replace", "reset"):
            continue
        if not isinstance(total, int) or not isinstance(done, int):  # which is told elsewhere
            continue
        left = math.inf
        if plan.automatic and not plan.frequencies and config.frequency == 1 and not limits.most:
            left = _steps_left(config.interval, place, limits, windows_until, optimizers=len(plan.optimizers))
        what = f"scheduler {timing.place} (OneCycleLR) has {total - done} of {total} steps left in the file"
        remedy = f'give it more total_steps and resume={{"schedulers.{timing.place}": "replace"}}'
        if left != math.inf and left > total - done:
            report.errors.append(f"{what}, and this run has {left} to go, where it would fail; {remedy}")
        elif left == math.inf and total != own.total_steps:
            report.choices.append(f"{what}, and the step after them fails; end before, or {remedy}")


def _steps_left(
    interval: str,
    place: Mapping[str, Any],
    limits: Limits,
    windows_until: Callable[[Duration], float],
    *,
    optimizers: int,
) -> float:
    """How often a scheduler will still step; inf if that is not known."""
    clocks, phase, size = place["clocks"], place["phase"], place.get("window_size", 1)
    epochs = clocks["epoch"] + (phase == "epoch_end")
    used = place["batches"] - (phase == "batch") if phase not in ("between", "epoch_end") else 0
    has_ended = place["is_last"] and phase not in ("between", "epoch_end", "batch")
    if interval == "epoch":
        is_known = limits.max_epochs != -1 and limits.max_steps == -1
        return limits.max_epochs - epochs - has_ended if is_known else math.inf
    if limits.max_steps != -1 and optimizers > 1:
        return math.inf
    left = limits.max_steps - clocks["global_step"] if limits.max_steps != -1 else math.inf
    if limits.max_epochs != -1 and (whole := windows_until(Duration(limits.max_epochs, "epochs"))) != math.inf:
        windows = math.ceil(used / size) if has_ended else used // size
        left = min(left, whole - windows_until(Duration(epochs, "epochs")) - windows)
    return left


def _has_rates(scheduler: Any, state: Mapping[str, Any], *, regrouped: bool) -> bool:
    """Whether the rates that a scheduler keeps are rates of this run's groups."""
    for key in ("base_lrs", "_last_lr"):
        own, there = getattr(scheduler, key, None), state.get(key)
        if not (isinstance(own, list) and isinstance(there, list)):
            continue
        if not all(_is_amount(rate) and is_finite(torch.as_tensor(rate)) for rate in there):
            return False
        if len(own) != len(there) and not regrouped:
            return False
    return True


def _can_advance(scheduler: Any, state: Mapping[str, Any]) -> bool:
    """Whether a scheduler can be stepped to a position without the values that it has watched."""
    return isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau) and "last_epoch" in state


def settings(scheduler: Any, state: Mapping[str, Any]) -> dict[str, tuple[Any, Any]] | None:
    """What a scheduler of torch was built with, in the file and here; None if the file's is of another class."""
    if type(scheduler).__module__ != "torch.optim.lr_scheduler":
        return {}
    own = scheduler.state_dict()
    there, here = ({key for key in one if key[0] != "_" or key == "_milestones"} - _PASSING for one in (state, own))
    return {key: (state[key], own[key]) for key in sorted(here)} if there == here else None
