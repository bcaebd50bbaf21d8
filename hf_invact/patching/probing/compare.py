"""Compares the results and gradients of the unpatched and the patched block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

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
# What changes by more may change by this multiple of what rounding alone does to it, in any of so many runs. A gradient
# that is nothing but rounding (of a bias before a BatchNorm) was measured to change by up to 2.3 times as much, once by
# 5 times: where one channel has nearly all of it, one run may tell too little. Other gradients round by a few epsilons,
# so that this allows hardly more for them than `SAME_GRADIENT` does.
ROUNDING = 4.0
RUNS = 4

Again: TypeAlias = Callable[[int], Mapping[str, Tensor | None]]


def difference(plain: Measurement, patched: Measurement, precision: torch.dtype, again: Again) -> str | None:
    """How a block's result or gradients change; None where they do not, or it cannot be seen.

    It cannot be seen on fake tensors, or if the unpatched results are not finite.

    Args:
        plain: what the unpatched block does.
        patched: what the patched one does.
        precision: the least precise dtype in which the activation, or what follows it, computes.
        again: the unpatched block's `rounded_gradients` for a seed. Called only where a gradient seems changed.
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
    return _difference_of_gradients(plain, patched, precision, again)


def _difference_of_gradients(
    plain: Measurement, patched: Measurement, precision: torch.dtype, again: Again
) -> str | None:
    pairs = {name: (grad, patched.gradients[name]) for name, grad in plain.gradients.items() if grad is not None}
    norms = {name: _norm(grad) for name, (grad, _) in pairs.items()}
    if not all(map(math.isfinite, norms.values())):
        return None
    floor = NOTHING * torch.finfo(precision).eps * max(norms.values(), default=0.0)
    changes = {name: _change(*pair) for name, pair in pairs.items()}
    seen = [name for name, change in changes.items() if not change <= SAME_GRADIENT[precision] * norms[name] + floor]
    for run in range(1, RUNS + 1):
        if not seen:
            return None
        rounded = again(run)
        noise = {name: _change(pairs[name][0], rounded[name]) for name in seen}
        seen = [name for name in seen if not changes[name] <= ROUNDING * noise[name] < math.inf]
    for name in seen:
        share = changes[name] / (norms[name] + floor)
        return f"the gradient of {name} would change by {share:.2g} of its size, which rounding does not explain"
    return None


def _change(before: Tensor, after: Tensor | None) -> float:
    return math.inf if after is None else _norm(after - before)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
