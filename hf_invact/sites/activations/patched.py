"""The objects that a patched block has in the place of its activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.hooks import RemovableHandle

from ...curves import Curve
from ...nn import InvertedActivation
from ...ops import invert, wants_gradient
from .. import hooks
from ..kind import Replacement
from .deferred import DeferredActivation, DeferredOutput
from .plans import OUTPUT, ActivationPlan


class PatchedActivation(InvertedActivation, Replacement):
    """Replaces an activation object, and keeps the original.

    The original computes the output where no gradient is needed (evaluation, generation) and while other code has hooks
    on the activation. The output is then bitwise that of the unpatched model, and hooks get the same tensors.
    """

    original: Callable[[Tensor], Tensor]

    def __init__(
        self,
        original: Callable[[Tensor], Tensor],
        curve: Curve,
        backend: str,
        plan: ActivationPlan = OUTPUT,
        is_strict: bool = False,
    ) -> None:
        super().__init__(curve, backend)
        self.set_plan(curve, backend, plan, is_strict)
        # Not a submodule: a patched model has the same modules as the unpatched one.
        object.__setattr__(self, "original", original)
        if isinstance(original, nn.Module):
            hooks.share(original, self)
            vars(self).update((name, value) for name, value in vars(original).items() if _is_noted(name))
        self.train(getattr(original, "training", True))

    def set_plan(self, curve: Curve, backend: str, plan: ActivationPlan, is_strict: bool = False) -> None:
        """Compute it in another way from now on."""
        self.curve, self.backend, self.plan, self.is_strict = curve, backend, plan, is_strict

    def __setattr__(self, name: str, value: Any) -> None:
        """What other code notes on it, as ZeRO-3 does for its hooks, the original has as well."""
        super().__setattr__(name, value)
        original = vars(self).get("original")
        if isinstance(original, nn.Module) and _is_noted(name):
            setattr(original, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # `torch.fx` looks up each called module in the model, and does not find one that replaces a function.
        if not isinstance(self.original, nn.Module) and any(isinstance(value, Proxy) for value in args):
            return self.original(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        """What `nn.Module.__call__` calls."""
        if isinstance(self.original, nn.Module) and (hook := hooks.hook_of_others(self)):
            if torch.is_grad_enabled():
                hooks.warn_not_inverted(type(self.original).__name__, hook)
            return self.original(*args, **kwargs)
        return super()._call_impl(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        if not wants_gradient(input) or hooks.hook_of_others(self):
            return self._native(input)
        if not self.plan.is_gate:
            return invert(input, self.curve, self.backend, self.plan.saving)
        # Not a tensor: the block multiplies it at once, and the other factor is part of the operation.
        output = DeferredOutput(input, self.curve, self.plan.saving, self.backend, self._native, self.is_strict)
        deferred: Any = DeferredActivation(output)
        product: Tensor = deferred
        return product

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        return self._register("register_full_backward_hook", *args, **kwargs)

    def register_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        return self._register("register_backward_hook", *args, **kwargs)

    def _register(self, method: str, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Register on the original module, which also stores the kind of its backward hooks."""
        if not isinstance(self.original, nn.Module):
            handle: RemovableHandle = getattr(super(), method)(*args, **kwargs)
            return handle
        handle = getattr(self.original, method)(*args, **kwargs)
        hooks.share(self.original, self)
        return handle

    def _native(self, input: Tensor) -> Tensor:
        """The output of the original, without running its hooks."""
        original: Any = self.original
        result: Tensor = original.forward(input) if isinstance(original, nn.Module) else original(input)
        return result

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, plan={self.plan.name!r}, original={self.original!r}"


def _is_noted(name: str) -> bool:
    """Whether an attribute may be what other code has noted on a module."""
    return name not in ("curve", "backend", "plan", "is_strict", "original", "training", "forward") and name[0] != "_"


class LearnedActivation:
    """Base of the classes that activations with learned parameters have while they are patched.

    The instance stays, since state dicts, optimizers and wrappers know its parameters. Only its class changes, to a
    subclass of the original one that overrides `forward` and adds no state but `has_warned`.

    Attributes:
        name: how the report calls it.
        original_class: the class in the unpatched model.
        has_warned: whether the module has warned that it is not inverted for now.
    """

    name: ClassVar[str]
    original_class: ClassVar[type[nn.Module]]
    has_warned: bool = False

    def is_to_invert(self, *tensors: Tensor) -> bool:
        """Whether one of the tensors that it computes with needs a gradient, and no other code has a hook on it."""
        if not wants_gradient(*tensors):
            return False
        hook = hooks.hook_of_others(self)  # type: ignore[arg-type]
        if hook is not None:
            hooks.warn_not_inverted(self.original_class.__name__, hook)
        return hook is None

    @staticmethod
    def reason_to_leave(module: Any) -> str | None:
        """Why a module of the original class, or of this one, cannot be inverted; None if it can."""
        raise NotImplementedError


Inverse: TypeAlias = Curve | type[LearnedActivation]


def original_class(activation: object) -> type:
    """The class of an activation object in the unpatched block."""
    return activation.original_class if isinstance(activation, LearnedActivation) else type(activation)
