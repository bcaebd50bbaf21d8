"""What the operators for activations and gates save for backward, and how they are differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ...curves.keys import curve_by_key
from ..buffers import with_layout
from . import activation
from .derivatives import batched, refuse_derivative, register_derivative, sample


def _differentiate(
    operator: OpOverload,
    backward: OpOverload,
    inputs: int,
    label: str,
    saves_output: bool,
    exact_backward: OpOverload | None = None,
) -> None:
    """Register the gradient operator as the derivative of an operator, and refuse a second derivative.

    Args:
        inputs: how many tensors of one shape the operator takes, before curve and backend.
        label: how messages call the operation, before the curve's name.
        saves_output: the operator also returns side bits, and saves its output and the bits in place of its first
            input. It saves the same tensor that it returns, which the next layer saves anyway ("Inverted Activations",
            arXiv 2407.15545).
        exact_backward: computes the gradients from the inputs, which are saved where the output does not suffice.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.curve, ctx.backend = inputs
        ctx.set_materialize_grads(False)
        ctx.saves_output = saves_output
        if not saves_output:
            ctx.save_for_backward(*tensors)
            return
        curve, (y, side) = curve_by_key(ctx.curve), output
        ctx.mark_non_differentiable(side)
        if exact_backward is not None:
            ctx.saves_output = activation.tells_output(curve, *(tensor.dtype for tensor in tensors))
        if ctx.saves_output:
            ctx.save_for_backward(y, *tensors[1:], side if curve.x_min is not None else None)
            ctx.stride = y.stride()
        else:
            ctx.save_for_backward(*tensors)

    def apply_gradient(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * (inputs + 2)
        saved, gradient_operator = ctx.saved_tensors, backward
        if ctx.saves_output:
            # The side bits are in memory order, which hooks that move saved tensors elsewhere may have changed.
            y, *others = saved
            saved = (with_layout(y, y.size(), ctx.stride), *others)
        elif exact_backward is not None:
            gradient_operator = exact_backward
        gradients = gradient_operator(dy, *saved, ctx.curve, ctx.backend)
        return *(gradients if inputs > 1 else (gradients,)), None, None

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """The operator is element-wise, so that a batch is one more dimension. All samples share their side bits."""
        tensors = batched(info.batch_size, in_dims[:inputs], args[:inputs])
        return operator(*tensors, *args[inputs:]), (0, None) if saves_output else 0

    def vmap_of_gradient(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """Many gradients of one output, or the gradients of many samples, which share their side bits."""
        count = 1 + inputs
        tensors, dims, others = args[:count], in_dims[:count], args[count:]
        if dims[1] is not None:
            # As in the forward pass, where all tensors had their batch dimension in front.
            gradients = backward(*batched(info.batch_size, dims, tensors), *others)
        else:
            each = [
                backward(*(sample(*pair, index) for pair in zip(tensors, dims, strict=True)), *others)
                for index in range(info.batch_size)
            ]
            gradients = torch.stack(each) if inputs == 1 else tuple(map(torch.stack, zip(*each, strict=True)))
        return gradients, 0 if inputs == 1 else (0,) * inputs

    register_derivative(operator, setup_context, apply_gradient, vmap)
    refuse_derivative(backward, lambda inputs: f"{label} {curve_by_key(inputs[-2]).name}", vmap_of_gradient)


_differentiate(activation.ACTIVATION, activation.ACTIVATION_BACKWARD, 1, "an inverted", saves_output=True)
_differentiate(
    *(activation.GATE, activation.GATE_BACKWARD, 2, "an inverted gate of"),
    saves_output=True,
    exact_backward=activation.EXACT_GATE_BACKWARD,
)
_differentiate(activation.EXACT_ACTIVATION, activation.EXACT_ACTIVATION_BACKWARD, 1, "a recomputed", saves_output=False)
_differentiate(activation.EXACT_GATE, activation.EXACT_GATE_BACKWARD, 2, "a recomputed gate of", saves_output=False)
