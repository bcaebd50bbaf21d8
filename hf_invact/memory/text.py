"""Bytes in words: sizes, changes and tables, the same wherever memory is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .parts import PARTS

KEPT = "kept for the backward pass"

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}  # the largest first


def size(count: int) -> str:
    """Bytes in the largest unit that is not larger.

    >>> size(780), size(1536), size(5 << 30)
    ('780 B', '1.50 KiB', '5.00 GiB')
    """
    for unit, scale in UNITS.items():
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count} B"


def change(before: int, after: int) -> str:
    """What is more or less of it, in percent; empty where nothing changes, or there was nothing.

    >>> change(1000, 750)
    '-25.0%'
    """
    return "" if before == after or not before else f"{after / before - 1:+.1%}"


def table(rows: Sequence[Sequence[str]], aligned: str = "<>") -> str:
    """Rows of cells under each other.

    Args:
        rows: of equal length.
        aligned: "<" or ">" for each column; the last one holds for all that follow.

    >>> print(table([("part", "bytes"), ("activation", "96 B")]))
    part        bytes
    activation   96 B
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = aligned.ljust(len(widths), aligned[-1])
    lines = ([f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def kept_table(**columns: Mapping[str, int]) -> str:
    """What is kept for the backward pass, by part and in all; two columns are compared.

    Args:
        columns: by its heading, bytes of some of `PARTS`.

    >>> print(kept_table(plain={"activation": 1024, "norm": 96}, patched={"activation": 512, "norm": 96}))
    kept for the backward pass     plain  patched
    activation                  1.00 KiB    512 B  -50.0%
    norm                            96 B     96 B
    all                         1.09 KiB    608 B  -45.7%
    """
    parts = [part for part in PARTS if any(part in column for column in columns.values())]
    rows = [compared(part, [column.get(part, 0) for column in columns.values()]) for part in parts]
    total = compared("all", [sum(column.values()) for column in columns.values()])
    return table([(KEPT, *columns, "")[: len(total)], *rows, total])


def compared(name: str, counts: Sequence[int]) -> tuple[str, ...]:
    """A row of sizes; of two, with their change."""
    changes = [change(counts[0], counts[1])] if len(counts) == 2 else []
    return (name, *map(size, counts), *changes)
