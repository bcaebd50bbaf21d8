"""The activations as modules without parameters.

>>> import torch, hf_invact
>>> torch.nn.Sequential(torch.nn.Linear(8, 32), hf_invact.nn.GELU(approximate="tanh"))
Sequential(
  (0): Linear(in_features=8, out_features=32, bias=True)
  (1): GELU(curve='gelu_tanh', backend='auto')
)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .curves import GELU as GELU_CURVE
from .curves import GELU_TANH, QUICK_GELU, Curve
from .curves import SILU as SILU_CURVE
from .ops import AUTO, check_backend, invert


class InvertedActivation(torch.nn.Module):
    """Applies an activation, keeping its output and one bit per element for the backward pass.

    Args:
        curve: the activation.
        backend: a backend's name, or "auto".

    Raises:
        ValueError: unknown backend.
    """

    def __init__(self, curve: Curve, backend: str = AUTO) -> None:
        super().__init__()
        check_backend(backend)
        self.curve = curve
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return invert(input, self.curve, self.backend)

    def extra_repr(self) -> str:
        return f"curve={self.curve.name!r}, backend={self.backend!r}"


class GELU(InvertedActivation):
    """`torch.nn.GELU`, saving its output and one bit per element."""

    def __init__(self, approximate: Literal["none", "tanh"] = "none", *, backend: str = AUTO) -> None:
        curves = {"none": GELU_CURVE, "tanh": GELU_TANH}
        if approximate not in curves:
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        super().__init__(curves[approximate], backend)


class SiLU(InvertedActivation):
    """`torch.nn.SiLU`, saving its output and one bit per element."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(SILU_CURVE, backend)


class QuickGELU(InvertedActivation):
    """``x * sigmoid(1.702 x)``, saving its output and one bit per element."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(QUICK_GELU, backend)
