"""The operators for the input of an adapter: schemas, fake results and derivatives.

`kept` holds packed bits in the memory order of ``torch.empty_like(x)``. It is empty where nothing is dropped.
`computed` is the dtype of the product; None is that of the weight. The weight is cast to it inside of the operator, and
again in the backward pass, which so needs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backends import choose_backend
from ..bits import packed_size
from ..buffers import with_layout
from ..dropout import scales_of
from ..eager import adapter as eager
from ..inputs import own_storage
from .derivatives import second_derivative_refused
from .direct import directly, with_derivative_directly
from .library import LIBRARY, define


class AdapterKernels(Protocol):
    """What a backend's module `adapter` has to define."""

    def drop(self, x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """``F.dropout(x.to(dtype), p)``, with the same random numbers.

        Args:
            x: any shape, layout and floating dtype.
            p: above 0 and below 1.
            generator: draws the random numbers; None is PyTorch's.

        Returns:
            The result, and which elements are kept, as bits in its memory order, uint8, shape (ceil(numel / 8),).
        """

    def masked(self, x: Tensor, kept: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        """What `drop` has returned for ``x``, of the bits that it has returned, or the same of another tensor.

        Args:
            scale: one of `dropout.scales_of`.

        Returns:
            Of the shape of ``x`` and this dtype, in the memory order of ``torch.empty_like(x)``.
        """

    def both_masked(self, x: Tensor, dx: Tensor, kept: Tensor, scale: float, dx_scale: float) -> tuple[Tensor, Tensor]:
        """`masked` of two tensors in one pass, in the dtype of the second.

        Args:
            x: any layout.
            dx: dense, in the memory order of ``torch.empty_like(x)``. It may be overwritten with the result.
        """


@cache
def implementation(backend: str) -> AdapterKernels:
    """The module that computes the inputs of adapters: `adapter` in the backend's folder."""
    if backend == "compile":
        from ..inductor import adapter as inductor

        return inductor
    if backend == "triton":
        from ..triton import adapter as triton

        return triton
    return eager


def _forward(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    p: float,
    backend: str,
    computed: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    if p > 0:
        dropped, kept = _kernels(backend, dtype, x.device).drop(x, dtype, p, generator)
    else:
        dropped, kept = x.to(dtype), _nothing(x, torch.uint8)
    weight = weight.to(computed or weight.dtype)
    return torch.nn.functional.linear(dropped.to(weight.dtype), weight), kept


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    p: float,
    backend: str,
    computed: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    computed = computed or weight.dtype
    y = torch.nn.functional.linear(x.to(computed), weight.to(computed))
    return y, x.new_empty(packed_size(x.numel()), dtype=torch.uint8) if p > 0 else _nothing(x, torch.uint8)


def _gradients(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    kept: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    dtype: torch.dtype,
    p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dropped = dx = None
    if weight is not None:
        dx = _times(dy, weight, size, stride).to(dtype)
    if kept is None:
        dropped = None if x is None else x.to(dtype)
    else:
        kernels, scales = _kernels(backend, dtype, dy.device), scales_of(p, dtype, dy.device)
        dx = None if dx is None else with_layout(dx, torch.Size(size), tuple(stride))
        if x is not None and dx is not None:
            dropped, dx = kernels.both_masked(x, dx, kept, *scales)
        elif x is not None:
            dropped = kernels.masked(x, kept, dtype, scales.forward)
        elif dx is not None:
            dx = kernels.masked(dx, kept, dtype, scales.backward)
    return (
        _nothing(dy, x_dtype) if dx is None else dx.to(x_dtype),
        _nothing(dy, weight_dtype) if dropped is None else _rows(dy).t().mm(_rows(dropped.to(weight_dtype))),
    )


def _fake_gradients(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    kept: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    dtype: torch.dtype,
    p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if weight is None:
        dx = _nothing(dy, x_dtype)
    elif kept is None:
        dx = _times(dy, weight, size, stride).to(x_dtype)
    else:
        dx = torch.empty_strided(size, stride, dtype=x_dtype, device=dy.device)
    shape = (0,) if x is None else (dy.size(-1), x.size(-1))
    return dx, dy.new_empty(shape, dtype=weight_dtype)


def _times(dy: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The product, with its sums in the order of PyTorch's gradient of an input with these strides.

    PyTorch multiplies a matrix: the input with a dimension in front, or with all dimensions but the last as one.
    """
    if _is_contiguous(size, stride):
        return dy.matmul(weight)
    x = torch.empty_strided(size, stride, device="meta")
    matrix = x.unsqueeze(0) if x.dim() == 1 else x if x.dim() == 2 else _rows(x)
    is_column_major = matrix.stride(0) == 1 and matrix.stride(1) == matrix.size(0)
    return weight.t().mm(_rows(dy).t()).t().reshape(size) if is_column_major else dy.matmul(weight)


def _is_contiguous(size: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        if step != expected:
            return False
        expected *= length
    return True


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.size(-1))


def _kernels(backend: str, dtype: torch.dtype, device: torch.device) -> AdapterKernels:
    """Of the backend for tensors of the dtype in which elements are dropped."""
    chosen = choose_backend(backend, torch.empty(0, dtype=dtype, device=device))
    # On a CPU, compiled kernels took longer than PyTorch's own for all sizes, from 500 elements to 8 million: what they
    # save is a pass over masks that are in the cache anyway.
    return implementation("eager" if chosen == "compile" and device.type == "cpu" else chosen)


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    return like.new_empty(0, dtype=dtype)


ADAPTER_INPUT = define(
    "adapter_input(Tensor x, Tensor weight, ScalarType dtype, float p, str backend, "
    "ScalarType? computed=None, Generator? generator=None) -> (Tensor y, Tensor kept)",
    _forward,
    _fake_forward,
    torch.Tag.nondeterministic_seeded,
)
GRADIENTS = define(
    "adapter_input_gradients(Tensor dy, Tensor? x, Tensor? weight, Tensor? kept, SymInt[] size, SymInt[] stride, "
    "ScalarType x_dtype, ScalarType weight_dtype, ScalarType dtype, float p, str backend)"
    " -> (Tensor dx, Tensor dweight)",
    _gradients,
    _fake_gradients,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.dtype, ctx.p, ctx.backend, computed = inputs[:6]
    _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    dense = x if x.is_contiguous() else torch.empty_like(x, device="meta")  # in whose memory order the bits are
    ctx.layout = dense.size(), dense.stride()
    ctx.dtypes, ctx.weight_dtype = (x.dtype, computed or weight.dtype), weight.dtype
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    # Each only if a gradient is computed from it: a frozen adapter keeps no input.
    saved = own_storage(x, torch.preserve_format) if needs_weight else None
    ctx.is_copy = needs_x and needs_weight and saved is not x
    ctx.save_for_backward(saved, weight if needs_x else None, kept if kept.numel() else None)


def _apply_gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    dx = dweight = None
    x, weight, kept = ctx.saved_tensors
    weight = None if weight is None else weight.to(ctx.dtypes[1])
    if dy is None:
        pass
    elif torch.is_grad_enabled():
        dx, dweight = _differentiable_gradients(ctx, dy, x, weight, kept)
    else:
        # The bits are in memory order, which hooks that move saved tensors elsewhere may have changed.
        x = None if x is None else with_layout(x, *ctx.layout)
        dx, dweight = _call_gradients(dy, x, weight, kept, *ctx.layout, *ctx.dtypes, ctx.dtype, ctx.p, ctx.backend)
    dx = None if weight is None else dx
    dweight = None if x is None or dweight is None else dweight.to(ctx.weight_dtype)
    return dx, dweight, *(None for _ in ctx.needs_input_grad[2:])


def _differentiable_gradients(
    ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, kept: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The same by PyTorch's own functions, which have all further derivatives."""
    if ctx.is_copy:
        raise second_derivative_refused("the input of an adapter that is a part of a larger tensor")
    x_dtype, weight_dtype = ctx.dtypes
    noise: Tensor | float = 1.0
    if kept is not None:
        with torch.no_grad():
            ones = torch.empty_strided(*ctx.layout, dtype=ctx.dtype, device=dy.device).fill_(1.0)
            scale = scales_of(ctx.p, ctx.dtype, dy.device).forward
            noise = _kernels(ctx.backend, ctx.dtype, dy.device).masked(ones, kept, ctx.dtype, scale)
    dx = None if weight is None else (_times(dy, weight, *ctx.layout).to(ctx.dtype) * noise).to(x_dtype)
    dweight = None if x is None else _rows(dy).t() @ _rows((x.to(ctx.dtype) * noise).to(weight_dtype))
    return dx, dweight


torch.library.register_autograd(ADAPTER_INPUT.name(), _apply_gradients, setup_context=_setup_context, lib=LIBRARY)
adapter_input = with_derivative_directly(ADAPTER_INPUT, _forward, _setup_context, _apply_gradients)
_call_gradients = directly(GRADIENTS, _gradients)
