"""The input of an adapter in plain PyTorch: the mask is packed and applied in cache-sized pieces.

`operators.adapter.AdapterKernels` documents the functions that every backend has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits import BITS, bits_of_piece, empty_bits, pack, packed_size, unpack
from ..buffers import flat, flat_like, pieces
from .activation import INTEGERS

FUSED_DEVICES = ("cuda", "xpu")


def drop(x: Tensor, dtype: torch.dtype, p: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    x = x.to(dtype)
    if is_fused(x, generator):
        dropped, mask = torch.native_dropout(x, p, True)
        return dropped, _packed(mask)
    noise = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    kept = _packed(noise)
    return noise.div_(1 - p).mul_(x), kept


def is_fused(x: Tensor, generator: torch.Generator | None) -> bool:
    """Whether `F.dropout` is one kernel for this tensor, which returns the mask. It draws from PyTorch's generator."""
    return x.device.type in FUSED_DEVICES and generator is None


def masked(x: Tensor, kept: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    result = torch.empty_like(x, dtype=dtype)
    inputs, results, scale = flat_like(x, result), flat(result), scale_of(p, result)
    for start, stop in pieces(results):
        noise = results[start:stop].copy_(unpack(bits_of_piece(kept, start, stop))[: stop - start])
        noise.mul_(scale).mul_(inputs[start:stop].to(dtype))
    return result


def scale_of(p: float, like: Tensor) -> float:
    """What `F.dropout` multiplies kept elements of a tensor by: on a CPU a number of its dtype."""
    if like.device.type in FUSED_DEVICES:
        return 1 / (1 - p)
    return torch.ones((), dtype=like.dtype, device="cpu").div_(1 - p).item()


def _packed(mask: Tensor) -> Tensor:
    """Which elements of a dense tensor, of bools or of zeros and ones, are not 0, as bits in its memory order."""
    kept, values = empty_bits(mask), flat(mask)
    for start, stop in pieces(values):
        flags = torch.zeros(packed_size(stop - start) * BITS, dtype=torch.bool, device=mask.device)
        # On a CPU, converting integers to bools takes half the time of converting numbers.
        piece = values[start:stop]
        flags[: stop - start] = piece if piece.dtype == torch.bool else piece.view(INTEGERS[piece.dtype.itemsize])
        pack(flags, out=bits_of_piece(kept, start, stop))
    return kept
