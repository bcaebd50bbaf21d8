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
from ..eager import adapter as eager
from ..inputs import own_storage
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

    def masked(self, x: Tensor, kept: Tensor, dtype: torch.dtype, p: float) -> Tensor:
        """What `drop` has returned for ``x``, of the bits that it has returned.

        Returns:
            Of the shape of ``x`` and this dtype, rounded as `drop` rounds it.
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
        dropped, kept = _kernels(backend, x).drop(x, dtype, p, generator)
    else:
        dropped, kept = x.to(dtype), _no_bits(x)
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
    return y, x.new_empty(packed_size(x.numel()), dtype=torch.uint8) if p > 0 else _no_bits(x)


def _gradient_of_input(
    dy: Tensor,
    weight: Tensor,
    kept: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    x_dtype: torch.dtype,
    dtype: torch.dtype,
    p: float,
    backend: str,
) -> Tensor:
    dx = _times(dy, weight, size, stride).to(dtype)
    if kept is not None:
        dx = _kernels(backend, dx).masked(with_layout(dx, torch.Size(size), tuple(stride)), kept, dtype, p)
    return dx.to(x_dtype)


def _times(dy: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The product, with its sums in the order of PyTorch's gradient of a matrix with these strides."""
    is_column_major = len(size) == 2 and stride[0] == 1 and stride[1] == size[0]
    return weight.t().mm(dy.t()).t() if is_column_major else dy.matmul(weight)


def _fake_gradient_of_input(
    dy: Tensor,
    weight: Tensor,
    kept: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    x_dtype: torch.dtype,
    dtype: torch.dtype,
    p: float,
    backend: str,
) -> Tensor:
    if kept is None:
        return dy.matmul(weight).to(x_dtype)
    return torch.empty_strided(size, stride, dtype=x_dtype, device=dy.device)


def _gradient_of_weight(
    dy: Tensor, x: Tensor, kept: Tensor | None, weight_dtype: torch.dtype, dtype: torch.dtype, p: float, backend: str
) -> Tensor:
    dropped = x.to(dtype) if kept is None else _kernels(backend, x).masked(x, kept, dtype, p)
    return _rows(dy).t().mm(_rows(dropped.to(weight_dtype)))


def _fake_gradient_of_weight(
    dy: Tensor, x: Tensor, kept: Tensor | None, weight_dtype: torch.dtype, dtype: torch.dtype, p: float, backend: str
) -> Tensor:
    return x.new_empty(dy.size(-1), x.size(-1), dtype=weight_dtype)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.size(-1))


def _kernels(backend: str, like: Tensor) -> AdapterKernels:
    return implementation(choose_backend(backend, like))


def _no_bits(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.uint8)


ADAPTER_INPUT = define(
    "adapter_input(Tensor x, Tensor weight, ScalarType dtype, float p, str backend, "
    "ScalarType? computed=None, Generator? generator=None) -> (Tensor y, Tensor kept)",
    _forward,
    _fake_forward,
    torch.Tag.nondeterministic_seeded,
)
GRADIENT_OF_INPUT = define(
    "adapter_input_gradient(Tensor dy, Tensor weight, Tensor? kept, SymInt[] size, SymInt[] stride, "
    "ScalarType x_dtype, ScalarType dtype, float p, str backend) -> Tensor",
    _gradient_of_input,
    _fake_gradient_of_input,
)
GRADIENT_OF_WEIGHT = define(
    "adapter_weight_gradient(Tensor dy, Tensor x, Tensor? kept, ScalarType weight_dtype, ScalarType dtype, float p, "
    "str backend) -> Tensor",
    _gradient_of_weight,
    _fake_gradient_of_weight,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, *ctx.settings = inputs[:5]
    ctx.computed = inputs[5] or weight.dtype
    _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    dense = torch.empty_like(x, device="meta")  # in whose memory order the bits are
    ctx.x, ctx.weight_dtype = (dense.size(), dense.stride(), x.dtype), weight.dtype
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    # Each only if a gradient is computed from it: a frozen adapter keeps no input.
    x = own_storage(x, torch.preserve_format) if needs_weight else None
    ctx.save_for_backward(x, weight if needs_x else None, kept if kept.numel() else None)


def _apply_gradients(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    dx = dweight = None
    x, weight, kept = ctx.saved_tensors
    if dy is not None and weight is not None:
        dx = GRADIENT_OF_INPUT(dy, weight.to(ctx.computed), kept, *ctx.x, *ctx.settings)
    if dy is not None and x is not None:
        # The bits are in memory order, which hooks that move saved tensors elsewhere may have changed.
        size, stride, _ = ctx.x
        dweight = GRADIENT_OF_WEIGHT(dy, with_layout(x, size, stride), kept, ctx.computed, *ctx.settings)
        dweight = dweight.to(ctx.weight_dtype)
    return dx, dweight, None, None, None, None, None


torch.library.register_autograd(ADAPTER_INPUT.name(), _apply_gradients, setup_context=_setup_context, lib=LIBRARY)
