"""V13: a list of batches is one loader, a collection of loaders is several."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from leyden.data import check_validity, eval_loaders, train_loader
from leyden.data.kinds import kind_of
from leyden.data.loaders import parts_of
from leyden.errors import InvalidTypeError, MisconfigurationException

Pair = namedtuple("Pair", ["x", "y"])
x = torch.zeros(2, 3)
y = torch.zeros(2)


@dataclasses.dataclass
class Sample:
    image: torch.Tensor


class Graph:
    """A batch that can be iterated and moves itself, as those of graph libraries."""

    def __iter__(self) -> Iterator[Any]:
        return iter([("x", x)])

    def to(self, device: torch.device) -> Graph:
        return self


class Endless:
    """A loader of the user's own."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield x


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([x])


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=2)


def generator() -> Iterator[Any]:
    yield x


BATCHES = {
    "tensors": [x, x],
    "tuples": [(x, y), (x, y)],
    "lists, as list(DataLoader) gives": [[x, y], [x, y]],
    "dicts": [{"x": x}, {"x": x}],
    "dicts of strings and lists": [{"text": ["a", "b"], "y": y}],
    "named tuples": [Pair(x, y), Pair(x, y)],
    "tuples of tuples": [((x, x), (y, y)), ((x, x), (y, y))],
    "list with a tensor and a dict": [[x, {"mask": y}], [x, {"mask": y}]],
    "numbers": [1, 2, 3],
    "strings": ["a", "b"],
    "None": [None, x],
    "arrays": [numpy.zeros(3), numpy.zeros(3)],
    "dataclasses": [Sample(x), Sample(x)],
    "graphs": [Graph(), Graph()],
    "user dicts": [UserDict(x=x)],
    "a tuple of batches": ((x, y), (x, y)),
    "one batch": [(x, y)],
    "nothing": [],
    "some lists of containers only among others": [[x, y], [(x, x), (y, y)]],
}

ONE_LOADER = {
    "DataLoader": loader(),
    "generator": generator(),
    "range": range(3),
    "map": map(str, [1]),
    "own class": Endless(),
    "iterable dataset": Stream(),
    "tensor, row by row": torch.zeros(3, 2),
    "set": {1, 2},
}

SEVERAL = {
    "two DataLoaders": [loader(), loader()],
    "one DataLoader": [loader()],
    "tuple": (loader(), loader()),
    "DataLoader and list of batches": [loader(), [(x, y), (x, y)]],
    "DataLoader and list of tensors": [loader(), [x, x]],
    "DataLoader and empty list": [loader(), []],
    "ranges": [range(2), range(3)],
    "generators": [generator(), generator()],
    "own classes": [Endless(), loader()],
    "datasets": [Stream(), Stream()],
    "dict": {"a": loader(), "b": loader()},
    "dict with a list": {"a": loader(), "b": [x, x]},
    "named tuple": Pair(loader(), loader()),
}

AMBIGUOUS = {
    "lists of tuples": [[(x, y), (x, y)], [(x, y)]],
    "lists of dicts": [[{"x": x}], [{"x": x}]],
    "lists of lists": [[[x, y], [x, y]]],
    "empty lists": [[], []],
    "a DataLoader and a tuple": [loader(), (x, y)],
    "a DataLoader and a tensor": [loader(), x],
    "loaders in lists beside a tuple": [[loader(), loader()], (x, y)],
    "batches with iterables inside": [(x, {1, 2}), (x, {3})],
}

NESTED = {
    "loaders in lists": ([[loader(), loader()], [loader()]], 3),
    "loaders in a list beside a loader": ([loader(), [loader()]], 2),
    "loaders in dicts": ([{"a": loader()}], 1),
    "three levels": ({"a": [{"b": (loader(), [x, x])}], "c": loader()}, 3),
    "a list of batches beside loaders in a list": ([[(x, y), (x, y)], [loader()]], 2),
}

