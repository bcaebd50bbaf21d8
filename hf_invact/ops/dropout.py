"""How `F.dropout` computes: where it is one kernel, and by what it multiplies."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .buffers import ordinary_cpu_tensors

FUSED_DEVICES = ("cuda", "xpu")


class Scales(NamedTuple):
    """What elements that are kept are multiplied by: of the input, and of the gradient."""

    forward: float
    backward: float


def is_fused(x: Tensor, generator: torch.Generator | None) -> bool:
    """Whether `F.dropout` is one kernel for this tensor, which returns the mask. It draws from PyTorch's generator."""
    return x.device.type in FUSED_DEVICES and generator is None


def scales_of(p: float, dtype: torch.dtype, device: torch.device) -> Scales:
    """For tensors of a dtype in which elements are dropped."""
    return _scales(p, dtype, device.type in FUSED_DEVICES)


@lru_cache(maxsize=64)
def _scales(p: float, dtype: torch.dtype, is_fused: bool) -> Scales:
    with ordinary_cpu_tensors():
        if not is_fused:  # zeros and ones of this dtype are divided by a number, for both passes
            both = torch.ones((), dtype=dtype).div_(1 - p).item()
            return Scales(both, both)
        # The kernel rounds the probability before it divides by it, and that of the gradient is given the quotient.
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        return Scales(torch.tensor(1 - p, dtype=computed).reciprocal().item(), 1 / (1 - p))
