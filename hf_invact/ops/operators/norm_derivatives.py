"""What the operators for norms save for backward, and how they are differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ...norms import form_by_name
from . import norm
from .derivatives import refuse_derivative, register_derivative, sample
from .direct import directly, with_derivative_directly


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """The same output that is returned, which the next layer saves anyway, in place of the input."""
    x, weight, bias, _, ctx.dims, ctx.form, ctx.backend = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)
    ctx.dtype = x.dtype
    ctx.save_for_backward(*output, weight, bias)


def _gradients_from_output(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _norm_backward(dy, *ctx.saved_tensors, ctx.dims, ctx.dtype, wanted, ctx.form, ctx.backend)
    return *_wanted(gradients, wanted), None, None, None, None


def _save_input(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.dims, ctx.form, ctx.backend = inputs
    _, mean, reciprocal = output
    ctx.mark_non_differentiable(mean, reciprocal)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, mean if form_by_name(ctx.form).centred else None, reciprocal, weight, bias)


def _gradients_from_input(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _exact_norm_backward(dy, *ctx.saved_tensors, ctx.dims, wanted, ctx.form, ctx.backend)
    return *_wanted(gradients, wanted), None, None, None, None


def _wanted(gradients: tuple[Tensor, ...], wanted: list[bool]) -> list[Tensor | None]:
    return [each if is_wanted else None for each, is_wanted in zip(gradients, wanted, strict=True)]


def _sample_by_sample(operator: OpOverload) -> Callable[..., Any]:
    """The rule for `vmap`. Each sample has gradients of the weight of its own, so it is computed for itself."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        samples = [
            operator(
                *(
                    sample(value, dim, index) if isinstance(value, Tensor) else value
                    for value, dim in zip(args, in_dims, strict=True)
                )
            )
            for index in range(info.batch_size)
        ]
        results = tuple(map(torch.stack, zip(*samples, strict=True)))
        return results, (0,) * len(results)

    return vmap


register_derivative(norm.NORM, _save_output, _gradients_from_output, _sample_by_sample(norm.NORM))
register_derivative(norm.EXACT_NORM, _save_input, _gradients_from_input, _sample_by_sample(norm.EXACT_NORM))
refuse_derivative(norm.NORM_BACKWARD, lambda _: "an inverted norm", _sample_by_sample(norm.NORM_BACKWARD))
refuse_derivative(
    norm.EXACT_NORM_BACKWARD, lambda _: "a norm that keeps its input", _sample_by_sample(norm.EXACT_NORM_BACKWARD)
)

normalize_keeping_output = with_derivative_directly(norm.NORM, norm.compute_norm, _save_output, _gradients_from_output)
normalize_keeping_input = with_derivative_directly(
    norm.EXACT_NORM, norm.compute_exact_norm, _save_input, _gradients_from_input
)
_norm_backward = directly(norm.NORM_BACKWARD, norm.compute_norm_backward)
_exact_norm_backward = directly(norm.EXACT_NORM_BACKWARD, norm.compute_exact_norm_backward)
