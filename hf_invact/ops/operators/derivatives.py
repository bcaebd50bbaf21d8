"""There is a formula for the gradient alone: a second derivative is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WAY_OUT = (
    "It has a formula for the gradient alone: for more, unpatch the model "
    "(hf_invact.unpatch_model), or leave this block as it is with InvActConfig(exclude=[...])"
)


def refusal(name: str) -> NotImplementedError:
    """What is raised where a second derivative is asked for.

    Args:
        name: how the message calls the operation.
    """
    return NotImplementedError(f"{name} has no second derivative. {WAY_OUT}")


def first_derivative_only(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps a function's backward: differentiating what it returns raises. (`once_differentiable` does so only where
    the incoming gradient needs one, and else drops the second derivative in silence.)

    Args:
        name: how the message calls the operation.
    """

    def wrap(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Tensor) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return results
            output = ctx.saved_tensors[0]
            return tuple(
                _Undifferentiable.apply(name, result, output) if result is not None else None for result in results
            )

        return wrapped

    return wrap


class _Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, result: Tensor, output: Tensor) -> Tensor:
        ctx.name = name
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise refusal(ctx.name)
