"""The curves of the picture: bytes kept and step times, by how a model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ...benchmark.steps.variants import PLAIN
from .variants import EVERY, OURS

Results = Mapping[str, Any]


class Point(NamedTuple):
    """A way to train.

    Attributes:
        name: of the variant.
        kept: bytes for the backward pass.
        ratio: of a step's time to the plain one's.
    """

    name: str
    kept: int
    ratio: float


def points(entry: Results) -> dict[str, Point]:
    """All ways that were measured, by name."""
    measured = {name: facts for name, facts in entry["variants"].items() if "step_ms" in facts}
    return {
        name: Point(name, facts["kept_bytes"], facts.get("ratio", {}).get("median", 1.0))
        for name, facts in measured.items()
    }


def ours(entry: Results) -> list[Point]:
    """Those of this package, by what they keep."""
    return sorted((point for name, point in points(entry).items() if name.startswith(OURS)), key=_kept)


def checkpointing(entry: Results) -> list[Point]:
    """Plain, and checkpointing of every n-th layer, by what they keep."""
    found = points(entry)
    return sorted((found[name] for name in found if name == PLAIN or name.startswith(EVERY)), key=_kept)


def at_the_same_memory(curve: Sequence[Point], kept: int) -> float | None:
    """The ratio on a curve, between its points, where it keeps so many bytes; None beyond its ends."""
    for left, right in pairwise(curve):
        if left.kept <= kept <= right.kept:
            share = (kept - left.kept) / (right.kept - left.kept) if right.kept > left.kept else 0.0
            return left.ratio + share * (right.ratio - left.ratio)
    return None


def _kept(point: Point) -> int:
    return point.kept
