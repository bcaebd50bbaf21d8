"""The input of an adapter by Triton's kernels: the mask is packed, and applied, in one pass over memory.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits import empty_bits
from ..buffers import flat, flat_like
from ..dropout import is_fused
from ..eager import adapter as eager
from . import adapter_kernels as kernels
from .launch import launch_elementwise


def drop(x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    if not is_fused(x, generator):
        return eager.drop(x, dtype, p, generator)
    dropped, mask = torch.native_dropout(x.to(dtype), p, True)
    kept = empty_bits(mask)
    launch_elementwise(kernels.pack, flat(mask).view(torch.uint8), kept)
    return dropped, kept


def masked(x: Tensor, kept: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    result = torch.empty_like(x, dtype=dtype)
    launch_elementwise(kernels.masked, flat_like(x, result), kept, flat(result), scale=scale)
    return result


def both_masked(x: Tensor, dx: Tensor, kept: Tensor, scale: float, dx_scale: float) -> tuple[Tensor, Tensor]:
    result = torch.empty_like(dx)
    tensors = flat_like(x, result), flat(dx), kept, flat(result)
    launch_elementwise(kernels.both_masked, *tensors, scale=scale, dx_scale=dx_scale)
    return result, dx
