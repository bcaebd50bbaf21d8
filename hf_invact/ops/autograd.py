"""The autograd function of element-wise operations that choose what they keep for the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .layout import with_layout

WAY_OUT = (
    "It has a formula for the gradient alone: for more, unpatch the model "
    "(hf_invact.unpatch_model), or leave this block as it is with InvActConfig(exclude=[...])"
)


class Operation(Protocol):
    """An element-wise operation on tensors of one shape."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output, and the side bits in its memory order."""

    def kept(self, output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Which of them the backward pass gets."""

    def backward(self, dy: Tensor, kept: tuple[Tensor, ...], side: Tensor | None) -> tuple[Tensor, ...]:
        """The gradient of each input. The first of `kept` has the output's strides."""


class Inverted(torch.autograd.Function):
    """Saves what the operation says, and packed side bits.

    Source: "Inverted Activations", arXiv 2407.15545: the output, which is the very tensor that it returns, is kept by
    the next layer anyway.
    """

    @staticmethod
    def forward(operation: Operation, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        return operation.forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        ctx.operation, *tensors = inputs
        y, side = output
        if side is not None:
            ctx.mark_non_differentiable(side)
        kept = ctx.operation.kept(y, tuple(tensors))
        ctx.save_for_backward(*kept, side)
        ctx.set_materialize_grads(False)
        ctx.stride = y.stride()

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        first, *others, side = ctx.saved_tensors
        # The bits are in memory order, which hooks that move saved tensors elsewhere need not keep.
        first = with_layout(first, first.size(), ctx.stride)
        return None, *Gradient.apply(ctx.operation, side, dy, first, *others)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], operation: Operation, *inputs: Tensor) -> Any:
        """`torch.vmap`: one more dimension is nothing to an element-wise function. All samples share their bits."""
        return Inverted.apply(operation, *_batched(info.batch_size, in_dims[1:], inputs)), (0, None)


class Gradient(torch.autograd.Function):
    """The gradients of the operation's inputs, of which there is no derivative."""

    @staticmethod
    def forward(operation: Operation, side: Tensor | None, dy: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        return operation.backward(dy, kept, side)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name = inputs[0].name

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{ctx.name} has no second derivative. {WAY_OUT}")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        operation: Operation,
        side: Tensor | None,
        *tensors: Tensor,
    ) -> Any:
        """Many gradients of one output, or those of many samples, which share their bits."""
        dims = in_dims[2:]
        if dims[1] is not None:
            batched = _batched(info.batch_size, dims, tensors)
            # As at the time of forward, when all had their batch dimension in front.
            return Gradient.apply(operation, side, *batched), (0,) * (len(tensors) - 1)
        each = [
            Gradient.apply(operation, side, *(_sample(*pair, index) for pair in zip(tensors, dims, strict=True)))
            for index in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])


def _batched(size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """All with a batch dimension in front."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]


def _sample(tensor: Tensor, dim: int | None, index: int) -> Tensor:
    return tensor if dim is None else tensor.select(dim, index)


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
        raise NotImplementedError(f"{ctx.name} has no second derivative. {WAY_OUT}")
