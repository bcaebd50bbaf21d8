"""Registers the derivatives of operators, and refuses second derivatives: there is a formula for the gradient alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from .library import LIBRARY


def register_derivative(
    operator: OpOverload, setup_context: Callable[..., None], backward: Callable[..., Any], vmap: Callable[..., Any]
) -> None:
    """Register an operator's derivative, also for torch.func's transforms, which need an autograd function.

    Args:
        operator: has no derivative yet.
        setup_context, backward: as `torch.library.register_autograd` takes them.
        vmap: as `torch.autograd.Function.vmap`.
    """
    name = operator.name()
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=LIBRARY)

    def forward(*args: Any) -> Any:
        return operator(*args)

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "vmap": vmap}
    static_methods = {key: staticmethod(method) for key, method in methods.items()}
    function: Any = type(name.rpartition("::")[2], (torch.autograd.Function,), static_methods)
    LIBRARY.impl(name, function.apply, "FuncTorchDynamicLayerFrontMode")


def refuse_derivative(
    gradient_operator: OpOverload, label: Callable[[tuple[Any, ...]], str], vmap: Callable[..., Any]
) -> None:
    """Register that differentiating an operator that computes gradients raises NotImplementedError.

    Args:
        label: how the message calls the operation, from the operator's arguments.
        vmap: as `torch.autograd.Function.vmap`.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.label = label(inputs)

    def backward(ctx: Any, *grads: Tensor) -> None:
        raise second_derivative_refused(ctx.label)

    register_derivative(gradient_operator, setup_context, backward, vmap)


def batched(size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors of a `vmap`, each with its batch dimension in front; those without one are expanded."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]


def sample(tensor: Tensor, dim: int | None, index: int) -> Tensor:
    """One sample of a tensor of a `vmap`."""
    return tensor if dim is None else tensor.select(dim, index)


def second_derivative_refused(label: str) -> NotImplementedError:
    """The error for a second derivative.

    Args:
        label: how the message calls the operation.
    """
    return NotImplementedError(
        f"{label} has no second derivative: it has a formula for the gradient alone. To differentiate twice, unpatch "
        "the model (hf_invact.unpatch_model), or exclude this block with InvActConfig(exclude=[...])"
    )


def first_derivative_only(label: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the `backward` of an autograd function: differentiating what it returns raises NotImplementedError.

    (`once_differentiable` raises only if the incoming gradient requires a gradient. If it does not, the second
    derivative is silently dropped.)

    Args:
        label: how the message calls the operation.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return results
            output = ctx.saved_tensors[0]
            return tuple(
                _NotDifferentiable.apply(label, result, output) if result is not None else None for result in results
            )

        return wrapped

    return decorate


class _NotDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, label: str, result: Tensor, output: Tensor) -> Tensor:
        ctx.label = label
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise second_derivative_refused(ctx.label)
