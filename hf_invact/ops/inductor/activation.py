"""The eager backend's formulas through PyTorch's compiler: one pass over memory instead of one for each operation.

The forward pass calls PyTorch's own function, so that the output is equal in every bit.
`operators.activation.ActivationKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...curves import ClosedForm, Curve, Fit, Ratio
from ...curves.rounding import RiseAdjustment, nearly_mean_root
from ..bits import empty_bits
from ..buffers import compute_dtype, flat, flat_like
from ..eager import activation as eager
from ..eager.formula import split
from ..eager.unmultiply import SMALLEST_FACTOR
from .bits import pack, unpack
from .compiler import Lanes, run_compiled

# A step to a number's neighbour, relative to the distance between them if the significand is 1. For larger significands
# the step is up to twice as long; every step from 1/2 to 3/2 of the distance is rounded to the neighbour.
NEARLY_A_STEP = 0.74

exact_backward = eager.exact_backward
exact_gate_backward = eager.exact_gate_backward


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    y = curve.forward(x)
    if curve.x_min is None:
        return y, None
    side = empty_bits(y)
    run_compiled(_pack_sides, curve, [side], [flat_like(x, y)])
    return y, side


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    dx = torch.empty_like(y, dtype=dy.dtype)
    run_compiled(_backward, curve, [flat(dx)], [flat_like(dy, y), flat(y)], side)
    return dx


def gate_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    y, side = forward(gate, curve)
    product = torch.empty_like(y)  # in place, the compiler would treat both arguments as views of one tensor
    run_compiled(_multiply, curve, [flat(product)], [flat(y), flat_like(up, y)])
    return product, side


def gate_backward(dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve) -> tuple[Tensor, Tensor]:
    dgate, dup = (torch.empty_like(product, dtype=dy.dtype) for _ in range(2))
    results, tensors = [flat(dgate), flat(dup)], [flat_like(tensor, product) for tensor in (dy, up, product)]
    if product.dtype.itemsize > 2:
        run_compiled(_gate_backward, curve, results, tensors, side)
    else:
        # Two kernels: the compiler takes minutes for a single one.
        run_compiled(_gate_backward, curve, results, tensors, side, prepare=_unmultiply, inlined_operations=200)
    return dgate, dup


# The functions that are compiled. They take pieces, shape (size,), and their side bits as `forward` returns them. All
# except `_unmultiply` write to their first tensors.


def _backward(curve: Curve, lanes: Lanes, side: Tensor | None, dx: Tensor, dy: Tensor, y: Tensor) -> None:
    slope = _derivative(curve, y.dtype, y.to(compute_dtype(y)), _is_left(side, lanes), _adjustment(curve, y.dtype))
    dx.copy_((dy * slope).to(dy.dtype))


def _multiply(curve: Curve, lanes: Lanes, side: None, product: Tensor, y: Tensor, up: Tensor) -> None:
    product.copy_(y * _away_from_zero(up.to(product.dtype)))


def _gate_backward(
    curve: Curve,
    lanes: Lanes,
    side: Tensor | None,
    dgate: Tensor,
    dup: Tensor,
    dy: Tensor,
    up: Tensor,
    product: Tensor,
    y: Tensor | None = None,
) -> None:
    """In half precision, ``y`` is what `_unmultiply` returned."""
    dtype, adjustment = product.dtype, _adjustment(curve, product.dtype)
    if y is None:
        y = product / _away_from_zero(up.to(dtype))
    else:
        is_number = _round(y, dtype) == y
        pairs = zip(adjustment, _adjustment(curve, dtype, is_between=True), strict=True)
        adjustment = RiseAdjustment(
            *(torch.where(is_number, at, torch.full_like(y, float(between))) for at, between in pairs)
        )
    _write_gradients(dgate, dup, dy, up, y, _derivative(curve, dtype, y, _is_left(side, lanes), adjustment))


def _write_gradients(dgate: Tensor, dup: Tensor, dy: Tensor, up: Tensor, y: Tensor, slope: Tensor) -> None:
    gradient = dy.to(y.dtype)
    # Multiplied in the order of the native gradients, so that it overflows only where they do.
    dgate.copy_((slope * (gradient * up)).to(dy.dtype))
    dup.copy_((gradient * y).to(dy.dtype))


def _unmultiply(curve: Curve, lanes: Lanes, side: None, dy: Tensor, up: Tensor, product: Tensor) -> Tensor:
    """As `unmultiply.unmultiply` in half precision. (If it wrote to an argument, it would fill half of each vector.)

    It rounds the quotient and multiplies its neighbour back. That needs one division instead of two, and does not view
    numbers as integers, which the compiler would move one by one on a CPU.
    """
    dtype = product.dtype
    exact, divisor = product.float(), _away_from_zero(up.float())
    quotient = exact / divisor
    usual = torch.where(quotient.abs() < 2.0**100, quotient, 0.0)
    y = _round(quotient, dtype, usual)
    # The neighbour on the quotient's other side.
    step = y.abs() * (NEARLY_A_STEP * torch.finfo(dtype).eps)
    neighbour = _round(torch.where(quotient < y, y - step, y + step), dtype, usual)
    is_possible = _round(neighbour * divisor, dtype) == exact
    return torch.where(is_possible, 0.5 * y + 0.5 * neighbour, y)


def _pack_sides(curve: Curve, lanes: Lanes, side: None, words: Tensor, x: Tensor) -> None:
    """Writes integers whose bytes in memory are the side bits."""
    x = x.view(-1, lanes.bits.size(1))
    is_left = x < curve.threshold(x.dtype)
    if isinstance(curve.inverse, Fit):
        is_left = is_left | (x == torch.inf)  # see `eager.activation.side_bits`
    pack(is_left, words, lanes)


def _is_left(side: Tensor | None, lanes: Lanes) -> Tensor | None:
    """Bools, shape (size,)."""
    return None if side is None else unpack(side, lanes)


def _away_from_zero(factor: Tensor) -> Tensor:
    """As `unmultiply.away_from_zero`, for a dtype that has such small numbers.

    (Without `copysign`, which on a CPU is a function call for each vector.)
    """
    smallest = torch.where(factor < 0, -SMALLEST_FACTOR, torch.full_like(factor, SMALLEST_FACTOR))
    return torch.where(factor.abs() < SMALLEST_FACTOR, smallest, factor)


def _round(x: Tensor, dtype: torch.dtype, like: Tensor | None = None) -> Tensor:
    """To half precision, and back to float32.

    For bfloat16 by adding and subtracting the number times 2^16, which removes the 16 extra digits. That takes three
    instructions on a CPU; a conversion takes twelve. No number becomes subnormal. From 2^111 on the result is NaN.

    Args:
        like: a number of the same size, or 0 to leave ``x`` as it is; None for ``x`` itself.
    """
    if dtype != torch.bfloat16:
        return x.to(dtype).float()
    large = (x if like is None else like) * 2.0**16
    return (x + large) - large


def _adjustment(curve: Curve, dtype: torch.dtype, *, is_between: bool = False) -> RiseAdjustment:
    if not isinstance(curve.inverse, Fit):
        return RiseAdjustment(0.0, 0.0)
    return curve.rise_adjustment(dtype, is_between=is_between)


def _derivative(
    curve: Curve, dtype: torch.dtype, y: Tensor, is_left: Tensor | None, adjustment: RiseAdjustment
) -> Tensor:
    """``D(y, is_left)`` for outputs that were rounded to a dtype."""
    if isinstance(curve.inverse, ClosedForm):
        return curve.inverse.slope(y, is_left, dtype)
    fit, formula = curve.inverse, curve.inverse.formula(dtype)
    head, tail = split(fit.y_min, y.dtype)
    scaled = y * curve.scale if curve.scale != 1.0 else y
    root = nearly_mean_root(scaled - head, adjustment, tail)
    numerator, denominator = _ratio(formula.right, root)
    if is_left is not None:
        assert formula.left is not None
        left_numerator, left_denominator = _ratio(formula.left, root)
        numerator = torch.where(is_left, left_numerator * scaled, numerator)
        denominator = torch.where(is_left, left_denominator, denominator)
    slope = numerator / denominator
    if curve.limits is not None:
        low, high = curve.limits
        slope = torch.where((y <= low) | (y >= high), 0.0, slope)
    return slope


def _ratio(ratio: Ratio, root: Tensor) -> tuple[Tensor, Tensor]:
    # The root, at most the end, by `relu` instead of a minimum: see `nearly_mean_root`.
    u = root - ratio.center if math.isinf(ratio.end) else (ratio.end - ratio.center) - torch.relu(ratio.end - root)
    return _polynomial(ratio.numerator, u), _polynomial(ratio.denominator, u)


def _polynomial(coefficients: tuple[float, ...], u: Tensor) -> Tensor:
    highest, *others = coefficients[::-1]
    if not others:
        return torch.full_like(u, highest)
    total = highest * u + others[0]
    for coefficient in others[1:]:  # PyTorch 2.11's compiler makes them a tuple
        total = total * u + coefficient
    return total
