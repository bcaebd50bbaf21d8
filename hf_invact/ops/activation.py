"""The operation: an activation that keeps its output and one bit per element for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..curves import Curve
from .backends import AUTO, Backend, choose_backend
from .layout import with_layout

WAY_OUT = (
    "It keeps its output, and has a formula for the gradient alone: for more, unpatch the model "
    "(hf_invact.unpatch_model), or leave this block as it is with InvActConfig(exclude=[...])"
)


class InvertedActivation(torch.autograd.Function):
    """Saves ``y`` (the very tensor that it returns, which the next layer keeps anyway) and packed side bits.

    Source: "Inverted Activations", arXiv 2407.15545.
    """

    @staticmethod
    def forward(x: Tensor, curve: Curve, backend: Backend) -> tuple[Tensor, Tensor | None]:
        return backend.forward(x, curve)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        y, side = output
        if side is not None:
            ctx.mark_non_differentiable(side)
        ctx.save_for_backward(y, side)
        ctx.set_materialize_grads(False)
        _, ctx.curve, ctx.backend = inputs
        ctx.stride = y.stride()

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if dy is None:
            return None, None, None
        y, side = ctx.saved_tensors
        # The bits are in y's memory order, which hooks that move saved tensors elsewhere need not keep.
        y = with_layout(y, y.size(), ctx.stride)
        return _Gradient.apply(dy, y, side, ctx.curve, ctx.backend), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(f"an inverted {ctx.curve.name} has no forward-mode derivative. {WAY_OUT}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, curve: Curve, backend: Backend) -> Any:
        """`torch.vmap`: one more dimension is nothing to an element-wise function. All samples share their bits."""
        return InvertedActivation.apply(x, curve, backend), (in_dims[0], None)


class _Gradient(torch.autograd.Function):
    """The gradient of ``x``, of which there is no derivative."""

    @staticmethod
    def forward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve, backend: Backend) -> Tensor:
        return backend.backward(dy, y, side, curve)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[3].name

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError(f"an inverted {ctx.name} has no second derivative. {WAY_OUT}")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        dy: Tensor,
        y: Tensor,
        side: Tensor | None,
        curve: Curve,
        backend: Backend,
    ) -> tuple[Tensor, int]:
        """Many gradients of one output, or those of many samples, which share their bits."""
        of_dy, of_y, *_ = in_dims
        if of_y is None:
            assert of_dy is not None
            return torch.stack([_Gradient.apply(one, y, side, curve, backend) for one in dy.unbind(of_dy)]), 0
        dy = dy.expand_as(y.movedim(of_y, 0)).movedim(0, of_y) if of_dy is None else dy.movedim(of_dy, of_y)
        return _Gradient.apply(dy, y, side, curve, backend), of_y


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
    y: Tensor
    y, _ = InvertedActivation.apply(x, curve, chosen)
    return y
