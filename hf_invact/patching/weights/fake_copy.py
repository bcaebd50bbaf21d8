"""Copies a model whose weights are sharded or missing to fake tensors, so that its blocks can be measured."""

from __future__ import annotations

import logging
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ...sites.forwards import called_forward
from ...sites.fsdp import is_in_fsdp
from ..errors import NoProbeError
from ..nested import mapped
from .sharding import MARKS, class_without_fsdp, fsdp2_states, is_dtensor, mixed_precision_of

_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")

_HOOKS = [name for name in vars(nn.Module()) if "hook" in name]
_CONTAINERS = (list, tuple, set, dict, OrderedDict)


@contextmanager
def without_memory(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, a copy with fake tensors as weights, and their mode is active.

    They are on the CPU, wherever the model is: not every process may know that, and CUDA's random numbers cannot be put
    back among fake tensors. An autocast that is active for the model's device holds for the CPU as well.
    """
    device = next((weight.device.type for weight in model.parameters() if not weight.is_meta), "cpu")
    autocast = torch.autocast("cpu", torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
    fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
    fake_tensors.cache_enabled = False  # PyTorch never frees the entries of this cache
    _LOGGER.addFilter(_suppress)
    try:
        with fake_tensors, _GroupedProducts(), autocast:
            yield fake_copy(model)
    finally:
        _LOGGER.removeFilter(_suppress)


def fake_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with weights of the active fake tensors, which it has to itself, without hooks.

    Raises:
        NoProbeError: it is unknown with what weights a forward pass computes.
    """
    return _Copies(model).of(model)


def _suppress(record: logging.LogRecord) -> bool:
    """Suppress the traceback that PyTorch logs for every scope that fails."""
    return False


class _GroupedProducts(TorchDispatchMode):
    """Computes grouped matrix products of experts in all dtypes; fake tensors support bfloat16 only."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.name() != "aten::_grouped_mm":  # by name, since older versions of PyTorch lack it
            return func(*args, **(kwargs or {}))
        a, b, *others = args
        return func(a.bfloat16(), b.bfloat16(), *others, **(kwargs or {})).to(a.dtype)


class _Copies:
    """The copies of a model's modules, with the same classes and attributes, without hooks."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, so that its id is not reused
        self._gathered = dict(_gathered(model))

    def of(self, module: nn.Module) -> nn.Module:
        if id(module) in self._modules:
            return self._modules[id(module)]
        copy = self._modules[id(module)] = object.__new__(class_without_fsdp(module))
        for name, tensors in ((name, vars(module)[name]) for name in ("_parameters", "_buffers")):
            vars(copy)[name] = {
                key: value if value is None else self._fake(value, module) for key, value in tensors.items()
            }
        for name, value in vars(module).items():
            if name not in vars(copy) and name not in MARKS:
                vars(copy)[name] = OrderedDict() if name in _HOOKS and value is not None else self._value(value, module)
        if "forward" in vars(module):
            self._unwrap(module, copy)
        if (policy := mixed_precision_of(module)) is not None and "forward" not in vars(copy):
            vars(copy)["_mixed_precision"] = policy
            vars(copy)["forward"] = types.MethodType(_forward_in_mixed_precision, copy)
        return copy

    def _value(self, value: Any, module: nn.Module) -> Any:
        if isinstance(value, nn.Module):
            return self.of(value)
        if isinstance(value, Tensor):
            return self._fake(value, module)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.of(value.__self__))
        if type(value) not in _CONTAINERS:
            return value
        if isinstance(value, dict):
            return type(value)((key, self._value(each, module)) for key, each in value.items())
        return type(value)(self._value(each, module) for each in value)

    def _unwrap(self, module: nn.Module, copy: nn.Module) -> None:
        """Remove the wrappers of Accelerate and Transformers around a forward, which would run the original."""
        forward = called_forward(module)
        if getattr(forward, "__func__", forward) is type(module).forward:
            del vars(copy)["forward"]
        elif not isinstance(vars(module)["forward"], types.MethodType):
            vars(copy)["forward"] = _refuse

    def _fake(self, tensor: Tensor, module: nn.Module) -> Tensor:
        if id(tensor) not in self._tensors:
            size, dtype = self._gathered.get(tensor) or (_computed_size(tensor, module), tensor.dtype)
            made = torch.empty(size, dtype=dtype, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            self._tensors[id(tensor)] = tensor, nn.Parameter(made, tensor.requires_grad) if is_weight else made
        return self._tensors[id(tensor)][1]


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise NoProbeError("its forward is not that of its class")


def _forward_in_mixed_precision(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Casts as FSDP2's hooks do. A method, so that equal units stay equal for `signature`."""
    policy = self._mixed_precision
    if policy.cast_forward_inputs:
        args, kwargs = mapped(partial(_cast, policy.param_dtype), (args, kwargs))
    output = type(self).forward(self, *args, **kwargs)
    return mapped(partial(_cast, policy.output_dtype), output)


def _cast(dtype: torch.dtype | None, value: Any) -> Any:
    is_number = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if dtype is not None and is_number else value


def _computed_size(tensor: Tensor, module: nn.Module) -> torch.Size:
    """The size that a forward pass computes with."""
    if hasattr(tensor, "ds_shape"):
        return torch.Size(tensor.ds_shape)
    if not is_dtensor(tensor):
        return tensor.size()
    mesh, size = tensor.device_mesh, list(tensor.size())  # type: ignore[attr-defined]
    if is_in_fsdp(module):
        if mesh.ndim > 1:
            raise NoProbeError("it is unknown which dimensions of its weights FSDP gathers")
        return tensor.size()
    for dimension, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
        if hasattr(placement, "dim"):  # the first process's, if the processes' shares differ
            size[placement.dim] = -(-size[placement.dim] // mesh.size(dimension))
    return torch.Size(size)


def _gathered(model: nn.Module) -> Iterator[tuple[Tensor, tuple[torch.Size, torch.dtype]]]:
    """The weights that FSDP2 gathers, with their size and dtype after gathering."""
    for state in fsdp2_states(model):
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for group in filter(None, groups):
            for weight in group.fsdp_params:
                shard = weight.sharded_param
                is_cast = group.mp_policy.param_dtype is not None and shard.is_floating_point()
                yield shard, (weight._orig_size, group.mp_policy.param_dtype if is_cast else shard.dtype)
