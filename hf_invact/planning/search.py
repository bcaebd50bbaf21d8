"""Finds the largest size whose peak fits, with few predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from .peak import MOMENTS, Peak

POINTS = 3
PATIENCE = 8
TOKENS_STEP = 64
"""The step in which lengths of sequences are searched."""


def largest_that_fits(
    peak_at: Callable[[int], Peak],
    memory_bytes: int,
    *,
    last: int,
    start: int | None = None,
    known: Mapping[int, Peak] | None = None,
) -> int:
    """The largest size from 1 to `last` whose peak fits; 0 if none fits.

    The peaks of the result and of the next size are both computed, not extrapolated. In between, sizes are guessed by
    extrapolating the peak of each moment as a polynomial of the size, so few computations suffice.

    Args:
        peak_at: computes the peak of a size. It must not fall with the size.
        memory_bytes: the limit for the peak.
        last: the end of the search.
        start: the first guess; needed where no peak is known.
        known: peaks of some sizes, which may include 0.
    """
    peaks = dict(known or {})
    fits = {size: peak.total_bytes <= memory_bytes for size, peak in peaks.items()}
    low = max((size for size in fits if fits[size]), default=0)  # low fits or is 0
    high = min((size for size in fits if not fits[size]), default=last + 1)  # high does not fit or is beyond the end
    guess = _predicted(peaks, memory_bytes, low, high) if start is None else min(max(start, low + 1), high - 1)
    while high - low > 1:
        peaks[guess] = peak_at(guess)
        if peaks[guess].total_bytes <= memory_bytes:
            low = guess
        else:
            high = guess
        is_slow = len(peaks) >= PATIENCE and len(peaks) % 2 == 0
        middle = min(max(math.isqrt(low * high), low + 1), high - 1)
        guess = middle if is_slow else _predicted(peaks, memory_bytes, low, high)
    return low


def _predicted(peaks: Mapping[int, Peak], memory_bytes: int, low: int, high: int) -> int:
    """The largest size between two that is expected to fit; if none is, the smallest above `low`."""
    curves = [_curve(peaks, moment, memory_bytes) for moment in MOMENTS]
    most, too_much = low + 1, high
    while too_much - most > 1:
        middle = (most + too_much) // 2
        if max(_interpolated(curve, middle) for curve in curves) <= memory_bytes:
            most = middle
        else:
            too_much = middle
    return most


def _curve(peaks: Mapping[int, Peak], moment: str, memory_bytes: int) -> list[tuple[int, int]]:
    """The points (size, bytes) of a moment's peak that are closest to the limit.

    The peak at size 0, if it was not computed, is what does not depend on the size.
    """
    points = {size: peak.bytes_in(moment) for size, peak in peaks.items()}
    if 0 not in points:
        points[0] = static_bytes(next(iter(peaks.values())), moment)
    nearest = sorted(points.items(), key=lambda point: abs(point[1] - memory_bytes))[:POINTS]
    # A parabola that opens downwards would make any large size fit.
    return nearest if _is_convex(sorted(nearest)) else nearest[:2]


def _is_convex(points: Sequence[tuple[int, int]]) -> bool:
    slopes = [(right[1] - left[1]) / (right[0] - left[0]) for left, right in pairwise(points)]
    return slopes == sorted(slopes)


def static_bytes(peak: Peak, moment: str) -> int:
    """Weights, gradients and optimizer state at a moment."""
    return sum(peak.by_moment[moment][category] for category in ("parameters", "gradients", "optimizer"))


def _interpolated(points: Iterable[tuple[int, int]], size: int) -> float:
    """The value of the Lagrange polynomial through the points."""
    points = list(points)
    total = 0.0
    for at, value in points:
        term = float(value)
        for other, _ in points:
            if other != at:
                term *= (size - other) / (at - other)
        total += term
    return total
