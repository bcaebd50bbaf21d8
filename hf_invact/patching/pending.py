"""The value of a gate's activation until it is known what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..curves import Curve
from ..ops import Saving, gate, invert

_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


class NotAGateError(Exception):
    """A pending activation was used otherwise than in a product with a tensor of its shape and dtype."""


class PendingActivation:
    """Stands for ``f(gate)``. Multiplied with a tensor it is `ops.gate`; used in any other way, `ops.invert`.

    A block says ``act(gate) * up``. This is what lets the slot of the activation alone see the whole product, so that
    no block's forward need be copied.

    Args:
        is_strict: any other use raises `NotAGateError`.
    """

    def __init__(self, gate: Tensor, curve: Curve, saving: Saving, backend: str, is_strict: bool = False) -> None:
        self._gate, self._curve, self._saving, self._backend = gate, curve, saving, backend
        self._is_strict = is_strict
        self._value: Tensor | None = None

    def times(self, other: Any) -> Tensor:
        """Their product."""
        # Autograd decides by identity what is shared: once there is a value, everybody gets that one.
        if self._value is None and self._fits(other):
            return gate(self._gate, other, self._curve, self._saving, self._backend)
        product: Tensor = self._as_tensor() * (other._as_tensor() if isinstance(other, PendingActivation) else other)
        return product

    __mul__ = __rmul__ = mul = multiply = times

    def _fits(self, other: Any) -> bool:
        return isinstance(other, Tensor) and other.shape == self._gate.shape and other.dtype == self._gate.dtype

    def _as_tensor(self) -> Tensor:
        if self._is_strict:
            raise NotAGateError("the activation is not multiplied with a tensor of its shape and dtype")
        if self._value is None:
            self._value = invert(self._gate, self._curve, self._backend)
        return self._value

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What PyTorch calls where a function gets this instead of a tensor."""
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            pending, other = args if isinstance(args[0], cls) else reversed(args)
            return pending.times(other)
        args, kwargs = _with_tensors((args, kwargs or {}))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._as_tensor(), name)


# Python looks operators up in the class.
_OPERATORS = (
    *("add", "radd", "sub", "rsub", "truediv", "rtruediv", "pow", "rpow", "matmul", "rmatmul", "neg", "pos", "abs"),
    *("eq", "ne", "lt", "le", "gt", "ge", "getitem", "len", "iter", "bool", "float"),
)


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: PendingActivation, *args: Any) -> Any:
        return getattr(self._as_tensor(), name)(*args)

    return apply


for _name in _OPERATORS:
    setattr(PendingActivation, f"__{_name}__", _operator(f"__{_name}__"))


def _with_tensors(value: Any) -> Any:
    """The arguments with a tensor for every pending activation."""
    if isinstance(value, PendingActivation):
        return value._as_tensor()
    if isinstance(value, (tuple, list)):
        return type(value)(_with_tensors(item) for item in value)
    return {key: _with_tensors(item) for key, item in value.items()} if isinstance(value, dict) else value
