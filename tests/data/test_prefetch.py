"""Batches that are copied to the device one ahead: the order of copies, waits and computation; on CUDA for real."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import leyden
from leyden import CombinedLoader, LightningModule, Trainer, data
from leyden.data import Batches, train_loader
from leyden.data.loaders import may_run_ahead
from leyden.data.prefetch import Copier, build_copier
from leyden.data.transfer import build_transfer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to copy to")


class Line:
    """Stands for a stream: notes what is queued, in order; a copy is on the device "meta"."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.is_active = False

    @contextmanager
    def active(self) -> Iterator[None]:
        self.is_active = True
        yield
        self.is_active = False

    def copy(self, tensor: Tensor) -> Tensor:
        assert self.is_active
        self.events.append(f"copy {int(tensor.flatten()[0])}")
        copied = tensor.to("meta")
        copied.number = int(tensor.flatten()[0])  # type: ignore[attr-defined]
        return copied

    def wait(self) -> None:
        assert not self.is_active
        self.events.append("wait")

    def keep(self, tensor: Any) -> None:
        self.events.append(f"keep {tensor.number}")


def batches(count: int) -> list[Tensor]:
    return [torch.full((2,), index) for index in range(count)]


def run(loader: Any, limit: float = math.inf) -> tuple[list[str], list[tuple[int, bool]]]:
    """What happens, and the batches with whether each is the last."""
    line, seen = Line(), []
    epoch = Batches(loader, limit, copier=Copier(line))
    for batch in epoch:
        line.events.append(f"compute {batch.number}")
        seen.append((batch.number, epoch.is_last))
    return line.events, seen


def test_a_copy_begins_before_the_computation_of_the_batch_before() -> None:
    """And after that batch's own copy was waited for, so that no computation waits for a later copy."""
    events, seen = run(batches(3))
    assert events == [
        *("copy 0", "wait", "keep 0"),
        *("copy 1", "compute 0", "wait", "keep 1"),
        *("copy 2", "compute 1", "wait", "keep 2"),
        "compute 2",
    ]
    assert seen == [(0, False), (1, False), (2, True)]


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(3, 2, [(0, False), (1, True)]), (3, 1, [(0, True)]), (1, math.inf, [(0, True)]), (0, math.inf, []), (3, 0, [])],
)
def test_nothing_is_copied_beyond_the_limit(count: int, limit: float, expected: list[Any]) -> None:
    """R94: and the last batch is known when it is in hand, not when it is copied."""
    events, seen = run(batches(count), limit)
    assert seen == expected
    assert [event for event in events if event.startswith("copy")] == [f"copy {index}" for index, _ in expected]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(batches(3))


def test_a_stream_with_workers() -> None:
    """R94: a loader without a length, whose last batch is known all the same."""
    _, seen = run(DataLoader(Stream(), batch_size=None, num_workers=1))
    assert seen == [(0, False), (1, False), (2, True)]


def test_leaving_an_epoch() -> None:
    line = Line()
    epoch = Batches(batches(3), copier=Copier(line))
    for _ in epoch:
        epoch.is_last = True  # as the fit loop does when a module refuses the rest
        break
    assert line.events == ["copy 0", "wait", "keep 0", "copy 1"]


class Workers:
    loader = DataLoader(TensorDataset(torch.arange(3)), num_workers=1)
    main_process = DataLoader(TensorDataset(torch.arange(3)))


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (Workers.loader, True),
        (Workers.main_process, False),
        (batches(2), True),
        (tuple(batches(2)), True),
        (iter(batches(2)), False),
        (train_loader({"a": Workers.loader, "b": batches(2)}), True),
        (train_loader({"a": Workers.loader, "b": Workers.main_process}), False),
    ],
)
def test_only_what_draws_no_random_numbers_here_runs_ahead(loader: Any, expected: bool) -> None:
    assert may_run_ahead(loader) is expected


def test_a_loader_of_this_process_is_left_to_the_transfer() -> None:
    line = Line()
    loader = DataLoader(TensorDataset(torch.arange(3)))
    assert [batch[0].device.type for batch in Batches(loader, copier=Copier(line))] == ["cpu"] * 3
    assert line.events == []


@dataclasses.dataclass
class Sample:
    image: Any


