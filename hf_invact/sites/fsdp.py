"""Tells which modules FSDP has sharded, and which version of it."""

from __future__ import annotations

from torch import nn

from ..ops.inputs import is_distributed
from .names import full_name

# PyTorch marks all modules of an FSDP unit, of both versions, for torch.compile.
MARK = "_is_fsdp_managed_module"
FSDP1 = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"  # importing it is slow


def is_in_fsdp(module: nn.Module) -> bool:
    """Whether a module is part of an FSDP unit, of either version."""
    return getattr(module, MARK, False)


def is_fsdp1(model: nn.Module) -> bool:
    """Whether it is the first version that has sharded modules of a model: their weights are no DTensors."""
    weights = list(model.parameters())
    is_flat = any(getattr(weight, "_fsdp_flattened", False) for weight in weights)
    is_wrapped = any(full_name(cls) == FSDP1 for each in model.modules() for cls in type(each).__mro__)
    return is_flat or is_wrapped or not any(map(is_distributed, weights))
