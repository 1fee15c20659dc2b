"""A fit that goes on from a file: what the file has is compared with the run, and then taken, as the user wants it.

::

    resumption = Resumption(content, "a.ckpt", resume)     types and counts; nothing is known of the run
    resumption.begin(module, ...)                          weights; then they, callbacks and clocks may be restored
    configure_optimizers, on_fit_start                     the user's
    resumption.finish(plan, ...)                           all the rest; tells everything, and restores it

Whatever is refused leaves the module, the clocks and the random generators as they were.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from leyden.checkpoint.by_name import Match
from leyden.checkpoint.choices import Choices, paths
from leyden.checkpoint.compare import Report, compare_types, compare_weights, listed, not_finite
from leyden.checkpoint.content import check_content
from leyden.checkpoint.layout import SCALERS
from leyden.checkpoint.progress import place_of
from leyden.checkpoint.restore import by_key
from leyden.checkpoint.resume import check_limits, set_clocks
from leyden.checkpoint.setting import compare_collected, compare_place, compare_setting, unlike_states
from leyden.checkpoint.states import Timing, compare_lengths, find_states, find_timings, settings
from leyden.checkpoint.structure import outline_of
from leyden.errors import CheckpointError, MissingKeyError, warn
from leyden.optimization.clocks import Clocks, UpdateClock, Verdict
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import unwrap
from leyden.optimization.plan import Plan
from leyden.optimization.undo import Undo
from leyden.rank import rank_zero_info
from leyden.seed import rng_state, set_rng_state
from leyden.units import Duration

if TYPE_CHECKING:
    from leyden.loops.cadence import Limits

#: Options of a group that schedulers set, or start from.
_DERIVED: Final = ("initial_lr", "max_lr", "min_lr")
_RATES: Final = ("lr", *_DERIVED)
#: A place where no epoch is in progress.
_BETWEEN: Final = {"phase": "between", "batches": 0, "is_last": False, "closes": False}
_AT_ZERO: Final = dict.fromkeys(("epoch", "batch_idx", "micro_batches", "updates", "global_step", "samples"), 0)
#: What of a place belongs to the epoch in progress.
_OF_EPOCH: Final = ("results", "before", "outputs", "validation", "windows", "verdicts", "eval_rows")


class Resumption:
    """A fit that goes on from a file.

    Args:
        checkpoint: the file's content; the module's hook may change it.
        name: the file, for texts.
        resume: the argument of ``fit``.

    Raises:
        CheckpointError: the content cannot be (``checkpoint-content``).
    """

    def __init__(self, checkpoint: dict[str, Any], name: str, resume: Mapping[str, str] | None = None) -> None:
        check_content(checkpoint, name)
        self.checkpoint, self.report = checkpoint, Report()
        self._name, self._choices = name, Choices(resume)
        self._undo: list[Callable[[], Any]] = []
        self._reset: list[str] = []

    def begin(
        self, module: Any, *, clocks: Clocks, callbacks: Sequence[Any], precision: str, datamodule: Any = None
    ) -> dict[str, Any] | None:
        """Compare what is known before there are optimizers; set the clocks.

        Args:
            module: its hook ``on_load_checkpoint`` is called.
            clocks: of the run.
            callbacks: of the run.
            precision: name of the run's precision.
            datamodule: of the run, or None.

        Returns:
            Where the run goes on; None if weights and callbacks must not be restored, for which :meth:`finish` has the
            reasons.

        Raises:
            MissingKeyError: the file holds weights only (``resume-weights-only``).
        """
        self._remember(module, clocks, callbacks)
        if datamodule is not None:  # what it holds may be large, so only which objects these are
            attributes = vars(datamodule)
            self._undo += [attributes.clear, partial(attributes.update, dict(attributes))]
        with self.undone():
            module.on_load_checkpoint(self.checkpoint)
            self._check_whole()
            self._compare_weights(module, precision)
            before = set(self.checkpoint.get("callbacks") or ())
            self._leave_out_callbacks()
            self.report.errors += unlike_states(callbacks, self.checkpoint["callbacks"])
            if self.report.errors:
                return None
            place = self._place()
            set_clocks(clocks, place)
        has_all = before <= {callback.state_key for callback in callbacks} & set(self.checkpoint["callbacks"])
        return {**place, "should_stop": has_all and bool(place.get("should_stop"))}

    @property
    def in_validation(self) -> bool:
        """Whether the fit goes on in the middle of a validation."""
        return self._choices.of("data") != "reset" and bool(self.checkpoint.get("leyden", {}).get("validation"))

    def _remember(self, module: Any, clocks: Clocks, callbacks: Sequence[Any]) -> None:
        """Remember what restoring and the user's hooks change, until it is known that the file fits."""
        self._undo = [Undo(module, holders=callbacks), partial(set_rng_state, rng_state())]
        values = {field.name: getattr(clocks, field.name) for field in fields(clocks)}
        values["optimizers"] = [replace(clock, skipped=dict(clock.skipped)) for clock in clocks.optimizers]
        self._undo += [partial(setattr, clocks, name, value) for name, value in values.items()]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Put everything back if the block fails; an error about the file names it."""
        try:
            yield
        except BaseException as cause:
            for step in self._undo:
                step()
            if isinstance(cause, CheckpointError) and self._name not in cause.message:
                text = f"{self._name!r} does not fit this run, which is as it was: {cause.message}"
                raise CheckpointError(text, code=cause.code) from cause
            raise

    def _check_whole(self) -> None:
        """Refuse weights alone, unless everything else is to begin anew."""
        if "optimizer_states" in self.checkpoint:
            return
        if {self._choices.of("optimizers"), self._choices.of("schedulers")} != {"reset"}:
            raise MissingKeyError(
                "the checkpoint holds weights only, without optimizers to go on with: it was saved with "
                "weights_only=True. Start a new fit from its weights: Module.load_from_checkpoint(path); or say "
                'resume={"optimizers": "reset", "schedulers": "reset"}',
                code="resume-weights-only",
            )
        self.checkpoint.update(optimizer_states=[], lr_schedulers=[])

    def _compare_weights(self, module: Any, precision: str) -> None:
        weights, own, report = self.checkpoint["state_dict"], module.state_dict(), self.report
        chosen = {name: self._choices.of("weights", *paths(name)) for name in {**own, **weights}}
        self._reset = [name for name, choice in chosen.items() if choice == "reset"]
        if self._reset:
            kept = {name: value for name, value in weights.items() if name not in self._reset}
            weights = kept | {name: own[name] for name in self._reset if name in own}
            self.checkpoint["state_dict"] = weights
            report.lines.append(("weights", "reset", f"this run's: {listed(self._reset)}"))
        compare_weights(report, module, weights, strict=bool(module.strict_loading))
        compare_types(report, module, weights, precision=precision)
        hint = ', or let all below a name begin with resume={"weights.<name>": "reset"}'
        report.errors = [text + hint for text in report.errors]
        wrong = [name for name in not_finite(module, weights) if chosen[name] != "keep"]
        if wrong:
            report.errors.append(
                f"weights are not finite (NaN or infinite): {listed(wrong)}; take an older file, or say "
                'resume={"weights": "keep"} to take them as they are'
            )

    def _leave_out_callbacks(self) -> None:
        states = self.checkpoint["callbacks"] = by_key(self.checkpoint.get("callbacks") or {})
        for key in [*states]:
            name = str(getattr(key, "__name__", key)).partition("{")[0]
            if self._choices.of("callbacks", str(key), name) == "reset":
                del states[key]
                self.report.lines.append(("callbacks", "reset", f"{name} begins anew"))

    def _place(self, window_size: int = 1) -> dict[str, Any]:
        """Where the run goes on, by the user's choices."""
        place, choices = place_of(self.checkpoint, window_size=window_size), self._choices
        begins_epoch = choices.of("data") == "reset" and _is_inside(place)
        now = place.get("before" if begins_epoch else "now") if choices.of("random") != "reset" else None
        if choices.of("clocks") == "reset":
            return {**_BETWEEN, "clocks": _AT_ZERO, "now": now}
        if begins_epoch:
            place = {key: value for key, value in place.items() if key not in _OF_EPOCH} | _BETWEEN
        if self._reset and "windows" in place:
            gradients = place["windows"]["gradients"]
            kept = {name: gradients[name] for name in gradients if name not in self._reset}
            place["windows"] = {**place["windows"], "gradients": kept}
        return {**place, "now": now}

    def finish(
        self,
        plan: Plan,
        *,
        here: Mapping[str, Any],
        callbacks: Sequence[Any],
        clocks: Clocks,
        scaler: Any,
        window_size: int,
        limits: Limits,
        windows_until: Callable[[Duration], float],
    ) -> dict[str, Any]:
        """Compare the rest, tell all, and restore optimizers, schedulers and the loss scale.

        Args:
            plan: the optimizers and schedulers of this run.
            here: what this run is made of.
            callbacks: of the run.
            clocks: of the run.
            scaler: the loss scaler, or None.
            window_size: micro-batches of a window in this epoch.
            limits: how long the run is.
            windows_until: says how many windows there are until a limit; inf if nobody knows.

        Returns:
            Where the loop goes on.

        Raises:
            CheckpointError: with everything that does not fit (``resume-mismatch``).
            InvalidValueError: a choice names nothing (``resume-choice``).
            MisconfigurationException: all epochs are done (``resume-max-epochs``).
        """
        report, choices, checkpoint = self.report, self._choices, self.checkpoint
        place = self._place(window_size)
        matches = find_states(report, checkpoint, plan, choices, anew=self._reset)
        timings = find_timings(report, checkpoint, plan, matches, choices)
        compare_lengths(report, plan, timings, place, limits=limits, windows_until=windows_until)
        compare_setting(report, checkpoint, here, callbacks=callbacks, scaler=scaler)
        compare_place(report, checkpoint, here, place)
        compare_collected(report, checkpoint, place, plan.module)
        self._compare_options(here["configured"], matches, timings)
        choices.check_known(key for found in matches for group in found.member.optimizer.param_groups for key in group)
        self._tell()
        check_limits(place, max_epochs=limits.max_epochs, max_steps=limits.max_steps)
        owners = [found.member.optimizer for found in matches]
        self._undo += [partial(group.update, dict(group)) for owner in owners for group in owner.param_groups]
        stateful = [*(timing.scheduler for timing in timings), *([scaler] if scaler is not None else [])]
        self._undo.append(Undo(nn.Module(), holders=[*owners, *stateful]))
        self._load(matches, timings, scaler)
        self._print(place)
        return _follow(place, clocks, matches, len(plan.optimizers))

    def _compare_options(self, own: Mapping[str, Any], matches: Sequence[Match], timings: Sequence[Timing]) -> None:
        """Tell which options the code has changed, since the file's are taken and the change has no effect."""
        there, told = outline_of(self.checkpoint).get("configured", {}), self.report.choices
        changed = {
            f"{key} of optimizer {found.member.label} was {old[key]} and is {new[key]}": key
            for found in matches
            if found.state is not None
            for source, new in zip(found.sources, own[found.member.label], strict=False)
            if source is not None and source[1] < len(there.get(source[0], ()))
            for old in (there[source[0]][source[1]],)
            for key in new
            if key in old and old[key] != new[key] and self._choices.of(key) is None
        }
        for timing in timings if outline_of(self.checkpoint) else ():
            pairs = settings(timing.scheduler, timing.state) or {} if timing.state and not timing.choice else {}
            what = f"schedulers.{timing.place}"
            changed |= {
                f"{key} of {what} was {old} and is {new}": what for key, (old, new) in pairs.items() if old != new
            }
        if changed:
            remedy = ", ".join(f'"{key}": "replace"' for key in dict.fromkeys(changed.values()))
            told.append(
                f"configure_optimizers: {listed(list(changed))}. The file's are kept; take this run's with "
                f'resume={{{remedy}}}, or say "keep"'
            )

    def _tell(self) -> None:
        """Say everything that was found."""
        report = self.report
        if report.errors:
            also = "\n  - ".join(("\nThis alone would only be told:", *report.choices)) if report.choices else ""
            raise CheckpointError(
                f"{self._name!r} does not fit this run, which is as it was:\n  - "
                + "\n  - ".join(report.errors)
                + also,
                code="resume-mismatch",
            )
        if report.choices:
            found = "\n  - ".join(report.choices)
            text = f"{self._name!r} was written by a run that differs from this one:\n  - {found}\n"
            warn(text, code="resume-differs")

    def _print(self, place: Mapping[str, Any]) -> None:
        """Print what is not as in the file."""
        lines, epoch = list(self.report.lines), place["clocks"]["epoch"] + (place["phase"] == "epoch_end")
        is_inside = _is_inside(place_of(self.checkpoint))
        for key, text in (
            ("clocks", "epoch 0, step 0"),
            ("data", f"epoch {epoch} begins once more" if is_inside else f"no epoch was broken off; {epoch} is next"),
            ("random", "the generators go on as they are"),
            ("scaler", "the loss scale is this run's"),
        ):
            lines += [(key, "reset", text)] if self._choices.of(key) == "reset" else []
        if lines:
            width, other = (max(len(line[column]) for line in lines) for column in (0, 1))
            fill = textwrap.TextWrapper(80, break_long_words=False, break_on_hyphens=False)
            rows = []
            for what, choice, text in lines:
                fill.initial_indent = f"  {what:{width}}  {choice:{other}}  "
                fill.subsequent_indent = " " * len(fill.initial_indent)
                rows.append(fill.fill(text))
            rank_zero_info("\n".join((f"going on from {self._name!r}, but for:", *rows)))

    def _load(self, matches: Sequence[Match], timings: Sequence[Timing], scaler: Any) -> None:
        for found in matches:
            if found.state is not None:
                fresh = [dict(group) for group in found.member.optimizer.param_groups]
                _load_state(found.member.optimizer, found.state, f"optimizer {found.member.label}")
                changed = [one for one in timings if _drives(one, found) and one.choice in ("replace", "reset")]
                self._choose_options(found, fresh, is_on=not changed)
        for timing in timings:
            self._load_scheduler(timing, [found for found in matches if _drives(timing, found)])
        state = next((self.checkpoint[key] for key in SCALERS if key in self.checkpoint), None)
        if scaler is not None and state and self._choices.of("scaler") != "reset":
            _load_state(scaler, state, "the loss scale")

    def _choose_options(self, found: Match, fresh: Sequence[Mapping[str, Any]], *, is_on: bool) -> None:
        """Give groups those options that are to be this run's; ``is_on`` says whether their schedules go on."""
        told: dict[str, list[str]] = {}
        lr, silent = self._choices.of("lr"), {"params", *(_DERIVED if is_on else _RATES)}
        for index, (group, new) in enumerate(zip(found.member.optimizer.param_groups, fresh, strict=True)):
            before = dict(group)
            if found.sources[index] is None:
                continue
            if lr == "replace" or (lr is None and not is_on):
                group.update({key: new[key] for key in _RATES if key in new})
                if is_on and before.get("initial_lr"):  # as far down its schedule as the file's was
                    group["lr"] = new.get("initial_lr", new["lr"]) * (before["lr"] / before["initial_lr"])
            elif not is_on:  # the schedule begins at the present rate
                group["initial_lr"] = group["lr"]
            for key in new:
                if key not in _RATES and self._choices.of(key) == "replace":
                    group[key] = new[key]
                if key not in silent and group[key] != before.get(key):
                    told.setdefault(key, []).append(f"{_short(before.get(key))} -> {_short(group[key])}")
        label = f"optimizer {found.member.label}"
        self.report.lines += [(key, "replace", f"{label}: {listed(told[key])}") for key in told]

    def _load_scheduler(self, timing: Timing, driven: Sequence[Match]) -> None:
        scheduler, state, lr = timing.scheduler, timing.state, self._choices.of("lr")
        groups = [group for found in driven for group in found.member.optimizer.param_groups]
        is_on = timing.choice in (None, "keep") and state is not None
        if is_on:
            has_moved = any(found.by_name for found in driven)
            _load_state(scheduler, _regrouped(state, scheduler) if has_moved else dict(state or {}), "a scheduler")
            for found in driven:
                if found.state is None:  # an optimizer that begins anew, under a schedule that goes on
                    for group, rate in zip(found.member.optimizer.param_groups, scheduler.get_last_lr(), strict=False):
                        group["lr"] = rate
        if lr == ("replace" if is_on else "keep"):
            _rebase(scheduler, groups)
        if timing.choice == "replace" and state is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no optimizer has stepped yet in this process
                for _ in range(state["last_epoch"]):
                    scheduler.step()
        if not is_on:
            rates = listed([_short(group["lr"]) for group in groups])
            text = f"this run's {type(scheduler).__name__}, at {getattr(scheduler, 'last_epoch', 0)}: lr {rates}"
            self.report.lines.append((f"schedulers.{timing.place}", timing.choice or "", text))


