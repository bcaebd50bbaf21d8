"""Packs small integers without gaps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact.ops.bits import BITS, pack, unpack


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes below ``2 ** bits`` into ``bits`` rows of packed bits, the lowest bit first.

    Args:
        codes: uint8, any shape.

    Returns:
        uint8, shape (bits, ceil(numel / 8)).

    >>> codes = torch.tensor([5, 0, 7, 2, 1], dtype=torch.uint8)
    >>> packed = pack_codes(codes, bits=3)
    >>> packed.shape, unpack_codes(packed)[:5].tolist()
    (torch.Size([3, 1]), [5, 0, 7, 2, 1])
    """
    padded = F.pad(codes.flatten(), (0, -codes.numel() % BITS))
    packed = padded.new_empty(bits, padded.numel() // BITS)
    for bit, row in enumerate(packed):
        pack((padded >> bit & 1).bool(), out=row)
    return packed


def unpack_codes(packed: Tensor) -> Tensor:
    """The codes and their padding, uint8, shape (8 * columns,)."""
    codes = packed.new_zeros(packed.shape[1] * BITS)
    for bit, row in enumerate(packed):
        codes |= unpack(row).view(torch.uint8) << bit
    return codes
