"""The input of an adapter in plain PyTorch: the mask is packed and applied in cache-sized pieces.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..bits import BITS, bits_of_piece, empty_bits, pack, unpack
from ..buffers import compute_dtype, flat, flat_like, pieces
from ..dropout import is_fused
from .activation import INTEGERS


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
    inputs, results = flat_like(x, result), flat(result)
    for start, stop, noise in _noise(kept, scale, result):
        # Multiplied, as by PyTorch: zeros keep their signs, and a NaN or an infinity that is dropped is NaN.
        torch.mul(inputs[start:stop].to(dtype), noise, out=results[start:stop])
    return result


def both_masked(x: Tensor, dx: Tensor, kept: Tensor, scale: float, dx_scale: float) -> tuple[Tensor, Tensor]:
    if scale != dx_scale:
        return masked(x, kept, dx.dtype, scale), masked(dx, kept, dx.dtype, dx_scale)
    result = torch.empty_like(dx)
    inputs, results, gradients = flat_like(x, result), flat(result), flat(dx)
    for start, stop, noise in _noise(kept, scale, dx):
        torch.mul(inputs[start:stop].to(dx.dtype), noise, out=results[start:stop])
        gradients[start:stop].mul_(noise)
    return result, dx


def _noise(kept: Tensor, scale: float, like: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Start and end of each piece of a dense tensor, and what its elements are multiplied by."""
    # On a CPU a number of the dtype, and elsewhere one that is multiplied by before anything is rounded.
    dtype = like.dtype if like.device.type == "cpu" else compute_dtype(like)
    # A table made of fake tensors must not outlive their mode.
    factors = (_cached_factors if type(like) is Tensor else _factors)(scale, dtype, like.device)
    for start, stop in pieces(flat(like)):
        index = bits_of_piece(kept, start, stop).int()
        yield start, stop, factors.index_select(0, index).flatten()[: stop - start]


def _factors(scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each byte, what the eight elements whose bits it holds are multiplied by, shape (256, 8)."""
    is_kept = unpack(torch.arange(1 << BITS, dtype=torch.uint8, device=device))
    return torch.zeros(is_kept.shape, dtype=dtype, device=device).masked_fill_(is_kept, scale).view(-1, BITS)


_cached_factors = lru_cache(maxsize=64)(_factors)


def _packed(mask: Tensor) -> Tensor:
    """Which elements of a dense tensor, of bools or of zeros and ones, are not 0, as bits in its memory order."""
    kept, values = empty_bits(mask), flat(mask)
    for start, stop in pieces(values):
        flags = values[start:stop]
        if flags.dtype != torch.bool:  # integers are converted to bools in half the time of numbers
            flags = flags.view(INTEGERS[flags.dtype.itemsize]).bool()
        missing = -flags.numel() % BITS  # of the last piece
        pack(torch.nn.functional.pad(flags, (0, missing)) if missing else flags, out=bits_of_piece(kept, start, stop))
    return kept
