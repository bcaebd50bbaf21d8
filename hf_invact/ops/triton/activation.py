"""Launches the kernels. See `eager` for the arguments and results of the functions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from ...curves import Curve, Fit
from ..bits import BITS, empty_bits
from ..buffers import flat, flat_like
from ..eager.unmultiply import away_from_zero
from ..inductor import activation as compiled
from . import formulas, kernels
from .constants import constants_of

GROUPS = 128  # of eight elements in a program: eight elements for each of four warps' threads
ACTIVATIONS = {
    "gelu": formulas.gelu,
    "gelu_tanh": formulas.gelu_tanh,
    "silu": formulas.silu,
    "quick_gelu": formulas.quick_gelu,
    "mish": formulas.mish,
    "clipped_gelu": formulas.gelu,
}

SLOPES = {
    "gelu": formulas.gelu_slope,
    "gelu_tanh": formulas.gelu_tanh_slope,
    "silu": formulas.silu_slope,
    "quick_gelu": formulas.quick_gelu_slope,
    "mish": formulas.mish_slope,
}


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """As `eager.forward`, and equal to it; one pass for the activations that are written in Triton."""
    if not isinstance(curve.inverse, Fit):
        return compiled.forward(x, curve)
    if curve.x_min is None:
        return curve.forward(x), None
    if curve.name not in ACTIVATIONS:  # a user's own
        y = curve.forward(x)
        side = empty_bits(y)
        _launch(kernels.sides, flat_like(x, y), side, THRESHOLD=curve.threshold(x.dtype))
        return y, side
    y = torch.empty_like(x)
    side = empty_bits(y)
    constants = {**_of_the_forward(curve, x.dtype), "FIT": constants_of(curve, x.dtype)}
    _launch(kernels.forward, flat_like(x, y), flat(y), side, **constants)
    return y, side


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    """As `eager.backward`."""
    if not isinstance(curve.inverse, Fit):
        return compiled.backward(dy, y, side, curve)
    dx = torch.empty_like(y, dtype=dy.dtype)
    bits = y if side is None else side  # which a curve without bits does not read
    _launch(kernels.backward, flat_like(dy, y), flat(y), bits, flat(dx), FIT=constants_of(curve, y.dtype))
    return dx


def gate_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """As `eager.gate_forward`, and equal to it; one pass for the activations that are written in Triton."""
    if not isinstance(curve.inverse, Fit):
        return compiled.gate_forward(gate, up, curve)
    if curve.name not in ACTIVATIONS:
        product, side = forward(gate, curve)
        return product.mul_(away_from_zero(up)), side
    product = torch.empty_like(gate)
    side = empty_bits(product)
    inputs = (flat_like(tensor, product) for tensor in (gate, up))
    _launch(kernels.gate_forward, *inputs, flat(product), side, **_of_the_forward(curve, gate.dtype))
    return product, side


def gate_backward(dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve) -> tuple[Tensor, Tensor]:
    """As `eager.gate_backward`."""
    if not isinstance(curve.inverse, Fit):
        return compiled.gate_backward(dy, product, up, side, curve)
    dgate, dup = (torch.empty_like(product, dtype=dy.dtype) for _ in range(2))
    bits = product if side is None else side
    inputs = flat_like(dy, product), flat(product), flat_like(up, product), bits
    _launch(kernels.gate_backward, *inputs, flat(dgate), flat(dup), FIT=constants_of(curve, product.dtype))
    return dgate, dup


def exact_backward(dy: Tensor, x: Tensor, curve: Curve) -> Tensor:
    """As `eager.exact_backward`, but for the last digits; one pass for the activations that are written in Triton."""
    if curve.name not in SLOPES:
        return compiled.exact_backward(dy, x, curve)
    dx = torch.empty_like(x)
    _launch(kernels.exact_backward, flat_like(dy, dx), flat_like(x, dx), flat(dx), SLOPE=SLOPES[curve.name])
    return dx


def exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """As `eager.exact_gate_backward`, but for the last digits; one pass for the activations written in Triton."""
    if curve.name not in SLOPES:
        return compiled.exact_gate_backward(dy, gate, up, curve)
    dgate, dup = torch.empty_like(gate), torch.empty_like(gate, dtype=up.dtype)
    inputs = (flat_like(tensor, dgate) for tensor in (dy, gate, up))
    functions = {"ACTIVATION": ACTIVATIONS[curve.name], "SLOPE": SLOPES[curve.name]}
    _launch(kernels.exact_gate_backward, *inputs, flat(dgate), flat(dup), **functions)
    return dgate, dup


def _of_the_forward(curve: Curve, dtype: torch.dtype) -> dict[str, Any]:
    return {"ACTIVATION": ACTIVATIONS[curve.name], "THRESHOLD": curve.threshold(dtype)}


def _launch(kernel: Any, *tensors: Tensor, **constants: Any) -> None:
    """Run a kernel on flat tensors, the first of which has all elements."""
    size = tensors[0].numel()
    if size == 0:
        return
    grid = (triton.cdiv(size, GROUPS * BITS),)
    with _current(tensors[0].device):
        # PyTorch's own kernels are compiled with fused multiplications and additions, too.
        kernel[grid](*tensors, size, GROUPS=GROUPS, **constants, enable_fp_fusion=True)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu":  # the interpreter
        return nullcontext()
    context: AbstractContextManager[Any] = getattr(torch, device.type).device(device)
    return context
