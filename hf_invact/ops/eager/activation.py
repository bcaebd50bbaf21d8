"""Activations and gates in plain PyTorch: cache-sized pieces, and buffers that are reused from piece to piece.

`operators.activation.ActivationKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...curves import Curve, Fit
from ..bits import BITS, bits_of_piece, empty_bits, pack, packed_size
from ..buffers import Buffers, compute_dtype, flat, flat_like, multiply, pieces
from .derivative import derivative_of_output, derivative_of_unmultiplied
from .unmultiply import away_from_zero, unmultiply

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    y = curve.forward(x)
    if curve.x_min is None:
        return y, None
    return y, side_bits(x, y, curve.threshold(x.dtype), infinity_is_left=isinstance(curve.inverse, Fit))


def side_bits(x: Tensor, y: Tensor, threshold: float | Tensor, *, infinity_is_left: bool = False) -> Tensor:
    """Which inputs lie left of the threshold, as bits in the memory order of ``y``, uint8, shape (ceil(numel / 8),).

    Args:
        threshold: a number, or a tensor of shape (1,).
        infinity_is_left: count an infinite input as left.
    """
    side = empty_bits(y)
    inputs, buffers = flat_like(x, y), Buffers(x.dtype, x.device)
    flags: Tensor | None = None
    for start, stop in pieces(inputs):
        padded = packed_size(stop - start) * BITS
        if flags is None or flags.numel() != padded:
            flags = torch.zeros(padded, dtype=torch.bool, device=x.device)
        piece, is_left = inputs[start:stop], flags[: stop - start]
        # On a CPU a comparison that writes numbers, which are then converted to bools, takes less than half the time.
        ones = torch.lt(piece, threshold, out=buffers.empty("ones", stop - start))
        is_left.copy_(ones.view(INTEGERS[x.dtype.itemsize]))
        if infinity_is_left and _may_be_infinite(piece):
            # An infinite input has no gradient (the formula in x gives NaN), but a finite one may overflow to the same
            # output. On the left side an infinite output gives NaN.
            is_left.logical_or_(piece == math.inf)
        pack(flags, out=bits_of_piece(side, start, stop))
    return side


def _may_be_infinite(piece: Tensor) -> bool:
    """Looks at the largest element, which on a CPU costs a fifth of comparing each. Elsewhere it would have to wait."""
    return type(piece) is not Tensor or piece.device.type != "cpu" or not piece.max().item() < math.inf


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    dx = torch.empty_like(y, dtype=dy.dtype)
    gradients, outputs, results = flat_like(dy, y), flat(y), flat(dx)
    derivative, buffers = derivative_of_output(curve, y), Buffers(compute_dtype(y), y.device)
    for start, stop in pieces(outputs):
        slope = derivative(outputs[start:stop], _bits_of(side, start, stop))
        multiply(buffers.widen("gradient", gradients[start:stop]), slope, out=results[start:stop])
    return dx


def gate_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    product, side = forward(gate, curve)
    products, ups = flat(product), flat_like(up, product)
    for start, stop in pieces(products):
        products[start:stop].mul_(away_from_zero(ups[start:stop]))
    return product, side


def gate_backward(dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve) -> tuple[Tensor, Tensor]:
    gradients, products, ups = (flat_like(tensor, product) for tensor in (dy, product, up))
    dgate, dup = (torch.empty_like(product, dtype=dy.dtype) for _ in range(2))
    dgates, dups = flat(dgate), flat(dup)
    derivative = derivative_of_unmultiplied(curve, product)
    buffers = Buffers(compute_dtype(product), product.device)
    for start, stop in pieces(products):
        factor = buffers.widen("factor", ups[start:stop])
        y = unmultiply(products[start:stop], factor, buffers)
        slope = derivative(y, _bits_of(side, start, stop))
        gradient = buffers.widen("gradient", gradients[start:stop])
        multiply(gradient, y, out=dups[start:stop])
        # Multiplied in the order of the native gradients, so that it overflows only where they do.
        multiply(slope, torch.mul(gradient, factor, out=y), out=dgates[start:stop])
    return dgate, dup


def _bits_of(side: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if side is None else bits_of_piece(side, start, stop)


def exact_backward(dy: Tensor, x: Tensor, curve: Curve) -> Tensor:
    """Recomputed piece by piece. Equal to the native gradient, with the exception of `exact_gate_backward`."""
    return _recomputed(dy, [x], curve.forward)[0]


def exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """Recomputed piece by piece. Equal to the native gradients, with one exception: PyTorch's kernels round some
    elements differently depending on their place in memory, which decides whether vector instructions reach them."""
    dgate, dup = _recomputed(dy, [gate, up], lambda gate, up: curve.forward(gate) * up)
    return dgate, dup


def _recomputed(dy: Tensor, inputs: list[Tensor], function: Callable[..., Tensor]) -> list[Tensor]:
    """Autograd's gradients of a function's inputs."""
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