def _load_state(owner: Any, state: Any, what: str) -> None:
    try:
        owner.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as cause:
        raise CheckpointError(
            f"the state of {what} in the checkpoint does not fit this run's {type(owner).__name__}: {cause}",
            code="resume-mismatch",
        ) from cause


def _is_inside(place: Mapping[str, Any]) -> bool:
    """Whether an epoch was broken off."""
    return place["phase"] not in ("between", "epoch_end")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _drives(timing: Timing, found: Match) -> bool:
    """Whether a scheduler sets the learning rate of an optimizer."""
    owner = unwrap(getattr(timing.scheduler, "optimizer", None))
    return owner is not None and any(member is found.member.optimizer for member in members_of(owner))


def _regrouped(state: Any, scheduler: Any) -> dict[str, Any]:
    """The state of a scheduler whose optimizer has other groups now: with this run's values for each of them."""
    own = scheduler.state_dict()
    by_group = [key for key, value in own.items() if key.endswith(("lrs", "momentums", "lambdas", "_last_lr"))]
    nested = zip(state.get("_schedulers", ()), getattr(scheduler, "_schedulers", ()), strict=True)
    parts = [_regrouped(part, new) for part, new in nested]
    return {**state, **{key: own[key] for key in by_group}, **({"_schedulers": parts} if parts else {})}


