"""Tables as text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .parts import ordered_parts
from .sizes import UNITS, change, size


def table(rows: Sequence[Sequence[str]], aligned: str = "<>") -> str:
    """Rows of cells in aligned columns.

    Args:
        rows: of equal length.
        aligned: "<" (left) or ">" (right) for each column; the last character holds for all columns that follow.

    >>> print(table([("part", "bytes"), ("activation", "96 B")]))
    part        bytes
    activation   96 B
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = aligned.ljust(len(widths), aligned[-1])
    lines = ([f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def saved_bytes_table(**columns: Mapping[str, int]) -> str:
    """Bytes kept for the backward pass, by part and in total; two columns are compared.

    Args:
        columns: by heading, the bytes of each part of the model.

    >>> print(saved_bytes_table(plain={"activation": 1024, "norm": 96}, patched={"activation": 512, "norm": 96}))
    kept for the backward pass     plain  patched
    activation                  1.00 KiB    512 B  -50.0%
    norm                            96 B     96 B
    all                         1.09 KiB    608 B  -45.7%
    """
    parts = ordered_parts(columns.values())
    rows = [size_row(part, [column.get(part, 0) for column in columns.values()]) for part in parts]
    total = size_row("all", [sum(column.values()) for column in columns.values()])
    return table([("kept for the backward pass", *columns, "")[: len(total)], *rows, total])


def size_row(name: str, counts: Sequence[int]) -> tuple[str, ...]:
    """A row of sizes in bytes; where there are two, followed by their change."""
    changes = [change(counts[0], counts[1])] if len(counts) == 2 else []
    return (name, *map(size, counts), *changes)


def cell_in_unit(count: int, unit: str) -> str:
    """Bytes in one of `UNITS`, for a table whose heading names the unit.

    >>> cell_in_unit(3 << 19, "MiB"), cell_in_unit(1, "MiB"), cell_in_unit(0, "MiB")
    ('1.50', '<0.01', '-')
    """
    if not count:
        return "-"
    value = count / UNITS[unit]
    return "<0.01" if value < 0.005 else f"{value:,.2f}"
