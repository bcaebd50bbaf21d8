"""Examines whether a function can be inverted from its output and one side bit: turning points, jumps, ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

NEAR = 32.0  # up to here, values and slopes must be finite, and the grid has a step of 1/256
FAR = 1e4
STEP = 1 / 256
RELATIVE_ZERO = 1e-7  # of the steepest slope: smaller slopes count as 0 in the search for turning points
SETTLED = 1e-8  # of the steepest slope: from where the slope changes by less than this, it counts as constant
JUMP = 1e-6  # of the steepest slope: a larger difference between two inputs next to each other is a jump


class UnsuitableActivation(ValueError):
    """A function cannot be inverted from its output and one bit. The message says why."""


@dataclass(frozen=True)
class Shape:
    """Where a function turns, and where its sides end.

    Attributes:
        x_min: the turning point; None for a function that only rises.
        y_min: the output there, or its limit on the left.
        left_end: left of it the output equals its limit.
        right_end: right of it the slope is constant.
    """

    x_min: float | None
    y_min: float
    left_end: float
    right_end: float


def examine(forward: Function, derivative: Function) -> Shape:
    """The shape of a function.

    Args:
        forward, derivative: ``f`` and ``f'``, called with float64 tensors, shape (points,).

    Raises:
        UnsuitableActivation: it is not an element-wise function with at most one turning point, which must be a minimum
            left of which it rises to 0 and right of which its slope becomes constant; or the derivative is not that of
            ``f``.
    """
    x = grid()
    _require_elementwise(forward, x)
    y, slope = forward(x), derivative(x)
    is_finite = y.isfinite() & slope.isfinite()
    if not is_finite[x.abs() <= NEAR].all():
        where = x[~is_finite & (x.abs() <= NEAR)][0].item()
        raise UnsuitableActivation(f"its value or slope at x = {where:g} is not finite")
    x, y, slope = x[is_finite], y[is_finite], slope[is_finite]
    x_min = _turning_point(derivative, x, slope)
    near = x.abs() <= NEAR
    _require_smooth(forward, derivative, x[near], y[near], slope[near])
    right_end = _where_slope_settles(x, slope)
    if x_min is None:
        y_min = _limit_on_the_left(x, y)
        return Shape(None, y_min, _first(x, y - y_min > 1e-14 * (1 + abs(y_min))), right_end)
    y_min = forward(torch.tensor([x_min], dtype=torch.float64)).item()
    return Shape(x_min, y_min, _where_output_vanishes(x, y, x_min, y_min), right_end)


def grid() -> Tensor:
    """Inputs in float64, ascending: evenly spaced up to `NEAR`, and ever sparser up to `FAR`."""
    near = torch.arange(-NEAR, NEAR + STEP, STEP, dtype=torch.float64)
    far = torch.logspace(math.log10(NEAR), math.log10(FAR), 2001, dtype=torch.float64)[1:]
    return torch.cat([-far.flip(0), near, far])


def _require_elementwise(forward: Function, x: Tensor) -> None:
    original = x.clone()
    y = forward(x)
    if not torch.equal(x, original):
        raise UnsuitableActivation("it writes to its input")
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        came = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise UnsuitableActivation(f"its result is not a tensor with its input's shape and dtype: {came}")
    small = x[x.abs() < 2]
    if not torch.allclose(
        forward(small[::2].flip(0)).flip(0), forward(small)[::2], rtol=1e-9, atol=1e-12, equal_nan=True
    ):
        raise UnsuitableActivation("it is not element-wise, or random: an element's value depends on the others")


def _require_smooth(forward: Function, derivative: Function, x: Tensor, y: Tensor, slope: Tensor) -> None:
    """Check that the output rises by the integral of the slope (Simpson's rule): no jump, no kink, right derivative."""
    middle = (x[1:] + x[:-1]) / 2
    width, rise = x.diff(), y.diff()
    expected = width * (slope[1:] + 4 * derivative(middle) + slope[:-1]) / 6
    excess = torch.nan_to_num((rise - expected).abs() / (width * slope.abs().max() + rise.abs()))
    worst = int(excess.argmax())
    if excess[worst] < JUMP:
        return
    left, right = _narrow(forward, derivative, x[worst], x[worst + 1])
    before, after = (forward(end[None]).item() for end in (left, right))
    slope_before, slope_after = (derivative(end[None]).item() for end in (left, right))
    steepest = slope.abs().max().item()
    if abs(after - before) > JUMP * steepest:
        raise UnsuitableActivation(f"it jumps at x = {right.item():.6g}, from {before:.6g} to {after:.6g}")
    if abs(slope_after - slope_before) > JUMP * steepest:
        raise UnsuitableActivation(
            f"its slope jumps at x = {right.item():.6g}, from {slope_before:.6g} to {slope_after:.6g}, which no fitted "
            "formula can follow"
        )
    found = (rise / width)[worst].item()
    raise UnsuitableActivation(
        f"the derivative is not that of the function: at x = {middle[worst].item():.6g} it is "
        f"{derivative(middle[worst][None]).item():.6g}, where the function's slope is {found:.6g}"
    )


def _narrow(forward: Function, derivative: Function, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The part of an interval, 1e-9 wide, in which the output deviates most from the integral of its slopes."""
    while right - left > 1e-9 * max(1.0, abs(left.item())):
        middle = (left + right) / 2
        ends = torch.stack([left, middle, right])
        rise = forward(ends).diff()
        expected = ends.diff() * (derivative(ends)[1:] + derivative(ends)[:-1]) / 2
        left, right = (left, middle) if (rise - expected).abs().argmax() == 0 else (middle, right)
    return left, right


def _turning_point(derivative: Function, x: Tensor, slope: Tensor) -> float | None:
    """The only minimum; None for a function that only rises."""
    has_slope = slope.abs() > RELATIVE_ZERO * slope.abs().max()
    x, falls = x[has_slope], slope[has_slope] < 0
    turns = (falls[1:] != falls[:-1]).nonzero().flatten().tolist()
    if not has_slope.any():
        raise UnsuitableActivation("it is constant")
    if len(turns) > 1:
        places = ", ".join(f"{x[turn].item():.4g}" for turn in turns[:4])
        raise UnsuitableActivation(f"it has {len(turns)} turning points, near x = {places}: one bit tells two sides")
    if not turns and falls.all():
        raise UnsuitableActivation("it falls; only functions that rise on the right can be inverted here")
    if not turns:
        return None
    if not falls[turns[0]]:
        raise UnsuitableActivation(
            f"it turns at a maximum, near x = {x[turns[0]].item():.4g}; only minima are supported"
        )
    return _root(derivative, x[turns[0]].item(), x[turns[0] + 1].item())


def _root(derivative: Function, left: float, right: float) -> float:
    for _ in range(100):
        middle = (left + right) / 2
        falls = derivative(torch.tensor([middle], dtype=torch.float64)).item() < 0
        left, right = (middle, right) if falls else (left, middle)
    return (left + right) / 2


def _where_slope_settles(x: Tensor, slope: Tensor) -> float:
    tolerance = SETTLED * slope.abs().max()
    changes = (slope - slope[-1]).abs() > tolerance
    if changes[x > x[-1] / 2].any() and (slope[x > x[-1] / 2][0] - slope[-1]).abs() > 1e3 * tolerance:
        raise UnsuitableActivation(
            f"its slope has not settled at x = {x[-1].item():g}: only functions that end in a straight line on the "
            "right can be fitted"
        )
    return x[min(int(changes.nonzero().max()) + 1, len(x) - 1)].item() if changes.any() else x[-1].item()


def _limit_on_the_left(x: Tensor, y: Tensor) -> float:
    limit = y[0].item()
    fall = (y[x < x[0] / 2][-1] - limit).abs().item()
    if fall > 1e-3 * (1 + abs(limit)):
        raise UnsuitableActivation(f"it has no limit on the left: it still falls at x = {x[0].item():g}")
    return min(limit, y.min().item())


def _where_output_vanishes(x: Tensor, y: Tensor, x_min: float, y_min: float) -> float:
    left = x < x_min
    highest = y[left].max().item()
    if y_min >= 0 or highest > -1e-9 * y_min or abs(y[0].item()) > -1e-6 * y_min:
        raise UnsuitableActivation(
            f"left of its turning point, x = {x_min:.4g}, it does not rise to 0 from below: y is {y_min:.4g} there and "
            f"{y[0].item():.4g} at x = {x[0].item():g}"
        )
    return _first(x, y < 1e-12 * y_min)


def _first(x: Tensor, condition: Tensor) -> float:
    """The grid point before the first at which a condition holds."""
    return x[max(int(condition.nonzero().min()) - 1, 0)].item()
