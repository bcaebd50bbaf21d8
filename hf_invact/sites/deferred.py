"""What stands for a tensor that is computed only once it is used, since its use may be part of the operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ..ops.inputs import active_dtype


class Pending(Protocol):
    """How to compute what a `Deferred` stands for."""

    def tensor(self) -> Tensor:
        """What the unpatched module would have returned, with its graph: the same object each time."""


class Deferred:
    """Stands for a tensor until it is used. Subclasses compute certain uses of it in a way of their own.

    Used in any other way, by anyone and in any mode, it computes the tensor that the unpatched module would have
    returned, with its graph. From then on everybody gets that tensor: autograd tells shared tensors by their identity.

    It is not a tensor for `isinstance` and `torch.is_tensor`, since PyTorch passes what claims to be a tensor to C++
    without asking again.

    Args:
        pending: how to compute it.
    """

    pending: Any

    def __init__(self, pending: Pending) -> None:
        # In a single attribute, since every other name is an attribute of the tensor.
        object.__setattr__(self, "pending", pending)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """PyTorch calls this where a function gets what is deferred instead of a tensor."""
        args, kwargs = with_tensors(args), with_tensors(kwargs or {})
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "pending":  # of an object without __init__, as compilers create it to inspect it
            raise AttributeError(name)
        return getattr(self.pending.tensor(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.pending.tensor(), name, value)


def with_tensors(value: Any) -> Any:
    """Replace what is deferred in arguments by tensors. (PyTorch's own function for it leaves cycles behind.)"""
    if isinstance(value, Deferred):
        return value.pending.tensor()
    if isinstance(value, dict):
        return {key: with_tensors(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        parts = map(with_tensors, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def as_called(x: Tensor, autocast_dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The autocast under which something was deferred, where another one is active now."""
    if active_dtype(x) == autocast_dtype:
        return nullcontext()
    return torch.autocast(x.device.type, autocast_dtype, enabled=autocast_dtype is not None)


def outside_of_inference() -> AbstractContextManager[Any]:
    """Leaves the inference mode, where it is on."""
    return torch.inference_mode(False) if _is_in_inference_mode() else nullcontext()


def is_inside_a_function() -> bool:
    """Whether the forward of a `torch.autograd.Function` is running, where gradients of both modes are off."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _is_in_inference_mode():
        return False
    return not torch._C._is_fwd_grad_enabled()


def _is_in_inference_mode() -> bool:
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _special_method(name: str) -> Callable[..., Any]:
    def apply(self: Deferred, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.pending.tensor(), name)(*args, **kwargs)

    return apply


# Python looks up special methods in the class. Those that define the object itself stay.
_OWN = {
    *vars(Deferred),
    *(
        "__class__",
        "__new__",
        "__init__",
        "__init_subclass__",
        "__subclasshook__",
        "__getattribute__",
        "__torch_dispatch__",
    ),
}
for _name in set(dir(Tensor)) - _OWN:
    if _name.startswith("__") and callable(getattr(Tensor, _name)):
        setattr(Deferred, _name, _special_method(_name))
Deferred.__array_priority__ = Tensor.__array_priority__  # type: ignore[attr-defined]
