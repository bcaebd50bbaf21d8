"""The input of an adapter through PyTorch's compiler: the mask is packed, and applied, in one pass over memory.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits import empty_bits
from ..buffers import flat, flat_like
from ..eager import adapter as eager
from ..eager.adapter import is_fused, scale_of
from .bits import pack, unpack
from .compiler import Lanes, run_compiled


def drop(x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    if is_fused(x, generator):
        return eager.drop(x, dtype, p, generator)
    x = x.to(dtype)
    noise = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    dropped, kept = torch.empty_like(noise), empty_bits(noise)
    run_compiled(_drop, scale_of(p, noise), [kept, flat(dropped)], [flat_like(x, noise), flat(noise)])
    return dropped, kept


def masked(x: Tensor, kept: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    result = torch.empty_like(x, dtype=dtype)
    run_compiled(_masked, scale_of(p, result), [flat(result)], [flat_like(x, result)], kept)
    return result


# The functions that are compiled.


def _drop(scale: float, lanes: Lanes, side: None, words: Tensor, dropped: Tensor, x: Tensor, noise: Tensor) -> None:
    pack(noise.view(-1, lanes.bits.size(1)) > 0, words, lanes)
    dropped.copy_(x * (noise * scale))


def _masked(scale: float, lanes: Lanes, kept: Tensor, result: Tensor, x: Tensor) -> None:
    noise = torch.where(unpack(kept, lanes), scale, 0.0)
    result.copy_((x.to(result.dtype) * noise).to(result.dtype))
