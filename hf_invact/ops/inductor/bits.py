"""Bits in the functions that are compiled: packed into words, and read from bytes.

Computed in float32: on a CPU, vectors of integers and partly filled vectors, such as those of bytes, take longer.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .compiler import Lanes


def pack(flags: Tensor, words: Tensor, lanes: Lanes) -> None:
    """Write bools, shape (size / lanes, lanes), as integers whose bytes in memory are their bits."""
    groups = words.view(-1, lanes.bits.size(0))
    for i, bits in enumerate(lanes.bits):
        groups[:, i] = torch.where(flags, bits, 0.0).sum(-1)


def unpack(packed: Tensor, lanes: Lanes) -> Tensor:
    """Bools, shape (size,), from bytes, shape (size / 8,)."""
    # A word belongs to a whole vector, so the compiler combines its bytes into a number before it fills the vector.
    low, high = packed.view(-1, lanes.halves.size(0), 2).unbind(-1)
    words = low.float() + 256.0 * high.float()
    shifted = reduce(torch.add, [words[:, i, None] * halves for i, halves in enumerate(lanes.halves)])
    flags: Tensor = shifted - shifted.floor() >= 0.5
    return flags.view(-1)
