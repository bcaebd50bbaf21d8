"""The activations that can be inverted, by name."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

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
    # PyTorch has no fused function for it; float32 inside, as the fused ones compute half-precision inputs.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.sigmoid(QUICK_GELU_SCALE * wide)).to(x.dtype)


def _quick_gelu_derivative(x: Tensor) -> Tensor:
    return _silu_derivative(QUICK_GELU_SCALE * x)


GELU = Curve("gelu", F.gelu, _gelu_derivative, FITS["gelu"])
GELU_TANH = Curve("gelu_tanh", _gelu_tanh, _gelu_tanh_derivative, FITS["gelu_tanh"])
SILU = Curve("silu", F.silu, _silu_derivative, FITS["silu"])
QUICK_GELU = Curve("quick_gelu", _quick_gelu, _quick_gelu_derivative, FITS["silu"], scale=QUICK_GELU_SCALE)

CURVES = MappingProxyType({curve.name: curve for curve in (GELU, GELU_TANH, SILU, QUICK_GELU)})
