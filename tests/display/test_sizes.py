"""Amounts of memory as text, and back."""

from __future__ import annotations

import pytest

from hf_invact.display.sizes import change, common_unit, parse_size, size


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


@pytest.mark.parametrize(("largest", "unit"), [(0, "KiB"), (1023, "KiB"), (1 << 20, "MiB"), (3 << 40, "GiB")])
def test_the_unit_of_a_table_is_that_of_its_largest_number(largest: int, unit: str) -> None:
    assert common_unit(largest) == unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GiB", 80 << 30),
        ("80 GB", 80 * 10**9),
        ("24g", 24 << 30),
        ("1.5T", 3 << 39),
        ("512mib", 512 << 20),
        ("64k", 1 << 16),
    ],
)
def test_parses_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["80", "GiB", "-1g", "0g", "80 gigs", ""])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_size(text)
