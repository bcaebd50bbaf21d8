"""Activations with the names and arguments of `torch.nn.functional` that keep their output for the backward pass.

>>> import torch, hf_invact
>>> x = torch.randn(4, 8, requires_grad=True)
>>> y = hf_invact.functional.gelu(x)
>>> bool((y == torch.nn.functional.gelu(x)).all())
True
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .curves import GELU, GELU_TANH, QUICK_GELU, SILU
from .ops import invert


def gelu(input: Tensor, approximate: Literal["none", "tanh"] = "none", *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.gelu`, saving its output and one bit per element.

    Raises:
        ValueError: unknown `approximate` or `backend`.
    """
    curves = {"none": GELU, "tanh": GELU_TANH}
    if approximate not in curves:
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return invert(input, curves[approximate], backend)


def silu(input: Tensor, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.silu`, saving its output and one bit per element."""
    return invert(input, SILU, backend)


def quick_gelu(input: Tensor, *, backend: str | None = None) -> Tensor:
    """``x * sigmoid(1.702 x)``, computed in at least float32, saving its output and one bit per element."""
    return invert(input, QUICK_GELU, backend)