def _rebase(scheduler: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Let a scheduler start from the initial rates of groups."""
    for part in (scheduler, *getattr(scheduler, "_schedulers", ())):
        if len(getattr(part, "base_lrs", ())) == len(groups):
            part.base_lrs = [group.get("initial_lr", group["lr"]) for group in groups]
        part._last_lr = [group["lr"] for group in groups]


def _follow(place: dict[str, Any], clocks: Clocks, matches: Sequence[Match], count: int) -> dict[str, Any]:
    """Let clocks, verdicts, toggles and windows go with optimizers that have another place now."""
    origins = {found.member.place: found.origin.place for found in reversed(matches) if found.origin is not None}
    order = [origins.get(index) for index in range(count)]
    if order == list(range(count)) or place["clocks"] is _AT_ZERO:
        return place
    before = [replace(clock) for clock in clocks.optimizers]
    for clock, index in zip(clocks.optimizers, order, strict=False):
        known = before[index] if index is not None and index < len(before) else UpdateClock()
        clock.attempted, clock.applied, clock.skipped = known.attempted, known.applied, known.skipped
    verdicts, windows = dict(enumerate(place.get("verdicts", ()))), place.get("windows")
    moved: dict[str, Any] = {"verdicts": [verdicts.get(-1 if i is None else i, Verdict.APPLIED.value) for i in order]}
    now_at = {before: index for index, before in enumerate(order)}
    toggles = [{**one, "optimizer": now_at.get(one["optimizer"])} for one in place.get("toggles", ())]
    moved["toggles"] = [one for one in toggles if one["optimizer"] is not None]
    if windows is not None and None not in order:
        moved["windows"] = {**windows, "turns": [windows["turns"][index] for index in order if index is not None]}
    return {**place, **moved}
