"""Confidence intervals of means, and of paired differences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.reproduce.finetune.intervals import interval, paired_difference

VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("values", "t"), [((1.0, 2.0, 3.0), 4.302653), ((1.0, 2.0, 3.0, 4.0, 5.0), 2.776445)], ids=["3-seeds", "5-seeds"]
)
def test_an_interval_is_student_s(values, t):
    """Quantiles of the t distribution from a printed table."""
    found = interval(values)
    count = len(values)
    mean = sum(values) / count
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    assert (found.mean, found.count) == (mean, count)
    assert (found.low, found.high) == pytest.approx((mean - t * error, mean + t * error), rel=1e-6)


@settings(deadline=None)
@given(VALUES)
def test_zero_is_inside_where_the_test_does_not_reject_it(values):
    found = interval(values)
    assert found.low <= found.mean <= found.high or math.isclose(found.low, found.high)
    if abs(found.p_value - 0.05) > 1e-6:
        assert found.holds_zero == (found.p_value > 0.05)


def test_a_paired_difference_sees_what_the_spread_of_the_seeds_hides():
    plain = [1.0, 5.0, 9.0]
    moved = [value + shift for value, shift in zip(plain, (0.10, 0.11, 0.09), strict=True)]
    found = paired_difference(moved, plain)
    assert found.mean == pytest.approx(0.1)
    assert not found.holds_zero
    assert interval(moved).low < interval(plain).mean < interval(moved).high


@pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (0.5, 0.0)], ids=["zero", "not-zero"])
def test_values_that_are_all_the_same(value, p_value):
    found = interval([value] * 3)
    assert (found.mean, found.low, found.high, found.p_value) == (value, value, value, p_value)
    assert found.holds_zero == (value == 0)


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, math.nan)], ids=["none", "one", "nan"])
def test_what_has_no_interval(values):
    with pytest.raises(ValueError, match="at least two finite values"):
        interval(values)


def test_pairs_that_do_not_match():
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
