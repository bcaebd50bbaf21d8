"""Norms as a kind of sites."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ...norms import FORMS, Recognized
from ...ops import count_lost
from ...ops.inputs import is_distributed
from ..forwards import replaced_forward
from ..hooks import hook_of_others
from ..kind import Known, ModuleSite, NotApplicable, SiteKind
from ..patched_class import observed, original_class, restore_class, settings_of, suspended
from .find import find_norms
from .patched import PatchedNorm, parameters_of, patch_norm
from .plans import INPUT, OUTPUT, PLANS, NormPlan
from .register import registered_norms

_KERNELS = {"liger_kernel": "Liger"}


@dataclass(frozen=True, eq=False)
class NormSite(ModuleSite):
    """A norm.

    Attributes:
        found: what it computes, or why nobody knows.
        loses: why its output does not tell its input; None where it does.
    """

    found: Recognized | str
    loses: str | None

    @property
    def key(self) -> Hashable:
        return self.attribute, self.loses


class Norms(SiteKind[NormSite, NormPlan]):
    """Norms that keep their output, or their input alone, and a few numbers per row."""

    name = "norm"
    plans = PLANS
    measured = "alone"

    def find(self, model: nn.Module) -> Iterator[NormSite]:
        for holder_name, holder, attribute, found in find_norms(model):
            module = holder.get_submodule(attribute)
            yield NormSite(
                kind=self,
                name=f"{holder_name}.{attribute}" if holder_name else attribute,
                holder_name=holder_name,
                holder=holder,
                block=type(holder).__name__,
                original=original_class(module).__name__,
                computes=found.form.name if isinstance(found, Recognized) else None,
                attribute=attribute,
                found=found,
                loses=_loses(module, found) if isinstance(found, Recognized) else None,
            )

    def patched(self, model: nn.Module) -> Iterator[NormSite]:
        return (site for site in self.find(model) if self.installed(site))

    def nothing_found(self, model: nn.Module) -> str:
        return ""

    def conflicts(self, module: nn.Module) -> Iterator[str]:
        return iter(())

    def obstacle(self, site: NormSite) -> str | None:
        cls = original_class(site.module)
        if library := _KERNELS.get(cls.__module__.partition(".")[0]):
            return f"{library} computes it in a kernel of its own"
        if by := replaced_forward(site.module):
            return f"another library has replaced its forward by {by}"
        if "forward" in vars(site.module):
            return "another library, such as Accelerate, has replaced its forward, and would keep calling that one"
        if isinstance(site.found, str):
            return site.found
        if hook := hook_of_others(site.module):
            return f"other code has a hook on it ({hook}), which gets the same tensors as in the unpatched model"
        return None

    def fallback(self, site: NormSite) -> NormPlan | None:
        """Those that are not one kernel of PyTorch keep copies of their input."""
        is_one_kernel = isinstance(site.found, Recognized) and site.found.form.is_one_kernel
        return None if is_one_kernel else INPUT

    def install(self, site: NormSite, plan: NormPlan, backend: str, *, strict: bool = False) -> None:
        assert isinstance(site.found, Recognized)  # else there is an obstacle
        if strict and plan is OUTPUT and site.loses:
            raise NotApplicable(site.loses)
        patch_norm(site.module, site.found, plan, backend)

    def restore(self, site: NormSite) -> None:
        restore_class(site.module)

    def installed(self, site: NormSite) -> NormPlan | None:
        settings = settings_of(site.module, PatchedNorm)
        return None if settings is None else settings["plan"]

    def suspended(self, site: NormSite) -> AbstractContextManager[None]:
        return suspended(site.module)

    def observed(self, site: NormSite, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        return observed(site.module, note)

    def notes(self, site: NormSite) -> dict[str, Any] | None:
        return settings_of(site.module, PatchedNorm)

    def known(self) -> tuple[Known, ...]:
        return (
            Known("norms", "forms of norms that can be inverted", [*FORMS]),
            Known("norm_classes", "classes of norms that are registered", [*registered_norms()]),
        )


def _loses(module: nn.Module, norm: Recognized) -> str | None:
    """Why a norm's output does not tell its input."""
    weight, bias = parameters_of(module, norm)
    if bias is None or any(each is not None and _has_no_values(each) for each in (weight, bias)):
        return None
    lost = count_lost(norm.form, weight, bias)
    return f"{lost} more channels than it would keep have a bias far larger than their weight" if lost else None


def _has_no_values(tensor: Tensor) -> bool:
    is_elsewhere = tensor.is_meta or isinstance(tensor, FakeTensor) or is_distributed(tensor)
    return is_elsewhere or tensor.untyped_storage().nbytes() == 0
