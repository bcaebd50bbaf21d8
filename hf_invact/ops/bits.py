"""Packs bools into bytes, eight to a byte, by PyTorch operations on an eighth as many elements.

On a little-endian machine bit ``i`` of a byte is bool ``i`` of its group of eight. (On a big-endian machine the order
is reversed both in packing and in unpacking, so that a round trip is still exact.)
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BITS = 8
# Multiplying eight 0/1 bytes, read as one integer, by this number gathers them in the topmost byte.
_GATHER = 0x0102040810204080


def packed_size(count: int) -> int:
    """Bytes that hold ``count`` bits."""
    return -(-count // BITS)


def empty_bits(like: Tensor) -> Tensor:
    """Memory for one bit per element of a tensor, uint8, shape (packed_size(numel),)."""
    return torch.empty(packed_size(like.numel()), dtype=torch.uint8, device=like.device)


def bits_of_piece(packed: Tensor, start: int, stop: int) -> Tensor:
    """The bytes for the elements from ``start``, a multiple of 8, to ``stop``."""
    return packed[start // BITS : packed_size(stop)]


def pack(flags: Tensor, out: Tensor) -> None:
    """Pack bools, shape (8 n,), into ``out``, uint8, shape (n,)."""
    groups = flags.view(torch.int64)
    out.copy_((groups * _GATHER).bitwise_right_shift_(56))


def unpack(packed: Tensor) -> Tensor:
    """Bools, shape (8 n,), from bytes, uint8, shape (n,)."""
    # A table made of fake tensors must not outlive their mode.
    table = _cached_table(packed.device) if type(packed) is Tensor else _table(packed.device)
    return table.index_select(0, packed.int()).view(torch.bool)


def _table(device: torch.device) -> Tensor:
    """For each byte, its eight bits as the bytes of one integer."""
    byte = torch.arange(256, dtype=torch.uint8, device=device)
    bits = torch.stack([(byte >> position) & 1 for position in range(BITS)], dim=1)
    return bits.contiguous().view(torch.int64).flatten()


_cached_table = lru_cache(maxsize=None)(_table)
