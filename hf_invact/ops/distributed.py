"""DTensors: an element-wise function of the whole is the same function of each process's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def is_distributed(tensor: object) -> bool:
    """Whether it is a DTensor, whose module takes seconds to import and is not needed to tell."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements")


def are_placed_alike(first: Any, second: Any) -> bool:
    """Whether both are DTensors, and each process holds the same part of both."""
    return (
        is_distributed(first)
        and is_distributed(second)
        and (first.device_mesh, first.placements) == (second.device_mesh, second.placements)
    )


def of_parts(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """An element-wise function of DTensors that are placed alike, computed by each process from its part.

    Sums that are still pending between the processes are made first, as for the native function.
    """
    from torch.distributed.tensor import DTensor, Replicate

    first = tensors[0]
    placements = [Replicate() if placement.is_partial() else placement for placement in first.placements]
    part = function(*(tensor.redistribute(placements=placements).to_local() for tensor in tensors))
    whole = torch.empty_like(torch.empty_strided(first.shape, first.stride(), device="meta"))
    result: Tensor = DTensor.from_local(
        part, first.device_mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return result
