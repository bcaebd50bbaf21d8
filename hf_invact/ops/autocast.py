"""What autocast does to an activation, before the operator, which a compiled graph runs without autocast."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..curves import Curve
from .keys import curve_of


def autocast(x: Tensor, curve: Curve) -> Tensor:
    """The input in the dtype that the native function returns under the autocast that is active.

    Some functions (softplus, and on GPUs pow, exp, log, ...) are computed and returned in float32.
    """
    dtype = active_dtype(x)
    return x if dtype is None else x.to(_result_dtype(curve.key, x.dtype, x.device.type, dtype))


def active_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of the autocast that is active for a tensor's device; None where there is none."""
    device = x.device.type
    is_active = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_active else None


@torch.compiler.assume_constant_result
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@torch.compiler.assume_constant_result
def _result_dtype(curve: str, dtype: torch.dtype, device: str, autocast_dtype: torch.dtype) -> torch.dtype:
    return _cached_result_dtype(curve, dtype, device, autocast_dtype)


@cache
def _cached_result_dtype(curve: str, dtype: torch.dtype, device: str, autocast_dtype: torch.dtype) -> torch.dtype:
    with torch.no_grad():
        return curve_of(curve).forward(torch.empty(0, dtype=dtype, device=device)).dtype
