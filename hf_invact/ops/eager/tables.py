"""Tables of a curve's derivative for `lookup`, which are cached: float32 tensors on the CPU."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...curves import Curve, Fit
from ..bits import BITS, unpack
from ..buffers import ordinary_cpu_tensors
from .formula import evaluator, split
from .unmultiply import missing_digits, uncertainty

# Cells of a side in float32. A small table stays in the cache, so there are only as many cells as the error requires.
FEWEST_CELLS, MOST_CELLS = 1 << 13, 1 << 18
LINE_ERROR = 4e-7  # of the steepest slope
# A float32 number's bits without the last two, read as a number, are about its fourth root times a constant. Cells of
# equal size in this variable bound the error of lines where the derivative behaves as the square root of the rise.
SHIFT = 2
SIGN = torch.iinfo(torch.int32).min


class Table(NamedTuple):
    """Cells of equal size between -1 and 1, with the left side below 0. An output's integer gives its position there.

    Attributes:
        values: float32, shape (channels, cells).
        start: int32, shape (256, 8), for each bit of a byte of side bits: ``start + step * integer`` are the bits of
            the position as a float32 number.
        step: see ``start``.
    """

    values: Tensor
    start: Tensor
    step: int


class _Side(NamedTuple):
    """One side's values, shape (channels, cells), from 0 outwards, and the start of its positions, without the sign."""

    values: Tensor
    start: int


@cache
def number_table(curve: Curve, dtype: torch.dtype) -> Table:
    """The derivative at every number of a half-precision dtype. An output's integer is its bits."""
    with ordinary_cpu_tensors():
        y = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        return _numbers(curve, dtype, y, None)


@cache
def midpoint_table(curve: Curve, dtype: torch.dtype) -> Table:
    """The same at every float32 number with one digit more than the dtype has, as `unmultiply.unmultiply` returns them.

    The integer is the number's bits without those that are always 0.
    """
    shift = missing_digits(dtype) - 1
    half = 1 << (31 - shift)
    with ordinary_cpu_tensors():
        y = torch.arange(-half, half, dtype=torch.int32).bitwise_left_shift(shift).view(torch.float32)
        return _numbers(curve, dtype, y, uncertainty(y, dtype))


def _numbers(curve: Curve, dtype: torch.dtype, y: Tensor, error: Tensor | None) -> Table:
    """One cell for each output. The outputs are in the order of their integers, half of which are negative."""
    evaluate = evaluator(curve, torch.empty(0, dtype=dtype))
    # Between 1/2 and 1 float32 numbers are equally far apart. A position is the middle of its cell.
    half, ones = _bits(0.5), _bits(1.0)
    step = (ones - half) // y.numel()
    start = (half + ones) // 2 + step // 2
    sides = []
    for is_left in _sides(curve):
        values = evaluate(y, _flags(curve, y, is_left), error)
        sides.append(_Side(torch.cat([torch.zeros_like(values), values])[None], start))
    return _table(sides, step)


def lowest(curve: Curve) -> float:
    """A float32 number below all float32 outputs of a fitted curve, whatever their rounding."""
    assert isinstance(curve.inverse, Fit)
    y_min, error = curve.inverse.y_min / curve.scale, curve.output_error(torch.float32) / curve.scale
    return split(y_min - 2 * error, torch.float32)[0]


def lines_suffice(curve: Curve) -> bool:
    """Whether a fitted curve's `line_table` is exact enough with at most `MOST_CELLS` cells a side."""
    return max(_cells_needed(curve)) <= MOST_CELLS


@cache
def line_table(curve: Curve) -> Table:
    """A fitted curve's derivative as lines in the rise ``y - lowest(curve)``: the channels are intercept and slope.

    The integer is the bits of the rise without the last `SHIFT`.
    """
    needed = _cells_needed(curve)
    with ordinary_cpu_tensors():
        sides = [_lines(curve, is_left, needed[is_left], max(needed))[0] for is_left in _sides(curve)]
        return _table(sides, step=1)


