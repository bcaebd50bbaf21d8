"""How far a rounded output may lie from the exact one, and what that means for roots next to a turning point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# In units in the last place. PyTorch computes half-precision activations in float32 and rounds them once; float32 and
# float64 results carry the error of the whole formula (measured: up to 2 units for gelu and mish on a CPU; of the
# numbers near that, this one makes the largest error of the derivative least).
_OUTPUT_ERROR = {torch.bfloat16: 0.5, torch.float16: 0.5}
_WIDE_OUTPUT_ERROR = 1.75


def output_error(value: float, dtype: torch.dtype) -> float:
    """How far the exact output may be from a computed one next to ``value``, on the side of 0; there, nothing."""
    if value == 0:
        return 0.0
    _, exponent = math.frexp(math.nextafter(value, 0.0))
    return _OUTPUT_ERROR.get(dtype, _WIDE_OUTPUT_ERROR) * math.ldexp(1.0, exponent - _digits(dtype))


def mean_root(rise: Tensor, error: float | Tensor) -> Tensor:
    """The middle of what ``sqrt(y - y_min)`` may have been, where the rise ``y - y_min`` is known up to ``error``.

    Next to the turning point this, not the root of the rise, is the least wrong guess: the inputs that share an output
    are spread evenly in the root, so it is their mean and the middle of their range.
    """
    highest, lowest = (rise + error).clamp_(min=0.0).sqrt_(), (rise - error).clamp_(min=0.0).sqrt_()
    return highest.add_(lowest).mul_(0.5)


class Bend(NamedTuple):
    """The shape of the square of `nearly_mean_root`; numbers or tensors, in units of the rise.

    It is ``floor``, then on the line ``1.5 * rise + offset``, and from where that meets it the rise itself.
    """

    floor: float | Tensor
    offset: float | Tensor


def nearly_mean_root(rise: Tensor, bend: Bend, missing: float = 0.0) -> Tensor:
    """`mean_root` with one root in place of two, for where roots take the time.

    A minimum that minds NaN takes four vector instructions on a CPU, and ``relu`` takes one.

    Args:
        missing: what is still to be subtracted from the rise, too little for its digits.
    """
    above_line = torch.relu(-0.5 * rise + (0.5 * missing - bend.offset))
    return (torch.relu(rise - (bend.floor + missing) - above_line) + bend.floor).sqrt()


def bend_of(y_min: float, dtype: torch.dtype, *, is_between: bool = False) -> Bend:
    """The bend that comes close to `mean_root` for outputs of this dtype.

    In half precision few outputs lie next to the turning point: for the two lowest ones it is the mean root itself. For
    others it is at most 0.75 ``sqrt(error)`` from every root that there may have been (the mean root: 0.71).

    Args:
        is_between: for the middles of two neighbours, of which either may have been the rounded output.
    """
    error = output_error(y_min, dtype)
    if error == 0 or dtype.itemsize > 2:
        return Bend(floor=0.4 * error, offset=-0.95 * error)
    step, first = 2 * error, round_up(y_min - error, dtype) - y_min
    if is_between:
        first, error = first + error, step
    lowest, second = (_mean_root(rise, error) ** 2 for rise in (first, first + step))
    return Bend(floor=lowest, offset=second - 1.5 * (first + step))


def _mean_root(rise: float, error: float) -> float:
    return (math.sqrt(max(rise + error, 0.0)) + math.sqrt(max(rise - error, 0.0))) / 2


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of ``dtype`` that is not below ``value``."""
    significand, exponent = math.frexp(value)
    return math.ldexp(math.ceil(math.ldexp(significand, _digits(dtype))), exponent - _digits(dtype))


def _digits(dtype: torch.dtype) -> int:
    """Binary digits of the significand."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))
