"""Rebuilds an activation's output from its product with another tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...curves import Curve
from ..scratch import Scratch
from .formula import dtype_inside

# A factor smaller than this would take what it is multiplied with along to 0. The exponents of bfloat16, float32 and
# float64 have room for it.
TINY = 2.0**-60
SIGN_AND_EXPONENT = -1 << 23  # of a float32 number's bits


def tells_output(curve: Curve, gate: torch.dtype, up: torch.dtype) -> bool:
    """Whether the rounded product of ``f(gate)`` and ``up`` tells ``f(gate)`` well enough for the gradients.

    float16 has too few exponents: the product of two common numbers loses its digits (0.005 * 0.001) or overflows.
    Where the derivative jumps, the product's rounding may lead to the other side. And a product that is wider than the
    gate does not tell to which digits ``f(gate)`` was rounded.
    """
    product = torch.promote_types(gate, up)
    return product == gate and product != torch.float16 and not curve.jumps


def away_from_zero(factor: Tensor) -> Tensor:
    """The factor, or the smallest that keeps what it is multiplied with, with its sign; new memory only for that.

    The sign of 0 does not count. A factor in float16, which has no such number, comes back in float32 then.
    """
    if _costs_little_to_ask(factor) and factor.abs().min().item() >= TINY:
        return factor
    if factor.dtype == torch.float16:
        factor = factor.float()
    return factor.abs().clamp_(min=TINY).copysign_(factor + 0.0)  # -0 + 0 is 0


def _costs_little_to_ask(tensor: Tensor) -> bool:
    """Whether one of its numbers is known without waiting for a device or breaking a graph."""
    is_real = type(tensor) is Tensor and not torch.compiler.is_compiling()
    return is_real and tensor.device.type == "cpu" and tensor.numel() > 0


def rebuild(product: Tensor, factor: Tensor, scratch: Scratch | None = None) -> Tensor:
    """The output ``y`` whose product with ``away_from_zero(factor)`` was rounded to ``product``; shape (size,) each.

    In half precision ``y`` was rounded too. Unless the product is subnormal, mostly only one number of the dtype can
    have had it, and is found; else two neighbours can, and the middle between them is taken.

    Args:
        factor: of the product's dtype, or the same numbers in another one.
        scratch: where the result is, in float32 (float64 for float64). None takes new memory.

    Returns:
        In float32 (float64 for float64).
    """
    wide = dtype_inside(product)
    scratch = scratch or Scratch(wide, product.device)
    divisor = away_from_zero(factor).to(wide)
    if product.dtype == wide:
        return torch.div(product, divisor, out=scratch.empty("y", product.numel()))
    return _middle(product, divisor, scratch)


def uncertainty(rebuilt: Tensor, dtype: torch.dtype) -> Tensor | None:
    """How far the exact output may be from one that was rebuilt from numbers of this dtype, where that is known.

    It may be further where a subnormal product has lost digits, except next to a turning point, where that matters.

    Returns:
        float32, shape (size,); None but for half precision.
    """
    if dtype.itemsize > 2:
        return None
    info = torch.finfo(dtype)
    bits = rebuilt.view(torch.int32)
    power = (bits & SIGN_AND_EXPONENT).view(torch.float32).abs_().clamp_(info.smallest_normal, info.max)
    is_between = (bits >> (missing_digits(dtype) - 1)) & 1
    return power.mul_(info.eps / 2).mul_(is_between.add_(1))


def missing_digits(dtype: torch.dtype) -> int:
    """Binary digits of a float32 number that a number of a half-precision dtype lacks."""
    return round(math.log2(torch.finfo(dtype).eps / torch.finfo(torch.float32).eps))


def _middle(product: Tensor, divisor: Tensor, scratch: Scratch) -> Tensor:
    """The middle of the half-precision numbers whose product with the divisor can have been rounded to ``product``."""
    info, digit = torch.finfo(product.dtype), 1 << missing_digits(product.dtype)
    near, far = (scratch.empty(name, product.numel()) for name in ("y", "far"))
    exact, power = near.copy_(product), far
    torch.bitwise_and(exact.view(torch.int32), SIGN_AND_EXPONENT, out=power.view(torch.int32))
    # Both ends of what is rounded to the product, as far from it, divided, and then rounded inwards.
    torch.add(exact, power, alpha=info.eps / 2, out=far)
    torch.lerp(far, exact, 2.0, out=near)
    far.div_(divisor)
    near.div_(divisor)
    far.view(torch.int32).bitwise_and_(-digit)
    near.view(torch.int32).add_(digit - 1).bitwise_and_(-digit)
    return near.lerp_(far, 0.5)
