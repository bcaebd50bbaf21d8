"""Finds the largest size whose peak fits, in few runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from .peak import MOMENTS, Peak

POINTS = 3
PATIENCE = 8


def largest_that_fits(peak_at: Callable[[int], Peak], memory_bytes: int, *, start: int, last: int) -> int:
    """The largest size of 1 to `last` whose peak fits; 0 where none does.

    That it fits, and that the next one does not, are run and not guessed. Guesses take each moment's peak for a
    polynomial of the size, which it is where what holds most does not change. So a few runs suffice.

    Args:
        peak_at: the peak of a size. Larger ones must not need less.
        memory_bytes: what it must fit into.
        start: the first guess.
        last: the end of the search.
    """
    seen: dict[int, Peak] = {}
    low, high = 0, last + 1  # fits (or is 0), and does not fit (or is not to be asked for)
    guess = min(max(start, 1), last)
    while high - low > 1:
        seen[guess] = peak_at(guess)
        if seen[guess].total_bytes <= memory_bytes:
            low = guess
        else:
            high = guess
        is_slow = len(seen) >= PATIENCE and len(seen) % 2 == 0
        middle = min(max(math.isqrt(low * high), low + 1), high - 1)
        guess = middle if is_slow else _predicted(seen, memory_bytes, low, high)
    return low


def _predicted(seen: Mapping[int, Peak], memory_bytes: int, low: int, high: int) -> int:
    """The largest size between two that should fit, or the first above the lower, if none should."""
    curves = [_curve(seen, moment, memory_bytes) for moment in MOMENTS]
    most, too_much = low + 1, high
    while too_much - most > 1:
        middle = (most + too_much) // 2
        if max(_interpolated(curve, middle) for curve in curves) <= memory_bytes:
            most = middle
        else:
            too_much = middle
    return most


def _curve(seen: Mapping[int, Peak], moment: str, memory_bytes: int) -> list[tuple[int, int]]:
    """Sizes and bytes of a moment's peak, where they are closest to what they must fit into.

    What a batch of nothing would hold is known without a run: what does not depend on the size.
    """
    points = {size: peak.bytes_in(moment) for size, peak in seen.items()}
    points[0] = static_bytes(next(iter(seen.values())), moment)
    nearest = sorted(points.items(), key=lambda point: abs(point[1] - memory_bytes))[:POINTS]
    # A parabola that opens downwards would have everything fit, far away.
    return nearest if _is_convex(sorted(nearest)) else nearest[:2]


def _is_convex(points: Sequence[tuple[int, int]]) -> bool:
    slopes = [(right[1] - left[1]) / (right[0] - left[0]) for left, right in pairwise(points)]
    return slopes == sorted(slopes)


def static_bytes(peak: Peak, moment: str) -> int:
    """Weights, gradients and the optimizer's state at a moment."""
    return sum(peak.by_moment[moment][category] for category in ("parameters", "gradients", "optimizer"))


def _interpolated(points: Iterable[tuple[int, int]], size: int) -> float:
    """The polynomial through points, by Lagrange."""
    points = list(points)
    total = 0.0
    for at, value in points:
        term = float(value)
        for other, _ in points:
            if other != at:
                term *= (size - other) / (at - other)
        total += term
    return total
