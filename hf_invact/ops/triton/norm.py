"""Norms by Triton's kernels: one pass over memory each.

`operators.norm.NormKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...norms import NormForm
from ...norms.record import HALF, Evaluated
from ..buffers import as_rows
from ..channels import count_kept
from ..eager import norm as eager
from ..eager.norm import Gradients
from . import norm_kernels as kernels
from .launch import launch, next_power_of_2

# A row has to fit into the registers of one program.
MOST_CHANNELS = 1 << 15

# A program handles several narrow rows at once, and has a warp for so many elements, up to the most that any GPU runs.
TILE = 1024
ELEMENTS_PER_WARP = 512
MOST_WARPS = 16

# Of the backward pass: enough for every GPU, and few enough that adding up their sums costs little.
PROGRAMS = 512


def forward(
    x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _is_supported(x, dims):
        return eager.forward(x, factor, bias, eps, dims, form)
    rows = as_rows(x, dims)
    kept = torch.empty(count_kept(rows.size(1), factor, bias), dtype=torch.int64, device=x.device)
    if kept.numel():
        tiny = torch.finfo(torch.float32).tiny
        tensors = _or(factor, kept), _or(bias, kept), kept
        options = {**_has(factor, bias), "KEPT": kept.numel(), "BLOCK": next_power_of_2(rows.size(1))}
        launch(kernels.choose_kept, 1, x.device, *tensors, rows.size(1), tiny, **options, num_warps=4)
    exact = torch.empty(rows.size(0), kept.numel(), dtype=torch.float32, device=x.device)
    y, _, reciprocal = _forward(x, rows, factor, bias, kept, exact, eps, form)
    return y, reciprocal, exact, kept


def exact_forward(
    x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm
) -> Evaluated:
    if not _is_supported(x, dims):
        return eager.exact_forward(x, factor, bias, eps, dims, form)
    nothing = torch.empty(0, device=x.device)
    return _forward(x, as_rows(x, dims), factor, bias, nothing, nothing, eps, form)


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
    if y.size(1) > MOST_CHANNELS:
        return eager.backward(dy, y, reciprocal, exact, kept, factor, bias, form, dtype, wanted)
    saved = reciprocal, reciprocal, exact, kept
    options = {"IS_OUTPUT": True, "CENTRED": form.centred, "KEPT": kept.numel()}
    return _backward(dy, y, saved, factor, bias, dtype, wanted, options)


def exact_backward(
    dy: Tensor, x: Tensor, mean: Tensor | None, reciprocal: Tensor, factor: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    if x.size(1) > MOST_CHANNELS:
        return eager.exact_backward(dy, x, mean, reciprocal, factor, wanted)
    saved = _or(mean, reciprocal), reciprocal, reciprocal, reciprocal
    options = {"IS_OUTPUT": False, "CENTRED": mean is not None, "KEPT": 0}
    return _backward(dy, x, saved, factor, None, x.dtype, wanted, options)


def _forward(
    x: Tensor,
    rows: Tensor,
    factor: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    exact: Tensor,
    eps: float,
    form: NormForm,
) -> Evaluated:
    of_factor, of_bias = (None if each is None else each.dtype for each in (factor, bias))
    y = torch.empty_like(x, dtype=form.result_dtype(x.dtype, of_factor, of_bias))
    reciprocal = torch.empty(rows.size(0), dtype=torch.float32, device=x.device)
    mean = torch.empty_like(reciprocal) if form.centred else None
    options = {
        "CENTRED": form.centred,
        "DIVIDES": form.divides,
        "ROOT_IS_ROUNDED": form.root_is_rounded,
        "ROUNDS_TO_INPUT": form.rounds == "to input",
        "ROUNDS_TO_FACTOR": form.rounds == "to half weight" and of_factor in HALF,
        "PRODUCT_IS_ROUNDED": not form.keeps_dtype,
        "KEPT": kept.numel(),
        **_has(factor, bias),
    }
    tensors = rows, _or(factor, x), _or(bias, x), kept, y, _or(mean, reciprocal), reciprocal, exact
    tile = _tile(rows.size(1))
    launch(
        kernels.norm_forward, -(-rows.size(0) // tile["ROWS"]), x.device, *tensors, *rows.shape, eps, **options, **tile
    )
    return Evaluated(y, mean, reciprocal)


def _backward(
    dy: Tensor,
    source: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    factor: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    wanted: Sequence[bool],
    options: dict[str, Any],
) -> Gradients:
    rows, channels = source.shape
    tile = _tile(channels)
    programs = min(PROGRAMS, -(-rows // tile["ROWS"]))
    dx = torch.empty_like(source, dtype=dtype) if wanted[0] else None
    dfactors, dbiases = (
        torch.empty(programs, channels, dtype=torch.float32, device=source.device) if each else None
        for each in wanted[1:]
    )
    tensors = dy, source, *saved, *(_or(each, source) for each in (factor, bias, dx, dfactors, dbiases))
    error = torch.finfo(source.dtype).eps / 4
    options |= dict(zip(("WANTS_X", "WANTS_FACTOR", "WANTS_BIAS"), wanted, strict=True))
    launch(
        kernels.norm_backward,
        programs,
        source.device,
        *tensors,
        rows,
        channels,
        error,
        **options,
        **_has(factor, bias),
        **tile,
    )
    dfactor, dbias = (None if each is None else each.sum(0) for each in (dfactors, dbiases))
    return dx, dfactor, dbias


def _is_supported(x: Tensor, dims: int) -> bool:
    return x.is_contiguous() and as_rows(x, dims).size(1) <= MOST_CHANNELS


def _tile(channels: int) -> dict[str, int]:
    block = next_power_of_2(channels)
    rows = max(1, TILE // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(MOST_WARPS, max(2, rows * block // ELEMENTS_PER_WARP))}


def _has(factor: Tensor | None, bias: Tensor | None) -> dict[str, bool]:
    return {"HAS_FACTOR": factor is not None, "HAS_BIAS": bias is not None}


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or another one in its place, which the kernel does not read."""
    return other if tensor is None else tensor
