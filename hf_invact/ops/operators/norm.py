"""The operators for norms: schemas, kernels and fake results.

An operator takes the form of a norm and a backend by their names, because its arguments can only be tensors, numbers
and strings. `reciprocal` is one over the deviation of each row. `exact` holds the normalised input of the channels
`kept`, which the output tells least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ...norms import NormForm, form_by_name
from ...norms.record import Evaluated
from ..backends import choose_backend
from ..buffers import as_rows, compute_dtype
from ..channels import count_kept
from ..eager import norm as eager
from ..eager.norm import Gradients
from .library import define


class NormKernels(Protocol):
    """What a backend's module `norm` has to define.

    Statistics and the normalised input are in float32 (float64 for float64), and gradients are computed in it: those of
    the input (in its dtype), of the factor and of the bias (not rounded). Only those that are `wanted` are needed. All
    tensors but ``x`` of the forward pass are contiguous.
    """

    def forward(
        self, x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the form computes, but for a factor next to 0 (see `channels.without_zeros`).

        Args:
            x: shape (..., *normalized_shape), any floating dtype and layout.
            factor, bias: shape (channels,), any floating dtype.
            dims: how many dimensions are normalised.

        Returns:
            The output, of the shape of ``x`` and no view, so that it may be changed in place where PyTorch's may; one
            over the deviation, shape (rows,); the normalised input of the channels that are kept, shape (rows, kept);
            and their indices, int64 (see `channels.kept_channels`).
        """

    def backward(
        self,
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
        """Gradients from what `forward` has returned.

        Args:
            dy, y: shape (rows, channels), any floating dtype.
            dtype: of the input.
        """

    def exact_forward(
        self, x: Tensor, factor: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: NormForm
    ) -> Evaluated:
        """What the form computes, with statistics of shape (rows,). For arguments and output see `forward`."""

    def exact_backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor | None,
        reciprocal: Tensor,
        factor: Tensor | None,
        wanted: Sequence[bool],
    ) -> Gradients:
        """Gradients from the input and the statistics.

        Args:
            dy, x: shape (rows, channels), any floating dtype.
            mean: shape (rows,); None for a norm that is not centred.
        """


@cache
def implementation(backend: str) -> NormKernels:
    """The module that computes norms: `norm` in the backend's folder."""
    if backend == "compile":
        from ..inductor import norm as inductor

        return inductor
    if backend == "triton":
        from ..triton import norm as triton

        return triton
    return eager


def compute_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    record, shape = form_by_name(form), x.shape[: x.dim() - dims]
    channelwise = _channelwise(record, weight, bias)
    y, reciprocal, exact, kept = _kernels(backend, x).forward(x, *channelwise, eps, dims, record)
    return y, reciprocal.view(shape), exact.view(*shape, kept.numel()), kept


def _fake_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, _, reciprocal = _fake_exact_norm(x, weight, bias, eps, dims, form, backend)
    count = count_kept(math.prod(x.shape[x.dim() - dims :]), weight, bias)
    return y, reciprocal, reciprocal.new_empty((*reciprocal.shape, count)), x.new_empty(count, dtype=torch.int64)


