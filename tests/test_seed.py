"""Seeds of the run and of its workers, and blocks that leave no trace in the generators."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from leyden import seed
from leyden.errors import InvalidValueError
from leyden.seed import isolate_rng, seed_everything, worker_init, workers_are_seeded


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The generators and variables are global: other tests must not see what happens here."""
    for name in (seed.SEED_VARIABLE, seed.WORKERS_VARIABLE):
        monkeypatch.setenv(name, "set, so that it is restored")
        monkeypatch.delenv(name)
    with isolate_rng():
        yield


def draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert seed_everything(7, verbose=False) == 7
    first = draw()
    seed_everything(7, verbose=False)
    assert draw() == first
    seed_everything(8, verbose=False)
    assert all(now != then for now, then in zip(draw(), first, strict=True))


def test_the_numbers_are_those_of_each_librarys_own_seeding() -> None:
    seed_everything(7, verbose=False)
    expected = (
        random.Random(7).random(),
        numpy.random.RandomState(7).rand(),
        float(torch.rand((), generator=torch.Generator().manual_seed(7))),
    )
    assert draw() == expected


def test_it_agrees_with_lightning() -> None:
    from lightning_fabric.utilities.seed import seed_everything as theirs

    theirs(11, workers=True, verbose=False)
    expected = (draw(), os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"])
    seed_everything(11, workers=True, verbose=False)
    assert (draw(), os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == expected


def test_without_a_seed_the_environments_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "31")
    assert seed_everything(verbose=False) == 31


def test_without_any_seed_a_random_one_is_drawn_and_handed_on() -> None:
    drawn = seed_everything(verbose=False)
    assert 0 <= drawn < 2**32 and os.environ["PL_GLOBAL_SEED"] == str(drawn)
    assert seed_everything(verbose=False) == drawn


@pytest.mark.parametrize("value", [-1, 2**32, "many", [1], 1e20])
def test_seeds_out_of_bounds(value: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"from 0 to 4294967295, got .*\[seed\]") as caught:
        seed_everything(value)
    assert isinstance(caught.value, ValueError)


def test_a_bad_seed_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "x")
    with pytest.raises(InvalidValueError, match="PL_GLOBAL_SEED"):
        seed_everything()


@pytest.mark.parametrize("value", [0, 2**32 - 1, "12"])
def test_seeds_at_the_bounds(value: Any) -> None:
    assert seed_everything(value, verbose=False) == int(value)


def test_the_seed_is_logged_unless_silenced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="leyden"):
        seed_everything(3)
        seed_everything(4, verbose=False)
    assert caplog.messages == ["seed set to 3"]


def test_workers_are_seeded_only_if_asked() -> None:
    assert not workers_are_seeded()
    seed_everything(1, workers=True, verbose=False)
    assert workers_are_seeded()
    seed_everything(1, verbose=False)
    assert not workers_are_seeded()


class Draws(Dataset[Any]):
    """What the three libraries draw in a worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(draw(), dtype=torch.float64)


def drawn_by_workers(rank: int) -> torch.Tensor:
    torch.manual_seed(0)
    loader = DataLoader(Draws(), num_workers=2, worker_init_fn=partial(worker_init, rank=rank))
    return torch.cat(list(loader))


def test_every_worker_rank_and_library_has_its_own_numbers_and_they_repeat() -> None:
    first, second = drawn_by_workers(0), drawn_by_workers(1)
    numbers = torch.cat([first, second]).flatten()
    assert numbers.unique().numel() == numbers.numel()
    assert torch.equal(first, drawn_by_workers(0))


def test_the_rank_of_a_worker_comes_from_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(rank: int | None) -> tuple[float, float, float]:
        torch.manual_seed(5)
        worker_init(0, rank)
        return draw()

    monkeypatch.setattr(seed.rank_zero_only, "rank", 3)
    assert seeded(None) == seeded(3) != seeded(0)


def test_every_epoch_has_its_own_numbers() -> None:
    torch.manual_seed(0)
    loader = DataLoader(Draws(), num_workers=1, worker_init_fn=worker_init)
    assert not torch.equal(torch.cat(list(loader)), torch.cat(list(loader)))


def test_an_isolated_block_leaves_no_trace() -> None:
    seed_everything(2, verbose=False)
    expected = draw()
    seed_everything(2, verbose=False)
    with isolate_rng():
        draw()
        seed_everything(99, verbose=False)
    assert draw() == expected


def test_an_isolated_block_leaves_no_trace_after_an_exception() -> None:
    seed_everything(2, verbose=False)
    expected = draw()
    seed_everything(2, verbose=False)
    with pytest.raises(KeyError), isolate_rng():
        draw()
        raise KeyError
    assert draw() == expected


class FakeCuda:
    """Stands for CUDA on a machine without: one generator, started or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, started: bool) -> None:
        self.started = started
        self.state = "state before"
        self.seeds: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.started)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [self.state])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: setattr(self, "state", states[0]))
        monkeypatch.setattr(torch.cuda, "manual_seed_all", self.seeds.append)


def test_cuda_is_isolated_if_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, started=True)
    with isolate_rng():
        cuda.state = "drawn from"
    assert (cuda.state, cuda.seeds) == ("state before", [])


def test_cuda_that_starts_inside_begins_outside_with_torchs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(17)
    cuda = FakeCuda(monkeypatch, started=False)
    with isolate_rng():
        cuda.started = True
    assert cuda.seeds == [17]


def test_isolating_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, started=False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("started CUDA"))
    with isolate_rng():
        pass
    assert cuda.seeds == []
