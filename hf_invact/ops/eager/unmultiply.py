"""Computes an activation's output from its product with another tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..buffers import Buffers, compute_dtype

# A smaller factor would turn its product into 0. The exponents of bfloat16, float32 and float64 have room for this one.
SMALLEST_FACTOR = 2.0**-60
SIGN_AND_EXPONENT = -1 << 23  # of a float32 number's bits


def away_from_zero(factor: Tensor) -> Tensor:
    """The factor, with numbers below `SMALLEST_FACTOR` replaced by that number with their sign.

    The sign of 0 does not count. The tensor itself is returned if no number is replaced and that costs little to find
    out, else a copy. A factor in float16, which has no such small number, is then returned in float32.
    """
    if _can_be_read_cheaply(factor) and factor.abs().min().item() >= SMALLEST_FACTOR:
        return factor
    if factor.dtype == torch.float16:
        factor = factor.float()
    return factor.abs().clamp_(min=SMALLEST_FACTOR).copysign_(factor + 0.0)  # -0 + 0 is 0


def _can_be_read_cheaply(tensor: Tensor) -> bool:
    """Whether a number can be read without waiting for a device or breaking a graph."""
    is_real = type(tensor) is Tensor and not torch.compiler.is_compiling()
    return is_real and tensor.device.type == "cpu" and tensor.numel() > 0


def unmultiply(product: Tensor, factor: Tensor, buffers: Buffers | None = None) -> Tensor:
    """The output ``y`` whose product with ``away_from_zero(factor)`` was rounded to ``product``; shape (size,) each.

    In half precision ``y`` was rounded as well. Unless the product is subnormal, mostly a single number of the dtype
    has this product, and is returned. Otherwise two neighbours have it, and the result is the midpoint between them.

    Args:
        factor: in the product's dtype, or the same numbers in another dtype.
        buffers: hold the result, in float32 (float64 for float64). None allocates memory.

    Returns:
        In float32 (float64 for float64).
    """
    wide = compute_dtype(product)
    buffers = buffers or Buffers(wide, product.device)
    divisor = away_from_zero(factor).to(wide)
    if product.dtype == wide:
        return torch.div(product, divisor, out=buffers.empty("y", product.numel()))
    return _midpoint(product, divisor, buffers)


def uncertainty(output: Tensor, dtype: torch.dtype) -> Tensor | None:
    """How far the exact output may be from one that `unmultiply` returned for a product of this dtype.

    It may be further if a subnormal product has lost digits, but not next to a turning point, where it matters.

    Returns:
        float32, shape (size,); None except for half precision.
    """
    if dtype.itemsize > 2:
        return None
    info = torch.finfo(dtype)
    bits = output.view(torch.int32)
    power = (bits & SIGN_AND_EXPONENT).view(torch.float32).abs_().clamp_(info.smallest_normal, info.max)
    is_between = (bits >> (missing_digits(dtype) - 1)) & 1
    return power.mul_(info.eps / 2).mul_(is_between.add_(1))


def missing_digits(dtype: torch.dtype) -> int:
    """How many binary digits fewer than float32 a half-precision dtype has."""
    return round(math.log2(torch.finfo(dtype).eps / torch.finfo(torch.float32).eps))


def _midpoint(product: Tensor, divisor: Tensor, buffers: Buffers) -> Tensor:
    """The midpoint of all half-precision numbers whose product with the divisor may have been rounded to `product`."""
    info, digit = torch.finfo(product.dtype), 1 << missing_digits(product.dtype)
    near, far = (buffers.empty(name, product.numel()) for name in ("y", "far"))
    exact, power = near.copy_(product), far
    torch.bitwise_and(exact.view(torch.int32), SIGN_AND_EXPONENT, out=power.view(torch.int32))
    # Both ends of the interval that is rounded to the product, divided, and then rounded inwards.
    torch.add(exact, power, alpha=info.eps / 2, out=far)
    torch.lerp(far, exact, 2.0, out=near)
    far.div_(divisor)
    near.div_(divisor)
    far.view(torch.int32).bitwise_and_(-digit)
    near.view(torch.int32).add_(digit - 1).bitwise_and_(-digit)
    return near.lerp_(far, 0.5)
