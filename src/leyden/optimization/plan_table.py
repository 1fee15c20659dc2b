"""The plan as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from leyden.optimization.coverage import group_names
from leyden.optimization.joint import Joint, members_of
from leyden.optimization.optimizer import unwrap

if TYPE_CHECKING:
    from leyden.optimization.plan import Plan

_SHOWN = 3


def table_of(plan: Plan) -> str:
    """One row per optimizer (and per member of a Joint), then clipping, accumulation and what is odd."""
    from tabulate import tabulate

    headers = ("", "optimizer", "lr", "parameters", "turn", "schedulers")
    text = str(tabulate(list(_rows(plan)), headers=headers, tablefmt="simple", disable_numparse=True))
    return "\n".join((text, *_notes(plan)))


def _rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    for index, optimizer in enumerate(plan.optimizers):
        members = members_of(optimizer)
        for place, (member, groups) in enumerate(zip(members, group_names(members, plan.module), strict=True)):
            names = [name for group in groups for name in group]
            label = f"{index}.{place}" if isinstance(optimizer, Joint) else str(index)
            rates = ", ".join(dict.fromkeys(f"{float(group['lr']):g}" for group in _with_lr(member)))
            own_schedulers = [c for c in plan.schedulers if _is_of(c, member, optimizer, place)]
            schedulers = ", ".join(_scheduler(c, plan.automatic) for c in own_schedulers)
            yield label, type(member).__name__, rates, _summary(names), _turn(plan, index), schedulers or "-"


def _with_lr(optimizer: Any) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if "lr" in group]


def _is_of(config: Any, member: Any, optimizer: Any, place: int) -> bool:
    owner = unwrap(getattr(config.scheduler, "optimizer", None))
    return owner is member or (owner is optimizer and place == 0)


def _scheduler(config: Any, automatic: bool) -> str:
    if not automatic:
        return type(config.scheduler).__name__
    every = f"{config.frequency} {config.interval}s" if config.frequency > 1 else config.interval
    watched = f" on {config.monitor}" if config.monitor else ""
    return f"{type(config.scheduler).__name__} every {every}{watched}"


def _turn(plan: Plan, index: int) -> str:
    if not plan.automatic:
        return "manual"
    joint = "joint, " if isinstance(plan.optimizers[index], Joint) else ""
    if plan.frequencies:
        return f"{joint}{plan.frequencies[index]} of {sum(plan.frequencies)} batches"
    return f"{joint}every batch"


def _summary(names: Sequence[str]) -> str:
    """A few names in full, many by the part of the module that they are in."""
    if len(names) <= _SHOWN:
        return ", ".join(names) or "none"
    parts = Counter(name.split(".")[0] for name in names)
    return f"{len(names)}: " + ", ".join(f"{part} ({count})" for part, count in parts.items())


def _notes(plan: Plan) -> Iterator[str]:
    if plan.gradient_clip_val:
        yield f"clipping: {plan.gradient_clip_algorithm or 'norm'} {plan.gradient_clip_val:g}, each optimizer by itself"
    if plan.accumulate_grad_batches != 1:
        yield f"accumulation: {plan.accumulate_grad_batches} micro-batches per update"
    coverage = plan.coverage
    for text, names in (
        ("trainable, but in no optimizer", coverage.unassigned),
        ("in more than one optimizer", coverage.shared),
        ("in an optimizer, but frozen", coverage.frozen),
    ):
        if names:
            yield f"{text}: {_summary(names)}"
    unattached = [c for c in plan.schedulers if getattr(c.scheduler, "optimizer", None) is None]
    if unattached:
        yield f"schedulers of no optimizer: {', '.join(_scheduler(c, plan.automatic) for c in unattached)}"
    if coverage.foreign:
        yield f"optimized, but not parameters of the module: {coverage.foreign}"
