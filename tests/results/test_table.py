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


LONG = "validation/a_very_long_metric_name/with_parts"


def test_long_names_are_folded_at_their_joints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert results_table([{LONG: 0.5, "a" * 25: float("nan")}], "test").splitlines() == [
        "Test metric                 DataLoader 0",
        "------------------------  --------------",
        "aaaaaaaaaaaaaaaaaaaaaaaa           nan",
        "a",
        "validation/a_very_long_              0.5",
        "metric_name/with_parts",
    ]


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", ["x", LONG])
def test_the_table_is_no_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, columns: int
) -> None:
    """Loaders that do not fit beside each other stand below; each stands somewhere, with its value."""
    monkeypatch.setenv("COLUMNS", str(columns))
    table = results_table([{f"{name}/dataloader_idx_{i}": -1.23456e-5 - i} for i in range(count)], "validate")
    assert max(map(len, table.splitlines())) <= columns
    assert [f"DataLoader {i}" in table for i in range(count)] == [True] * count
    assert all(f"{-1.23456e-5 - i:.7g}" in table for i in range(count))
    assert name in table or columns == 40  # in one piece rather than in slivers
    assert ("\n\n" in table) == (count > 1 and columns < {2: 80, 5: 120}[count])


def test_a_metric_stands_only_where_it_was_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert results_table([{"a": 1.0}, {"b": 2.0}], "test").splitlines() == [
        "Test metric      DataLoader 0",
        "-------------  --------------",
        "a                           1",
        "",
        "Test metric      DataLoader 1",
        "-------------  --------------",
        "b                           2",
    ]
