"""Reads amounts of memory as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_POWERS = {letter: power for power, letter in enumerate("kmgt", start=1)}


def parse_size(text: str) -> int:
    """Bytes of ``80GiB``, ``80 GB`` or ``24g``.

    KiB, MiB, GiB and TiB are powers of 1,024, and so are single letters; KB, MB, GB and TB are powers of 1,000.

    Raises:
        ValueError: it is no number with one of these units, or not more than nothing.

    >>> parse_size("80GiB") == parse_size("80g") == 80 * 1024**3
    True
    >>> parse_size("1.5 GB")
    1500000000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?b)?", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; write a number and a unit, such as 80GiB, 80GB or 24g")
    number, letter, suffix = found.groups()
    count = int(Fraction(number) * (1000 if suffix == "b" else 1024) ** _POWERS[letter])
    if not count:
        raise ValueError(f"{text!r} is no memory at all; write how much there is, such as 80GiB")
    return count
