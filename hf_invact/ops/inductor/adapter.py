"""The input of an adapter through PyTorch's compiler: the mask is packed, and applied, in one pass over memory.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits import empty_bits
from ..buffers import compute_dtype, flat, flat_like
from ..dropout import is_fused, scales_of
from ..eager import adapter as eager
from .bits import pack, unpack
from .compiler import Lanes, run_compiled


def drop(x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    if is_fused(x, generator):
        return eager.drop(x, dtype, p, generator)
    x = x.to(dtype)
    noise = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    dropped, kept = torch.empty_like(noise), empty_bits(noise)
    scale, _ = scales_of(p, dtype, x.device)
    run_compiled(_drop, scale, [kept, flat(dropped)], [flat_like(x, noise), flat(noise)])
    return dropped, kept


def masked(x: Tensor, kept: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    result = torch.empty_like(x, dtype=dtype)
    run_compiled(_masked, scale, [flat(result)], [flat_like(x, result)], kept)
    return result


def both_masked(x: Tensor, dx: Tensor, kept: Tensor, scale: float, dx_scale: float) -> tuple[Tensor, Tensor]:
    if scale != dx_scale:
        return masked(x, kept, dx.dtype, scale), masked(dx, kept, dx.dtype, dx_scale)
    results = torch.empty_like(dx), torch.empty_like(dx)  # in place, the compiler would treat two arguments as one
    run_compiled(_both_masked, scale, [*map(flat, results)], [flat_like(x, dx), flat(dx)], kept)
    return results


# The functions that are compiled.


def _drop(scale: float, lanes: Lanes, side: None, words: Tensor, dropped: Tensor, x: Tensor, noise: Tensor) -> None:
    is_kept = noise > 0
    pack(is_kept.view(-1, lanes.bits.size(1)), words, lanes)
    dropped.copy_(_product(x, is_kept, scale))


def _masked(scale: float, lanes: Lanes, kept: Tensor, result: Tensor, x: Tensor) -> None:
    result.copy_(_product(x.to(result.dtype), unpack(kept, lanes), scale))


def _both_masked(
    scale: float, lanes: Lanes, kept: Tensor, dropped: Tensor, result: Tensor, x: Tensor, dx: Tensor
) -> None:
    is_kept = unpack(kept, lanes)
    dropped.copy_(_product(x.to(dropped.dtype), is_kept, scale))
    result.copy_(_product(dx, is_kept, scale))


def _product(x: Tensor, is_kept: Tensor, scale: float) -> Tensor:
    noise = torch.where(is_kept, torch.full_like(x, scale, dtype=compute_dtype(x)), 0.0)
    return (x * noise).to(x.dtype)
