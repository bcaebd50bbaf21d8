"""The kernels for norms: one for the forward pass, one for the backward pass.

A program handles ``ROWS`` rows at a time, in tiles of ``BLOCK`` columns, at least as many as there are channels.
Arithmetic is in float32.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from .formulas import away_from_zero, round_to


@triton.jit
def choose_kept(
    factor_ptr,
    bias_ptr,
    kept_ptr,
    channels,
    tiny,
    HAS_FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The channels that are kept, by a single program: see `channels.kept_channels`."""
    columns = tl.arange(0, BLOCK)
    is_inside = columns < channels
    size = tl.full([BLOCK], 1.0, tl.float32)
    if HAS_FACTOR:
        size = tl.abs(tl.load(factor_ptr + columns, mask=is_inside, other=1.0).to(tl.float32))
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=is_inside, other=0.0).to(tl.float32)
        rank = (tl.abs(bias) + tiny) / size
    else:
        rank = -size
    rank = tl.where(rank == rank, rank, float("inf"))
    rank = tl.where(is_inside, rank, float("-inf"))
    is_free = is_inside
    for i in tl.static_range(KEPT):
        best = tl.argmax(tl.where(is_free, rank, float("-inf")), 0)
        tl.store(kept_ptr + i, best.to(tl.int64))
        is_free = is_free & (columns != best)


@triton.jit
def norm_forward(
    x_ptr,
    factor_ptr,
    bias_ptr,
    kept_ptr,
    y_ptr,
    mean_ptr,
    reciprocal_ptr,
    exact_ptr,
    rows,
    channels,
    eps,
    CENTRED: tl.constexpr,
    DIVIDES: tl.constexpr,
    ROOT_IS_ROUNDED: tl.constexpr,
    ROUNDS_TO_INPUT: tl.constexpr,
    ROUNDS_TO_FACTOR: tl.constexpr,
    PRODUCT_IS_ROUNDED: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, column, elements, is_row, is_inside = _tile(tl.program_id(0) * ROWS, rows, channels, ROWS, BLOCK)
    x = tl.load(x_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
    centred = x
    if CENTRED:
        mean = tl.sum(x, 1) / channels
        tl.store(mean_ptr + row, mean, mask=is_row)
        centred = tl.where(is_inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels + eps
    if DIVIDES:
        root = tl.sqrt_rn(variance)
        reciprocal = 1.0 / root
        normalised = tl.div_rn(centred, root[:, None] + tl.zeros_like(centred))
    else:
        reciprocal = tl.rsqrt(variance)
        factor_of_row = reciprocal
        if ROOT_IS_ROUNDED:
            factor_of_row = round_to(reciprocal, x_ptr.dtype.element_ty).to(tl.float32)
        normalised = centred * factor_of_row[:, None]
    tl.store(reciprocal_ptr + row, reciprocal, mask=is_row)
    for i in tl.static_range(KEPT):
        is_kept = column == tl.load(kept_ptr + i)
        exact = tl.sum(tl.where(is_kept[None, :], centred, 0.0), 1) * reciprocal
        tl.store(exact_ptr + row.to(tl.int64) * KEPT + i, exact, mask=is_row)
    if ROUNDS_TO_INPUT:
        normalised = round_to(normalised, x_ptr.dtype.element_ty).to(tl.float32)
    if ROUNDS_TO_FACTOR:
        normalised = round_to(normalised, factor_ptr.dtype.element_ty).to(tl.float32)
    y = normalised
    if HAS_FACTOR:
        y = y * _load_factor(factor_ptr, kept_ptr, column, channels, KEPT)[None, :]
        if PRODUCT_IS_ROUNDED:
            y = round_to(y, y_ptr.dtype.element_ty).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + elements, round_to(y, y_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def norm_backward(
    dy_ptr,
    source_ptr,
    mean_ptr,
    reciprocal_ptr,
    exact_ptr,
    kept_ptr,
    factor_ptr,
    bias_ptr,
    dx_ptr,
    dfactor_ptr,
    dbias_ptr,
    rows,
    channels,
    error,
    IS_OUTPUT: tl.constexpr,
    CENTRED: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WANTS_X: tl.constexpr,
    WANTS_FACTOR: tl.constexpr,
    WANTS_BIAS: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From the output or the input (`source`). Each program writes the sums over its rows, which are added up later.

    Which rows these are depends on the number of programs alone, so that results are the same each time.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    factor = tl.full([BLOCK], 1.0, tl.float32)
    bias = tl.zeros([BLOCK], tl.float32)
    if HAS_FACTOR:
        factor = _load_factor(factor_ptr, kept_ptr, column, channels, KEPT)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(tl.float32)
    inverse = 1.0 / factor
    if HAS_BIAS:  # see `channels.affine_of`
        inverse = factor / (factor * factor + (bias * error) * (bias * error))
    dfactor, dbias = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row, _, elements, is_row, is_inside = _tile(first, rows, channels, ROWS, BLOCK)
        dy = tl.load(dy_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
        normalised = tl.load(source_ptr + elements, mask=is_inside, other=0.0).to(tl.float32)
        reciprocal = tl.load(reciprocal_ptr + row, mask=is_row, other=0.0)
        if IS_OUTPUT:
            normalised = (normalised - bias[None, :]) * inverse[None, :]
            for i in tl.static_range(KEPT):
                exact = tl.load(exact_ptr + row.to(tl.int64) * KEPT + i, mask=is_row, other=0.0)
                is_kept = column == tl.load(kept_ptr + i)
                normalised = tl.where(is_kept[None, :], exact[:, None], normalised)
        else:
            if CENTRED:
                normalised -= tl.load(mean_ptr + row, mask=is_row, other=0.0)[:, None]
            normalised *= reciprocal[:, None]
        products = dy * normalised
        if WANTS_FACTOR:
            dfactor += tl.sum(products, 0)
        if WANTS_BIAS:
            dbias += tl.sum(dy, 0)
        if WANTS_X:
            gradient = dy * factor[None, :]
            dx = gradient - normalised * (tl.sum(products * factor[None, :], 1) / channels)[:, None]
            if CENTRED:
                dx -= (tl.sum(gradient, 1) / channels)[:, None]
            dx *= reciprocal[:, None]
            tl.store(dx_ptr + elements, round_to(dx, dx_ptr.dtype.element_ty), mask=is_inside)
    sums = program.to(tl.int64) * channels + column
    if WANTS_FACTOR:
        tl.store(dfactor_ptr + sums, dfactor, mask=column < channels)
    if WANTS_BIAS:
        tl.store(dbias_ptr + sums, dbias, mask=column < channels)


@triton.jit
def _tile(first, rows, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows, columns, the places of their elements, and which of the rows and of the elements exist."""
    row, column = first + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    elements = row.to(tl.int64)[:, None] * channels + column[None, :]
    is_row = row < rows
    return row, column, elements, is_row, is_row[:, None] & (column < channels)[None, :]


@triton.jit
def _load_factor(factor_ptr, kept_ptr, column, channels, KEPT: tl.constexpr):
    """The factor; if channels are kept, away from zero in all others (see `channels.without_zeros`)."""
    factor = tl.load(factor_ptr + column, mask=column < channels, other=1.0).to(tl.float32)
    replaced = factor
    if KEPT > 0:
        replaced = away_from_zero(factor)
        for i in tl.static_range(KEPT):
            replaced = tl.where(column == tl.load(kept_ptr + i), factor, replaced)
    return replaced
