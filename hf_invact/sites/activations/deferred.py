"""The value of a gate's activation until it is known what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...curves import Curve
from ...ops import Saving, gate, tells_output
from ...ops.inputs import active_dtype
from ..kind import NotApplicable

_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


class PendingActivation:
    """Stands for ``native(x)``. Multiplied with a tensor it is `ops.gate`; used in any other way, it is that tensor.

    A block says ``act(x) * up``. This is what lets the slot of the activation alone see the whole product, so that no
    block's forward need be copied.

    Whoever touches it first, in whatever mode, makes the value that the unpatched activation would have returned, with
    its graph. From then on everybody gets that one, also in products: autograd decides by identity what is shared.

    It is no tensor for `isinstance` and `torch.is_tensor`: PyTorch's own code hands what claims to be one to C++, which
    does not ask again. So it is handed to the block alone, not to hooks that look at values, and only where the block
    was seen to do nothing but multiply it.

    Args:
        x: the activation's input, which needs a gradient.
        native: the activation of the unpatched block.
        is_strict: any use but the product raises `NotApplicable`.
    """

    _pending: _Pending

    def __init__(
        self,
        x: Tensor,
        curve: Curve,
        saving: Saving,
        backend: str,
        native: Callable[[Tensor], Tensor],
        is_strict: bool = False,
    ) -> None:
        # All in one attribute, since any other is an attribute of the tensor.
        object.__setattr__(self, "_pending", _Pending(x, curve, saving, backend, native, is_strict))

    def times(self, other: Any) -> Tensor:
        """Their product."""
        return self._pending.times(other)

    __mul__ = __rmul__ = __imul__ = mul = multiply = times

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What PyTorch calls where a function gets this instead of a tensor."""
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            pending, other = args if type(args[0]) is cls else reversed(args)
            return pending.times(other)
        args, kwargs = _with_tensors(args), _with_tensors(kwargs or {})
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_pending":  # of an object that has not been initialised, as compilers make them to look at
            raise AttributeError(name)
        return getattr(_tensor_of(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_tensor_of(self), name, value)


class _Pending:
    """What a `PendingActivation` knows."""

    def __init__(
        self,
        x: Tensor,
        curve: Curve,
        saving: Saving,
        backend: str,
        native: Callable[[Tensor], Tensor],
        is_strict: bool,
    ) -> None:
        self.x, self.curve, self.saving, self.backend, self.native = x, curve, saving, backend, native
        self.is_strict = is_strict
        self.autocast_dtype = active_dtype(x)
        self.value: Tensor | None = None

    def times(self, other: Any) -> Tensor:
        if self._fits(other):
            if self.is_strict:
                self._require_that_its_product_tells()
            return gate(self.x, other, self.curve, self.saving, self.backend)
        value = self.tensor()
        product: Tensor = value * (_tensor_of(other) if type(other) is PendingActivation else other)
        return product

    def _fits(self, other: Any) -> bool:
        """Whether their product is a gate, and is computed now as it would have been when the activation was called."""
        if self.value is not None or type(other) is PendingActivation or not isinstance(other, Tensor):
            return False
        is_as_called = torch.is_grad_enabled() and active_dtype(self.x) == self.autocast_dtype
        return is_as_called and other.shape == self.x.shape and other.dtype == self.x.dtype

    def _require_that_its_product_tells(self) -> None:
        if self.saving == "output" and not tells_output(self.curve, self.x.dtype, self.x.dtype):
            raise NotApplicable(
                f"in {self.x.dtype} a product with {self.curve.name} does not tell the activation's output; the plan "
                "'gate-inputs' keeps gate and up instead"
            )

    def tensor(self) -> Tensor:
        if self.is_strict:
            raise NotApplicable("the activation is not multiplied with a tensor of its shape and dtype")
        if _is_inside_a_function():
            raise RuntimeError(
                "the result of an inverted gate's activation was given to a torch.autograd.Function, which would drop "
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
    """Whether the forward of a `torch.autograd.Function` is running: it turns both kinds of gradients off."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _is_in_inference_mode():
        return False
    return not torch._C._is_fwd_grad_enabled()


def _is_in_inference_mode() -> bool:
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _with_tensors(value: Any) -> Any:
    """Arguments with a tensor for every pending activation. (PyTorch's own function for it leaves cycles behind.)"""
    if type(value) is PendingActivation:
        return _tensor_of(value)
    if isinstance(value, dict):
        return {key: _with_tensors(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        parts = map(_with_tensors, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensor_of(pending: PendingActivation) -> Tensor:
    return pending._pending.tensor()


def _special_method(name: str) -> Callable[..., Any]:
    def apply(self: PendingActivation, *args: Any, **kwargs: Any) -> Any:
        return getattr(_tensor_of(self), name)(*args, **kwargs)

    return apply


# Python looks special methods up in the class. Those that make the object itself what it is stay.
_OWN = {
    *vars(PendingActivation),
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
        setattr(PendingActivation, _name, _special_method(_name))
PendingActivation.__array_priority__ = Tensor.__array_priority__  # type: ignore[attr-defined]
