"""Looks the derivative up in tables of the formula's values, which on a CPU costs less than evaluating it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..curves import Curve, Fit
from .formula import evaluator, split
from .quotient import missing_digits, uncertainty

# Of a float32 number, the sign, the exponent and nine digits of the significand choose the line that it lies on.
LOW_BITS = 14
LINES = 1 << (32 - LOW_BITS)
VANISHED = 1e-30  # outputs that are smaller on the left have no derivative either


def lookup(curve: Curve, dtype: torch.dtype, *, rebuilt: bool = False) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What finds ``D(y, is_left)`` for pieces, shape (size,), of an output of this dtype.

    The result is float32, and valid until the next look-up in the same thread, of whatever tensor.

    Half precision: the formula's value for each number, so equal to it in every bit. float32: on straight lines between
    the formula's values, at most 5e-7 away from it. float32 needs a fitted curve.

    Args:
        rebuilt: the pieces come from `quotient.rebuild`.
    """
    in_half_precision = _Middles if rebuilt else _Numbers
    table_of = _Lines if dtype == torch.float32 else in_half_precision
    return lambda y, is_left: _kept(table_of, curve, dtype, y.numel()).derivative(y, is_left)


class _Kept(threading.local):
    """What a thread used last: its buffers are some MiB, which as new memory would cost a sixth of a look-up's time."""

    key: tuple[Any, ...] = ()
    buffers: _Numbers | _Lines


_last = _Kept()


def _kept(kind: type[_Numbers] | type[_Lines], *arguments: Any) -> _Numbers | _Lines:
    if _last.key != (kind, *arguments):
        with _plain_cpu():
            _last.buffers = kind(*arguments)
        _last.key = (kind, *arguments)
    return _last.buffers


class _Numbers:
    """Looks up pieces of one size in half precision, in buffers that all of them share."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        self.size = size
        self.table, self.per_side = _numbers(curve, dtype), 1 << 16
        self.index = torch.empty(size, dtype=torch.int32)
        self.result = torch.empty(size)

    def derivative(self, y: Tensor, is_left: Tensor | None) -> Tensor:
        index = self.bits(y)
        if is_left is not None:
            index.add_(is_left, alpha=self.per_side)
        return torch.index_select(self.table, 0, index.add_(self.per_side // 2), out=self.result)

    def bits(self, y: Tensor) -> Tensor:
        """As integers, in a buffer."""
        return self.index.copy_(y.view(torch.int16))


class _Middles(_Numbers):
    """The same for rebuilt outputs: float32, but of the dtype's digits and one more, which tells middles."""

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        super().__init__(curve, dtype, size)
        self.shift = missing_digits(dtype) - 1
        self.table, self.per_side = _middles(curve, dtype), 1 << (32 - self.shift)

    def bits(self, y: Tensor) -> Tensor:
        return torch.bitwise_right_shift(y.view(torch.int32), self.shift, out=self.index)


