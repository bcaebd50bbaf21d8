"""Views of tensors as one dimension in memory order, so that element-wise code need not know their layout."""

from __future__ import annotations

import torch
from torch import Tensor


def flat(tensor: Tensor) -> Tensor:
    """A view of a dense tensor (no gaps, no overlaps, any order of dimensions), shape (numel,), in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def with_layout(tensor: Tensor, size: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """The tensor with these strides: itself where it has them, else a copy."""
    if tensor.stride() == stride:
        return tensor
    if all(n == 1 or have == want for n, have, want in zip(size, tensor.stride(), stride, strict=True)):
        return tensor
    return torch.empty_strided(size, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def flat_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The elements in the memory order of a dense tensor of that shape, shape (numel,); a view where it is theirs."""
    return flat(with_layout(tensor, like.size(), like.stride()))
