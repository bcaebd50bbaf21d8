"""The class that a norm has while it is patched."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...norms import Recognized
from ...ops import normalize, wants_gradient
from .. import hooks
from ..kind import SETTINGS
from ..patched_class import PatchedClass, patch_class
from .plans import NormPlan


class PatchedNorm(PatchedClass):
    """A norm that keeps what its plan says.

    The original computes the output where no gradient is needed (evaluation, generation), and while other code has
    hooks on the norm.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        norm: Recognized = vars(self)[SETTINGS]["norm"]
        weight, bias = parameters_of(self, norm)
        if len(values) != 1 or not wants_gradient(values[0], *(each for each in (weight, bias) if each is not None)):
            return super().forward(*args, **kwargs)
        if hook := hooks.hook_of_others(self):
            hooks.warn_not_inverted(self.original_class.__name__, hook)
            return super().forward(*args, **kwargs)
        plan, backend = (vars(self)[SETTINGS][name] for name in ("plan", "backend"))
        return normalize(values[0], weight, bias, norm.form, norm.eps, norm.dims, plan.saving, backend)


def patch_norm(module: nn.Module, norm: Recognized, plan: NormPlan, backend: str) -> None:
    """Have a norm keep what a plan says, whatever was installed."""
    patch_class(module, PatchedNorm, {"norm": norm, "plan": plan, "backend": backend})


def parameters_of(module: nn.Module, norm: Recognized) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias."""
    weight, bias = (None if name is None else getattr(module, name) for name in (norm.weight, norm.bias))
    return weight, bias
