"""Tells which blocks are alike, so that they can share a probe."""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...sites import Replacement
from ...sites.kind import SETTINGS
from ..isolation.isolate import CHECKPOINT, is_part_of_the_forward

Signature: TypeAlias = tuple[object, ...]

MAX_DEPTH = 8  # of collections in collections
SMALL = 64  # elements: a tensor of so many may be a flag or a setting, a larger one is data, as weights are
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device)
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_pre_hooks"),
)
_OF_STATE = ("state_dict_hooks", "state_dict_pre_hooks", "state_dict_post_hooks")  # which no forward pass runs
_APART = ("_parameters", "_buffers", "_modules", "training", "_compiled_call_impl", SETTINGS)
# By package, what tells layers apart though none of them computes with it: a layer's place in the cache, which no layer
# of Transformers decides by how it uses its activation, and what a layer of PEFT was made with, its name among it.
_NOT_COMPUTED_WITH = {"transformers": ("layer_idx",), "peft": ("kwargs",)}


def signature(module: nn.Module) -> Signature:
    """What equal modules have in common: of all modules in them the class, the attributes, the hooks, and the kinds of
    parameters and buffers.

    Attributes are compared by value where they are numbers, strings, and the like, functions, small tensors, or
    collections of these; anything else (a config, a hook) has to be the same object. So blocks that nothing tells apart
    but what is in an object of their own do not share a probe. Values of weights and of large tensors do not count, nor
    does what a probe sets (modes, checkpointing), nor what no layer computes with.
    """
    return tuple((name, *_of_one(each)) for name, each in module.named_modules(remove_duplicate=False))


def _of_one(module: nn.Module) -> Signature:
    cls = type(module)
    ignored = (*_APART, *_NOT_COMPUTED_WITH.get(cls.__module__.partition(".")[0], ()))
    attributes: list[tuple[str, object]] = []
    for name, value in vars(module).items():
        if name in _HOOKS:
            attributes.append((name, tuple(_of_hook(hook, module) for hook in value.values())))
        elif isinstance(module, Replacement) and isinstance(value, nn.Module):
            attributes.append((name, signature(value)))
        elif name not in ignored and not name.endswith(_OF_STATE) and CHECKPOINT not in name:
            attributes.append((name, setting(value, module)))
    weights = [
        (name, _kind(weight), weight.requires_grad) for name, weight in module._parameters.items() if weight is not None
    ]
    buffers = [(name, setting(buffer, module)) for name, buffer in module._buffers.items()]
    return cls, tuple(attributes), tuple(weights), tuple(buffers)


def setting(value: Any, owner: nn.Module, depth: int = 0) -> object:
    """Something hashable that is equal for equal values of an owner's attribute, else for the same object."""

    def inner(each: Any) -> object:
        return setting(each, owner, depth + 1)

    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if depth < MAX_DEPTH:
        if isinstance(value, (list, tuple, deque)):
            return type(value), tuple(map(inner, value))
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(map(inner, value))
        if isinstance(value, dict):
            return type(value), tuple((inner(key), inner(each)) for key, each in value.items())
        if isinstance(value, functools.partial):
            return functools.partial, inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, types.FunctionType) and not (value.__closure__ or vars(value)):
        # Such a function may be made anew each time, as Transformers does for its hooks on embeddings.
        return value.__code__, value.__module__, inner(value.__defaults__), inner(value.__kwdefaults__)
    if isinstance(value, types.MethodType):
        return value.__func__, "own" if value.__self__ is owner else _Same(value.__self__)
    return _Same(value)


def _of_hook(hook: object, owner: nn.Module) -> object:
    return (type(hook), setting(vars(hook), owner)) if is_part_of_the_forward(hook) else setting(hook, owner)


def _of_tensor(tensor: Tensor) -> object:
    is_plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta  # nor fake, nor sharded
    has_values = is_plain and tensor.numel() <= SMALL and tensor.untyped_storage().nbytes() > 0
    return _kind(tensor), tuple(tensor.detach().flatten().tolist()) if has_values else None


def _kind(tensor: Tensor) -> object:
    return type(tensor), tensor.shape, tensor.dtype, tensor.device.type


class _Same:
    """Equal for the same object, which it does not keep alive."""

    def __init__(self, value: object) -> None:
        self._hash = id(value)
        try:
            self._get: Callable[[], object] = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        value = self._get()
        return isinstance(other, _Same) and value is not None and value is other._get()

    def __hash__(self) -> int:
        return self._hash
