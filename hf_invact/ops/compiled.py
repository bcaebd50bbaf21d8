"""The plain backend's formulas through torch.compile: one pass over memory instead of one for each operation.

The forward pass stays PyTorch's own function, so that the output is the same to the bit.

Side bits lie in planes: a piece of a tensor is taken for eight rows, and byte ``i`` holds those of the eight elements
in column ``i``, so that vector instructions read and write them. (Eight neighbours to a byte, as in other backends,
would take a pass of their own.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import Tensor

from ..curves import ClosedForm, Curve, Fit, Ratio
from ..curves.rounding import Bend, nearly_mean_root
from . import eager
from .formula import dtype_inside, split
from .layout import flat, flat_like
from .packing import BITS, empty_bits, packed_size
from .quotient import away_from_zero, is_near, rebuild

# A CPU kernel for tensors of any size would run on one core, so there is one for pieces of each of these sizes: a call
# costs about 50 microseconds, so there should be few, and what is left at the end is padded.
CPU_PIECES = tuple(1 << power for power in (21, 20, 19, 18, 17))

# Of the distance between a number and its neighbour, if the number's significand is 1; up to twice as much if it is
# more. From 1/2 to 3/2 of the distance are rounded to a whole.
NEARLY_A_STEP = 0.74

exact_backward = eager.exact_backward
exact_gate_backward = eager.exact_gate_backward


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """As `eager.forward`, but for the order of the bits."""
    y = curve.forward(x)
    if curve.x_min is None:
        return y, None
    side = empty_bits(y)
    _run(_pack_sides, curve, [side], [flat_like(x, y)])
    return y, side


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    """As `eager.backward`."""
    dx = torch.empty_strided(y.size(), y.stride(), dtype=dy.dtype, device=dy.device)
    _run(_backward, curve, [flat(dx)], [flat_like(dy, y), flat(y)], side)
    return dx


def gate_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """As `eager.gate_forward`."""
    y, side = forward(gate, curve)
    product = torch.empty_like(y)  # in place, the compiler would take both arguments for views of one
    _run(_multiply, curve, [flat(product)], [flat(y), flat_like(up, y)])
    return product, side


def gate_backward(dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve) -> tuple[Tensor, Tensor]:
    """As `eager.gate_backward`."""
    size, stride = product.size(), product.stride()
    dgate, dup = (torch.empty_strided(size, stride, dtype=dy.dtype, device=dy.device) for _ in range(2))
    tensors = [flat_like(tensor, product) for tensor in (dy, product, up)]
    _run(_gate_backward, curve, [flat(dgate), flat(dup)], tensors, side)
    return dgate, dup


# What is compiled: functions of pieces, shape (8 * columns,), and of their side bits, uint8, shape (columns,). Each
# writes to its first arguments.


def _backward(curve: Curve, dx: Tensor, dy: Tensor, y: Tensor, side: Tensor | None = None) -> None:
    slope = _derivative(curve, y.dtype, y.to(dtype_inside(y)), side, _bend(curve, y.dtype))
    dx.copy_((dy * slope).to(dy.dtype))


def _multiply(curve: Curve, product: Tensor, y: Tensor, up: Tensor) -> None:
    product.copy_(y * away_from_zero(up))


def _gate_backward(
    curve: Curve, dgate: Tensor, dup: Tensor, dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None = None
) -> None:
    y, bend = _rebuild(curve, product, up)
    gradient = dy.to(y.dtype)
    slope = _derivative(curve, product.dtype, y, side, bend)
    # Multiplied in the order of the native gradients, which overflows nowhere else.
    dgate.copy_((slope * (gradient * up)).to(dy.dtype))
    dup.copy_((gradient * y).to(dy.dtype))


def _pack_sides(curve: Curve, side: Tensor, x: Tensor) -> None:
    x = x.view(BITS, -1)
    is_left = x < curve.threshold(x.dtype)
    if isinstance(curve.inverse, Fit):
        is_left = is_left | (x == torch.inf)  # see `eager.sides`
    packed = torch.where(is_left[0], 1.0, 0.0)
    for row in range(1, BITS):
        packed = packed + torch.where(is_left[row], 2.0**row, 0.0)
    side.copy_(packed)


def _is_left(side: Tensor, dtype: torch.dtype) -> Tensor:
    """Bools, shape (8 * columns,)."""
    bits = 1 << torch.arange(BITS, dtype=torch.uint8, device=side.device)
    return (side & bits.unsqueeze(1)).view(-1).to(
        dtype
    ) > 0.5  # a comparison of numbers: those of integers are slow on a CPU


def _rebuild(curve: Curve, product: Tensor, up: Tensor) -> tuple[Tensor, Bend]:
    """As `quotient.rebuild`, and what the root is to be taken with.

    In half precision the quotient is rounded and its neighbour multiplied back: one division instead of two, and no
    bits of numbers as integers, which the compiler would move one by one on a CPU.
    """
    dtype = product.dtype
    if dtype.itemsize > 2:
        return rebuild(product, up, curve.limits or ()), _bend(curve, dtype)
    exact, divisor = product.float(), away_from_zero(up.float(), dtype)
    quotient = exact / divisor
    y = quotient.to(dtype).float()
    # The neighbour on the quotient's other side: three quarters of its distance are rounded to it.
    step = (y.abs() * (NEARLY_A_STEP * torch.finfo(dtype).eps)).copysign(quotient - y)
    neighbour = (y + step).to(dtype).float()
    either = (neighbour * divisor).to(dtype).float() == exact
    y = torch.where(either, y + 0.5 * (neighbour - y), y)
    for value in curve.limits or ():
        y = torch.where(is_near(y, value, dtype), value, y)
    bends = zip(_bend(curve, dtype, is_between=True), _bend(curve, dtype), strict=True)
    return y, Bend(*(torch.where(either, between, at) for between, at in bends))


def _bend(curve: Curve, dtype: torch.dtype, *, is_between: bool = False) -> Bend:
    return curve.bend(dtype, is_between=is_between) if isinstance(curve.inverse, Fit) else Bend(0.0, 0.0)


def _derivative(curve: Curve, dtype: torch.dtype, y: Tensor, side: Tensor | None, bend: Bend) -> Tensor:
    """``D(y, side)`` for outputs that were rounded to a dtype; see `formula.Slopes`."""
    left = None if side is None else _is_left(side, y.dtype)
    if isinstance(curve.inverse, ClosedForm):
        return curve.inverse.slope(y, left, dtype)
    fit, formula = curve.inverse, curve.inverse.formula(dtype)
    head, tail = split(fit.y_min, y.dtype)
    scaled = y * curve.scale if curve.scale != 1.0 else y
    root = nearly_mean_root((scaled - head) - tail, bend)
    numerator, denominator = _ratio(formula.right, root)
    if left is not None:
        assert formula.left is not None
        left_numerator, left_denominator = _ratio(formula.left, root)
        numerator = torch.where(left, left_numerator * scaled, numerator)
        denominator = torch.where(left, left_denominator, denominator)
    slope = numerator / denominator
    if curve.limits is not None:
        low, high = curve.limits
        slope = torch.where((y <= low) | (y >= high), 0.0, slope)
    return slope


def _ratio(ratio: Ratio, root: Tensor) -> tuple[Tensor, Tensor]:
    u = (root if math.isinf(ratio.end) else root.clamp(max=ratio.end)) - ratio.center
    return _polynomial(ratio.numerator, u), _polynomial(ratio.denominator, u)


def _polynomial(coefficients: tuple[float, ...], u: Tensor) -> Tensor:
    *others, highest = coefficients
    total = highest * u + others.pop()
    for coefficient in reversed(others):
        total = total * u + coefficient
    return total


def _run(
    function: Callable[..., None],
    curve: Curve,
    results: list[Tensor],
    tensors: list[Tensor],
    side: Tensor | None = None,
) -> None:
    """Call a function with pieces of the results, which it writes, and of the tensors and side bits."""
    on_cpu = tensors[0].device.type == "cpu"
    compiled = _compiled(function, curve, tensors[0].dtype, on_cpu)
    arguments = [*results, *tensors] if side is None else [*results, *tensors, side]
    with torch.no_grad():  # of an operator's own tensors nothing is differentiated
        for start, stop, columns in _pieces(tensors[0].numel(), on_cpu):
            pieces = [_piece(argument, start, stop) for argument in arguments]
            whole = [_fill(piece, columns) for piece in pieces]
            compiled(whole)
            for piece, filled in zip(pieces[: len(results)], whole, strict=False):
                if filled is not piece:
                    _copy_back(filled, piece)


def _pieces(size: int, on_cpu: bool) -> Iterator[tuple[int, int, int]]:
    """Start and end of each piece, and the columns it is padded to; all but the last one fill them."""
    start = 0
    while start < size:
        whole = (piece for piece in CPU_PIECES if piece <= size - start)
        step = next(whole, CPU_PIECES[-1]) if on_cpu else packed_size(size) * BITS
        yield start, min(start + step, size), step // BITS
        start += step


def _piece(argument: Tensor, start: int, stop: int) -> Tensor:
    """Of elements, or of side bits, which alone are bytes."""
    return argument[start // BITS : packed_size(stop)] if argument.dtype == torch.uint8 else argument[start:stop]


def _rows(piece: Tensor) -> int:
    return 1 if piece.dtype == torch.uint8 else BITS


def _fill(piece: Tensor, columns: int) -> Tensor:
    """Shape (rows * columns,), padded at the end of each row; the piece itself where there is nothing to pad."""
    rows = _rows(piece)
    if piece.numel() == rows * columns:
        return piece
    filled = -(-piece.numel() // rows)
    return _padded(_padded(piece, rows * filled).view(rows, filled), columns).view(-1)


def _copy_back(filled: Tensor, piece: Tensor) -> None:
    rows = _rows(piece)
    written = filled.view(rows, -1)[:, : -(-piece.numel() // rows)]
    piece.copy_(written.reshape(-1)[: piece.numel()])


def _padded(tensor: Tensor, size: int) -> Tensor:
    missing = size - tensor.size(-1)
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


@cache
def _compiled(function: Callable[..., None], curve: Curve, dtype: torch.dtype, on_cpu: bool) -> Callable[..., None]:
    def of_tensors(tensors: list[Tensor]) -> None:
        function(curve, *tensors)

    # torch.compile counts what it has compiled by code object, and gives up at 8: hence one for each curve and dtype.
    code = of_tensors.__code__.replace(co_name=f"{function.__name__}_of_{curve.name}")
    copied = FunctionType(code, globals(), closure=of_tensors.__closure__)
    # With roundings to half precision as they are written: gates are rebuilt from them.
    options: dict[str, Any] = {"emulate_precision_casts": True}
    if on_cpu:
        # Multiplications and additions in one instruction: without it the polynomials take twice as long.
        flag = inductor.cpp.enable_floating_point_contract_flag  # a bool in older versions
        options["cpp.enable_floating_point_contract_flag"] = "fast" if isinstance(flag, str) else True
    # None: for any size from the second one on. (True would take the coefficients for variables too.)
    return torch.compile(copied, dynamic=False if on_cpu else None, fullgraph=True, options=options)
