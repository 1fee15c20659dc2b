"""What a run is made of, as plain data: kept in its checkpoints, and compared with the run that goes on from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from leyden.data.loaders import length_of, parts_of
from leyden.optimization.coverage import GroupNames, group_names
from leyden.optimization.joint import Joint, members_of
from leyden.optimization.plan import Plan

#: What schedulers and torch put beside the options that a user gives to a group.
NOT_GIVEN: Final = frozenset({"params", "param_names", "initial_lr", "max_lr", "min_lr"})


class Member(NamedTuple):
    """An optimizer, or a member of a Joint.

    Attributes:
        label: its place: "0", or "0.1" in a Joint.
        kind: its class by name; "" in files that do not tell.
        names: of its parameters, group by group; None in files that do not tell.
        state: of the file: what its ``state_dict`` returned.
        optimizer: of this run: the optimizer.
    """

    label: str
    kind: str
    names: GroupNames | None
    state: Mapping[str, Any] = {}
    optimizer: Any = None

    @property
    def place(self) -> int:
        """The place of the optimizer."""
        return int(self.label.partition(".")[0])

    @property
    def all_names(self) -> list[str]:
        """The names of all groups."""
        return [name for names in self.names or () for name in names]


def outline(
    plan: Plan,
    *,
    configured: Mapping[str, Any],
    callbacks: Sequence[Any],
    precision: str,
    world_size: int,
    loader: Any,
) -> dict[str, Any]:
    """What a run consists of.

    Args:
        plan: the optimizers and schedulers.
        configured: what :func:`options_of` said when they were made.
        callbacks: the run's.
        precision: the name of the precision.
        world_size: number of processes.
        loader: of the training; None if nobody has asked for it.
    """
    return {
        "automatic": plan.automatic,
        "accumulation": _plain(plan.accumulate_grad_batches),
        "frequencies": list(plan.frequencies),
        "precision": precision,
        "world_size": world_size,
        "callbacks": [callback.state_key for callback in callbacks],
        "members": [
            {"label": one.label, "class": one.kind, "names": list(map(list, one.names or ()))}
            for one in present_members(plan)
        ],
        "schedulers": [{"class": kind_of(config.scheduler), "optimizer": config.opt_idx} for config in plan.schedulers],
        "configured": dict(configured),
        "data": [_loader(part) for part in parts_of(loader)] if loader is not None else [],
    }


def options_of(plan: Plan) -> dict[str, Any]:
    """The options of all groups; the learning rates are those that schedulers start from."""
    return {
        one.label: [
            _plain({key: group.get("initial_lr", value) if key == "lr" else value for key, value in group.items()})
            for group in one.optimizer.param_groups
        ]
        for one in present_members(plan)
    }


def kind_of(thing: Any) -> str:
    """The class of something, by name."""
    return type(thing).__qualname__


def present_members(plan: Plan) -> list[Member]:
    """All optimizers of a run, a Joint's members one by one."""
    return [
        Member(f"{index}.{place}" if isinstance(optimizer, Joint) else str(index), kind_of(one), names, optimizer=one)
        for index, optimizer in enumerate(plan.optimizers)
        for place, (one, names) in enumerate(
            zip(members_of(optimizer), group_names(members_of(optimizer), plan.module), strict=True)
        )
    ]


def saved_members(checkpoint: Mapping[str, Any]) -> list[Member]:
    """All optimizers of a file, a Joint's members one by one."""
    told = {one["label"]: one for one in outline_of(checkpoint).get("members", ())}
    members = []
    for index, state in enumerate(checkpoint.get("optimizer_states", ())):
        is_joint = set(state) == {"optimizers"}
        for place, part in enumerate(state["optimizers"] if is_joint else [state]):
            label = f"{index}.{place}" if is_joint else str(index)
            one = told.get(label)
            names = None if one is None else tuple(map(tuple, one["names"]))
            members.append(Member(label, "" if one is None else one["class"], names, part))
    return members


def outline_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """What :func:`outline` returned when the file was written; empty where another framework wrote it."""
    found: Mapping[str, Any] = checkpoint.get("leyden", {}).get("plan", {})
    return found


def _plain(value: Any) -> Any:
    """Numbers, texts and containers of them; anything else by its class."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key not in NOT_GIVEN}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else kind_of(value)


def _loader(loader: Any) -> dict[str, Any]:
    """What decides on the order of a loader's samples."""
    told = {"class": kind_of(loader), "batches": length_of(loader)}
    if isinstance(loader, DataLoader):
        is_own = loader.batch_size is None and loader.batch_sampler is not None
        sampler: Any = loader.batch_sampler if is_own else loader.sampler
        told |= {"sampler": kind_of(sampler), "samples": length_of(sampler), "batch size": str(loader.batch_size)}
    return told
