"""Walking nested data."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from leyden.tree import detach, first_batch_size, map_tensors, move_to_device, needs_move

CPU = torch.device("cpu")
META = torch.device("meta")  # a second device that every machine has

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Sample:
    image: Tensor
    label: int
    derived: str = field(init=False, default="d")


@dataclass(frozen=True)
class Frozen:
    image: Tensor
    checks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checks.append("made")


class Tagged(list[Any]):
    """A list with an attribute, and an __init__ of its own."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.tag = tag


class Moves:
    """An object that moves itself and returns itself, as a tokenizer's output does."""

    def __init__(self, returns: bool = True) -> None:
        self.device = CPU
        self.returns = returns

    def to(self, device: torch.device) -> Moves | None:
        self.device = device
        return self if self.returns else None


class Attributes(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


def one() -> Tensor:
    return torch.ones(2)


def double(tensor: Tensor) -> Tensor:
    return tensor * 2


@pytest.mark.parametrize(
    "data",
    [
        {"a": one(), "b": [one(), "text", None]},
        [one(), (one(), 3)],
        (one(),),
        OrderedDict(b=one(), a=one()),
        Point(one(), {"z": one()}),
        torch.max(torch.ones(2, 2), dim=0),
        UserDict(a=one()),
        MappingProxyType({"a": one()}),
    ],
    ids=lambda data: type(data).__name__,
)
def test_containers_keep_their_type_and_order(data: Any) -> None:
    result = map_tensors(double, data)
    assert type(result) is type(data)
    assert str(result) == str(data).replace("1.", "2.").replace("indices=tensor([0, 0])", "indices=tensor([0, 0])")


def test_a_defaultdict_keeps_its_factory() -> None:
    data = defaultdict(list, a=one())
    result = map_tensors(double, data)
    assert result.default_factory is list
    assert result["a"].tolist() == [2, 2] and data["a"].tolist() == [1, 1]


def test_a_list_with_its_own_init_keeps_its_attributes() -> None:
    data = Tagged("left")
    data.append(one())
    result = map_tensors(double, data)
    assert (type(result), result.tag, result[0].tolist(), data[0].tolist()) == (
        Tagged,
        "left",
        [2, 2],
        [1, 1],
    )


def test_dataclasses_are_copied_without_being_built_again() -> None:
    sample, frozen = Sample(one(), 3), Frozen(one())
    sample.derived = "changed"
    mapped = map_tensors(double, [sample, frozen])
    assert (mapped[0].image.tolist(), mapped[0].label, mapped[0].derived) == ([2, 2], 3, "changed")
    assert (mapped[1].image.tolist(), mapped[1].checks) == ([2, 2], ["made"])
    assert sample.image.tolist() == [1, 1]


def test_other_leaves_are_the_same_objects() -> None:
    leaves = [object(), "text", {1, 2}, Sample, iter([1])]
    result = map_tensors(double, leaves)
    assert all(mine is theirs for mine, theirs in zip(result, leaves, strict=True))


def test_moving_reaches_every_tensor_and_leaves_the_input() -> None:
    data = {"x": (one(), [Sample(one(), 1)]), "name": "a"}
    moved = move_to_device(data, META)
    assert moved["x"][0].device == moved["x"][1][0].image.device == META
    assert data["x"][0].device == CPU


def test_tensors_that_are_there_stay_the_same_objects() -> None:
    tensor = one()
    assert move_to_device([tensor], CPU)[0] is tensor


@pytest.mark.parametrize("returns", [True, False])
def test_objects_with_to_move_themselves(returns: bool) -> None:
    item = Moves(returns)
    assert move_to_device([item], META)[0] is item
    assert item.device == META


def test_a_packed_sequence_is_moved_by_its_own_method() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    moved = move_to_device(packed, META)
    assert moved.data.device == META and moved.batch_sizes.device == CPU  # lengths always stay on the CPU


def test_a_key_named_to_is_no_method() -> None:
    data = Attributes(to=one())
    assert move_to_device(data, META)["to"].device == META


@pytest.mark.parametrize(
    ("data", "device", "expected"),
    [
        ((one(), {"n": 1}), CPU, False),
        ((one(), {"n": one()}), META, True),
        ({"n": 1}, META, False),
        (Moves(), CPU, False),
        ([Moves()], META, True),
        (pack_sequence([one()]), CPU, True),
        (Sample(one(), 1), META, True),
    ],
)
def test_needs_move(data: Any, device: torch.device, expected: bool) -> None:
    assert needs_move(data, device) is expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (torch.zeros(5, 2), 5),
        (torch.tensor(3.0), 1),
        ((torch.zeros(4), torch.zeros(7)), 4),
        ({"ids": ["a", "b"], "x": torch.zeros(3)}, 3),
        ([[], {}, ((), [torch.zeros(2)])], 2),
        (Sample(torch.zeros(6, 1), 3), 6),
        ((torch.zeros(0, 3), torch.zeros(2)), 0),
        ("text", None),
        (["a", 1, None, object()], None),
        ([], None),
    ],
)
def test_first_batch_size_r132(data: Any, expected: int | None) -> None:
    assert first_batch_size(data) == expected


def test_an_iterator_in_a_batch_is_not_consumed() -> None:
    iterator = iter([one()])
    assert first_batch_size([iterator]) is None
    assert len(list(iterator)) == 1


def test_detach_cuts_graphs_and_keeps_the_rest() -> None:
    weight = torch.ones(2, requires_grad=True)
    plain = one()
    result = detach({"loss": weight.sum(), "plain": plain, "n": 1})
    assert not result["loss"].requires_grad
    assert result["plain"] is plain and result["n"] == 1


def test_mapping_never_changes_its_input() -> None:
    data = {"a": [one(), Point(one(), one())], "b": UserDict(c=one())}
    before = copy.deepcopy(data)
    map_tensors(lambda tensor: tensor.add(1), data)
    assert str(data) == str(before)
