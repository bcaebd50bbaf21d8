"""The parts of a model in tables and figures: their order and their colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# The Okabe-Ito palette, which is safe for every kind of colour vision.
PART_COLOURS = {
    "activation": "#D55E00",
    "mlp": "#E69F00",
    "attention": "#0072B2",
    "norm": "#56B4E9",
    "dropout": "#009E73",
    "embedding": "#CC79A7",
    "checkpoints": "#000000",
    "head and loss": "#F0E442",
    "other": "#999999",
}
"""By the names that `hf_invact.memory.by_part` gives to parts, in their order."""
UNKNOWN_PART_COLOUR = "#4D4D4D"


def ordered_parts(columns: Iterable[Mapping[str, int]]) -> list[str]:
    """The parts that are not 0 in at least one column, in the order of `PART_COLOURS`; unknown parts come last.

    >>> ordered_parts([{"norm": 8, "mlp": 0}, {"activation": 16}])
    ['activation', 'norm']
    """
    used = dict.fromkeys(part for column in columns for part, count in column.items() if count)
    known = list(PART_COLOURS)
    return sorted(used, key=lambda part: known.index(part) if part in known else len(known))
