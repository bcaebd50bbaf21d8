"""The kernels that pack a mask into bits, and apply it. A program handles ``GROUPS`` groups of eight elements."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from .formulas import round_to
from .kernels import positions, store_bits


@triton.jit
def pack(mask_ptr, kept_ptr, size, GROUPS: tl.constexpr):
    groups, elements, is_inside = positions(size, GROUPS)
    mask = tl.load(mask_ptr + elements, mask=is_inside, other=0)
    store_bits(kept_ptr, groups, size, mask != 0)


@triton.jit
def masked(x_ptr, kept_ptr, result_ptr, size, scale, GROUPS: tl.constexpr):
    DTYPE: tl.constexpr = result_ptr.dtype.element_ty
    groups, elements, is_inside = positions(size, GROUPS)
    # In the dtype in which elements were dropped, and in float32 for the product.
    x = round_to(tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32), DTYPE).to(tl.float32)
    bits = tl.load(kept_ptr + groups, mask=groups * 8 < size, other=0).to(tl.int32)
    is_kept = ((bits[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0
    tl.store(result_ptr + elements, round_to(x * tl.where(is_kept, scale, 0.0), DTYPE), mask=is_inside)
