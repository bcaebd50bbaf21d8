"""The activations that can be inverted, by name."""

from __future__ import annotations

import math
from functools import cache
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import closed
from .bound import bind
from .coefficients import FITS
from .record import Curve

QUICK_GELU_SCALE = 1.702


def _gelu_derivative(x: Tensor) -> Tensor:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * torch.erfc(-x / math.sqrt(2)) + x * density


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_derivative(x: Tensor) -> Tensor:
    root = math.sqrt(2 / math.pi)
    sigmoid = torch.sigmoid(2 * root * (x + 0.044715 * x**3))
    return sigmoid + x * sigmoid * (1 - sigmoid) * 2 * root * (1 + 3 * 0.044715 * x**2)


def _silu_derivative(x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))


def _quick_gelu(x: Tensor) -> Tensor:
    # PyTorch has no fused function for it. Computed in float32, as fused functions do for half-precision inputs.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.sigmoid(QUICK_GELU_SCALE * wide)).to(x.dtype)


def _quick_gelu_derivative(x: Tensor) -> Tensor:
    return _silu_derivative(QUICK_GELU_SCALE * x)


def _mish_derivative(x: Tensor) -> Tensor:
    tanh = torch.tanh(F.softplus(x))
    return tanh + x * (1 - tanh**2) * torch.sigmoid(x)


@cache
def clipped_gelu(low: float, high: float) -> Curve:
    """GELU clipped to a range, as Transformers' gelu_10.

    An output at a limit has the derivative 0. (At the one input whose output is the limit without clipping, the native
    gradient is that of GELU, which cannot be seen from the output.)
    """
    forward, derivative = (bind(function, low=low, high=high) for function in (_clipped_gelu, _clipped_derivative))
    return Curve("clipped_gelu", forward, derivative, FITS["gelu"], limits=(low, high), jumps=True)


def _clipped_gelu(x: Tensor, low: float, high: float) -> Tensor:
    return torch.clip(F.gelu(x), low, high)


def _clipped_derivative(x: Tensor, low: float, high: float) -> Tensor:
    y = F.gelu(x)
    return torch.where((y <= low) | (y >= high), 0.0, _gelu_derivative(x))


GELU = Curve("gelu", F.gelu, _gelu_derivative, FITS["gelu"])
GELU_TANH = Curve("gelu_tanh", _gelu_tanh, _gelu_tanh_derivative, FITS["gelu_tanh"])
SILU = Curve("silu", F.silu, _silu_derivative, FITS["silu"])
QUICK_GELU = Curve("quick_gelu", _quick_gelu, _quick_gelu_derivative, FITS["silu"], scale=QUICK_GELU_SCALE)
MISH = Curve("mish", F.mish, _mish_derivative, FITS["mish"])

_CURVES = {
    curve.name: curve
    for curve in (
        *(GELU, GELU_TANH, SILU, QUICK_GELU, MISH, clipped_gelu(-10.0, 10.0)),
        *(closed.softplus(), closed.elu(), closed.selu(), closed.leaky_relu(), closed.HARDSWISH),
        *(closed.RELU2, closed.RELU6, closed.LAPLACE, closed.SQRTSOFTPLUS),
    )
}
CURVES = MappingProxyType(_CURVES)


def add_curve(curve: Curve) -> None:
    """Add a user's curve to `CURVES`.

    Raises:
        ValueError: there is one of that name.
    """
    if curve.name in _CURVES:
        raise ValueError(f"there is a curve named {curve.name!r} already; choose another name")
    _CURVES[curve.name] = curve
