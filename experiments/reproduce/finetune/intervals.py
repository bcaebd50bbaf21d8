"""Means over seeds, with their 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and its 95% confidence interval by Student's t distribution.

    Attributes:
        p_value: of the hypothesis that the true mean is 0.
    """

    mean: float
    low: float
    high: float
    p_value: float
    count: int

    @property
    def holds_zero(self) -> bool:
        """Whether the mean cannot be distinguished from 0."""
        return self.low <= 0 <= self.high

    def record(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        return asdict(self)


def interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of independent values.

    If all values are equal, the interval is that value alone.

    Raises:
        ValueError: there are fewer than two values, or one is not finite.

    >>> interval([1.0, 2.0, 3.0]).mean
    2.0
    >>> interval([0.0, 0.0]).holds_zero
    True
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval needs at least two finite values, got {list(values)}")
    if len(set(values)) == 1:
        return Interval(values[0], values[0], values[0], float(values[0] == 0), len(values))
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Interval(sum(values) / len(values), float(low), float(high), float(test.pvalue), len(values))


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The interval of the mean difference of pairs (of the same seed), values minus others: the paired t test.

    Raises:
        ValueError: as `interval`, or the numbers of values differ.
    """
    return interval([value - other for value, other in zip(values, others, strict=True)])
