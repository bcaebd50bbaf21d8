"""Activations and gates by Triton's kernels.

Fitted curves have kernels. Exact formulas go through the "compile" backend, which on a GPU turns them into kernels.
`operators.activation.ActivationKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...curves import Curve, Fit
from ..bits import empty_bits
from ..buffers import flat, flat_like
from ..eager.unmultiply import away_from_zero
from ..inductor import activation as inductor
from . import formulas, kernels
from .constants import constants_of
from .launch import launch_elementwise

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
    """Equal to `eager.activation.forward`; one pass over memory for the activations that are written in Triton."""
    if not isinstance(curve.inverse, Fit):
        return inductor.forward(x, curve)
    if curve.x_min is None:
        return curve.forward(x), None
    if curve.name not in ACTIVATIONS:  # registered by a user
        y = curve.forward(x)
        side = empty_bits(y)
        launch_elementwise(kernels.sides, flat_like(x, y), side, THRESHOLD=curve.threshold(x.dtype))
        return y, side
    y = torch.empty_like(x)
    side = empty_bits(y)
    constants = {**_forward_constants(curve, x.dtype), "FIT": constants_of(curve, x.dtype)}
    launch_elementwise(kernels.forward, flat_like(x, y), flat(y), side, **constants)
    return y, side


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    if not isinstance(curve.inverse, Fit):
        return inductor.backward(dy, y, side, curve)
    dx = torch.empty_like(y, dtype=dy.dtype)
    bits = y if side is None else side  # not read for a curve without side bits
    launch_elementwise(kernels.backward, flat_like(dy, y), flat(y), bits, flat(dx), FIT=constants_of(curve, y.dtype))
    return dx


def gate_forward(gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """Equal to `eager.activation.gate_forward`; one pass over memory for the activations written in Triton."""
    if not isinstance(curve.inverse, Fit):
        return inductor.gate_forward(gate, up, curve)
    if curve.name not in ACTIVATIONS:
        product, side = forward(gate, curve)
        return product.mul_(away_from_zero(up)), side
    product = torch.empty_like(gate)
    side = empty_bits(product)
    inputs = (flat_like(tensor, product) for tensor in (gate, up))
    launch_elementwise(kernels.gate_forward, *inputs, flat(product), side, **_forward_constants(curve, gate.dtype))
    return product, side


def gate_backward(dy: Tensor, product: Tensor, up: Tensor, side: Tensor | None, curve: Curve) -> tuple[Tensor, Tensor]:
    if not isinstance(curve.inverse, Fit):
        return inductor.gate_backward(dy, product, up, side, curve)
    dgate, dup = (torch.empty_like(product, dtype=dy.dtype) for _ in range(2))
    bits = product if side is None else side
    inputs = flat_like(dy, product), flat(product), flat_like(up, product), bits
    launch_elementwise(kernels.gate_backward, *inputs, flat(dgate), flat(dup), FIT=constants_of(curve, product.dtype))
    return dgate, dup


def exact_backward(dy: Tensor, x: Tensor, curve: Curve) -> Tensor:
    """Equal to the native gradient except for the last digits; one pass for the activations written in Triton."""
    if curve.name not in SLOPES:
        return inductor.exact_backward(dy, x, curve)
    dx = torch.empty_like(x)
    launch_elementwise(kernels.exact_backward, flat_like(dy, dx), flat_like(x, dx), flat(dx), SLOPE=SLOPES[curve.name])
    return dx


def exact_gate_backward(dy: Tensor, gate: Tensor, up: Tensor, curve: Curve) -> tuple[Tensor, Tensor]:
    """Equal to the native gradients except for the last digits; one pass for the activations written in Triton."""
    if curve.name not in SLOPES:
        return inductor.exact_gate_backward(dy, gate, up, curve)
    dgate, dup = torch.empty_like(gate), torch.empty_like(gate, dtype=up.dtype)
    inputs = (flat_like(tensor, dgate) for tensor in (dy, gate, up))
    functions = {"ACTIVATION": ACTIVATIONS[curve.name], "SLOPE": SLOPES[curve.name]}
    launch_elementwise(kernels.exact_gate_backward, *inputs, flat(dgate), flat(dup), **functions)
    return dgate, dup


def _forward_constants(curve: Curve, dtype: torch.dtype) -> dict[str, Any]:
    return {"ACTIVATION": ACTIVATIONS[curve.name], "THRESHOLD": curve.threshold(dtype)}
