"""The output of a gate's activation, deferred until it is known what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...curves import Curve
from ...ops import Saving, gate, tells_output
from ...ops.inputs import active_dtype
from ..deferred import Deferred, as_called, is_inside_a_function, outside_of_inference
from ..kind import NotApplicable

_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


class DeferredActivation(Deferred):
    """Stands for the output of an activation until it is used. Multiplied with a tensor, it is `ops.gate`.

    A block computes ``act(x) * up``. Only with a deferred output can the activation see the whole product, so that no
    block's forward has to be copied. Only the block gets it, not hooks, and only a block that was seen to multiply it
    at once.
    """

    pending: DeferredOutput

    def times(self, other: Any) -> Tensor:
        """The product with a tensor or a number."""
        return self.pending.times(other)

    __mul__ = __rmul__ = __imul__ = mul = multiply = times

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            deferred, other = args if type(args[0]) is cls else reversed(args)
            return deferred.times(other)
        return super().__torch_function__(func, types, args, kwargs)


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
        product: Tensor = value * (other.pending.tensor() if isinstance(other, Deferred) else other)
        return product

    def _fits(self, other: Any) -> bool:
        """Whether the product is a gate, in the same autocast and grad mode as when the activation was called."""
        if self.value is not None or isinstance(other, Deferred) or not isinstance(other, Tensor):
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
        if is_inside_a_function():
            raise RuntimeError(
                "the output of an inverted gate's activation was passed to a torch.autograd.Function, which would drop "
                "its gradient. Leave this block alone with InvActConfig(exclude=[...]), or use the plan 'output' there"
            )
        if self.value is None:
            with outside_of_inference(), torch.enable_grad(), as_called(self.x, self.autocast_dtype):
                self.value = self.native(self.x)
        return self.value