@cache
def _cells_needed(curve: Curve) -> tuple[int, ...]:
    """How many cells the lines of each side need; twice `MOST_CELLS` if that is not enough."""
    with ordinary_cpu_tensors():
        rises = torch.linspace(0, _end(curve, is_left=False), 1000, dtype=torch.float64)
        steepest = _exact(curve, lowest(curve) + rises, is_left=False).abs().max().item()

        def needed(is_left: bool) -> int:
            cells = FEWEST_CELLS
            while cells <= MOST_CELLS and _lines(curve, is_left, cells, cells)[1] > LINE_ERROR * steepest:
                cells *= 2
            return cells

        return tuple(needed(is_left) for is_left in _sides(curve))


def _lines(curve: Curve, is_left: bool, cells: int, places: int) -> tuple[_Side, float]:
    """The lines in this many cells, and their largest error. From the last cell on the derivative is constant.

    Args:
        places: how many cells fit up to position 1: `cells`, or 2, 4, ... times as many.
    """
    end = _end(curve, is_left)
    start = _bits((cells - 1) / places) - (_bits(end) >> SHIFT)
    positions = torch.arange(places + 1, dtype=torch.float32) / places
    bits = (positions.view(torch.int32) - start).clamp_(min=0).bitwise_left_shift_(SHIFT)
    edges = bits.view(torch.float32).double().clamp_(max=end)
    low, high = edges[:-1], edges[1:]
    rises = torch.lerp(low, high, torch.linspace(0, 1, 5, dtype=torch.float64)[:, None])
    values = _exact(curve, rises.flatten() + lowest(curve), is_left).view(rises.shape)
    slope = torch.where(high == low, 0.0, (values[-1] - values[0]) / (high - low))
    # Between the chord and the arc, so that the line's mean error is 0 (the arc's mean is by Simpson's rule).
    intercept = (values[0] + 4 * values[2] + values[-1]) / 6 - slope * (low + high) / 2
    errors = (intercept + slope * rises - values).abs().max(dim=0).values
    # Next to the turning point a cell holds one number or none.
    distance = math.ulp(lowest(curve)) * 2.0 ** (53 - 24)
    number, is_wide = (rises[2] / distance).round() * distance, high - low > distance
    number[cells - 1 :], is_wide[cells - 1 :] = end, False
    constant = _exact(curve, number + lowest(curve), is_left)
    lines = torch.stack([torch.where(is_wide, intercept, constant), torch.where(is_wide, slope, 0.0)])
    return _Side(lines.float(), start), errors[is_wide].max().item()


def _end(curve: Curve, is_left: bool) -> float:
    """The rise from which on the derivative is constant; on the left, the rise of output 0."""
    assert isinstance(curve.inverse, Fit)
    return -lowest(curve) if is_left else curve.inverse.fine.right.end**2 / curve.scale


def _exact(curve: Curve, y: Tensor, is_left: bool) -> Tensor:
    """The formula's values in float64, for outputs that were rounded to float32."""
    error = torch.tensor(curve.output_error(torch.float32) / curve.scale, dtype=torch.float64)
    evaluate = evaluator(replace(curve, limits=None), y)
    return evaluate(y, _flags(curve, y, is_left), error)


def _sides(curve: Curve) -> list[bool]:
    """For each side, whether it is the left one."""
    return [False] if curve.x_min is None else [False, True]


def _flags(curve: Curve, y: Tensor, is_left: bool) -> Tensor | None:
    return None if curve.x_min is None else torch.full(y.shape, is_left)


def _table(sides: list[_Side], step: int) -> Table:
    """The table of the right side and the left one. Without a left side, the right one takes its place, unused."""
    right, left = sides[0], sides[-1]
    is_left = unpack(torch.arange(1 << BITS).to(torch.uint8)).view(-1, BITS)
    start = torch.where(is_left, left.start + SIGN, right.start).int()
    return Table(torch.cat([left.values.flip(1), right.values], dim=1), start, step)


def _bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))
