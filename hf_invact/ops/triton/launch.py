"""Launches kernels on the device of their tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from ..bits import BITS

GROUPS = 128  # of eight elements in a program: eight elements for each of four warps' threads


def launch_elementwise(kernel: Any, *tensors: Tensor, **constants: Any) -> None:
    """Run an element-wise kernel on flat tensors. The first of them has the number of elements."""
    size = tensors[0].numel()
    if size == 0:
        return
    grid = (triton.cdiv(size, GROUPS * BITS),)
    with as_current_device(tensors[0].device):
        # Fused multiplications and additions, as in PyTorch's own kernels.
        kernel[grid](*tensors, size, GROUPS=GROUPS, **constants, enable_fp_fusion=True)


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run so many programs of a kernel; none if there is nothing to do."""
    if programs > 0:
        with as_current_device(device):
            kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)


def as_current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the device the current one, on which Triton launches kernels."""
    if device.type == "cpu":  # the interpreter
        return nullcontext()
    context: AbstractContextManager[Any] = getattr(torch, device.type).device(device)
    return context


def next_power_of_2(number: int) -> int:
    """The smallest one that is not smaller."""
    return 1 << max(0, number - 1).bit_length()