class Graph:
    """Moves itself."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(1)

    def to(self, device: torch.device) -> Graph:
        raise AssertionError("left to the transfer")


def test_what_of_a_batch_is_copied() -> None:
    """CPU tensors in containers; tensors that are on a device and objects that move themselves stay."""
    line, graph, there = Line(), Graph(), torch.zeros(1, device="meta")
    copier = Copier(line)
    batch = {"a": [torch.ones(1), there], "b": (Sample(torch.full((1,), 2)), graph, "text", None), "c": 3}
    sent = copier.receive(copier.send(batch))
    assert sent["a"][0].device.type == sent["b"][0].image.device.type == "meta"
    assert sent["a"][1] is there and sent["b"][1] is graph and sent["b"][2:] == ("text", None) and sent["c"] == 3
    assert line.events == ["copy 1", "copy 2", "wait", "keep 1", "keep 2"]
    assert batch["a"][0].device.type == "cpu"


class Module(LightningModule):
    """Notes where its batches are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[str, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((batch.device.type, batch.float().mean().item()))
        return (self.weight * batch.float()).sum()

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Owned(Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch + 1


class ByDatamodule(leyden.LightningDataModule):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def train_dataloader(self) -> Any:
        return batches(2)


@pytest.mark.parametrize(
    ("device", "module", "datamodule", "copies"),
    [
        ("cuda", Module(), None, True),
        ("cpu", Module(), None, False),
        ("cuda", Owned(), None, False),
        ("cuda", Module(), ByDatamodule(), False),
    ],
)
def test_who_copies_ahead(
    monkeypatch: pytest.MonkeyPatch, device: str, module: Any, datamodule: Any, copies: bool
) -> None:
    """Never on the CPU; and where the user's hooks move the batch, they see it first and it is theirs."""
    built: list[torch.device] = []
    monkeypatch.setattr(data, "build_copier", built.append, raising=False)
    trainer = Trainer(accelerator="cpu")
    trainer._module, trainer.datamodule = module, datamodule
    monkeypatch.setattr(trainer.strategy, "root_device", torch.device(device))
    trainer._build_copier()
    assert built == ([torch.device(device)] if copies else [])


def test_a_fit_with_a_copier_is_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with a copier whose copies stay here: batches, the last of them, windows, validation, weights."""

    class Here(Line):
        def copy(self, tensor: Tensor) -> Tensor:
            self.events.append("copy")
            return tensor.clone()

        def keep(self, tensor: Tensor) -> None:
            self.events.append("keep")

    def fitted(copier: Any) -> Any:
        module = Module()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            accumulate_grad_batches=2,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        monkeypatch.setattr(type(trainer), "_build_copier", lambda self: copier)
        trainer.fit(module, [batch + 1 for batch in batches(3)], batches(2))
        return module

    line = Here()
    plain, ahead = fitted(None), fitted(Copier(line))
    assert ahead.seen == plain.seen and len(plain.seen) == 10
    assert torch.equal(ahead.weight, plain.weight) and plain.weight.item() != 0
    assert line.events.count("copy") == line.events.count("keep") == 10


@needs_cuda
def test_on_cuda_batches_arrive_and_are_right() -> None:
    """Many big batches from pinned and pageable memory, each read by a kernel that is queued late."""
    device = torch.device("cuda", 0)
    for pinned in (False, True):
        loader = [torch.full((1 << 20,), float(index)) for index in range(20)]
        if pinned:
            loader = [batch.pin_memory() for batch in loader]
        sums = []
        for batch in Batches(loader, copier=build_copier(device)):
            assert batch.device == device
            torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
            sums.append(batch.double().mean())
            del batch
        assert [value.item() for value in sums] == [float(index) for index in range(20)]


@needs_cuda
def test_on_cuda_the_host_never_waits() -> None:
    device = torch.device("cuda", 0)
    copier, transfer = build_copier(device), build_transfer(device)
    assert transfer is not None
    pinned = [batch.float().pin_memory() for batch in batches(4)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in Batches(pinned, copier=copier):
            transfer(batch, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_on_cuda_a_fit_is_the_same_fit() -> None:
    def fitted(data: Any) -> Any:
        module = Module()
        Trainer(accelerator="cuda", devices=1, max_epochs=2, enable_progress_bar=False).fit(module, data)
        return module

    numbers = torch.arange(12.0).reshape(6, 2)
    ahead = fitted(DataLoader(numbers, batch_size=2, num_workers=2, pin_memory=True))
    plain = fitted(DataLoader(numbers, batch_size=2))
    assert ahead.seen == plain.seen and {device for device, _ in ahead.seen} == {"cuda"}
    assert torch.equal(ahead.weight, plain.weight)
    combined = fitted(CombinedLoader(DataLoader(numbers, batch_size=2, num_workers=1)))
    assert combined.seen == plain.seen
