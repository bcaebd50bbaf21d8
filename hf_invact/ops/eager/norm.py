"""Norms in plain PyTorch, in cache-sized pieces of rows.

`operators.norm.NormKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...norms import NormForm
from ...norms.record import Evaluated
from ..buffers import Buffers, as_rows, compute_dtype, multiply, pieces
from ..channels import affine_of, kept_channels, without_zeros

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, factor and bias

# Threads share a sum of this many numbers if it is the only one, so a single row might differ from one among others.
LONG_ROW = 1 << 15


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
    whole = x.shape[x.dim() - dims :]
    is_cut = x.is_contiguous() and not form.is_one_kernel and math.prod(whole) < LONG_ROW
    bounds = list(pieces(as_rows(x, dims))) if is_cut else []
    if len(bounds) <= 1:
        factor, bias = (None if each is None else each.view(whole) for each in (factor, bias))
        return _of_rows(form.evaluate(x, factor, bias, eps, dims), x)
    rows = as_rows(x, dims)
    y = torch.empty_like(x, dtype=form.evaluate(rows[:0], factor, bias, eps).y.dtype)
    statistics = []
    for start, stop in bounds:
        part = _of_rows(form.evaluate(rows[start:stop], factor, bias, eps), x)
        y.view(rows.shape)[start:stop] = part.y
        statistics.append(part[1:])
    means, reciprocals = zip(*statistics, strict=True)
    return Evaluated(y, torch.cat(means) if form.centred else None, torch.cat(reciprocals))


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
    buffers = Buffers(reciprocal.dtype, y.device)

    def normalised(start: int, stop: int) -> Tensor:
        output, result = y[start:stop], _rows_of(buffers, "normalised", y[start:stop])
        if affine.inverse is None:
            result.copy_(output)
        elif affine.shift is None:
            torch.mul(output, affine.inverse, out=result)
        else:
            torch.addcmul(affine.shift, _widen(buffers, "output", output), affine.inverse, out=result)
        return result.index_copy_(1, kept, exact[start:stop]) if kept.numel() else result

    return _gradients(dy, normalised, reciprocal, affine.factor, form.centred, dtype, wanted)


def exact_backward(
    dy: Tensor, x: Tensor, mean: Tensor | None, reciprocal: Tensor, factor: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    if mean is not None and x.dtype == dy.dtype == reciprocal.dtype:
        return _layer_norm_gradients(dy, x, mean, reciprocal, factor, wanted)
    buffers = Buffers(reciprocal.dtype, x.device)

    def normalised(start: int, stop: int) -> Tensor:
        inputs, result = x[start:stop], _rows_of(buffers, "normalised", x[start:stop])
        if mean is not None:
            inputs = torch.sub(inputs, mean[start:stop, None], out=result)
        return torch.mul(inputs, reciprocal[start:stop, None], out=result)

    return _gradients(dy, normalised, reciprocal, factor, mean is not None, x.dtype, wanted)


def _gradients(
    dy: Tensor,
    normalised: Callable[[int, int], Tensor],
    reciprocal: Tensor,
    factor: Tensor | None,
    is_centred: bool,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients from the normalised input of pieces of rows.

    With the gradient ``g = dy * factor`` of a row's normalised input ``n``, the input's is
    ``reciprocal * (g - n * mean(g * n))``, and for a centred norm ``reciprocal * mean(g)`` less.
    """
    dx = torch.empty_like(dy, dtype=dtype) if wanted[0] else None
    dfactor, dbias = (reciprocal.new_zeros(dy.size(1)) if each else None for each in wanted[1:])
    buffers, of_piece = Buffers(reciprocal.dtype, dy.device), _centred_gradients if is_centred else _plain_gradients
    for start, stop in pieces(dy):
        gradient = _widen(buffers, "gradient", dy[start:stop])
        piece = of_piece(gradient, normalised(start, stop), factor, wanted, buffers)
        if dx is not None and piece[0] is not None:
            multiply(reciprocal[start:stop, None], piece[0], out=dx[start:stop])
        for total, part in zip((dfactor, dbias), piece[1:], strict=True):
            if total is not None and part is not None:
                total += part
    return dx, dfactor, dbias


def _plain_gradients(
    gradient: Tensor, normalised: Tensor, factor: Tensor | None, wanted: Sequence[bool], buffers: Buffers
) -> Gradients:
    products = torch.mul(gradient, normalised, out=_rows_of(buffers, "products", gradient))
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
    mean = torch.zeros(gradient.size(0), dtype=gradient.dtype, device=gradient.device)
    return _layer_norm_gradients(gradient, normalised, mean, torch.ones_like(mean), factor, wanted)


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


def _rows_of(buffers: Buffers, name: str, like: Tensor) -> Tensor:
    return buffers.empty(name, like.numel()).view(like.shape)


def _widen(buffers: Buffers, name: str, piece: Tensor) -> Tensor:
    return buffers.widen(name, piece.view(-1)).view(piece.shape)
