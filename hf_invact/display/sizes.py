"""Amounts of memory as text, and text as amounts of memory."""

from __future__ import annotations

import re
from fractions import Fraction

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}  # the largest first
_POWERS = {letter: power for power, letter in enumerate("kmgt", start=1)}


def size(count: int) -> str:
    """Bytes in the largest unit that gives at least 1.

    >>> size(780), size(1536), size(5 << 30)
    ('780 B', '1.50 KiB', '5.00 GiB')
    """
    for unit, scale in UNITS.items():
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count} B"


def change(before: int, after: int) -> str:
    """The relative change in percent; empty where nothing changes, or where `before` is 0.

    >>> change(1000, 750)
    '-25.0%'
    """
    return "" if before == after or not before else f"{after / before - 1:+.1%}"


def common_unit(largest: int) -> str:
    """The unit for a whole table or figure, by its largest number of bytes: one of `UNITS`.

    >>> common_unit(3 << 20), common_unit(100)
    ('MiB', 'KiB')
    """
    return next((unit for unit, scale in UNITS.items() if largest >= scale), "KiB")


def parse_size(text: str) -> int:
    """Bytes of ``80GiB``, ``80 GB`` or ``24g``.

    KiB, MiB, GiB and TiB are powers of 1,024, and so are single letters; KB, MB, GB and TB are powers of 1,000.

    Raises:
        ValueError: not a number with one of these units, or less than one byte.

    >>> parse_size("80GiB") == parse_size("80g") == 80 * 1024**3
    True
    >>> parse_size("1.5 GB")
    1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"invalid amount of memory {text!r}; write a number and a unit, such as 80GiB, 80GB or 24g")
    number, letter, suffix = match.groups()
    count = int(Fraction(number) * (1000 if suffix == "b" else 1024) ** _POWERS[letter])
    if not count:
        raise ValueError(f"{text!r} is less than one byte; write an amount of memory such as 80GiB")
    return count
