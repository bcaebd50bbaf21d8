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
    groups, elements, is_inside = positions(size, GROUPS)
    is_kept = _load_kept(kept_ptr, groups, size)
    x = tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(result_ptr + elements, _product(x, is_kept, scale, result_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def both_masked(x_ptr, dx_ptr, kept_ptr, result_ptr, size, scale, dx_scale, GROUPS: tl.constexpr):
    """The second tensor in place."""
    groups, elements, is_inside = positions(size, GROUPS)
    is_kept = _load_kept(kept_ptr, groups, size)
    x = tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    dx = tl.load(dx_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(result_ptr + elements, _product(x, is_kept, scale, result_ptr.dtype.element_ty), mask=is_inside)
    tl.store(dx_ptr + elements, _product(dx, is_kept, dx_scale, dx_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def _load_kept(kept_ptr, groups, size):
    """Bools, shape (GROUPS, 8)."""
    bits = tl.load(kept_ptr + groups, mask=groups * 8 < size, other=0).to(tl.int32)
    return ((bits[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0


@triton.jit
def _product(x, is_kept, scale, DTYPE: tl.constexpr):
    """Cast to the dtype in which elements are dropped, and multiplied in float32."""
    return round_to(round_to(x, DTYPE).to(tl.float32) * tl.where(is_kept, scale, 0.0), DTYPE)
