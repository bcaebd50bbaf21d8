"""Rebuilds an activation's output from its product with another tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .formula import dtype_inside

# A factor smaller than this would take what it is multiplied with along to 0. The exponents of bfloat16 and float32
# have room; in float16 the product of the smallest factor and an output of 1/4 is just not subnormal.
TINY = {torch.float16: 2.0**-12}
DEFAULT_TINY = 2.0**-60
EXPONENT_BITS = 0x7F800000  # of a float32 number


@dataclass(frozen=True)
class Rebuilt:
    """``y``, in float32 (float64 for float64), and how far the exact output may be from it, where that is known.

    It may be further where a subnormal product has lost digits, except next to a turning point, where that matters.
    """

    y: Tensor
    error: Tensor | None


def away_from_zero(factor: Tensor) -> Tensor:
    """The factor, or the smallest that keeps what it is multiplied with, with its sign."""
    return factor.abs().clamp_(min=TINY.get(factor.dtype, DEFAULT_TINY)).copysign_(factor)


def rebuild(product: Tensor, factor: Tensor, likely: Iterable[float] = ()) -> Rebuilt:
    """The output ``y`` whose product with ``away_from_zero(factor)`` was rounded to ``product``; shape (size,) each.

    In half precision ``y`` was rounded too. Unless the product is subnormal, mostly only one number of the dtype can
    have had it, and is found; else two neighbours can, and the middle between them is taken.

    Args:
        likely: outputs of whole ranges of inputs, which are taken where they can have been it.
    """
    rebuilt = _rebuild(product, factor)
    for value in likely:
        is_near = (rebuilt.y - value).abs_() <= abs(value) * torch.finfo(product.dtype).eps
        rebuilt.y.masked_fill_(is_near, value)
    return rebuilt


def _rebuild(product: Tensor, factor: Tensor) -> Rebuilt:
    wide = dtype_inside(product)
    divisor = away_from_zero(factor).to(wide)
    wide_product = product.to(wide)
    quotient = wide_product / divisor
    if product.dtype == wide:
        return Rebuilt(quotient, None)
    y = quotient.to(product.dtype).to(wide)
    step = _last_place(y, product.dtype)
    distance = quotient.sub_(y)
    uncertainty = _last_place(wide_product, product.dtype).mul_(0.5).div_(divisor.abs_())
    is_one_of_two = (uncertainty.add_(distance.abs()) >= step).logical_and_(distance != 0)
    half_step = step.mul_(0.5)
    y = y.add_(half_step.copysign(distance).mul_(is_one_of_two))
    return Rebuilt(y, half_step.mul_(is_one_of_two.to(wide).add_(1.0)))


def _last_place(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of a half-precision dtype at these, float32, shape (size,)."""
    info = torch.finfo(dtype)
    # The bits of the exponent alone are the power of two below a number.
    powers = numbers.view(torch.int32).bitwise_and(EXPONENT_BITS).view(torch.float32)
    return powers.clamp_(info.smallest_normal, info.max).mul_(info.eps)