def compute_norm_backward(
    dy: Tensor,
    y: Tensor,
    reciprocal: Tensor,
    exact: Tensor,
    kept: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    dtype: torch.dtype,
    wanted: Sequence[bool],
    form: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    record, kernels = form_by_name(form), _kernels(backend, y)
    rows = as_rows(dy, dims), as_rows(y, dims), reciprocal.reshape(-1), exact.reshape(reciprocal.numel(), kept.numel())
    with torch._C._DisableAutocast():  # which is active if the backward pass is inside its block
        gradients = kernels.backward(*rows, kept, *_channelwise(record, weight, bias), record, dtype, wanted)
    return _shaped(gradients, y, weight, bias, dtype)


def _fake_norm_backward(
    dy: Tensor,
    y: Tensor,
    reciprocal: Tensor,
    exact: Tensor,
    kept: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    dtype: torch.dtype,
    wanted: Sequence[bool],
    form: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(y, weight, bias, dtype, wanted)


def compute_exact_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    record, shape = form_by_name(form), x.shape[: x.dim() - dims]
    channelwise = _channelwise(record, weight, bias)
    y, mean, reciprocal = _kernels(backend, x).exact_forward(x, *channelwise, eps, dims, record)
    return y, reciprocal.new_empty(0) if mean is None else mean.view(shape), reciprocal.view(shape)


def _fake_exact_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dims: int, form: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    record = form_by_name(form)
    y = record.forward(x, weight, bias, eps, dims)
    reciprocal = x.new_empty(x.shape[: x.dim() - dims], dtype=compute_dtype(x))
    return y, torch.empty_like(reciprocal) if record.centred else reciprocal.new_empty(0), reciprocal


def compute_exact_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor | None,
    reciprocal: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    wanted: Sequence[bool],
    form: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    factor, _ = _channelwise(form_by_name(form), weight, bias)
    factor = None if factor is None else factor.to(reciprocal.dtype)
    means = None if mean is None else mean.reshape(-1)
    with torch._C._DisableAutocast():
        gradients = _kernels(backend, x).exact_backward(
            as_rows(dy, dims), as_rows(x, dims), means, reciprocal.reshape(-1), factor, wanted
        )
    return _shaped(gradients, x, weight, bias, x.dtype)


def _fake_exact_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor | None,
    reciprocal: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: int,
    wanted: Sequence[bool],
    form: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, weight, bias, x.dtype, wanted)


def _channelwise(form: NormForm, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The factor and the bias, shape (channels,)."""
    factor = form.effective(weight)
    return None if factor is None else factor.reshape(-1), None if bias is None else bias.reshape(-1)


def _shaped(
    gradients: Gradients, like: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias; empty if not wanted."""
    of_x, of_factor, of_bias = gradients
    dx = like.new_empty(0, dtype=dtype) if of_x is None else of_x.view(like.shape)
    return dx, _like(weight, of_factor, dx), _like(bias, of_bias, dx)


def _like(parameter: Tensor | None, gradient: Tensor | None, dx: Tensor) -> Tensor:
    if parameter is None or gradient is None:
        return dx.new_empty(0)
    return gradient.view(parameter.shape).to(parameter.dtype)


def _fake_gradients(
    like: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dx = like.new_empty(like.shape if wanted[0] else 0, dtype=dtype)
    dweight, dbias = (
        dx.new_empty(0) if parameter is None or not is_wanted else parameter.new_empty(parameter.shape)
        for parameter, is_wanted in zip((weight, bias), wanted[1:], strict=True)
    )
    return dx, dweight, dbias


def _kernels(backend: str, like: Tensor) -> NormKernels:
    return implementation(choose_backend(backend, like))


_ARGUMENTS = "Tensor x, Tensor? weight, Tensor? bias, float eps, int dims, str form, str backend"
_GRADIENTS = "(Tensor dx, Tensor dweight, Tensor dbias)"
NORM = define(
    f"norm({_ARGUMENTS}) -> (Tensor y, Tensor reciprocal, Tensor exact, Tensor kept)",
    compute_norm,
    _fake_norm,
)
NORM_BACKWARD = define(
    "norm_backward(Tensor dy, Tensor y, Tensor reciprocal, Tensor exact, Tensor kept, Tensor? weight, Tensor? bias, "
    f"int dims, ScalarType dtype, bool[] wanted, str form, str backend) -> {_GRADIENTS}",
    compute_norm_backward,
    _fake_norm_backward,
)
EXACT_NORM = define(
    f"exact_norm({_ARGUMENTS}) -> (Tensor y, Tensor mean, Tensor reciprocal)",
    compute_exact_norm,
    _fake_exact_norm,
)
EXACT_NORM_BACKWARD = define(
    "exact_norm_backward(Tensor dy, Tensor x, Tensor? mean, Tensor reciprocal, Tensor? weight, Tensor? bias, "
    f"int dims, bool[] wanted, str form, str backend) -> {_GRADIENTS}",
    compute_exact_norm_backward,
    _fake_exact_norm_backward,
)
