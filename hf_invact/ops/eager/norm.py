"""Norms in plain PyTorch.

`operators.norm.NormKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...norms import NormForm
from ...norms.record import Evaluated
from ..buffers import Buffers, compute_dtype, is_one_piece, multiply, pieces
from ..channels import affine_of, kept_channels, without_zeros

CPU_PIECE = 1 << 20  # elements; more than for activations, as each operation does less

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, factor and bias


def forward(
    x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = kept_channels(factor, bias, x.device)
    y, mean, reciprocal = exact_forward(x, without_zeros(factor, kept), bias, eps, dims, form)
    exact = x.flatten(x.dim() - dims).index_select(-1, kept).view(reciprocal.numel(), kept.numel()).to(reciprocal.dtype)
    if mean is not None:
        exact -= mean.unsqueeze(1)
    return y, reciprocal, exact.mul_(reciprocal.unsqueeze(1)), kept


def exact_forward(
    x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm
) -> Evaluated:
    shape = x.shape[x.dim() - dims :]
    factor, bias = (None if each is None else each.view(shape) for each in (factor, bias))
    return _of_rows(form.evaluate(x, factor, bias, eps, dims, reuse_memory=True), x)


def _of_rows(evaluated: Evaluated, x: Tensor) -> Evaluated:
    """With statistics of shape (rows,), in the dtype of computation."""
    y, mean, reciprocal = evaluated
    wide = compute_dtype(x)
    return Evaluated(y, None if mean is None else mean.reshape(-1).to(wide), reciprocal.reshape(-1).to(wide))


def backward(
    dy: Tensor,
    y: Tensor,
    reciprocal: Tensor,
    exact: Tensor,
    kept: Tensor,
    factor: Tensor | None,
    bias: Tensor | None,
    form: NormForm,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> Gradients:
    affine = affine_of(without_zeros(factor, kept), bias, y.dtype)

    def normalised(buffers: Buffers, y: Tensor, exact: Tensor) -> Tensor:
        result = buffers.like("normalised", y)
        if affine.inverse is None:
            result.copy_(y)
        elif affine.shift is None:
            torch.mul(y, affine.inverse, out=result)
        else:
            torch.addcmul(affine.shift, buffers.widen("output", y), affine.inverse, out=result)
        return result.index_copy_(1, kept, exact) if kept.numel() else result

    return _gradients(dy, (y, exact), normalised, reciprocal, affine.factor, form.centred, dtype, wanted)


def exact_backward(
    dy: Tensor, x: Tensor, mean: Tensor | None, reciprocal: Tensor, factor: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    if mean is not None and x.dtype == dy.dtype == reciprocal.dtype:
        return _layer_norm_gradients(dy, x, mean, reciprocal, factor, wanted)

    def normalised(buffers: Buffers, x: Tensor, reciprocal: Tensor, *mean: Tensor) -> Tensor:
        result = buffers.like("normalised", x)
        if mean:
            x = torch.sub(x, mean[0].unsqueeze(1), out=result)
        return torch.mul(x, reciprocal.unsqueeze(1), out=result)

    saved = (x, reciprocal) if mean is None else (x, reciprocal, mean)
    return _gradients(dy, saved, normalised, reciprocal, factor, mean is not None, x.dtype, wanted)


def _gradients(
    dy: Tensor,
    saved: Sequence[Tensor],
    normalised: Callable[..., Tensor],
    reciprocal: Tensor,
    factor: Tensor | None,
    is_centred: bool,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients from the normalised input, in pieces of rows if there are many.

    With the gradient ``g = dy * factor`` of a row's normalised input ``n``, the input's is
    ``reciprocal * (g - n * mean(g * n))``, and for a centred norm ``reciprocal * mean(g)`` less.

    Args:
        normalised: makes ``n`` of some rows from buffers and these rows of `saved`.
    """
    buffers, of_rows = Buffers(reciprocal.dtype, dy.device), _centred_gradients if is_centred else _plain_gradients

    def of_piece(out: Tensor | None, dy: Tensor, reciprocal: Tensor, *saved: Tensor) -> Gradients:
        gradient, of_input = buffers.widen("gradient", dy), normalised(buffers, *saved)
        dx, dfactor, dbias = of_rows(gradient, of_input, factor, wanted, buffers)
        if dx is None:
            return None, dfactor, dbias
        if out is None:
            return dx.mul_(reciprocal.unsqueeze(1)).to(dtype), dfactor, dbias
        multiply(reciprocal.unsqueeze(1), dx, out=out)
        return out, dfactor, dbias

    if is_one_piece(dy, CPU_PIECE):
        return of_piece(None, dy, reciprocal, *saved)
    dx = torch.empty_like(dy, dtype=dtype) if wanted[0] else None
    parts = [
        of_piece(None if dx is None else dx[start:stop], *(each[start:stop] for each in (dy, reciprocal, *saved)))
        for start, stop in pieces(dy, CPU_PIECE)
    ]
    return dx, _total([dfactor for _, dfactor, _ in parts]), _total([dbias for _, _, dbias in parts])


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [each for each in parts if each is not None]
    return torch.stack(tensors).sum(0) if tensors else None


def _plain_gradients(
    gradient: Tensor, normalised: Tensor, factor: Tensor | None, wanted: Sequence[bool], buffers: Buffers
) -> Gradients:
    products = torch.mul(gradient, normalised, out=buffers.like("products", gradient))
    dfactor = products.sum(0) if wanted[1] else None
    dbias = gradient.sum(0) if wanted[2] else None
    if not wanted[0]:
        return None, dfactor, dbias
    projection = (products.sum(1) if factor is None else products.mv(factor)).div_(-gradient.size(1))
    scaled = torch.mul(gradient, 1.0 if factor is None else factor, out=products)
    return scaled.addcmul_(normalised, projection.unsqueeze(1)), dfactor, dbias


def _centred_gradients(
    gradient: Tensor, normalised: Tensor, factor: Tensor | None, wanted: Sequence[bool], buffers: Buffers
) -> Gradients:
    """By PyTorch's own kernel: the normalised input has mean 0 and deviation 1."""
    statistics = gradient.new_zeros(gradient.size(0)), gradient.new_ones(gradient.size(0))
    return _layer_norm_gradients(gradient, normalised, *statistics, factor, wanted)


def _layer_norm_gradients(
    dy: Tensor, x: Tensor, mean: Tensor, reciprocal: Tensor, factor: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    """Gradients by the kernel of `torch.nn.functional.layer_norm`. (In half precision it adds them up in it.)"""
    if factor is None and wanted[2]:  # whose gradient it makes like the factor
        factor = torch.ones_like(dy[0])
    results = torch.ops.aten.native_layer_norm_backward(
        dy, x, [dy.size(1)], mean.unsqueeze(1), reciprocal.unsqueeze(1), factor, factor, list(wanted)
    )
    dx, dfactor, dbias = (each if is_wanted else None for each, is_wanted in zip(results, wanted, strict=True))
    return dx, dfactor, dbias
