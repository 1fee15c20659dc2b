"""Optimizer state by the names of parameters: it finds them in other groups, in another order, in another optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from leyden.checkpoint.structure import Member
from leyden.optimization.coverage import FOREIGN

#: Where the state of a parameter is: the optimizer of the file, its group, and the key there.
_Place = tuple[Member, int, Any]


class Match(NamedTuple):
    """What a file has for an optimizer of this run.

    Attributes:
        member: the optimizer.
        state: for its ``load_state_dict``; None if it begins anew.
        origin: the optimizer of the file that has most of its parameters; None if none has any.
        sources: for each of its groups the file's whose options it takes; None where the run's stay.
        taken: names of parameters, with the label of the optimizer that had them.
        by_name: whether names have decided; else the state is that of the same place, as it is.
    """

    member: Member
    state: dict[str, Any] | None = None
    origin: Member | None = None
    sources: Sequence[tuple[str, int] | None] = ()
    taken: Mapping[str, str] = {}
    by_name: bool = False

    def entries(self) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
        """Names and parameters, with what the state has for them, where it has the form of torch's."""
        state = self.state or {}
        groups = zip(
            self.member.names or (), state.get("param_groups", ()), self.member.optimizer.param_groups, strict=False
        )
        for names, group, own in groups:
            for name, key, parameter in zip(names, group["params"], own["params"], strict=False):
                if isinstance(state["state"].get(key), Mapping):
                    yield name, parameter, state["state"][key]

    def without(self, names: Container[str]) -> Match:
        """The same without the state of some parameters."""
        dropped = [id(entry) for name, _, entry in self.entries() if name in names]
        if not dropped or self.state is None:
            return self
        kept = {key: entry for key, entry in self.state["state"].items() if id(entry) not in dropped}
        return self._replace(state={**self.state, "state": kept})


def match(member: Member, saved: Sequence[Member], *, insists: bool = False) -> Match:
    """Find the state of an optimizer in a file.

    Args:
        member: the optimizer.
        saved: what the file has.
        insists: whether to take the state in the same place, by order, whatever the names are.
    """
    same = next((one for one in saved if one.label == member.label), None)
    has_names = all(one.names is not None and FOREIGN not in one.all_names for one in (*saved, member))
    if same is not None and (insists or not has_names or same.names == member.names):
        sources = [(same.label, index) for index in range(len(same.state.get("param_groups", ())))]
        return Match(member, dict(same.state), same, sources, dict.fromkeys(member.all_names, same.label))
    return _by_name(member, saved) if has_names and not insists else Match(member)


def _by_name(member: Member, saved: Sequence[Member]) -> Match:
    known = _places(saved)
    counts = Counter(one.label for name in member.all_names for one, _, _ in known.get(name, ()))
    if not counts:
        return Match(member)
    origin = max(saved, key=lambda one: (counts[one.label], -len(one.all_names), one.label == member.label))
    places = {name: _best(known[name], origin) for name in member.all_names if name in known}
    by_label = {one.label: one.state.get("param_groups", ()) for one in saved}
    own, states, groups, sources = member.optimizer.state_dict(), {}, [], []
    for names, group in zip(member.names or (), own["param_groups"], strict=True):
        found = [(key, place) for name, key in zip(names, group["params"], strict=True) if (place := places.get(name))]
        states.update({key: one.state["state"][old] for key, (one, _, old) in found if old in one.state["state"]})
        most = Counter((one.label, index) for _, (one, index, _) in found).most_common(1)
        sources.append(most[0][0] if most else None)
        options = by_label[most[0][0][0]][most[0][0][1]] if most else {}
        groups.append({**group, **{key: options[key] for key in options if key not in ("params", "param_names")}})
    rest = {key: value for key, value in origin.state.items() if key not in own}
    taken = {name: place[0].label for name, place in places.items() if place is not None}
    return Match(member, {**own, **rest, "state": states, "param_groups": groups}, origin, sources, taken, True)


def _places(saved: Sequence[Member]) -> dict[str, list[_Place]]:
    """Where the state of each parameter is; several optimizers may share one."""
    known: dict[str, list[_Place]] = {}
    for one in saved:
        for index, (names, group) in enumerate(zip(one.names or (), one.state.get("param_groups", ()), strict=False)):
            for name, key in zip(names, group["params"], strict=True):
                known.setdefault(name, []).append((one, index, key))
    return known


def _best(places: Sequence[_Place], origin: Member) -> _Place | None:
    """The place in the optimizer that most come from, else in another one of its class."""
    alike = [place for place in places if place[0].kind == origin.kind]
    return next((place for place in alike if place[0] is origin), alike[0] if alike else None)
