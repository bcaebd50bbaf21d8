"""How far the derivative that a method applies is from the exact one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_invact.curves import Curve

from .method import Function


def derivative_error(function: Function, curve: Curve, draws: Tensor) -> dict[str, Any]:
    """Error of a function's gradient against the curve's derivative in float64, including the rounding to the dtype.

    Args:
        draws: from N(0, 1), in the dtype to measure.

    Returns:
        "rms", "max" and "bias" of the finite values (None if there are none), and "non_finite", the share of the
        others.
    """
    x = draws.detach().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    error = slope.double() - curve.derivative(draws.double())
    finite = error[error.isfinite()]
    share = 1 - finite.numel() / error.numel()
    if not finite.numel():
        return {"rms": None, "max": None, "bias": None, "non_finite": share}
    rms, worst, bias = finite.square().mean().sqrt(), finite.abs().max(), finite.mean()
    return {"rms": rms.item(), "max": worst.item(), "bias": bias.item(), "non_finite": share}
