"""save_hyperparameters and hparams, beside Lightning's where the two agree."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from argparse import Namespace
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

from leyden.errors import InvalidValueError, LeydenWarning, MissingKeyError
from leyden.hparams import AttributeDict, HyperparametersMixin


class Base(HyperparametersMixin, nn.Module):
    """What LightningModule is, as far as hyper-parameters are concerned."""


def lightning_base() -> type[Any]:
    from pytorch_lightning import LightningModule

    return LightningModule


# Every case defines a class on a given base and makes an instance; the same text runs on both libraries.


def all_arguments(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, width: int, lr: float = 0.1, *args: Any, names: Any = ("a",), **kwargs: Any) -> None:
            super().__init__()
            local = 3  # noqa: F841  not an argument
            self.save_hyperparameters()

    return Module(8, 0.2, "positional", names=("b",), depth=2, kind="x")


def some_names(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, width: int, lr: float, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters("lr", "depth")

    return Module(8, 0.2, depth=2)


def ignoring_one(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, width: int, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="width")

    return Module(8)


def ignoring_some(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, width: int, lr: float = 0.1, depth: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["width", "depth", "missing"])

    return Module(8)


def inherited(base: type[Any]) -> Any:
    class Parent(base):
        def __init__(self, width: int, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, depth: int, lr: float = 0.5) -> None:
            super().__init__(width=depth * 2, lr=lr * 2)

    return Child(3)


def both_save(base: type[Any]) -> Any:
    class Parent(base):
        def __init__(self, width: int, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, depth: int, secret: str = "s", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = depth + 1
            self.save_hyperparameters(ignore="secret")

    return Child(3, width=7, more=1)


def child_saves(base: type[Any]) -> Any:
    class Parent(base):
        def __init__(self, width: int) -> None:
            super().__init__()

    class Child(Parent):
        def __init__(self, depth: int) -> None:
            super().__init__(width=depth * 2)
            self.save_hyperparameters()

    return Child(3)


def a_namespace(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, conf: Namespace) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Module(Namespace(lr=0.1, nested={"a": [1]}))


def a_dict(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, conf: dict[str, Any], lr: float) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Module({"width": 3}, 0.1)


def nothing_given(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Module({})


def no_arguments(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Module()


def old_style_super(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, lr: float) -> None:
            super(Module, self).__init__()  # noqa: UP008
            self.save_hyperparameters(logger=False)

    return Module(0.3)


def changed_before_saving(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, lr: float | None = None) -> None:
            super().__init__()
            lr = lr or 0.01
            self.save_hyperparameters()

    return Module()


def before_super(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, lr: float) -> None:
            self.save_hyperparameters()
            super().__init__()

    return Module(0.3)


def dictionary_then_names(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, conf: dict[str, Any], lr: float) -> None:
            super().__init__()
            self.save_hyperparameters(conf)
            self.save_hyperparameters("lr")

    return Module({"width": 3, "lr": 9}, 0.1)


def a_mapping_of_another_type(base: type[Any]) -> Any:
    class Module(base):
        def __init__(self, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    return Module(UserDict(width=3))


def a_dataclass_module(base: type[Any]) -> Any:
    @dataclass(eq=False)
    class Module(base):
        width: int
        layers: list[int] = field(default_factory=lambda: [1, 2])
        made: int = field(init=False, default=3)

        def __post_init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    return Module(4)


CASES: list[Callable[[type[Any]], Any]] = [
    all_arguments,
    some_names,
    ignoring_one,
    ignoring_some,
    inherited,
    both_save,
    child_saves,
    a_namespace,
    a_dict,
    nothing_given,
    no_arguments,
    old_style_super,
    changed_before_saving,
    dictionary_then_names,
    a_mapping_of_another_type,
]


def state(module: Any) -> dict[str, Any]:
    return {
        "hparams": dict(module.hparams),
        "type": type(module.hparams).__name__,
        "initial": dict(module.hparams_initial),
        "name": getattr(module, "_hparams_name", None),
        "logs": module._log_hyperparams,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_hyper_parameters_equal_lightnings(case: Callable[[type[Any]], Any]) -> None:
    assert state(case(Base)) == state(case(lightning_base()))


def test_the_expected_values_of_a_few() -> None:
    assert all_arguments(Base).hparams == {"width": 8, "lr": 0.2, "names": ("b",), "depth": 2, "kind": "x"}
    assert inherited(Base).hparams == {"width": 6, "lr": 0.5, "depth": 3}
    assert both_save(Base).hparams == {"width": 7, "more": 1, "depth": 3}


def test_saving_before_super_init_survives_it() -> None:
    module = before_super(Base)
    assert module.hparams == {"lr": 0.3} and module._log_hyperparams


def test_a_module_that_is_a_dataclass() -> None:
    assert a_dataclass_module(Base).hparams == {"width": 4, "layers": [1, 2]}


def test_a_module_built_inside_of_another_keeps_to_its_own_arguments() -> None:
    class Inner(Base):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Outer(Base):
        def __init__(self, lr: float) -> None:
            super().__init__()
            self.inner = Inner(3)
            self.save_hyperparameters()

    outer = Outer(0.1)
    assert (outer.hparams, outer.inner.hparams) == ({"lr": 0.1}, {"width": 3})


def test_classes_that_name_their_base_are_collected_too() -> None:
    class Module(Base):
        def __init__(self, lr: float) -> None:
            Base.__init__(self)
            self.save_hyperparameters()

    assert Module(0.1).hparams == {"lr": 0.1}


def test_a_function_between_two_inits_hides_nothing() -> None:
    class Parent(Base):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.finish()

        def finish(self) -> None:
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, depth: int) -> None:
            self.start(depth)

        def start(self, depth: int) -> None:
            super().__init__(width=depth * 2)

    assert Child(1).hparams == {"width": 2, "depth": 1}


def test_an_explicit_frame() -> None:
    class Module(Base):
        def __init__(self, lr: float) -> None:
            super().__init__()
            import inspect

            helper(self, inspect.currentframe())

    def helper(module: Module, frame: Any) -> None:
        module.save_hyperparameters(frame=frame)

    assert Module(0.1).hparams == {"lr": 0.1}


def test_ignoring_drops_what_an_earlier_call_has_saved() -> None:
    class Parent(Base):
        def __init__(self, width: int, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters()

    class Child(Parent):
        def __init__(self, width: int, lr: float) -> None:
            super().__init__(width, lr)
            assert self.hparams == {"width": 1, "lr": 0.1}
            self.save_hyperparameters(ignore=("lr",))

    assert Child(1, 0.1).hparams == {"width": 1}


def test_a_dataclass_instance_as_the_argument() -> None:
    @dataclass
    class Config:
        lr: float
        width: int = 3

    class Module(Base):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.save_hyperparameters(config)

    module = Module(Config(0.1))
    assert (module.hparams, module._hparams_name) == ({"lr": 0.1, "width": 3}, "config")


def test_a_dict_and_names_together() -> None:
    class Module(Base):
        def __init__(self, config: dict[str, Any], lr: float) -> None:
            super().__init__()
            self.save_hyperparameters(config, "lr")

    config = {"width": 3}
    assert Module(config, 0.1).hparams == {"width": 3, "lr": 0.1}
    assert config == {"width": 3}


def test_names_that_no_init_has() -> None:
    class Module(Base):
        def __init__(self, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters("lr", "widht")

    with pytest.raises(MissingKeyError, match=r"got 'widht'; there are: lr.*\[hparams-name\]") as caught:
        Module(0.1)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("arguments", [(0.1,), (0.1, 3), ([1],), ({"a": 1}, {"b": 2}), (object(),), (dict,)])
def test_values_in_place_of_names(arguments: tuple[Any, ...]) -> None:
    class Module(Base):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters(*arguments)

    with pytest.raises(InvalidValueError, match=r"expected names.*\[hparams-type\]") as caught:
        Module()
    assert isinstance(caught.value, ValueError)


def test_saving_outside_of_init_has_nothing_to_save() -> None:
    module = Base()
    with pytest.warns(LeydenWarning, match=r"found no __init__.*\[hparams-outside-init\]"):
        module.save_hyperparameters()
    assert module.hparams == {}
    module.save_hyperparameters({"lr": 0.1})
    assert module.hparams == {"lr": 0.1}


def test_modules_are_advised_against_unless_ignored() -> None:
    class Module(Base):
        def __init__(self, net: nn.Module, ignore: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=ignore)

    net = nn.Linear(1, 1)
    with pytest.warns(LeydenWarning, match=r"'net'.*ignore=\['net'\].*\[hparams-module\]"):
        module = Module(net)
    assert module.hparams.net is net
    assert "net" not in dict(module.named_children())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Module(net, ignore=["net", "ignore"]).hparams == {}


def test_the_initial_values_do_not_follow_changes() -> None:
    module = a_namespace(Base)
    module.hparams.lr = 5
    module.hparams.nested["a"].append(2)
    module.hparams_initial["lr"] = 7
    assert module.hparams == {"lr": 5, "nested": {"a": [1, 2]}}
    assert module.hparams_initial == {"lr": 0.1, "nested": {"a": [1]}}


def test_values_that_cannot_be_copied_are_kept() -> None:
    class Module(Base):
        def __init__(self, lock: Any, values: list[int]) -> None:
            super().__init__()
            self.save_hyperparameters()

    lock, values = threading.Lock(), [1]
    module = Module(lock, values)
    assert module.hparams_initial.lock is lock
    assert module.hparams_initial["values"] == [1] and module.hparams_initial["values"] is not values


def test_without_saving_there_is_nothing() -> None:
    module = Base()
    assert (module.hparams, module.hparams_initial, module._log_hyperparams) == ({}, {}, False)
    module.hparams.lr = 3
    assert module.hparams == {"lr": 3} and module.hparams_initial == {}


@pytest.mark.parametrize("values", [Namespace(lr=0.1), {"lr": 0.1}, UserDict(lr=0.1)], ids=lambda v: type(v).__name__)
def test_assigning_hparams_as_the_oldest_code_does(values: Any) -> None:
    class Module(Base):
        def __init__(self, hparams: Any) -> None:
            super().__init__()
            self.hparams = hparams

    module = Module(values)
    assert dict(module.hparams) == {"lr": 0.1} == dict(module.hparams_initial)
    assert (module._hparams_name, module._log_hyperparams) == ("hparams", True)


def test_assigning_replaces() -> None:
    module = all_arguments(Base)
    module.hparams = {"lr": 1}
    assert module.hparams == {"lr": 1}
    with pytest.raises(InvalidValueError, match="hparams-type"):
        module.hparams = 3


def test_modules_with_hyper_parameters_copy_and_pickle() -> None:
    module = Base()
    module.save_hyperparameters({"lr": [0.1]})
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.hparams == {"lr": [0.1]} and isinstance(twin.hparams, AttributeDict)
        assert twin.hparams.lr is not module.hparams.lr


def test_a_plain_class_has_hyper_parameters_too() -> None:
    class Data(HyperparametersMixin):
        def __init__(self, batch_size: int) -> None:
            self.save_hyperparameters()

    assert Data(4).hparams.batch_size == 4


def test_an_attribute_dict_is_a_dict_with_attributes() -> None:
    hparams = AttributeDict(lr=0.1, width=3)
    hparams.depth = 2
    del hparams.width
    assert hparams == {"lr": 0.1, "depth": 2} and hparams.depth == 2
    with pytest.raises(AttributeError, match="no hyper-parameter 'width'; there are: lr, depth"):
        hparams.width  # noqa: B018
    with pytest.raises(AttributeError, match="'width'"):
        del hparams.width
    assert not hasattr(hparams, "width")


@pytest.mark.parametrize("entries", [{}, {"lr": 0.1}, {"b": "x", "long name": [1, 2], "a": None}])
def test_an_attribute_dict_prints_as_lightnings(entries: dict[str, Any]) -> None:
    from pytorch_lightning.utilities.parsing import AttributeDict as Theirs

    assert repr(AttributeDict(entries)) == repr(Theirs(entries))
