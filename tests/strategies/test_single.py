"""One process on one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from leyden.strategies import SingleDeviceStrategy, Strategy


def test_it_is_the_whole_run() -> None:
    strategy = SingleDeviceStrategy("cpu")
    ranks = (strategy.global_rank, strategy.local_rank, strategy.node_rank)
    assert (ranks, strategy.world_size, strategy.num_nodes, strategy.is_global_zero) == (
        (0, 0, 0),
        1,
        1,
        True,
    )
    assert not strategy.distributed and not strategy.reduces_gradients


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "cpu"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("mps", "mps:0"),
        (torch.device("cpu"), "cpu"),
    ],
)
def test_devices_are_named_as_tensors_name_them(device: Any, expected: str) -> None:
    assert str(SingleDeviceStrategy(device).root_device) == expected


def test_a_cuda_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    SingleDeviceStrategy("cuda:1").setup_environment()
    SingleDeviceStrategy("cpu").setup_environment()
    assert made_current == [torch.device("cuda:1")]


def test_placing_moves_a_module_in_place() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    SingleDeviceStrategy("cpu").place(module)
    assert module.weight is weight
    strategy = SingleDeviceStrategy("meta")
    strategy.place(module)
    assert module.weight.device.type == "meta"


def test_what_ranks_would_tell_each_other_is_known() -> None:
    strategy = SingleDeviceStrategy("cpu")
    strategy.setup_environment()
    tensor, flag, obj = torch.arange(3.0, requires_grad=True), torch.tensor(True), object()
    assert strategy.sum(tensor) is tensor
    assert strategy.any(flag) is flag
    assert strategy.reduce(tensor, None, "max") is tensor
    assert strategy.reduce(tensor, reduce_op="sum") is tensor
    assert strategy.all_gather(tensor, sync_grads=True) is tensor
    assert strategy.broadcast(obj, src=0) is obj
    strategy.barrier("here")
    strategy.gradients_ready([nn.Parameter(torch.zeros(1))])
    with strategy.no_sync(), strategy.no_sync():
        pass
    strategy.teardown()


def test_the_interface_is_abstract_and_the_strategy_fills_it() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Strategy()  # type: ignore[abstract]
    assert not SingleDeviceStrategy.__abstractmethods__
