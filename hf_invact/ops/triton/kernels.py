"""The kernels: one pass over memory each, with the side bits packed on the way.

A program handles ``GROUPS`` groups of eight elements in memory order, whose bits are one byte. Arithmetic is in
float32.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from .formulas import away_from_zero, derivative, is_left_of, round_to, unmultiply


@triton.jit
def forward(
    x_ptr,
    y_ptr,
    side_ptr,
    size,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    FIT: tl.constexpr,
    GROUPS: tl.constexpr,
):
    groups, elements, is_inside = positions(size, GROUPS)
    x = tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    y = _limited(ACTIVATION(x), FIT)
    tl.store(y_ptr + elements, round_to(y, y_ptr.dtype.element_ty), mask=is_inside)
    store_bits(side_ptr, groups, size, is_left_of(x, THRESHOLD) & is_inside)


@triton.jit
def sides(x_ptr, side_ptr, size, THRESHOLD: tl.constexpr, GROUPS: tl.constexpr):
    groups, elements, is_inside = positions(size, GROUPS)
    x = tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    store_bits(side_ptr, groups, size, is_left_of(x, THRESHOLD) & is_inside)


@triton.jit
def backward(dy_ptr, y_ptr, side_ptr, dx_ptr, size, FIT: tl.constexpr, GROUPS: tl.constexpr):
    groups, elements, is_inside = positions(size, GROUPS)
    y = tl.load(y_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    is_left = _load_bits(side_ptr, groups, size, FIT)
    dx = dy * derivative(y, is_left, tl.full([1, 1], FIT.error, tl.float32), FIT)
    tl.store(dx_ptr + elements, round_to(dx, dx_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def gate_forward(
    gate_ptr,
    up_ptr,
    product_ptr,
    side_ptr,
    size,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    GROUPS: tl.constexpr,
):
    groups, elements, is_inside = positions(size, GROUPS)
    gate = tl.load(gate_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    # Rounded twice, as in the unfused code.
    y = round_to(ACTIVATION(gate), product_ptr.dtype.element_ty).to(tl.float32)
    product = round_to(y * away_from_zero(up), product_ptr.dtype.element_ty)
    tl.store(product_ptr + elements, product, mask=is_inside)
    store_bits(side_ptr, groups, size, is_left_of(gate, THRESHOLD) & is_inside)


@triton.jit
def gate_backward(
    dy_ptr, product_ptr, up_ptr, side_ptr, dgate_ptr, dup_ptr, size, FIT: tl.constexpr, GROUPS: tl.constexpr
):
    groups, elements, is_inside = positions(size, GROUPS)
    dy = tl.load(dy_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    product = tl.load(product_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + elements, mask=is_inside, other=1.0).to(tl.float32)
    is_left = _load_bits(side_ptr, groups, size, FIT)
    y, error = unmultiply(product, away_from_zero(up), product_ptr.dtype.element_ty, FIT)
    # Multiplied in the order of the native gradients, so that it overflows only where they do.
    dgate = derivative(y, is_left, error, FIT) * (dy * up)
    tl.store(dup_ptr + elements, round_to(dy * y, dup_ptr.dtype.element_ty), mask=is_inside)
    tl.store(dgate_ptr + elements, round_to(dgate, dgate_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def exact_backward(dy_ptr, x_ptr, dx_ptr, size, SLOPE: tl.constexpr, GROUPS: tl.constexpr):
    _, elements, is_inside = positions(size, GROUPS)
    x = tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + elements, round_to(dy * SLOPE(x), dx_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def exact_gate_backward(
    dy_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    size,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    DTYPE: tl.constexpr = dgate_ptr.dtype.element_ty
    _, elements, is_inside = positions(size, GROUPS)
    dy = tl.load(dy_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    # Rounded where the unfused code rounds.
    y, dactivation = round_to(ACTIVATION(gate), DTYPE).to(tl.float32), round_to(dy * up, DTYPE).to(tl.float32)
    tl.store(dup_ptr + elements, round_to(dy * y, dup_ptr.dtype.element_ty), mask=is_inside)
    tl.store(dgate_ptr + elements, round_to(dactivation * SLOPE(gate), DTYPE), mask=is_inside)


@triton.jit
def positions(size, GROUPS: tl.constexpr):
    """The positions of the program's groups, shape (GROUPS,), and of their elements, shape (GROUPS, 8), and which of
    the elements lie in the tensor."""
    # 64 bits: a tensor may have more than 2^31 elements.
    groups = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    elements = groups[:, None] * 8 + tl.arange(0, 8)[None, :]
    return groups, elements, elements < size


@triton.jit
def store_bits(side_ptr, groups, size, is_left):
    bits = tl.sum(is_left.to(tl.int32) << tl.arange(0, 8)[None, :], axis=1)
    tl.store(side_ptr + groups, bits.to(tl.uint8), mask=groups * 8 < size)


@triton.jit
def _load_bits(side_ptr, groups, size, FIT: tl.constexpr):
    """Bools, shape (GROUPS, 8). A curve without a left side has no bits."""
    if len(FIT.sides) == 1:
        return False
    bits = tl.load(side_ptr + groups, mask=groups * 8 < size, other=0).to(tl.int32)
    return ((bits[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0


@triton.jit
def _limited(y, FIT: tl.constexpr):
    if FIT.limits is not None:
        y = tl.minimum(tl.maximum(y, FIT.limits[0], tl.PropagateNan.ALL), FIT.limits[1], tl.PropagateNan.ALL)
    return y
