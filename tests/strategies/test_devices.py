"""From the Trainer's arguments to a device and a strategy, on machines of several kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leyden.compat.hardware import CPUAccelerator, CUDAAccelerator
from leyden.errors import InvalidValueError, MisconfigurationException
from leyden.strategies import SingleDeviceStrategy, build_strategy, resolve_device

CPU = [torch.device("cpu")]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "accelerator", "devices", "expected"),
    [
        (0, False, "auto", "auto", "cpu"),
        (0, False, None, None, "cpu"),
        (0, False, "cpu", 1, "cpu"),
        (0, False, "cpu", "1", "cpu"),
        (0, False, "CPU", "auto", "cpu"),
        (1, False, "auto", "auto", "cuda:0"),
        (1, False, "auto", -1, "cuda:0"),
        (1, False, "gpu", "-1", "cuda:0"),
        (1, False, "cpu", "auto", "cpu"),
        (0, True, "auto", "auto", "mps:0"),
        (0, True, "gpu", 1, "mps:0"),
        (0, True, "mps", [0], "mps:0"),
        (4, False, "cuda", 1, "cuda:0"),
        (4, False, "gpu", "1", "cuda:0"),
        (4, False, "gpu", "1,", "cuda:1"),
        (4, False, "gpu", [2], "cuda:2"),
        (4, False, "gpu", (3,), "cuda:3"),
        (4, False, "gpu", " 3, ", "cuda:3"),
        (2, True, "auto", 1, "cuda:0"),
        (1, False, CPUAccelerator(), 1, "cpu"),
        (1, False, CUDAAccelerator(), 1, "cuda:0"),
        (0, False, "ddp", None, "cpu"),  # 1.x took strategies for accelerators
        (1, False, "dp", [0], "cuda:0"),
    ],
)
def test_one_device(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, accelerator: Any, devices: Any, expected: str
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    name, found = resolve_device(accelerator, devices)
    assert [str(device) for device in found] == [expected]
    assert name == found[0].type


def test_auto_on_a_machine_with_several_gpus_takes_one_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=4)
    with pytest.warns(UserWarning, match=r"1 of 4 CUDA devices.*devices=1.*\[distribution-not-yet\]"):
        assert resolve_device() == ("cuda", [torch.device("cuda", 0)])


@pytest.mark.parametrize(
    ("cuda", "accelerator", "devices"),
    [
        (4, "gpu", 2),
        (4, "gpu", -1),
        (4, "gpu", "0,1"),
        (4, "gpu", [1, 3]),
        (4, "auto", "2"),
        (0, "cpu", 2),
        (0, "auto", "3"),
    ],
)
def test_more_than_one_device_is_not_yet_possible(
    monkeypatch: pytest.MonkeyPatch, cuda: int, accelerator: str, devices: Any
) -> None:
    machine(monkeypatch, cuda=cuda)
    with pytest.raises(
        MisconfigurationException, match=r"runs on one device in this version.*\[distribution-not-yet\]"
    ):
        resolve_device(accelerator, devices)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_accelerators_that_are_not_there(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    machine(monkeypatch)
    with pytest.raises(MisconfigurationException, match=r"not available here.*finds only 'cpu'.*\[accelerator\]"):
        resolve_device(accelerator)


@pytest.mark.parametrize("accelerator", ["tpu", "", 1, "cuda:1", ["cpu"]])
def test_accelerators_that_do_not_exist(accelerator: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"expected accelerator to be one of 'auto'.*\[accelerator\]"):
        resolve_device(accelerator)


@pytest.mark.parametrize(
    ("cuda", "devices"),
    [
        (0, 0),
        (0, -1),
        (0, [0]),
        (0, "two"),
        (0, 1.0),
        (0, True),
        (2, 0),
        (2, "0"),
        (2, []),
        (2, ","),
        (2, 3),
        (2, -2),
        (2, [2]),
        (2, [0, 0]),
        (2, [True]),
        (2, ["0"]),
        (2, "a,b"),
        (2, {0}),
    ],
)
def test_bad_devices_are_named_with_what_exists(monkeypatch: pytest.MonkeyPatch, cuda: int, devices: Any) -> None:
    machine(monkeypatch, cuda=cuda)
    telling = "here are 2, 0 to 1" if cuda else "on the CPU"
    with pytest.raises(InvalidValueError, match=rf"expected devices .*{telling}.*\[devices\]"):
        resolve_device("auto", devices)


@pytest.mark.parametrize("strategy", ["auto", None, "single_device"])
def test_the_strategy_for_one_device(strategy: str | None) -> None:
    built = build_strategy(strategy, CPU)
    assert isinstance(built, SingleDeviceStrategy) and built.root_device == CPU[0]


def test_a_strategy_is_used_as_it_is() -> None:
    strategy = SingleDeviceStrategy("cpu")
    assert build_strategy(strategy, CPU) is strategy


class DDPStrategy:
    """A strategy object that was made for another framework."""


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "ddp_spawn",
        "ddp_find_unused_parameters_true",
        "fsdp",
        "deepspeed_stage_2",
        "dp",
        "xla",
        DDPStrategy(),
    ],
)
def test_distributed_strategies_have_nothing_to_distribute_on_one_device(strategy: Any) -> None:
    assert type(build_strategy(strategy, CPU)) is SingleDeviceStrategy


@pytest.mark.parametrize("strategy", ["fastest", "", 3])
def test_unknown_strategies(strategy: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"expected strategy to be 'auto'.*\[strategy\]"):
        build_strategy(strategy, CPU)


def test_several_machines_are_not_yet_possible() -> None:
    with pytest.raises(MisconfigurationException, match=r"num_nodes=2.*\[distribution-not-yet\]"):
        build_strategy("auto", CPU, num_nodes=2)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_several_started_processes_would_train_apart(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(MisconfigurationException, match=r"started 4 processes.*\[distribution-not-yet\]"):
        build_strategy("auto", CPU)
    assert isinstance(build_strategy("single_device", CPU), SingleDeviceStrategy)
    monkeypatch.setenv(name, "1")
    assert isinstance(build_strategy("auto", CPU), SingleDeviceStrategy)