class _Lines:
    """Looks up pieces of one size in float32, in buffers that all of them share.

    The variable is near 0 where the derivative bends, so that lines of equal relative width follow it: right of the
    turning point it is the rise ``y - y_min``, left of it ``(y - y_min) / y``, which is negative.
    """

    def __init__(self, curve: Curve, dtype: torch.dtype, size: int) -> None:
        self.size = size
        self.limits = curve.limits
        self.start, self.table = _start(curve), _lines(curve)
        self.variable, self.left, self.share = (torch.empty(size) for _ in range(3))
        self.one = torch.ones(size)
        self.bits, self.index = self.variable.view(torch.int32), torch.empty(size, dtype=torch.int32)
        self.line = torch.empty(size, dtype=torch.complex64)
        self.intercept, self.slope = torch.view_as_real(self.line).unbind(-1)

    def derivative(self, y: Tensor, is_left: Tensor | None) -> Tensor:
        variable = torch.sub(y, self.start, out=self.variable)
        if is_left is not None:
            divisor = torch.clamp(y, max=-VANISHED, out=self.left)
            # The divisor itself on the left, and 1 on the right: one pass, where selecting the quotient takes three.
            share = self.share.copy_(is_left.view(torch.uint8))  # bools would be copied one by one
            variable.div_(torch.lerp(self.one, divisor, share, out=divisor))
        torch.bitwise_right_shift(self.bits, LOW_BITS, out=self.index).add_(LINES // 2)
        torch.index_select(self.table, 0, self.index, out=self.line)
        derivative = torch.addcmul(self.intercept, self.slope, variable, out=variable)
        if self.limits is not None:
            low, high = self.limits
            derivative.masked_fill_((y <= low) | (y >= high), 0.0)
        return derivative


@contextmanager
def _plain_cpu() -> Iterator[None]:
    """Whatever the caller's modes, what is kept are plain tensors on the CPU."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield


@cache
def _numbers(curve: Curve, dtype: torch.dtype) -> Tensor:
    """The derivative at every number of a half-precision dtype, in the order of their bits as integers.

    Returns:
        float32, shape (65536,), and for a curve with a turning point (131072,): right of it, then left.
    """
    with _plain_cpu():
        y = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        return _values(curve, dtype, y, None)


@cache
def _middles(curve: Curve, dtype: torch.dtype) -> Tensor:
    """The derivative at every float32 number of a half-precision dtype's digits and one more, ordered in the same way.

    Returns:
        float32, shape (131072,) in bfloat16 and (1048576,) in float16, or twice that: see `_numbers`.
    """
    shift = missing_digits(dtype) - 1
    half = 1 << (31 - shift)
    with _plain_cpu():
        y = torch.arange(-half, half, dtype=torch.int32).bitwise_left_shift(shift).view(torch.float32)
        return _values(curve, dtype, y, uncertainty(y, dtype))


def _values(curve: Curve, dtype: torch.dtype, y: Tensor, error: Tensor | None) -> Tensor:
    evaluate = evaluator(curve, torch.empty(0, dtype=dtype))
    if curve.x_min is None:
        return evaluate(y, None, error).clone()
    return torch.cat([evaluate(y, torch.full(y.shape, is_left), error).clone() for is_left in (False, True)])


def _start(curve: Curve) -> float:
    """A float32 number below all outputs, however they were rounded: the variable never changes its sign."""
    assert isinstance(curve.inverse, Fit)
    y_min, error = curve.inverse.y_min / curve.scale, curve.output_error(torch.float32) / curve.scale
    return split(y_min - 2 * error, torch.float32)[0]


@cache
def _lines(curve: Curve) -> Tensor:
    """For each line its value at 0 and its slope, as the parts of complex numbers: one look-up finds both.

    Returns:
        complex64, shape (LINES,).
    """
    with _plain_cpu():
        bits = torch.arange(-(LINES // 2), LINES // 2, dtype=torch.int32).bitwise_left_shift(LOW_BITS)
        start, end = (each.view(torch.float32).double() for each in (bits, bits + (1 << LOW_BITS) - 1))
        points = torch.stack([start, (start + end) / 2, end])
        is_left = points.signbit()
        y = torch.where(is_left, 1 / (1 - points), 1 + points / _start(curve)) * _start(curve)
        error = torch.tensor(curve.output_error(torch.float32) / curve.scale, dtype=torch.float64)
        evaluate = evaluator(replace(curve, limits=None), y)
        values = evaluate(y.flatten(), None if curve.x_min is None else is_left.flatten(), error)
        first, middle, last = values.view(3, LINES)
        slope = torch.where(end == start, 0.0, (last - first) / (end - start))
        # Between the chord and the arc where the line errs by nothing in the mean (Simpson's rule for the arc).
        intercept = ((first + last) / 2 + 2 * middle) / 3 - slope * (start + end) / 2
        return torch.complex(intercept.float(), slope.float())
