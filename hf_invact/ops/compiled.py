"""The plain backend's formulas through torch.compile: one pass over memory instead of one for each operation.

The forward pass stays PyTorch's own function, so that the output is the same to the bit.
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
from ..curves.rounding import mean_root
from . import eager
from .formula import dtype_inside, split
from .layout import flat, flat_like
from .packing import BITS, empty_bits, packed_size, unpack
from .quotient import away_from_zero, rebuild, uncertainty

# A CPU kernel for tensors of any size would run on one core, so there is one for pieces of each of these sizes: a call
# costs about 50 microseconds, so there should be few, and what is left at the end is padded.
CPU_PIECES = tuple(1 << power for power in (21, 20, 19, 18, 17))

exact_backward = eager.exact_backward
exact_gate_backward = eager.exact_gate_backward


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """As `eager.forward`."""
    y = curve.forward(x)
    if curve.x_min is None:
        return y, None
    side = empty_bits(y)
    _run(_pack_sides, curve, [side], [flat_like(x, y)], elements=BITS)
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


# What is compiled: functions of pieces of flat tensors, shape (size,), and of their side bits as bytes, shape (size,).


def _backward(curve: Curve, dy: Tensor, y: Tensor, is_left: Tensor | None = None) -> tuple[Tensor, ...]:
    slope = _derivative(curve, y.dtype, y.to(dtype_inside(y)), is_left, None)
    return ((dy * slope).to(dy.dtype),)


def _multiply(curve: Curve, y: Tensor, up: Tensor) -> tuple[Tensor, ...]:
    return (y * away_from_zero(up),)


def _gate_backward(
    curve: Curve, dy: Tensor, product: Tensor, up: Tensor, is_left: Tensor | None = None
) -> tuple[Tensor, ...]:
    y = rebuild(product, up, curve.limits or ())
    gradient = dy.to(y.dtype)
    slope = _derivative(curve, product.dtype, y, is_left, uncertainty(y, product.dtype))
    # Multiplied in the order of the native gradients, which overflows nowhere else.
    return (slope * (gradient * up)).to(dy.dtype), (gradient * y).to(dy.dtype)


def _pack_sides(curve: Curve, x: Tensor) -> tuple[Tensor, ...]:
    groups = x.view(-1, BITS)
    is_left = groups < curve.threshold(x.dtype)
    if isinstance(curve.inverse, Fit):
        is_left = is_left | (groups == torch.inf)  # see `eager.sides`
    # Not a sum over the groups: that is slower, since it goes from element to element.
    packed = is_left[:, 0].to(torch.uint8)
    for position in range(1, BITS):
        packed = packed | (is_left[:, position].to(torch.uint8) << position)
    return (packed,)


def _derivative(curve: Curve, dtype: torch.dtype, y: Tensor, is_left: Tensor | None, error: Tensor | None) -> Tensor:
    """``D(y, side)`` for outputs that were rounded to a dtype; see `formula.Slopes`."""
    # A comparison of numbers: bools in memory are slow to read on a CPU.
    left = None if is_left is None else is_left.to(y.dtype) > 0.5
    if isinstance(curve.inverse, ClosedForm):
        return curve.inverse.slope(y, left, dtype)
    fit, formula = curve.inverse, curve.inverse.formula(dtype)
    head, tail = split(fit.y_min, y.dtype)
    scaled = y * curve.scale if curve.scale != 1.0 else y
    known_to = curve.output_error(dtype) if error is None else error * curve.scale
    root = mean_root((scaled - head) - tail, known_to)
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
    function: Callable[..., Any],
    curve: Curve,
    results: list[Tensor],
    tensors: list[Tensor],
    side: Tensor | None = None,
    elements: int = 1,
) -> None:
    """Write what a function of the tensors, shape (numel,) each, gives to the results, shape (numel / elements,)."""
    on_cpu = tensors[0].device.type == "cpu"
    compiled = _compiled(function, curve, tensors[0].dtype, on_cpu)
    for start, step in _pieces(tensors[0].numel(), on_cpu):
        stop = start + step
        inputs = [_padded(tensor[start:stop], step) for tensor in tensors]
        if side is not None:
            inputs.append(unpack(_padded(side[start // BITS : stop // BITS], step // BITS)).view(torch.uint8))
        targets = [result[start // elements : stop // elements] for result in results]
        whole = [_padded(target, step // elements) for target in targets]
        with torch.no_grad():  # of an operator's own tensors nothing is differentiated
            compiled(whole, inputs)
        for target, padded in zip(targets, whole, strict=True):
            if padded is not target:
                target.copy_(padded[: target.numel()])


def _pieces(size: int, on_cpu: bool) -> Iterator[tuple[int, int]]:
    """Starts and sizes, which are multiples of eight; the last piece may reach beyond the end."""
    start = 0
    while start < size:
        whole = (piece for piece in CPU_PIECES if piece <= size - start)
        step = next(whole, CPU_PIECES[-1]) if on_cpu else packed_size(size) * BITS
        yield start, step
        start += step


def _padded(piece: Tensor, size: int) -> Tensor:
    return piece if piece.numel() == size else torch.nn.functional.pad(piece, (0, size - piece.numel()))


@cache
def _compiled(function: Callable[..., Any], curve: Curve, dtype: torch.dtype, on_cpu: bool) -> Callable[..., None]:
    def of_tensors(results: list[Tensor], tensors: list[Tensor]) -> None:
        for result, value in zip(results, function(curve, *tensors), strict=True):
            result.copy_(value)

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
