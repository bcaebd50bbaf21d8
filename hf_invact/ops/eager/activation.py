"""The plain PyTorch backend: cache-sized pieces, and buffers that are reused from piece to piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...curves import Curve, Fit
from ..bits import BITS, empty_bits, pack, packed_size
from ..buffers import flat, flat_like
from ..scratch import Scratch, multiply
from .derivative import slopes_of, slopes_of_rebuilt
from .formula import dtype_inside
from .unmultiply import away_from_zero, rebuild

# Elements in a piece, a multiple of 8. On a CPU its buffers should stay in the cache, and every operation pays for
# starting the threads; on other devices an operation costs a launch, so pieces only bound the temporary memory.
CPU_PIECE = 1 << 18
DEVICE_PIECE = 1 << 24
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """Evaluate the activation and note which inputs lie left of its turning point.

    Args:
        x: any shape, layout and floating dtype.

    Returns:
        ``y``, shaped as ``x``, and the side bits in ``y``'s memory order, uint8, shape (ceil(numel / 8),); None for an
        activation without a turning point.
    """
    y = curve.forward(x)
    if curve.x_min is None:
        return y, None
    return y, sides(x, y, curve.threshold(x.dtype), with_infinity=isinstance(curve.inverse, Fit))


def sides(x: Tensor, y: Tensor, threshold: float | Tensor, *, with_infinity: bool = False) -> Tensor:
    """Which inputs lie left of the threshold, as bits in the memory order of ``y``, uint8, shape (ceil(numel / 8),).

    Args:
        threshold: a number, or a tensor of shape (1,).
        with_infinity: count an infinite input as left.
    """
    side = empty_bits(y)
    inputs, scratch = flat_like(x, y), Scratch(x.dtype, x.device)
    flags: Tensor | None = None
    for start, stop in pieces(inputs):
        padded = packed_size(stop - start) * BITS
        if flags is None or flags.numel() != padded:
            flags = torch.zeros(padded, dtype=torch.bool, device=x.device)
        piece, is_left = inputs[start:stop], flags[: stop - start]
        # Written as numbers, and then as bools, a comparison takes less than half of the time on a CPU.
        ones = torch.lt(piece, threshold, out=scratch.empty("ones", stop - start))
        is_left.copy_(ones.view(INTEGERS[x.dtype.itemsize]))
        if with_infinity and _may_be_infinite(piece):
            # An infinite input has no gradient (the formula in x gives NaN), but a finite one may overflow to the same
            # output; on the left side an infinite output gives NaN.
            is_left.logical_or_(piece == math.inf)
        pack(flags, out=side[start // BITS : packed_size(stop)])
    return side


def _may_be_infinite(piece: Tensor) -> bool:
    """Told by the largest element, which on a CPU costs a fifth of comparing each; elsewhere it would have to wait."""
    return type(piece) is not Tensor or piece.device.type != "cpu" or not piece.max().item() < math.inf


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    """``dy * f'(x)`` from the output and the side bits.

    Args:
        dy: gradient of ``y``, of its shape, any layout and floating dtype.
        y: the output, dense.
        side: as `forward` returned it.

    Returns:
        Gradient of ``x``, with the shape and layout of ``y`` and the dtype of ``dy``. Computed in float32 (float64 for
        float64) and rounded once.
    """
    dx = torch.empty_like(y, dtype=dy.dtype)
    gradients, outputs, results = flat_like(dy, y), flat(y), flat(dx)
    slopes, scratch = slopes_of(curve, y), Scratch(dtype_inside(y), y.device)
    for start, stop in pieces(outputs):
        slope = slopes(outputs[start:stop], _bits_of(side, start, stop))
        multiply(scratch.wide("gradient", gradients[start:stop]), slope, out=results[start:stop])
    return dx


def gate_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """``f(gate) * up``, and the side bits of ``gate``.

    Args:
        gate, up: of one shape, any layout and floating dtypes for which `quotient.tells_output` holds.

    Returns:
        The product and the bits as `forward` returns them. Where ``up`` is smaller than `quotient.TINY`, it is replaced
        by that in the product, which otherwise would have lost ``f(gate)``.
    """
    product, side = forward(gate, curve)
    products, ups = flat(product), flat_like(up, product)
    for start, stop in pieces(products):
        products[start:stop].mul_(away_from_zero(ups[start:stop]))
    return product, side


def gate_backward(dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` and ``up`` from the product, ``up`` and the side bits.

    Args:
        dy: gradient of the product, of its shape, any layout and floating dtype.
        product: dense.
        up: of the product's shape, any floating dtype and layout.
        side: as `gate_forward` returned it.

    Returns:
        Both with the shape and layout of the product and the dtype of ``dy``. Computed in float32 (float64 for
        float64) and rounded once.
    """
    gradients, products, ups = (flat_like(tensor, product) for tensor in (dy, product, up))
    dgate, dup = (torch.empty_like(product, dtype=dy.dtype) for _ in range(2))
    dgates, dups = flat(dgate), flat(dup)
    slopes, scratch = slopes_of_rebuilt(curve, product), Scratch(dtype_inside(product), product.device)
    for start, stop in pieces(products):
        factor = scratch.wide("factor", ups[start:stop])
        y = rebuild(products[start:stop], factor, scratch)
        slope = slopes(y, _bits_of(side, start, stop))
        gradient = scratch.wide("gradient", gradients[start:stop])
        multiply(gradient, y, out=dups[start:stop])
        # Multiplied in the order of the native gradients, which overflows nowhere else.
        multiply(slope, torch.mul(gradient, factor, out=y), out=dgates[start:stop])
    return dgate, dup


def exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """The native gradients of ``gate`` and ``up``, recomputed piece by piece from both of them.

    The same to the bit, but for elements that PyTorch's kernels round differently for where they lie in memory (which
    decides whether vector instructions reach them).

    Args:
        dy: gradient of the product, of its shape and dtype, any layout.
        gate, up: of one shape, any floating dtypes and layouts.

    Returns:
        Both with the shape and layout that the product has, each in the dtype of its input.
    """
    dgate, dup = _recomputed(dy, [gate, up], lambda gate, up: curve.forward(gate) * up)
    return dgate, dup


def exact_backward(dy: Tensor, x: Tensor, curve: Curve) -> Tensor:
    """The native gradient of ``x``, recomputed piece by piece from it.

    Args:
        dy: gradient of the output, of its shape and dtype, any layout.
        x: any shape, layout and floating dtype.
    """
    return _recomputed(dy, [x], curve.forward)[0]


def _recomputed(dy: Tensor, inputs: list[Tensor], function: Callable[..., Tensor]) -> list[Tensor]:
    results = [torch.empty_like(inputs[0], dtype=tensor.dtype) for tensor in inputs]
    gradients, *flat_inputs = (flat_like(tensor, results[0]) for tensor in (dy, *inputs))
    flat_results = [flat(result) for result in results]
    for start, stop in pieces(gradients):
        leaves = [tensor[start:stop].detach().requires_grad_() for tensor in flat_inputs]
        with torch.enable_grad():
            output = function(*leaves)
        for result, gradient in zip(
            flat_results, torch.autograd.grad(output, leaves, gradients[start:stop]), strict=True
        ):
            result[start:stop] = gradient
    return results


def _bits_of(side: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if side is None else side[start // BITS : packed_size(stop)]


def pieces(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of consecutive rows (elements of a flat tensor) of about a piece in all, at least one."""
    size = CPU_PIECE if rows.device.type == "cpu" else DEVICE_PIECE
    step = max(1, size // max(1, math.prod(rows.shape[1:])))
    for start in range(0, rows.size(0), step):
        yield start, min(start + step, rows.size(0))
