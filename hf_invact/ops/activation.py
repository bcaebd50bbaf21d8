"""The operation: an activation that keeps its output and one bit per element for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..curves import Curve
from .backends import AUTO, Backend, choose_backend
from .layout import with_layout


class InvertedActivation(torch.autograd.Function):
    """Saves ``y`` (the very tensor that it returns, which the next layer keeps anyway) and packed side bits.

    Source: "Inverted Activations", arXiv 2407.15545.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, curve: Curve, backend: Backend) -> Tensor:
        y, side = backend.forward(x, curve)
        ctx.save_for_backward(*([y] if side is None else [y, side]))
        ctx.curve, ctx.backend, ctx.stride = curve, backend, y.stride()
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        y, *sides = ctx.saved_tensors
        # The bits are in y's memory order, which hooks that move saved tensors elsewhere need not keep.
        y = with_layout(y, y.size(), ctx.stride)
        return ctx.backend.backward(dy, y, sides[0] if sides else None, ctx.curve), None, None


def invert(x: Tensor, curve: Curve, backend: str | None = None) -> Tensor:
    """``curve.forward(x)``, keeping the output and one bit per element for the backward pass.

    Args:
        x: any shape, memory layout and floating dtype.
        curve: the activation.
        backend: a backend's name; None or "auto" chooses by device.

    Raises:
        ValueError: unknown backend.
    """
    chosen = choose_backend(AUTO if backend is None else backend, x.device)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return curve.forward(x)
    result: Tensor = InvertedActivation.apply(x, curve, chosen)
    return result
