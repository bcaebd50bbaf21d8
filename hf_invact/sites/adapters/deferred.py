"""The input of an adapter, deferred until its dropout and the product with its first matrix are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...ops import adapter_input
from ...ops.inputs import active_dtype
from ..deferred import Deferred, as_called, is_inside_a_function, outside_of_inference

_NO_TORCH_FUNCTION = torch._C._disabled_torch_function_impl  # of parameters and fake tensors


class DeferredInput(Deferred):
    """Stands for the input of an adapter, cast to its dtype. Its product with a matrix is `ops.adapter_input`.

    PEFT computes ``lora_B(lora_A(dropout(x.to(dtype))))``. Only with a deferred input can the product with ``lora_A``
    see ``x`` itself, so that no layer's forward has to be copied.
    """

    pending: PendingInput

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is dropout and type(args[0]) is cls:
            return _dropped(*args, **(kwargs or {}))
        if func is linear and type(args[0]) is cls:
            return _product(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


@dataclass(eq=False)
class PendingInput:
    """How to compute the input of an adapter, or its product with a matrix.

    Attributes:
        x: the input of the layer.
        dtype: to which PEFT casts it.
        p: the probability with which elements are dropped afterwards.
        value: the result, once it was computed.
    """

    x: Tensor
    dtype: torch.dtype
    backend: str
    p: float = 0.0
    value: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.autocast_dtype = active_dtype(self.x)

    def is_as_deferred(self) -> bool:
        """Whether nothing was computed from it, and autograd and autocast are as they were."""
        is_same_autocast = active_dtype(self.x) == self.autocast_dtype
        return self.value is None and torch.is_grad_enabled() and is_same_autocast

    def is_lossless(self) -> bool:
        """Whether a cast of it is a cast of ``x``, and nothing was computed from it."""
        is_wider = torch.promote_types(self.x.dtype, self.dtype) == self.dtype
        return is_wider and self.p == 0 and self.is_as_deferred()

    def tensor(self) -> Tensor:
        if is_inside_a_function():
            raise RuntimeError(
                "the input of an adapter was passed to a torch.autograd.Function, which would drop its gradient. Leave "
                "this layer alone with InvActConfig(exclude=[...])"
            )
        if self.value is None:
            with outside_of_inference(), torch.enable_grad(), as_called(self.x, self.autocast_dtype):
                self.value = dropout(self.x.to(self.dtype), self.p)
        return self.value


def _dropped(deferred: DeferredInput, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """`F.dropout`, which is deferred as well."""
    if not training or p == 0:
        return deferred
    pending = deferred.pending
    if pending.p == 0 and 0 <= p < 1 and not inplace and pending.is_as_deferred():
        return DeferredInput(replace(pending, p=p))
    return dropout(pending.tensor(), p, training, inplace)


def _is_plain(weight: Any) -> bool:
    """Whether no class of its own computes with it."""
    is_own = type(weight) is Tensor or getattr(type(weight), "__torch_function__", None) is _NO_TORCH_FUNCTION
    return is_own and not is_traceable_wrapper_subclass(weight)


def _product(deferred: DeferredInput, weight: Any, bias: Any = None) -> Tensor:
    """`F.linear`."""
    pending = deferred.pending
    if bias is None and _is_plain(weight) and pending.is_as_deferred():
        return adapter_input(pending.x, weight, pending.dtype, pending.p, pending.backend)
    return linear(pending.tensor(), weight, bias)
