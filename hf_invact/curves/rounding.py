"""How far a rounded output may lie from the exact one, and what that means for roots next to a turning point."""

from __future__ import annotations

import math

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


def round_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of ``dtype`` that is not below ``value``."""
    significand, exponent = math.frexp(value)
    return math.ldexp(math.ceil(math.ldexp(significand, _digits(dtype))), exponent - _digits(dtype))


def _digits(dtype: torch.dtype) -> int:
    """Binary digits of the significand."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))
