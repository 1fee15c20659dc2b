"""The rank of this process, and doing things in the first one only."""

from __future__ import annotations

import logging
import warnings

import pytest

from leyden.errors import InvalidValueError, LeydenWarning
from leyden.rank import (
    RANK_VARIABLES,
    WORLD_SIZE_VARIABLES,
    rank_from_environment,
    rank_zero_debug,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
    world_size_from_environment,
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, *WORLD_SIZE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"RANK": "3", "SLURM_PROCID": "1", "LOCAL_RANK": "2"}, 3),
        ({"SLURM_PROCID": "1", "LOCAL_RANK": "2"}, 1),
        ({"LOCAL_RANK": "2"}, 2),
        ({"RANK": "", "LOCAL_RANK": "2"}, 2),
    ],
)
def test_the_rank_is_what_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == expected


def test_the_world_size_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_size_from_environment() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert world_size_from_environment() == 8
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert world_size_from_environment() == 2


def test_a_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InvalidValueError, match=r"RANK.*'first'.*\[rank-variable\]"):
        rank_from_environment()


def test_only_rank_zero_acts_whatever_the_rank_is_set_to() -> None:
    @rank_zero_only
    def announce(text: str) -> str:
        """Say it."""
        return text

    assert announce("hello") == "hello"
    rank_zero_only.rank = 1
    assert announce("hello") is None
    assert announce.__doc__ == "Say it."


def test_methods_can_be_decorated() -> None:
    class Logger:
        @rank_zero_only
        def name(self) -> str:
            return type(self).__name__

    assert Logger().name() == "Logger"


def test_logging_in_rank_zero_names_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="leyden"):
        rank_zero_info("%d batches", 3)
        rank_zero_debug("details")
        rank_zero_only.rank = 1
        rank_zero_info("not heard")
        rank_zero_debug("not heard")
    assert caplog.messages == ["3 batches", "details"]
    assert {record.filename for record in caplog.records} == {"test_rank.py"}


def test_warnings_of_rank_zero_name_the_callers_line_and_their_code() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank_zero_warn("plain", UserWarning)
        rank_zero_warn("advice", code="example")
        rank_zero_only.rank = 1
        rank_zero_warn("not heard", code="example")
    assert [(str(item.message), item.category) for item in caught] == [
        ("plain", UserWarning),
        ("advice [example]", LeydenWarning),
    ]
    assert all(item.filename == __file__ for item in caught)
