"""Remembers decisions, which stay valid once weights are sharded and a probe would have to gather them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...sites import Site
from ..config import InvActConfig
from ..weights.sharding import is_sharded
from .planner import Decision

_NOTE = "decided"


def remember(site: Site, decision: Decision, config: InvActConfig) -> None:
    """Store a decision with what it has installed."""
    if decision.plan is not None and (notes := site.kind.notes(site)) is not None:
        notes[_NOTE] = _Decided(decision, config.autocast_dtype)


def present(model: nn.Module, sites: Sequence[Site], config: InvActConfig) -> dict[Site, Decision]:
    """The decisions that are installed in a sharded model, with their figures if these hold for this config.

    Sites that are not patched, or for which the config demands another plan, are left out. Empty if nothing is sharded.
    """
    if not is_sharded(model):
        return {}
    return {site: decision for site in sites if (decision := _present(site, config)) is not None}


def _present(site: Site, config: InvActConfig) -> Decision | None:
    plan, demanded = site.kind.installed(site), config.demanded(site.kind)
    if plan is None or (demanded and plan not in demanded):
        return None
    decided: _Decided | None = (site.kind.notes(site) or {}).get(_NOTE)
    if decided is None or decided.autocast_dtype != config.autocast_dtype:
        return Decision(plan, reason="as it was before the weights were sharded")
    return decided.decision


@dataclass(frozen=True)
class _Decided:
    decision: Decision
    autocast_dtype: torch.dtype | None
