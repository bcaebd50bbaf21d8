"""Norms in plain PyTorch, in cache-sized pieces of rows.

`operators.norm.NormKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...norms import NormForm
from ...norms.record import Evaluated
from ..buffers import Buffers, as_rows, pieces
from ..channels import Affine

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, factor and bias

# Threads share a sum of this many numbers if it is the only one, so a single row might differ from one among others.
LONG_ROW = 1 << 15


def forward(x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm) -> Evaluated:
    rows = as_rows(x, dims)
    bounds = list(pieces(rows)) if rows.size(1) < LONG_ROW else []
    if len(bounds) <= 1 or form.is_one_kernel:
        return evaluate(x, factor, bias, eps, dims, form)
    y: Tensor | None = None
    means: list[Tensor] = []
    reciprocals: list[Tensor] = []
    for start, stop in bounds:
        part, mean, reciprocal = form.evaluate(rows[start:stop], factor, bias, eps)
        y = torch.empty_like(x, dtype=part.dtype) if y is None else y
        y.view(rows.shape)[start:stop] = part
        means += [] if mean is None else [mean.view(-1)]
        reciprocals.append(reciprocal.view(-1))
    assert y is not None
    return Evaluated(y, torch.cat(means) if means else None, torch.cat(reciprocals))


def evaluate(x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm) -> Evaluated:
    """The same at once, of any layout."""
    shape = x.shape[x.dim() - dims :]
    factor, bias = (None if each is None else each.view(shape) for each in (factor, bias))
    y, mean, reciprocal = form.evaluate(x, factor, bias, eps, dims)
    return Evaluated(y, None if mean is None else mean.reshape(-1), reciprocal.reshape(-1))


def backward(
    dy: Tensor,
    y: Tensor,
    reciprocal: Tensor,
    exact: Tensor,
    affine: Affine,
    form: NormForm,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> Gradients:
    buffers = Buffers(reciprocal.dtype, y.device)

    def normalised(start: int, stop: int) -> Tensor:
        output, result = y[start:stop], _rows_of(buffers, "normalised", y[start:stop])
        if affine.inverse is None:
            result.copy_(output)
        elif affine.shift is None:
            torch.mul(output, affine.inverse, out=result)
        else:
            torch.addcmul(affine.shift, _widen(buffers, "output", output), affine.inverse, out=result)
        return result.index_copy_(1, affine.kept, exact[start:stop]) if affine.kept.numel() else result

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
            dx[start:stop] = piece[0].mul_(reciprocal[start:stop, None])
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
