"""Remembers what was decided for a site, which stays once weights are sharded and a probe would have to gather them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from . import slot
from .config import InvActConfig
from .planner import Decision
from .plans import AUTO_PLAN
from .registry import Found
from .sharding import is_sharded


def remember(block: nn.Module, attribute: str, decision: Decision, config: InvActConfig) -> None:
    """Keep a decision with what it has installed."""
    installed = getattr(block, attribute)
    if isinstance(installed, slot.PatchedActivation):
        vars(installed)["decided"] = _Decided(decision, config.autocast_dtype)


def present(model: nn.Module, sites: Sequence[Found], config: InvActConfig) -> list[Decision | None]:
    """What each site of a sharded model has already, with its figures where they hold for this config.

    None for a site that has nothing, or where the config demands something else; for all where no weight is sharded.
    """
    if not is_sharded(model):
        return [None] * len(sites)
    return [_present(found.module, found.attribute, config) for found in sites]


def _present(block: nn.Module, attribute: str, config: InvActConfig) -> Decision | None:
    plan = slot.plan_of(block, attribute)
    if plan is None or config.plan not in (AUTO_PLAN, plan.name):
        return None
    decided: _Decided | None = getattr(getattr(block, attribute), "decided", None)
    if decided is None or decided.autocast_dtype != config.autocast_dtype:
        return Decision(plan, reason="as it was before the weights were sharded")
    return decided.decision


@dataclass(frozen=True)
class _Decided:
    decision: Decision
    autocast_dtype: torch.dtype | None
