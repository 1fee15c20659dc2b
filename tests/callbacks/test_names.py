"""``leyden.callbacks``: what it exports."""

from __future__ import annotations

import inspect

import pytest
import pytorch_lightning

from leyden import Callback, callbacks


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_name_is_a_callback(name: str) -> None:
    assert issubclass(getattr(callbacks, name), Callback)


#: LambdaCallback takes its hooks by name only.
SAME = sorted(set(callbacks.__all__) & set(pytorch_lightning.callbacks.__all__) - {"LambdaCallback", "Callback"})


@pytest.mark.parametrize("name", SAME)
def test_lightnings_arguments_in_lightnings_order(name: str) -> None:
    theirs = list(inspect.signature(getattr(pytorch_lightning.callbacks, name)).parameters)
    ours = list(inspect.signature(getattr(callbacks, name)).parameters)
    assert ours[: len([n for n in theirs if n != "kwargs"])] == [n for n in theirs if n != "kwargs"]


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LateStopping'"):
        callbacks.LateStopping  # noqa: B018
