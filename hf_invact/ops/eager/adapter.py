"""The input of an adapter in plain PyTorch: the mask is packed and applied in cache-sized pieces.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..bits import BITS, bits_of_piece, empty_bits, pack, unpack
from ..buffers import compute_dtype, flat, flat_like, is_one_piece, pieces
from ..dropout import is_fused


def drop(x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    x = x.to(dtype)
    if is_fused(x, generator):
        dropped, mask = torch.native_dropout(x, p, True)
        return dropped, _packed(mask)
    noise = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    kept = _packed(noise)
    return noise.div_(1 - p).mul_(x), kept


def masked(x: Tensor, kept: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    result = torch.empty_like(x, dtype=dtype)
    for results, (inputs,), noise in _pieces(kept, scale, result, x):
        # Multiplied, as by PyTorch: zeros keep their signs, and a NaN or an infinity that is dropped is NaN.
        torch.mul(inputs.to(dtype), noise, out=results)
    return result


def both_masked(x: Tensor, dx: Tensor, kept: Tensor, scale: float, dx_scale: float) -> tuple[Tensor, Tensor]:
    if scale != dx_scale:
        return masked(x, kept, dx.dtype, scale), masked(dx, kept, dx.dtype, dx_scale)
    result = torch.empty_like(dx)
    for results, (inputs, gradients), noise in _pieces(kept, scale, result, x, dx):
        torch.mul(inputs.to(dx.dtype), noise, out=results)
        gradients.mul_(noise)
    return result, dx


def _pieces(
    kept: Tensor, scale: float, result: Tensor, *inputs: Tensor
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Pieces of a dense tensor and of inputs of its shape, and what their elements are multiplied by."""
    # On a CPU a number of the dtype, and elsewhere one that is multiplied by before anything is rounded.
    dtype = result.dtype if result.device.type == "cpu" else compute_dtype(result)
    # A table made of fake tensors must not outlive their mode.
    factors = (_cached_factors if type(result) is Tensor else _factors)(scale, dtype, result.device)
    if is_one_piece(result):  # of what a small step takes, slicing would be a third
        noise = factors.index_select(0, kept.int())
        yield result, list(inputs), noise.as_strided(result.size(), result.stride())
        return
    results, *flat_inputs = flat(result), *(flat_like(each, result) for each in inputs)
    for start, stop in pieces(results):
        index = bits_of_piece(kept, start, stop).int()
        noise = factors.index_select(0, index).flatten()[: stop - start]
        yield results[start:stop], [each[start:stop] for each in flat_inputs], noise


def _factors(scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each byte, what the eight elements whose bits it holds are multiplied by, shape (256, 8)."""
    is_kept = unpack(torch.arange(1 << BITS, dtype=torch.uint8, device=device))
    return torch.zeros(is_kept.shape, dtype=dtype, device=device).masked_fill_(is_kept, scale).view(-1, BITS)


_cached_factors = lru_cache(maxsize=64)(_factors)


def _packed(mask: Tensor) -> Tensor:
    """Which elements of a dense tensor, of bools or of zeros and ones, are not 0, as bits in its memory order."""
    values = flat(mask)
    if missing := -values.numel() % BITS:
        values = torch.nn.functional.pad(values, (0, missing))
    if mask.dtype != torch.bool:
        # The sums are exact in every dtype: each is one byte.
        return values.view(-1, BITS).mv(_powers(mask)).to(torch.uint8)
    kept = empty_bits(mask)
    pack(values, out=kept)
    return kept


def _powers(like: Tensor) -> Tensor:
    """What each bit of a byte counts, shape (8,)."""
    return (_cached_powers_of_two if type(like) is Tensor else _powers_of_two)(like.dtype, like.device)


def _powers_of_two(dtype: torch.dtype, device: torch.device) -> Tensor:
    order = torch.arange(BITS, device=device)
    flags = torch.zeros(BITS, BITS, dtype=torch.bool, device=device)
    flags[order, order] = True
    bits = empty_bits(flags)
    pack(flags.flatten(), out=bits)  # in the order of this machine's bytes
    return bits.to(dtype)


_cached_powers_of_two = lru_cache(maxsize=64)(_powers_of_two)
