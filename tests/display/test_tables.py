"""Tables as text."""

from __future__ import annotations

import pytest

from hf_invact.display.tables import saved_bytes_table, table


def test_columns_are_aligned_as_asked() -> None:
    rows = [("a", "bbb", "c"), ("dd", "e", "fff")]
    assert table(rows).splitlines() == ["a   bbb    c", "dd    e  fff"]
    assert table(rows, aligned="<").splitlines() == ["a   bbb  c", "dd  e    fff"]
    assert table(rows, aligned="><").splitlines() == [" a  bbb  c", "dd  e    fff"]


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        table([("a", "b"), ("c",)])


def test_parts_come_in_their_order_whichever_column_has_them() -> None:
    rows = saved_bytes_table(plain={"norm": 4, "activation": 8}, patched={"mlp": 2, "norm": 4}).splitlines()
    assert [row.split() for row in rows[1:]] == [
        ["activation", "8", "B", "0", "B", "-100.0%"],
        ["mlp", "0", "B", "2", "B"],
        ["norm", "4", "B", "4", "B"],
        ["all", "12", "B", "6", "B", "-50.0%"],
    ]


def test_one_column_has_no_change() -> None:
    assert saved_bytes_table(measured={"norm": 2048}).splitlines() == [
        "kept for the backward pass  measured",
        "norm                        2.00 KiB",
        "all                         2.00 KiB",
    ]