NEITHER = {
    "None": None,
    "number": 3,
    "batch in a dict": {"x": x, "y": y},
    "empty dict": {},
    "string": "train.csv",
    "class": Endless,
    "function": loader,
    "scalar": torch.tensor(1.0),
    "object": object(),
}


@pytest.mark.parametrize("value", BATCHES.values(), ids=BATCHES)
def test_a_list_of_batches_is_one_loader(value: Any) -> None:
    assert train_loader(value) is value
    assert eval_loaders(value) == [value] or eval_loaders(value)[0] is value


@pytest.mark.parametrize("value", ONE_LOADER.values(), ids=ONE_LOADER)
def test_an_iterable_is_one_loader(value: Any) -> None:
    assert train_loader(value) is value
    assert len(eval_loaders(value)) == 1


@pytest.mark.parametrize("value", SEVERAL.values(), ids=SEVERAL)
def test_a_collection_of_loaders_is_several(value: Any) -> None:
    items = list(value.values()) if isinstance(value, dict) else list(value)
    for loaders in (eval_loaders(value), parts_of(train_loader(value))):
        assert len(loaders) == len(items) and all(a is b for a, b in zip(loaders, items, strict=True))


@pytest.mark.parametrize(("value", "count"), NESTED.values(), ids=NESTED)
def test_collections_may_be_nested(value: Any, count: int) -> None:
    assert len(eval_loaders(value)) == len(parts_of(train_loader(value))) == count


def test_big_batches_are_known_at_a_glance() -> None:
    """Looking for loaders goes down along first containers, not through every token of every batch."""
    touched = []

    class Tokens(list[int]):
        def __iter__(self) -> Iterator[int]:
            touched.append(1)
            return super().__iter__()

    batches = [([Tokens([1, 2]) for _ in range(50)], y) for _ in range(20)]
    assert train_loader(batches) is batches
    assert len(touched) <= 6 * len(batches)


@pytest.mark.parametrize("function", [train_loader, eval_loaders])
@pytest.mark.parametrize("value", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_could_mean_both_is_an_error_with_a_way_out(value: Any, function: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"here.*batch_size=None.*\[ambiguous-loaders\]"):
        function(value, name="here")


@pytest.mark.parametrize("value", NEITHER.values(), ids=NEITHER)
def test_what_yields_no_batches_is_an_error_that_names_the_argument(value: Any) -> None:
    with pytest.raises(InvalidTypeError, match=r"train_dataloaders.*\[not-a-loader\]") as caught:
        train_loader(value)
    assert isinstance(caught.value, TypeError)


def test_no_loaders_for_evaluation() -> None:
    assert eval_loaders(None) == []


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (loader, r"call it: loader\(\)"),
        (Endless, "an instance of Endless"),
        ({"x": x}, r"pass \[batch\]"),
        ({"x": [x], "y": [y]}, "pass a CombinedLoader"),
        (None, "got None"),
        (3, "got an int"),
    ],
)
def test_remedies(value: Any, remedy: str) -> None:
    with pytest.raises(InvalidTypeError, match=remedy):
        check_validity(value, name="dataloaders")


def test_a_map_style_dataset_is_advised_against() -> None:
    dataset = TensorDataset(x, y)
    with pytest.warns(UserWarning, match=r"a TensorDataset.*batch_size.*\[dataset-as-loader\]"):
        assert train_loader(dataset) is dataset
    with pytest.warns(UserWarning, match=r"val_dataloaders\[1\] is a TensorDataset"):
        assert len(eval_loaders([loader(), dataset])) == 2


def test_checking_starts_no_workers() -> None:
    class Untouchable:
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("iterated")

    assert train_loader(Untouchable()) is not None


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ([], "either"),
        ([(x, y)], "either"),
        ([x], "batch"),
        ((), "batch"),
        ({}, "batch"),
        ([loader()], "nested"),
        (b"bytes", "batch"),
        (iter([x]), "loader"),
    ],
)
def test_kinds(item: Any, kind: str) -> None:
    assert kind_of(item) == kind
