"""Activations, by themselves or in a product with another projection, as a kind of sites."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...nn import InvertedActivation
from ..errors import PatchingError
from ..forwards import require_own_forward
from ..hooks import hook_of_others
from ..kind import Known, Site, SiteKind, original_of
from . import install
from .blocks import Block, find_activations, registered_blocks
from .conflicts import conflicts
from .known import known_activations
from .patched import Inverse, PatchedActivation
from .plans import GATE_OUTPUT, OUTPUT, PLANS, ActivationPlan
from .recognize import describe, inverse_of, reason_to_leave, supported_activations


@dataclass(frozen=True, eq=False)
class ActivationSite(Site):
    """An activation in a block.

    Attributes:
        attribute: where the holder has it.
        inverse: what inverts it; None where it is not known.
        is_gated: whether its result is known to be multiplied with another projection; None where nothing is known.
    """

    attribute: str
    inverse: Inverse | None
    is_gated: bool | None

    @property
    def value(self) -> Any:
        """What the holder has there now; None where it has no such attribute."""
        return getattr(self.holder, self.attribute, None)

    @property
    def module(self) -> nn.Module | None:
        return self.value if isinstance(self.value, nn.Module) else None

    @property
    def key(self) -> Hashable:
        return self.attribute, self.computes


class Activations(SiteKind[ActivationSite, ActivationPlan]):
    """Activations that keep their output, or the product that they are part of, instead of their input."""

    name = "activation"
    plans = PLANS

    def find(self, model: nn.Module) -> Iterator[ActivationSite]:
        for name, block, attribute, registered in find_activations(model):
            yield self._site(name, block, attribute, registered)

    def patched(self, model: nn.Module) -> Iterator[ActivationSite]:
        for name, block, attribute in install.patched(model):
            yield self._site(name, block, attribute)

    def nothing_found(self, model: nn.Module) -> str:
        reasons = {describe(module): why for module in model.modules() if (why := reason_to_leave(module))}
        found = "".join(f"{activation} is left alone: {why}. " for activation, why in reasons.items())
        return (
            f"{found}Supported: {', '.join(supported_activations())}. Add one of your own with "
            "hf_invact.register_activation, and a block that holds it with "
            "hf_invact.register_block(BlockClass, activation='its attribute')"
        )

    def conflicts(self, module: nn.Module) -> Iterator[str]:
        return conflicts(module)

    def obstacle(self, site: ActivationSite) -> str | None:
        if not hasattr(site.holder, site.attribute):
            raise PatchingError(
                f"{site.holder_name}: this {type(site.holder).__name__} has no attribute {site.attribute!r}, in which "
                "its registration says that it holds its activation; register the block with the right one"
            )
        activation = original_of(site.value)
        if why := reason_to_leave(activation):
            return why
        if isinstance(activation, InvertedActivation):
            return "inverted already, by the model itself"
        require_own_forward(site.holder_name, site.holder, describe(site.holder))
        require_own_forward(site.name, activation, describe(activation))
        if site.inverse is None:
            raise PatchingError(
                f"{site.name}: the activation {site.original} is not known. Supported: "
                f"{', '.join(supported_activations())}. Add it, or say that it computes one of these, with "
                "hf_invact.register_activation; or exclude the block with InvActConfig(exclude=[...])"
            )
        if isinstance(activation, nn.Module) and (hook := hook_of_others(activation)):
            return f"other code has a hook on it ({hook}), which gets the same tensors as in the unpatched model"
        return None

    def fallback(self, site: ActivationSite) -> ActivationPlan | None:
        if site.is_gated is None:
            return None
        # At the worst, where the next layer keeps no input, this costs the side bits.
        return GATE_OUTPUT if site.is_gated else OUTPUT

    def install(self, site: ActivationSite, plan: ActivationPlan, backend: str, *, strict: bool = False) -> None:
        assert site.inverse is not None  # else there is an obstacle
        install.install(site.holder, site.attribute, site.inverse, backend, plan, strict=strict)

    def restore(self, site: ActivationSite) -> None:
        if site.value is not None:
            install.restore(site.holder, site.attribute)

    def installed(self, site: ActivationSite) -> ActivationPlan | None:
        return install.installed_plan(site.holder, site.attribute)

    def suspended(self, site: ActivationSite) -> AbstractContextManager[None]:
        return install.suspended(site.holder, site.attribute)

    def observed(self, site: ActivationSite, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        return install.observed(site.holder, site.attribute, note)

    def notes(self, site: ActivationSite) -> dict[str, Any] | None:
        return vars(site.value) if isinstance(site.value, PatchedActivation) else None

    def known(self) -> tuple[Known, ...]:
        blocks = [block.cls for block in registered_blocks()]
        return (
            Known("activations", "activations that can be inverted", known_activations()),
            Known("blocks", "blocks that are patched even if they cannot be probed", blocks),
        )

    def _site(self, name: str, holder: nn.Module, attribute: str, registered: Block | None = None) -> ActivationSite:
        original = original_of(getattr(holder, attribute, None))
        inverse = inverse_of(original)
        return ActivationSite(
            kind=self,
            name=f"{name}.{attribute}" if name else attribute,
            holder_name=name,
            holder=holder,
            block=type(holder).__name__,
            original=describe(original),
            computes=inverse.name if inverse else None,
            attribute=attribute,
            inverse=inverse,
            is_gated=registered.is_gated if registered else None,
        )
