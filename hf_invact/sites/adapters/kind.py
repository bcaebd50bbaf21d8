"""The inputs of adapters as a kind of sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from ..kind import Known, ModuleSite, Plan, SiteKind
from ..patched_class import observed, restore_class, settings_of, suspended
from .layers import SUPPORTED, describe, find_layers, obstacle
from .patched import PatchedLayer, parts, patch_layer

ADAPTER_INPUT = Plan(
    "adapter-input",
    "the layer's input, once for all of its adapters, and one bit per element for each dropout",
    exact=True,
)


class AdapterInputs(SiteKind[ModuleSite, Plan]):
    """Adapters of PEFT that share the input of their layer, in place of a copy and a mask for each of them."""

    name = "adapter"
    plans = (ADAPTER_INPUT,)
    measured = "together"

    def find(self, model: nn.Module) -> Iterator[ModuleSite]:
        for holder_name, holder, attribute in find_layers(model):
            layer = holder.get_submodule(attribute)
            yield ModuleSite(
                kind=self,
                name=f"{holder_name}.{attribute}" if holder_name else attribute,
                holder_name=holder_name,
                holder=holder,
                block=type(holder).__name__,
                original=describe(layer),
                computes="adapter input",
                attribute=attribute,
            )

    def patched(self, model: nn.Module) -> Iterator[ModuleSite]:
        return (site for site in self.find(model) if self.installed(site))

    def nothing_found(self, model: nn.Module) -> str:
        return ""  # most models have none

    def conflicts(self, module: nn.Module) -> Iterator[str]:
        return iter(())

    def obstacle(self, site: ModuleSite) -> str | None:
        return obstacle(site.holder, site.module)

    def fallback(self, site: ModuleSite) -> Plan | None:
        """With dropout it keeps less than a copy and a mask; without, that depends on the dtypes."""
        layer: Any = site.module
        drops = any(isinstance(each, nn.Dropout) for each in getattr(layer, "lora_dropout", {}).values())
        return ADAPTER_INPUT if drops else None

    def install(self, site: ModuleSite, plan: Plan, backend: str, *, strict: bool = False) -> None:
        restore_class(*parts(site.module))
        patch_layer(site.module, backend)

    def restore(self, site: ModuleSite) -> None:
        restore_class(*parts(site.module))

    def installed(self, site: ModuleSite) -> Plan | None:
        return None if settings_of(site.module, PatchedLayer) is None else ADAPTER_INPUT

    def suspended(self, site: ModuleSite) -> AbstractContextManager[None]:
        return suspended(*parts(site.module))

    def observed(self, site: ModuleSite, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        return observed(site.module, note)

    def notes(self, site: ModuleSite) -> dict[str, Any] | None:
        return settings_of(site.module, PatchedLayer)

    def known(self) -> tuple[Known, ...]:
        return (Known("adapters", "layers of PEFT whose adapters keep their input once", [*SUPPORTED]),)
