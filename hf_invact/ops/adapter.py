"""The input of an adapter, which is kept as it came, in place of a copy for each adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import AUTO, check_backend
from .inputs import active_dtype, is_distributed, is_transformed, wants_gradient
from .operators import adapter as operator


def adapter_input(x: Tensor, weight: Tensor, dtype: torch.dtype, p: float = 0.0, backend: str | None = None) -> Tensor:
    """``F.linear(F.dropout(x.to(dtype), p), weight)``, saving ``x`` itself and one bit per element for backward.

    PyTorch saves what it computes the product with: of each adapter a copy in its dtype, and with dropout a mask.
    Results are the same, in every bit, and so are the random numbers. Gradients are exact.

    Args:
        x: shape (..., features), any memory layout and floating dtype. Adapters that get the same tensor share it.
        weight: shape (rank, features). Under autocast any floating dtype, else ``dtype``.
        dtype: to which ``x`` is cast before elements are dropped.
        p: the probability that an element is dropped; 0 in evaluation.
        backend: "eager", "compile" or "triton"; None or "auto" chooses (see `backends.choose_backend`).

    Raises:
        ValueError: unknown backend.
        RuntimeError: a backend that was chosen by name does not support ``x``.

    >>> x, a = torch.ones(4, 8, dtype=torch.bfloat16), torch.ones(2, 8, requires_grad=True)
    >>> adapter_input(x, a, torch.float32).dtype
    torch.float32
    """
    backend = AUTO if backend is None else backend
    computed = _computed_dtype(x, weight, dtype) if 0 <= p < 1 and _is_supported(x, weight) else None
    if computed is None or (p == 0 and x.dtype == dtype == computed):
        check_backend(backend)
        return native_adapter_input(x, weight, dtype, p)
    y: Tensor
    y, _ = operator.adapter_input(x, weight, dtype, p, backend, computed)
    return y


def native_adapter_input(x: Tensor, weight: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    """The same by PyTorch's own functions."""
    return torch.nn.functional.linear(torch.nn.functional.dropout(x.to(dtype), p), weight)


def _is_supported(x: Tensor, weight: Tensor) -> bool:
    """Whether there is something to keep, and the operator can do it. PyTorch raises its own errors for the rest."""
    if not wants_gradient(x, weight) or is_distributed(x) or is_distributed(weight) or is_transformed():
        return False
    fits = x.dim() >= 1 and weight.dim() == 2 and x.size(-1) == weight.size(1) and x.device == weight.device
    return fits and x.is_floating_point() and x.numel() > 0


def _computed_dtype(x: Tensor, weight: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """In which the product is computed: by autocast, that is, but for float64. None if PyTorch refuses the dtypes."""
    autocast = active_dtype(x)
    if autocast is None or torch.float64 in (weight.dtype, dtype):
        return dtype if weight.dtype == dtype else None
    return autocast
