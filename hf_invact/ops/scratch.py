"""Memory that is reused from piece to piece: on a CPU, new memory costs more than to write to it."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Buffers of one dtype, by name.

    >>> scratch = Scratch(torch.float32, torch.device("cpu"))
    >>> scratch.wide("factor", torch.tensor([0.5], dtype=torch.bfloat16))
    tensor([0.5000])
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, size: int) -> Tensor:
        """Shape (size,). It holds anything, and is valid until the next call with this name."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size]

    def wide(self, name: str, piece: Tensor) -> Tensor:
        """A piece, shape (size,), in this dtype: itself where its own is no narrower, else in the buffer."""
        return piece if piece.dtype.itemsize >= self.dtype.itemsize else self.empty(name, piece.numel()).copy_(piece)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a * b``, rounded once; overwrites ``b`` where ``out`` is narrower.

    PyTorch's product of two dtypes, or into a third one, takes new memory to convert them.
    """
    if out.dtype.itemsize >= b.dtype.itemsize:
        torch.mul(a, b, out=out)
    else:
        out.copy_(b.mul_(a))
