"""The error of a rounded output, and its effect on square roots next to a turning point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# In units in the last place. PyTorch computes half-precision activations in float32 and rounds them once. Float32 and
# float64 results have the error of the whole formula (measured: up to 2 units for gelu and mish on a CPU; among numbers
# near that, this one minimizes the largest error of the derivative).
_OUTPUT_ERROR = {torch.bfloat16: 0.5, torch.float16: 0.5}
_WIDE_OUTPUT_ERROR = 1.75


def output_error(value: float, dtype: torch.dtype) -> float:
    """The largest error of a computed output next to ``value``, on its side towards 0. There is none at 0 itself."""
    if value == 0:
        return 0.0
    _, exponent = math.frexp(math.nextafter(value, 0.0))
    return _OUTPUT_ERROR.get(dtype, _WIDE_OUTPUT_ERROR) * math.ldexp(1.0, exponent - _digits(dtype))


def mean_root(rise: Tensor, error: float | Tensor) -> Tensor:
    """The midpoint of the range of ``sqrt(y - y_min)``, for a rise ``y - y_min`` with an error of up to ``error``.

    Next to the turning point this is a better estimate than the root of the rise. The inputs that share an output are
    spread evenly in the root, so that it is both their mean and the midpoint of their range.
    """
    highest, lowest = (rise + error).clamp_(min=0.0).sqrt_(), (rise - error).clamp_(min=0.0).sqrt_()
    return highest.add_(lowest).mul_(0.5)


class RiseAdjustment(NamedTuple):
    """How `nearly_mean_root` adjusts a rise before it takes the root: ``max(floor, min(rise, 1.5 * rise + offset))``.

    Numbers or tensors, in units of the rise.
    """

    floor: float | Tensor
    offset: float | Tensor


def nearly_mean_root(rise: Tensor, adjustment: RiseAdjustment, missing: float = 0.0) -> Tensor:
    """`mean_root` with one root instead of two, for kernels in which roots take most of the time.

    A minimum that propagates NaN takes four vector instructions on a CPU, and ``relu`` takes one.

    Args:
        missing: still to be subtracted from the rise, whose digits do not hold it.
    """
    above_line = torch.relu(-0.5 * rise + (0.5 * missing - adjustment.offset))
    return (torch.relu(rise - (adjustment.floor + missing) - above_line) + adjustment.floor).sqrt()


def rise_adjustment(y_min: float, dtype: torch.dtype, *, is_between: bool = False) -> RiseAdjustment:
    """The adjustment that comes close to `mean_root` for outputs of this dtype.

    In half precision few outputs lie next to the turning point. For the two lowest ones the result is the mean root
    itself. For others it is at most 0.75 ``sqrt(error)`` from every possible root (the mean root: 0.71).

    Args:
        is_between: for midpoints of two neighbours, either of which may have been the rounded output.
    """
    error = output_error(y_min, dtype)
    if error == 0 or dtype.itemsize > 2:
        return RiseAdjustment(floor=0.4 * error, offset=-0.95 * error)
    step, first = 2 * error, round_up(y_min - error, dtype) - y_min
    if is_between:
        first, error = first + error, step
    lowest, second = (_mean_root(rise, error) ** 2 for rise in (first, first + step))
    return RiseAdjustment(floor=lowest, offset=second - 1.5 * (first + step))


def _mean_root(rise: float, error: float) -> float:
    return (math.sqrt(max(rise + error, 0.0)) + math.sqrt(max(rise - error, 0.0))) / 2


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of ``dtype`` that is not below ``value``."""
    significand, exponent = math.frexp(value)
    return math.ldexp(math.ceil(math.ldexp(significand, _digits(dtype))), exponent - _digits(dtype))


def _digits(dtype: torch.dtype) -> int:
    """The number of binary digits of the significand."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))
