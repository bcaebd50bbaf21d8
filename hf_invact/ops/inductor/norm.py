"""The gradients of norms through PyTorch's compiler: one pass over memory instead of one for each operation.

The forward pass is the eager backend's, so that the output is equal in every bit.
`operators.norm.NormKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...norms import NormForm
from ..channels import affine_of, without_zeros
from ..eager import norm as eager
from ..eager.norm import Gradients
from .compiler import compiled_for_any_size

# On a CPU its few operations take no longer than a compiled kernel, whose sum over the rows is slow.
LEFT_TO_EAGER = ("cpu",)

forward = eager.forward
exact_forward = eager.exact_forward


class Case(NamedTuple):
    """What a compiled function computes.

    Attributes:
        is_output: from the output, not from the input.
        kept: how many channels are kept beside the output.
        wants_x, wants_factor, wants_bias: which gradients.
    """

    is_output: bool
    is_centred: bool
    has_shift: bool
    kept: int
    wants_x: bool
    wants_factor: bool
    wants_bias: bool


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
    if dy.device.type in LEFT_TO_EAGER:
        return eager.backward(dy, y, reciprocal, exact, kept, factor, bias, form, dtype, wanted)
    affine = affine_of(without_zeros(factor, kept), bias, y.dtype)
    ones = reciprocal.new_ones(y.size(1))
    shift = torch.zeros_like(ones) if affine.shift is None else affine.shift.index_fill(0, kept, 0.0)
    inverse = (ones if affine.inverse is None else affine.inverse).index_fill(0, kept, 0.0)
    is_kept = reciprocal.new_zeros(kept.numel(), y.size(1)).scatter_(1, kept.unsqueeze(1), 1.0)
    case = Case(True, form.centred, affine.shift is not None, kept.numel(), *wanted)
    factor_or_ones = ones if affine.factor is None else affine.factor
    return _run(case, dtype, [factor_or_ones, inverse, shift, is_kept], [dy, y, exact, reciprocal, reciprocal])


def exact_backward(
    dy: Tensor, x: Tensor, mean: Tensor | None, reciprocal: Tensor, factor: Tensor | None, wanted: Sequence[bool]
) -> Gradients:
    if dy.device.type in LEFT_TO_EAGER:
        return eager.exact_backward(dy, x, mean, reciprocal, factor, wanted)
    ones = reciprocal.new_ones(x.size(1)) if factor is None else factor
    case = Case(False, mean is not None, False, 0, *wanted)
    rows = [dy, x, reciprocal, reciprocal if mean is None else mean, reciprocal]
    return _run(case, x.dtype, [ones, ones, ones, ones], rows)


def _run(case: Case, dtype: torch.dtype, constants: list[Tensor], rows: list[Tensor]) -> Gradients:
    dy = rows[0]
    dx = torch.empty_like(dy, dtype=dtype) if case.wants_x else None
    sums = [torch.empty_like(constants[0]) for _ in range(2)]
    compiled = _compiled(case, dy.size(1), dy.device, (dtype, dy.dtype, rows[1].dtype, constants[0].dtype))
    compiled(sums[0] if dx is None else dx, *sums, *constants, *rows)
    dfactor, dbias = (each if is_wanted else None for each, is_wanted in zip(sums, case[-2:], strict=True))
    return dx, dfactor, dbias


@cache
def _compiled(case: Case, channels: int, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Callable[..., Any]:
    """The function for any number of rows on a device."""

    def of_tensors(*tensors: Tensor) -> None:
        _gradients(case, *tensors)

    return compiled_for_any_size(of_tensors, f"norm_of_{channels}_channels", {})


def _gradients(
    case: Case,
    dx: Tensor,
    dfactor: Tensor,
    dbias: Tensor,
    factor: Tensor,
    inverse: Tensor,
    shift: Tensor,
    is_kept: Tensor,
    dy: Tensor,
    source: Tensor,
    exact: Tensor,
    mean: Tensor,
    reciprocal: Tensor,
) -> None:
    """The function that is compiled. See `eager.norm` for the formula.

    Args:
        inverse, shift: 0 in the channels that are kept.
        is_kept: 1 where the row's channel is the column's, else 0, shape (kept, channels).
    """
    dy, source = dy.to(factor.dtype), source.to(factor.dtype)
    if case.is_output:
        normalised = source * inverse + shift if case.has_shift else source * inverse
        for i in range(case.kept):
            normalised = normalised + exact[:, i : i + 1] * is_kept[i]
    else:
        normalised = (source - mean.unsqueeze(1) if case.is_centred else source) * reciprocal.unsqueeze(1)
    if case.wants_x:
        gradient = dy * factor
        result = gradient - normalised * (gradient * normalised).mean(1, keepdim=True)
        if case.is_centred:
            result = result - gradient.mean(1, keepdim=True)
        dx.copy_(result * reciprocal.unsqueeze(1))
    if case.wants_factor:
        dfactor.copy_((dy * normalised).sum(0))
    if case.wants_bias:
        dbias.copy_(dy.sum(0))
