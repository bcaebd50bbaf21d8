"""The input of an adapter by Triton's kernels: the mask is packed, and applied, in one pass over memory.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits import empty_bits
from ..buffers import flat, flat_like
from ..eager import adapter as eager
from ..eager.adapter import is_fused, scale_of
from . import adapter_kernels as kernels
from .launch import launch_elementwise


def drop(x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    x = x.to(dtype)
    if not is_fused(x, generator):
        return eager.drop(x, dtype, p, generator)
    dropped, mask = torch.native_dropout(x, p, True)
    kept = empty_bits(mask)
    launch_elementwise(kernels.pack, flat(mask).view(torch.uint8), kept)
    return dropped, kept


def masked(x: Tensor, kept: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    result = torch.empty_like(x, dtype=dtype)
    launch_elementwise(kernels.masked, flat_like(x, result), kept, flat(result), scale=scale_of(p, result))
    return result
