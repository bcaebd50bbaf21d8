"""Compares the results and gradients of the unpatched and the patched block."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .probe import Measurement

# Of the largest output, in units of the dtype's epsilon: formulas of several roundings differ from fused ones by less.
SAME_RESULT = 8.0
# Of a gradient's norm, for each gradient. Measured for all activations and plans, in MLPs of 8 to 512 inputs and in
# layers of Transformers: up to 1e-6, 5e-6, 0.5% and 2%. Wrong slopes change it by a third and more.
SAME_GRADIENT = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
# Of the largest gradient's norm, in units of epsilon: what is less is rounding. (A key's bias has the gradient 0.)
NOTHING = 1.0


def difference(plain: Measurement, patched: Measurement, precision: torch.dtype) -> str | None:
    """How a block's result or gradients change; None where they do not, or it cannot be seen.

    It cannot be seen on fake tensors, or if the unpatched results are not finite.

    Args:
        plain: what the unpatched block does.
        patched: what the patched one does.
        precision: the least precise dtype in which the activation, or what follows it, computes.
    """
    missing = [name for name, grad in plain.gradients.items() if grad is not None and patched.gradients[name] is None]
    if missing:
        return f"{missing[0]} would get no gradient any more"
    if isinstance(plain.output, FakeTensor) or not plain.output.isfinite().all():
        return None
    allowed = SAME_RESULT * torch.finfo(precision).eps * _largest(plain.output)
    change = _largest(patched.output.double() - plain.output.double())
    if not change <= allowed:
        return f"the block's result would change by {change:.2g}, which rounding does not explain"
    return _difference_of_gradients(plain, patched, precision)


def _difference_of_gradients(plain: Measurement, patched: Measurement, precision: torch.dtype) -> str | None:
    pairs = {name: (grad, patched.gradients[name]) for name, grad in plain.gradients.items() if grad is not None}
    norms = {name: _norm(grad) for name, (grad, _) in pairs.items()}
    if not all(map(math.isfinite, norms.values())):
        return None
    floor = NOTHING * torch.finfo(precision).eps * max(norms.values(), default=0.0)
    for name, (before, after) in pairs.items():
        change = _norm(after - before) if after is not None else math.inf
        if not change <= SAME_GRADIENT[precision] * norms[name] + floor:
            share = change / (norms[name] + floor)
            return f"the gradient of {name} would change by {share:.2g} of its size, which rounding does not explain"
    return None


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
