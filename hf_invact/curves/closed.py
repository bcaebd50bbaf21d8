"""The activations whose derivative has an exact formula in the output.

Where the output is constant, or rounds to a limit, the inputs cannot be told apart from the output alone. Each function
documents where that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .bound import bind
from .record import ClosedForm, Curve
from .rounding import mean_root, output_error

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717
LAPLACE_MEAN = 0.707107
LAPLACE_DEVIATION = 0.282095


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    """``log(1 + exp(beta x)) / beta``, and the identity where ``beta x > threshold``. ``D = 1 - exp(-beta y)``, and 1.

    The output steps down by ``exp(-threshold) / beta`` where the identity begins. Outputs that occur on both sides of
    that step get the derivative of the left side.
    """
    _require_positive("softplus", "beta", beta)
    return _softplus_curve(beta, threshold)


def elu(alpha: float = 1.0) -> Curve:
    """``x`` above 0, ``alpha (exp(x) - 1)`` below, where ``D = y + alpha`` loses its digits as ``y`` nears -alpha."""
    _require_positive("elu", "alpha", alpha)
    return _elu_curve(alpha)


def selu() -> Curve:
    """`elu` times a constant. Like there, digits are lost in the far left tail."""
    return _SELU


def leaky_relu(negative_slope: float = 0.01) -> Curve:
    """``x`` above 0, ``negative_slope x`` below."""
    _require_positive("leaky_relu", "negative_slope", negative_slope)
    return _leaky_relu_curve(negative_slope)


def _require_positive(activation: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{activation} can be inverted only for a positive {name}, got {value}")


# A cache has separate entries for positional and keyword arguments, so these are always called with positional ones.
@cache
def _softplus_curve(beta: float, threshold: float) -> Curve:
    forward, derivative, slope = (
        bind(function, beta=beta, threshold=threshold)
        for function in (F.softplus, _softplus_derivative, _softplus_slope)
    )
    return Curve("softplus", forward, derivative, ClosedForm(slope))


@cache
def _elu_curve(alpha: float) -> Curve:
    return _exponential("elu", bind(F.elu, alpha=alpha), scale=1.0, alpha=alpha)


@cache
def _leaky_relu_curve(negative_slope: float) -> Curve:
    forward, derivative, slope = (
        bind(function, negative_slope=negative_slope)
        for function in (F.leaky_relu, _leaky_relu_derivative, _leaky_relu_slope)
    )
    return Curve("leaky_relu", forward, derivative, ClosedForm(slope))


def _exponential(name: str, forward: Callable[[Tensor], Tensor], scale: float, alpha: float) -> Curve:
    derivative = bind(_exponential_derivative, scale=scale, alpha=alpha)
    return Curve(name, forward, derivative, ClosedForm(bind(_exponential_slope, scale=scale, alpha=alpha)))


def _softplus_derivative(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * x > threshold, 1.0, torch.sigmoid(beta * x))


def _softplus_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype, beta: float, threshold: float) -> Tensor:
    is_identity = y > (threshold + math.log1p(math.exp(-threshold))) / beta
    return (y * -beta).expm1_().neg_().masked_fill_(is_identity, 1.0)


def _exponential_derivative(x: Tensor, scale: float, alpha: float) -> Tensor:
    return torch.where(x > 0, scale, scale * alpha * torch.exp(x))


def _exponential_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype, scale: float, alpha: float) -> Tensor:
    return torch.where(y > 0, scale, y + scale * alpha)


def _leaky_relu_derivative(x: Tensor, negative_slope: float) -> Tensor:
    return torch.where(x > 0, 1.0, torch.full_like(x, negative_slope))


def _leaky_relu_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype, negative_slope: float) -> Tensor:
    return _leaky_relu_derivative(y, negative_slope)


def _hardswish_derivative(x: Tensor) -> Tensor:
    inner = torch.where(x <= -3, 0.0, x / 3 + 0.5)
    return torch.where(x >= 3, 1.0, inner)


def _hardswish_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype) -> Tensor:
    assert is_left is not None
    size = mean_root(y + 0.375, output_error(0.375, dtype)).mul_(math.sqrt(2 / 3))  # |2 x + 3| / 6
    left = torch.where(y == 0, 0.0, -size)  # x <= -3
    return torch.where(is_left, left, torch.where(y >= 3, 1.0, size))


def _wide(x: Tensor) -> Tensor:
    """Half precision converted to float32, for formulas without a fused function in PyTorch."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _relu2_derivative(x: Tensor) -> Tensor:
    return 2 * F.relu(x)


def _relu2_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype) -> Tensor:
    # The input is the number of the dtype that is nearest to the root of the rounded output.
    return y.sqrt().to(dtype).to(y.dtype).mul_(2)


def _relu6_derivative(x: Tensor) -> Tensor:
    return torch.where((x <= 0) | (x >= 6), 0.0, torch.ones_like(x))


def _relu6_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _relu6_derivative(y)


def _laplace(x: Tensor) -> Tensor:
    standard = (_wide(x) - LAPLACE_MEAN).div(LAPLACE_DEVIATION * math.sqrt(2.0))
    return (0.5 * (1.0 + torch.erf(standard))).to(x.dtype)


def _laplace_derivative(x: Tensor) -> Tensor:
    standard = (x - LAPLACE_MEAN) / LAPLACE_DEVIATION
    return torch.exp(-0.5 * standard.square()) / (LAPLACE_DEVIATION * math.sqrt(2 * math.pi))


def _laplace_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype) -> Tensor:
    standard = torch.special.ndtri(y)
    return torch.exp(-0.5 * standard.square()) / (LAPLACE_DEVIATION * math.sqrt(2 * math.pi))


def _sqrtsoftplus(x: Tensor) -> Tensor:
    return F.softplus(_wide(x)).sqrt().to(x.dtype)


def _sqrtsoftplus_derivative(x: Tensor) -> Tensor:
    root = F.softplus(x).sqrt()
    return torch.where(root > 0, torch.sigmoid(x) / (2 * root), 0.5 * torch.exp(0.5 * x))


def _sqrtsoftplus_slope(y: Tensor, is_left: Tensor | None, dtype: torch.dtype) -> Tensor:
    square = y.square()
    # 1 - exp(-z) is z for the small z that would underflow.
    return torch.where(square < 1e-12, 0.5 * y, -torch.expm1(-square) / (2 * y))


_SELU = _exponential("selu", F.selu, scale=SELU_SCALE, alpha=SELU_ALPHA)
# From y = 3 on the derivative is 1, and at y = 0 on the left it is 0, also for outputs that round to these values.
HARDSWISH = Curve("hardswish", F.hardswish, _hardswish_derivative, ClosedForm(_hardswish_slope, x_min=-1.5), jumps=True)
# The output underflows, and the derivative is lost, where x is below the root of the dtype's smallest number.
RELU2 = Curve("relu2", _relu2, _relu2_derivative, ClosedForm(_relu2_slope))
RELU6 = Curve("relu6", F.relu6, _relu6_derivative, ClosedForm(_relu6_slope), limits=(0.0, 6.0), jumps=True)
# Digits are lost as y nears 1 (and, below, where PyTorch's own 1 + erf cancels).
LAPLACE = Curve("laplace", _laplace, _laplace_derivative, ClosedForm(_laplace_slope), jumps=True)
SQRTSOFTPLUS = Curve("sqrtsoftplus", _sqrtsoftplus, _sqrtsoftplus_derivative, ClosedForm(_sqrtsoftplus_slope))
