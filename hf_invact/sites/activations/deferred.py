"""The output of a gate's activation, deferred until it is known what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...curves import Curve
from ...ops import Saving, gate, tells_output
from ...ops.inputs import active_dtype
from ..kind import NotApplicable

_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


class DeferredActivation:
    """Stands for the output of an activation until it is used. Multiplied with a tensor, it is `ops.gate`.

    A block computes ``act(x) * up``. Only with a deferred output can the activation see the whole product, so that no
    block's forward has to be copied.

    Used in any other way, by anyone and in any mode, it computes the output that the unpatched activation would have
    returned, with its graph. From then on everybody gets that tensor, also in products: autograd tells shared tensors
    by their identity.

    It is not a tensor for `isinstance` and `torch.is_tensor`, since PyTorch passes what claims to be a tensor to C++
    without asking again. So only the block gets it, not hooks, and only a block that was seen to multiply it at once.

    Args:
        output: how to compute it.
    """

    _deferred: DeferredOutput

    def __init__(self, output: DeferredOutput) -> None:
        # In a single attribute, since every other name is an attribute of the tensor.
        object.__setattr__(self, "_deferred", output)

    def times(self, other: Any) -> Tensor:
        """The product with a tensor or a number."""
        return self._deferred.times(other)

    __mul__ = __rmul__ = __imul__ = mul = multiply = times

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """PyTorch calls this where a function gets a deferred activation instead of a tensor."""
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            deferred, other = args if type(args[0]) is cls else reversed(args)
            return deferred.times(other)
        args, kwargs = _with_tensors(args), _with_tensors(kwargs or {})
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_deferred":  # of an object without __init__, as compilers create it to inspect it
            raise AttributeError(name)
        return getattr(_tensor_of(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_tensor_of(self), name, value)


@dataclass(eq=False)
class DeferredOutput:
    """How to compute the output of an activation, or its product with another tensor.

    Attributes:
        x: the activation's input, which needs a gradient.
        native: the activation of the unpatched block.
        is_strict: any use but the product raises `NotApplicable`.
        value: the output, once it was computed.
    """

    x: Tensor
    curve: Curve
    saving: Saving
    backend: str
    native: Callable[[Tensor], Tensor]
    is_strict: bool = False
    value: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.autocast_dtype = active_dtype(self.x)

    def times(self, other: Any) -> Tensor:
        if self._fits(other):
            if self.is_strict:
                self._require_invertible_product()
            return gate(self.x, other, self.curve, self.saving, self.backend)
        value = self.tensor()
        product: Tensor = value * (_tensor_of(other) if type(other) is DeferredActivation else other)
        return product

    def _fits(self, other: Any) -> bool:
        """Whether the product is a gate, in the same autocast and grad mode as when the activation was called."""
        if self.value is not None or type(other) is DeferredActivation or not isinstance(other, Tensor):
            return False
        is_as_called = torch.is_grad_enabled() and active_dtype(self.x) == self.autocast_dtype
        return is_as_called and other.shape == self.x.shape and other.dtype == self.x.dtype

    def _require_invertible_product(self) -> None:
        if self.saving == "output" and not tells_output(self.curve, self.x.dtype, self.x.dtype):
            raise NotApplicable(
                f"in {self.x.dtype} the output of {self.curve.name} cannot be computed from a product; the plan "
                "'gate-inputs' keeps gate and up instead"
            )

    def tensor(self) -> Tensor:
        if self.is_strict:
            raise NotApplicable("the activation is not multiplied with a tensor of its shape and dtype")
        if _is_inside_a_function():
            raise RuntimeError(
                "the output of an inverted gate's activation was passed to a torch.autograd.Function, which would drop "
                "its gradient. Leave this block alone with InvActConfig(exclude=[...]), or use the plan 'output' there"
            )
        if self.value is None:
            outside = torch.inference_mode(False) if _is_in_inference_mode() else nullcontext()
            with outside, torch.enable_grad(), self._autocast_as_called():
                self.value = self.native(self.x)
        return self.value

    def _autocast_as_called(self) -> AbstractContextManager[Any]:
        if active_dtype(self.x) == self.autocast_dtype:
            return nullcontext()
        return torch.autocast(self.x.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def _is_inside_a_function() -> bool:
    """Whether the forward of a `torch.autograd.Function` is running, where gradients of both modes are off."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _is_in_inference_mode():
        return False
    return not torch._C._is_fwd_grad_enabled()


def _is_in_inference_mode() -> bool:
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _with_tensors(value: Any) -> Any:
    """Replace deferred activations in arguments by tensors. (PyTorch's own function for it leaves cycles behind.)"""
    if type(value) is DeferredActivation:
        return _tensor_of(value)
    if isinstance(value, dict):
        return {key: _with_tensors(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        parts = map(_with_tensors, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensor_of(deferred: DeferredActivation) -> Tensor:
    return deferred._deferred.tensor()


def _special_method(name: str) -> Callable[..., Any]:
    def apply(self: DeferredActivation, *args: Any, **kwargs: Any) -> Any:
        return getattr(_tensor_of(self), name)(*args, **kwargs)

    return apply


# Python looks up special methods in the class. Those that define the object itself stay.
_OWN = {
    *vars(DeferredActivation),
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
        setattr(DeferredActivation, _name, _special_method(_name))
DeferredActivation.__array_priority__ = Tensor.__array_priority__  # type: ignore[attr-defined]
