"""Norms that save for backward what the next layer saves anyway."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from ..norms import NormForm, form_by_name
from .backends import AUTO, check_backend
from .channels import tells_output
from .inputs import active_dtype, apply_to_local_parts, is_distributed, wants_gradient
from .operators.norm_derivatives import normalize_keeping_input, normalize_keeping_output

NormSaving = Literal["output", "input"]
NORM_SAVINGS: tuple[NormSaving, ...] = ("output", "input")


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    form: NormForm,
    eps: float,
    dims: int = 1,
    saving: NormSaving = "output",
    backend: str | None = None,
) -> Tensor:
    """``form.forward(x, weight, bias, eps, dims)``, saving its output or its input, and one number per row.

    Args:
        x: shape (..., *normalized_shape), any memory layout and floating dtype. Of a DTensor that is not sharded in a
            dimension that is normalised each process computes its local part.
        weight, bias: shape normalized_shape.
        form: how the norm is computed.
        eps: is added to the variance.
        dims: how many dimensions are normalised.
        saving: "output" saves the output, and the normalised input of up to four channels that the output tells least:
            those with the smallest weight, or the largest bias beside it. Weights of other channels below 2^-60 are
            replaced by that number, so that the output tells their normalised input. "input" saves ``x``, and is exact.
            "output" does the same if the output is in float16, whose range is too small.
        backend: "eager", "compile" or "triton"; None or "auto" chooses (see `backends.choose_backend`).

    Raises:
        ValueError: unknown backend or `saving`.
        RuntimeError: a backend that was chosen by name does not support ``x``.
    """
    backend = AUTO if backend is None else backend
    check_norm_saving(saving)
    if not _is_supported(x, weight, bias, dims):
        check_backend(backend)
        return form.forward(x, weight, bias, eps, dims)
    if is_distributed(x):
        local_weight, local_bias = (_local(each, x) for each in (weight, bias))
        return apply_to_local_parts(
            lambda part: normalize(part, local_weight, local_bias, form, eps, dims, saving, backend), x
        )
    x, weight, bias = _autocast(x, weight, bias, form, dims)
    dtypes = x.dtype, None if weight is None else weight.dtype, None if bias is None else bias.dtype
    keeps_output = saving == "output" and tells_output(form, *dtypes)
    function = normalize_keeping_output if keeps_output else normalize_keeping_input
    y: Tensor = function(x, weight, bias, eps, dims, form.name, backend)[0]
    return y


def check_norm_saving(saving: str) -> None:
    """Check what a norm is asked to save.

    Raises:
        ValueError: it is neither "output" nor "input".
    """
    if saving not in NORM_SAVINGS:
        raise ValueError(f"saving must be one of {', '.join(map(repr, NORM_SAVINGS))}, got {saving!r}")


def _is_supported(x: Any, weight: Any, bias: Any, dims: int) -> bool:
    """Whether there is a gradient to compute, and the operators can. PyTorch raises its own errors for the rest."""
    parameters = [each for each in (weight, bias) if each is not None]
    if not wants_gradient(x, *parameters) or not 0 < dims <= x.dim() or not x.is_floating_point():
        return False
    shape = x.shape[x.dim() - dims :]
    if 0 in shape or any(each.shape != shape or each.device != x.device for each in parameters):
        return False
    if not is_distributed(x):
        return not any(is_distributed(each) for each in parameters)
    if any(_is_sharded_in(placement, x.dim() - dims) for placement in x.placements):
        return False
    return all(is_distributed(each) and _is_replicated_on(x.device_mesh, each) for each in parameters)


def _is_replicated_on(mesh: Any, parameter: Any) -> bool:
    return parameter.device_mesh == mesh and all(placement.is_replicate() for placement in parameter.placements)


def _is_sharded_in(placement: Any, first: int) -> bool:
    """Whether a DTensor's placement shards this dimension or one behind it."""
    return not (placement.is_replicate() or placement.is_partial()) and placement.dim >= first


def _local(parameter: Any, x: Any) -> Tensor | None:
    """A replicated parameter's local part, whose gradient each process has for its own rows."""
    if parameter is None:
        return None
    from torch.distributed.tensor import Partial, Replicate

    placements = [Replicate() if place.is_replicate() or place.is_partial() else Partial() for place in x.placements]
    local: Tensor = parameter.to_local(grad_placements=placements)
    return local


def _autocast(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: NormForm, dims: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The tensors as PyTorch's own functions cast them under the autocast that is active.

    They are cast before the operator is called, because a compiled graph runs without autocast. Norms that are not one
    function compute in float32 as it is.
    """
    dtype = active_dtype(x)
    if dtype is None or not form.function:
        return x, weight, bias
    dtype = _result_dtype(form.name, x.dtype, x.device.type, dtype)
    if dtype == x.dtype:
        return x, weight, bias
    return x.to(dtype), None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


@torch.compiler.assume_constant_result
def _result_dtype(form: str, dtype: torch.dtype, device: str, autocast_dtype: torch.dtype) -> torch.dtype:
    return _cached_result_dtype(form, dtype, device, autocast_dtype)


@cache
def _cached_result_dtype(form: str, dtype: torch.dtype, device: str, autocast_dtype: torch.dtype) -> torch.dtype:
    with torch.no_grad():
        return form_by_name(form).forward(torch.empty(0, 1, dtype=dtype, device=device), None, None, 1.0).dtype
