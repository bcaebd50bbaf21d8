"""Bytes in words."""

from __future__ import annotations

import pytest

from hf_invact.memory.text import change, kept_table, size, table


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (5 << 19, "2.50 MiB"), (3 << 40, "3,072.00 GiB")],
    ids=str,
)
def test_sizes(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(1000, 750, "-25.0%"), (1000, 1005, "+0.5%"), (7, 7, ""), (0, 7, ""), (7, 0, "-100.0%")],
)
def test_changes(before: int, after: int, expected: str) -> None:
    assert change(before, after) == expected


def test_columns_are_aligned_as_asked() -> None:
    rows = [("a", "bbb", "c"), ("dd", "e", "fff")]
    assert table(rows).splitlines() == ["a   bbb    c", "dd    e  fff"]
    assert table(rows, aligned="<").splitlines() == ["a   bbb  c", "dd  e    fff"]
    assert table(rows, aligned="><").splitlines() == [" a  bbb  c", "dd  e    fff"]


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        table([("a", "b"), ("c",)])


def test_parts_come_in_their_order_whichever_column_has_them() -> None:
    rows = kept_table(plain={"norm": 4, "activation": 8}, patched={"mlp": 2, "norm": 4}).splitlines()
    assert [row.split() for row in rows[1:]] == [
        ["activation", "8", "B", "0", "B", "-100.0%"],
        ["mlp", "0", "B", "2", "B"],
        ["norm", "4", "B", "4", "B"],
        ["all", "12", "B", "6", "B", "-50.0%"],
    ]


def test_one_column_has_no_change() -> None:
    assert kept_table(measured={"norm": 2048}).splitlines() == [
        "kept for the backward pass  measured",
        "norm                        2.00 KiB",
        "all                         2.00 KiB",
    ]
