"""A tensor's memory: flat views in memory order, pieces that fit into the cache, and buffers that are reused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

# Elements in a piece, a multiple of 8. On a CPU a small piece keeps its buffers in the cache, but each operation has to
# start the threads. On other devices each operation costs a launch, so pieces only bound the temporary memory.
CPU_PIECE = 1 << 18
DEVICE_PIECE = 1 << 24


def flat(tensor: Tensor) -> Tensor:
    """A view of a dense tensor (no gaps, no overlaps, any order of dimensions), shape (numel,), in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def with_layout(tensor: Tensor, size: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """The tensor itself if it has these strides, else a copy that has them."""
    if tensor.stride() == stride:
        return tensor
    if all(n == 1 or have == want for n, have, want in zip(size, tensor.stride(), stride, strict=True)):
        return tensor
    return torch.empty_strided(size, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def flat_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The elements in the memory order of a dense tensor of the same shape, shape (numel,); a view if possible."""
    return flat(with_layout(tensor, like.size(), like.stride()))


def as_rows(tensor: Tensor, dims: int) -> Tensor:
    """Contiguous, with the last dimensions as one and all others as one; none of the last is empty."""
    channels = math.prod(tensor.shape[tensor.dim() - dims :])
    return tensor.reshape(tensor.numel() // channels, channels).contiguous()


def pieces(rows: Tensor, on_cpu: int | None = None) -> Iterator[tuple[int, int]]:
    """Start and end of consecutive rows (elements of a flat tensor) that make up about one piece, at least one row.

    Args:
        on_cpu: elements in a piece on a CPU, in place of `CPU_PIECE`.
    """
    step = max(1, _piece(rows, on_cpu) // max(1, math.prod(rows.shape[1:])))
    for start in range(0, rows.size(0), step):
        yield start, min(start + step, rows.size(0))


def is_one_piece(tensor: Tensor, on_cpu: int | None = None) -> bool:
    """Whether a tensor makes up no more than one piece."""
    return tensor.numel() <= _piece(tensor, on_cpu)


def _piece(tensor: Tensor, on_cpu: int | None) -> int:
    return (on_cpu or CPU_PIECE) if tensor.device.type == "cpu" else DEVICE_PIECE


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which formulas are evaluated: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class Buffers:
    """Buffers of one dtype, by name, which are reused for all pieces. On a CPU, allocating costs more than writing.

    >>> buffers = Buffers(torch.float32, torch.device("cpu"))
    >>> buffers.widen("factor", torch.tensor([0.5], dtype=torch.bfloat16))
    tensor([0.5000])
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, size: int) -> Tensor:
        """Uninitialized memory, shape (size,), valid until the next call with this name."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size]

    def like(self, name: str, piece: Tensor) -> Tensor:
        """The same of a contiguous piece's shape."""
        return self.empty(name, piece.numel()).view(piece.shape)

    def widen(self, name: str, piece: Tensor) -> Tensor:
        """A contiguous piece, converted to this dtype in the buffer; the piece itself if it is not narrower."""
        return piece if piece.dtype.itemsize >= self.dtype.itemsize else self.like(name, piece).copy_(piece)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a * b``, rounded once; overwrites ``b`` if ``out`` is narrower.

    For two dtypes, or an ``out`` of a third one, `torch.mul` would allocate memory to convert them.
    """
    if out.dtype.itemsize >= b.dtype.itemsize:
        torch.mul(a, b, out=out)
    else:
        out.copy_(b.mul_(a))


@contextmanager
def ordinary_cpu_tensors() -> Iterator[None]:
    """Leaves the caller's modes (fake tensors, inference, gradients, device, autocast), for tensors that are cached."""
    with (
        unset_fake_temporarily(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
    ):
        yield
