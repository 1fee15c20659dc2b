"""The table of ``validate`` and ``test``."""

from __future__ import annotations

import pytest

from leyden.results import results_table


def test_loaders_are_columns() -> None:
    """R138."""
    results = [{"x/dataloader_idx_0": 1.0, "only 0": 0.25}, {"x/dataloader_idx_1": 123.456789}]
    assert results_table(results, "validate").splitlines() == [
        "Validate metric      DataLoader 0    DataLoader 1",
        "-----------------  --------------  --------------",
        "only 0                       0.25",
        "x                            1           123.4568",
    ]


def test_nothing_logged_is_no_table() -> None:
    assert results_table([{}], "test") == ""


def test_names_that_look_like_numbers_stay() -> None:
    assert "1e5" in results_table([{"1e5": 1.0}], "test")


def test_long_names_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = results_table([{"a" * 60: float("nan")}], "test")
    assert max(len(line) for line in table.splitlines()) <= 40
    assert "nan" in table
