"""How the tensors that a function is called with are treated: with a gradient or without, under autocast, sharded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..curves import Curve
from ..curves.keys import curve_by_key


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records a function of these tensors, and the operators support them.

    If not, the native function is called: without gradients; in a tracer, whose graph is run elsewhere (`torch.fx`,
    `torch.jit.trace`, `torch.export`, ONNX); and for tensors that are not stored as an array of numbers (nested,
    sparse, MKL-DNN).

    Args:
        tensors: the function's inputs. Anything that is not a tensor, such as a proxy of `torch.fx`, needs the native
            function.
    """
    return records_gradients(*tensors) and any(tensor.requires_grad for tensor in tensors)


def records_gradients(*tensors: Tensor) -> bool:
    """As `wants_gradient`, if one of the tensors, or of those that they are computed with, needs a gradient."""
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or _is_exporting():  # type: ignore[attr-defined]
        return False
    return all(is_array(tensor) for tensor in tensors)


def is_array(tensor: object) -> bool:
    """Whether it is a tensor that is stored as an array of numbers."""
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_nested


@torch.compiler.assume_constant_result  # to the compiler of PyTorch 2.11 it is always true
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


def autocast(x: Tensor, curve: Curve) -> Tensor:
    """The input in the dtype that the native function returns under the autocast that is active.

    Some functions (softplus, and on GPUs pow, exp, log, ...) are computed and returned in float32. The input is cast
    before the operator is called, because a compiled graph runs without autocast.
    """
    dtype = active_dtype(x)
    return x if dtype is None else x.to(_result_dtype(curve.key, x.dtype, x.device.type, dtype))


def active_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of the autocast that is active for a tensor's device; None if none is active."""
    device = x.device.type
    is_active = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_active else None


@torch.compiler.assume_constant_result
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@torch.compiler.assume_constant_result
def _result_dtype(curve: str, dtype: torch.dtype, device: str, autocast_dtype: torch.dtype) -> torch.dtype:
    return _cached_result_dtype(curve, dtype, device, autocast_dtype)


@cache
def _cached_result_dtype(curve: str, dtype: torch.dtype, device: str, autocast_dtype: torch.dtype) -> torch.dtype:
    with torch.no_grad():
        return curve_by_key(curve).forward(torch.empty(0, dtype=dtype, device=device)).dtype


def own_storage(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A copy of a view of a larger storage, such as one half of a fused projection: saved, it would keep all of it."""
    try:
        stored = tensor.untyped_storage().size()
    except NotImplementedError:  # tensors inside torch.func's transforms do not give access to it
        return tensor
    is_part = stored > tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=memory_format) if is_part else tensor


def is_transformed() -> bool:
    """Whether one of the transforms of `torch.func` is active."""
    return bool(torch._C._are_functorch_transforms_active())


def is_distributed(tensor: object) -> bool:
    """Whether it is a DTensor. (Tells without importing DTensor's module, which takes seconds.)"""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements")


def are_placed_alike(first: Any, second: Any) -> bool:
    """Whether both are DTensors, and each process holds the same part of both."""
    return (
        is_distributed(first)
        and is_distributed(second)
        and (first.device_mesh, first.placements) == (second.device_mesh, second.placements)
    )


def apply_to_local_parts(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """An element-wise function of DTensors that are placed alike: each process computes it for its local part.

    Partial sums are reduced first, as for the native function.
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
