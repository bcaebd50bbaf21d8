"""Activations with learned parameters, which save their output and compute the parameters' gradients from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..curves import XIELU
from .bits import bits_of_piece, unpack
from .buffers import compute_dtype, flat, flat_like, pieces, with_layout
from .eager.activation import side_bits
from .inputs import is_distributed
from .operators.derivatives import first_derivative_only

# float16's smallest normal number: with a smaller slope, outputs lose the digits that the input is computed from.
SMALLEST_SLOPE = 2.0**-14


def prelu_is_invertible(weight: Tensor) -> bool:
    """Whether the output of PReLU determines its input: all slopes are positive. Waits for the weight's device."""
    return bool((weight >= SMALLEST_SLOPE).all())


def invert_prelu(x: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.prelu`, saving its output alone for backward.

    Args:
        x: any shape that PReLU takes, memory layout and floating dtype. For a DTensor the native function is called.
        weight: positive (see `prelu_is_invertible`; not checked here), one number or one for each channel, shape (1,)
            or (x.size(1),).
    """
    if is_distributed(x):
        return F.prelu(x, weight)
    result: Tensor = _InvertedPReLU.apply(x, weight)
    return result


def invert_xielu(
    x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, native: Callable[[Tensor], Tensor]
) -> Tensor:
    """xIELU, saving its output and one bit per element for backward.

    Inputs in (-1e-6, 0), where the native gradient is that of another branch, get the gradient of the inputs next to
    them.

    Args:
        x: any shape of at least one dimension, memory layout and floating dtype. For a DTensor the native function is
            called.
        alpha_p, alpha_n: the factors in the formula of `curves.xielu`, shape (1,), any floating dtype.
        beta: positive (not checked), one number.
        native: computes the result.
    """
    if is_distributed(x):
        return native(x)
    result: Tensor = _InvertedXIELU.apply(x, alpha_p, alpha_n, beta, native)
    return result


class _InvertedPReLU(torch.autograd.Function):
    """For positive slopes the sign of ``y`` is that of ``x``, and ``x = y / weight`` below 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # Detached, because otherwise the autocast of older PyTorch would cache a cast of it without a gradient.
        y = F.prelu(x, weight.detach())
        ctx.save_for_backward(y, weight)
        ctx.stride, ctx.dtype = y.stride(), x.dtype
        return y

    @staticmethod
    @first_derivative_only("an inverted prelu")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        y, weight = ctx.saved_tensors
        y = with_layout(y, y.size(), ctx.stride)
        dx = torch.empty_strided(y.size(), ctx.stride, dtype=y.dtype, device=y.device)
        slope = weight.to(y.dtype).to(compute_dtype(y)).view(-1, 1)  # the values that autocast used
        total = torch.zeros_like(slope)
        # In memory order the channel is the second of three dimensions, whatever the layout.
        inner = 1 if weight.numel() == 1 else max(1, y.stride(1))
        shape = (y.numel() // (slope.numel() * inner), slope.numel(), inner)
        dy = with_layout(dy, y.size(), ctx.stride)
        gradients, outputs, results = (flat(each).view(shape) for each in (dy, y, dx))
        for start, stop in pieces(outputs):
            gradient, output = gradients[start:stop], outputs[start:stop]
            torch.mul(gradient, torch.where(output > 0, 1.0, slope), out=results[start:stop])
            if ctx.needs_input_grad[1]:
                products = output.clamp(max=0.0).to(slope.dtype).mul_(gradient)
                total += products.sum((0, 2)).view_as(total)
        return dx.to(ctx.dtype), _like(weight, total / slope)


class _InvertedXIELU(torch.autograd.Function):
    """The function of `curves.xielu`, except that Transformers' slope at 0 is ``beta - alpha_n``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, native: Callable[[Tensor], Tensor]
    ) -> Tensor:
        y, y_at_zero = native(x), native(x.new_zeros(1))
        side = side_bits(x, y, _curve(y, alpha_p, alpha_n, beta).x_min)
        ctx.save_for_backward(y, side, y_at_zero, alpha_p, alpha_n, beta)
        ctx.stride, ctx.dtype = y.stride(), x.dtype
        return y

    @staticmethod
    @first_derivative_only("an inverted xielu")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        y, side, y_at_zero, alpha_p, alpha_n, beta = ctx.saved_tensors
        y = with_layout(y, y.size(), ctx.stride)
        dx = torch.empty_strided(y.size(), ctx.stride, dtype=ctx.dtype, device=y.device)
        curve = _curve(y, alpha_p, alpha_n, beta)
        slope_at_zero = curve.beta - curve.alpha_n
        total_p, total_n = torch.zeros_like(curve.alpha_p), torch.zeros_like(curve.alpha_n)
        parameters_need_it = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        gradients, outputs, results = flat_like(dy, y), flat(y), flat(dx)
        for start, stop in pieces(outputs):
            gradient, output = gradients[start:stop], outputs[start:stop]
            is_left = unpack(bits_of_piece(side, start, stop))[: stop - start]
            x, slope = curve.invert(output.to(curve.beta.dtype), is_left, ctx.dtype)
            # (Left of the turning point the output also crosses 0, but in steps too coarse to equal this output.)
            native_slope = torch.where(output == y_at_zero, slope_at_zero, slope)
            torch.mul(gradient, native_slope, out=results[start:stop])
            if parameters_need_it:
                above, below = x.clamp(min=0.0), x.clamp_(max=0.0)
                total_p += above.square_().mul_(gradient).sum()
                total_n += torch.expm1(below).sub_(below).mul_(gradient).sum()
        # After an infinite input there is no gradient, as in the native formula, which evaluates both branches.
        invalid = 0.0 * (total_p + total_n)
        return dx, _like(alpha_p, total_p + invalid), _like(alpha_n, total_n + invalid), None, None


def _curve(y: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> XIELU:
    alpha_p, alpha_n, beta = (each.to(compute_dtype(y)).view(1) for each in (alpha_p, alpha_n, beta))
    return XIELU(alpha_p, alpha_n, beta)


def _like(parameter: Tensor, gradient: Tensor) -> Tensor:
    return gradient.view_as(parameter).to(parameter.dtype)
