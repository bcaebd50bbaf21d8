"""The places in a model that can be patched, by kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .activations import Activations
from .adapters import AdapterInputs
from .kind import Known, NotApplicable, Plan, Replacement, Site, SiteKind, original_of
from .norms import Norms

# Consumers first: what is decided for a kind stays installed while the next kind is measured.
KINDS: tuple[SiteKind[Any, Any], ...] = (AdapterInputs(), Activations(), Norms())


def all_plans() -> dict[str, Plan]:
    """The plans of all kinds, by name."""
    return {plan.name: plan for kind in KINDS for plan in kind.plans}


def patched_sites(model: nn.Module) -> Iterator[Site]:
    """All sites of a model that are patched now."""
    for kind in KINDS:
        yield from kind.patched(model)


__all__ = [
    "KINDS",
    "Known",
    "NotApplicable",
    "Plan",
    "Replacement",
    "Site",
    "SiteKind",
    "all_plans",
    "original_of",
    "patched_sites",
]
