"""Decides whether a module has all of its weights, and whether it may be run by itself for a probe.

All processes decide the same: a probe in only some of them would wait for the others forever.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...sites.fsdp import FSDP1, MARK, is_fsdp1, is_in_fsdp
from ...sites.names import full_name
from ..errors import NoProbeError

# These gather, reduce or broadcast around the module that they wrap. By name, since importing them is slow.
_WRAPPERS = (
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel",
    "deepspeed.runtime.engine.DeepSpeedEngine",
)
_FSDP2 = ("torch.distributed.fsdp.FSDPModule", "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule")
# Transformers marks modules around which it has put communication (before 5.17 it uses hooks, and the weights do not
# show it).
_IN_TENSOR_PARALLEL = "_is_hooked"
MARKS = (MARK, _IN_TENSOR_PARALLEL)
_NAMES_OF_WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


class ShardedError(NoProbeError):
    """The weights are sharded or missing, but their sizes in a forward pass are known."""

    def __init__(self) -> None:
        super().__init__("its weights are sharded or missing")


def require_whole(model: nn.Module, module: nn.Module) -> None:
    """Refuse a module that cannot be run by itself, without other processes, with the weights that it has.

    Args:
        model: whatever is known of the model around it.
        module: the one to run.

    Raises:
        ShardedError: a copy of it can be run instead.
        NoProbeError: it cannot be run, nor be copied.
    """
    if any(map(is_in_fsdp, module.modules())) and is_fsdp1(model):
        raise NoProbeError("its weights are sharded or missing (FSDP1)")
    for each in module.modules():
        if _has_base(each, *_WRAPPERS):
            raise NoProbeError(f"{type(each).__name__} cannot be run by itself: it communicates with other processes")
    if any(weight.numel() == 0 and not hasattr(weight, "ds_shape") for weight in module.parameters()):
        raise NoProbeError("its weights are sharded or missing")
    # ZeRO-3 also has hooks on modules without weights.
    if any(map(_is_part, module.parameters())) or any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ShardedError
    if any(_is_fsdp2(each) or getattr(each, _IN_TENSOR_PARALLEL, False) for each in module.modules()):
        raise ShardedError


def is_sharded(model: nn.Module) -> bool:
    """Whether weights of a model are sharded or missing."""
    if any(_is_part(weight) or weight.numel() == 0 for weight in model.parameters()):
        return True
    return any(
        is_in_fsdp(each) or _has_base(each, FSDP1) or getattr(each, _IN_TENSOR_PARALLEL, False)
        for each in model.modules()
    )


def is_dtensor(weight: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(weight, "device_mesh") and hasattr(weight, "placements")


def fsdp2_states(model: nn.Module) -> list[Any]:
    """The FSDP2 states of a model's units."""
    return [each._get_fsdp_state() for each in model.modules() if _is_fsdp2(each)]  # type: ignore[operator]


def mixed_precision_of(module: nn.Module) -> Any:
    """The policy by which FSDP2 casts the inputs and outputs of a unit; None if it casts nothing."""
    if not _is_fsdp2(module):
        return None
    policy = module._get_fsdp_state()._mp_policy  # type: ignore[operator]
    return policy if policy.param_dtype or policy.output_dtype else None


def class_without_fsdp(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before FSDP2 gave it one of its own."""
    cls = type(module)
    return cls.__mro__[getattr(cls, "_orig_cls_mro_index", 2)] if _is_fsdp2(module) else cls


def plain_name(name: str) -> str:
    """The qualified name of a module without the wrappers around it.

    >>> plain_name("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.mlp")
    'layers.0.mlp'
    """
    return ".".join(part for part in name.split(".") if part not in _NAMES_OF_WRAPPED)


def _is_part(weight: Tensor) -> bool:
    """Whether a weight is a DTensor, sharded by DeepSpeed's ZeRO-3, or missing."""
    return is_dtensor(weight) or hasattr(weight, "ds_id") or weight.is_meta


def _is_fsdp2(module: nn.Module) -> bool:
    return _has_base(module, *_FSDP2)


def _has_base(module: nn.Module, *names: str) -> bool:
    return any(full_name(cls) in names for cls in type(module).__mro__)
