"""Decides what to do at each site of a model: kind by kind, on the model itself or on a copy without memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from ...sites import Plan, Site
from ..config import InvActConfig
from ..errors import NoProbeError
from ..probing.known import KnownCalls
from ..probing.runs import Runs
from ..selection import Selection
from ..weights.fake_copy import without_memory
from ..weights.sharding import ShardedError, is_sharded, require_whole
from .alone import decide_alone
from .memory import Memory, dependencies
from .places import around
from .planner import NO_COPY, Decision, Planner, unmeasured
from .present import present
from .together import decide_together


def decide(model: nn.Module, selection: Selection, config: InvActConfig, memory: Memory) -> dict[Site, Decision]:
    """What to do at each site. The model is afterwards as it was before.

    Args:
        memory: what was decided before. What is decided now is added, unless weights are sharded or missing.

    Raises:
        PatchingError: a site can be patched only once the user has changed something, or a probe has changed what
            cannot be put back.
    """
    with torch.inference_mode(False):
        return _decide(model, selection, config, memory)


def _decide(model: nn.Module, selection: Selection, config: InvActConfig, memory: Memory) -> dict[Site, Decision]:
    sites = selection.sites
    obstacles = {site: selection.obstacle(site) for site in sites}
    fallbacks = {site: site.kind.installed(site) or site.kind.fallback(site) for site in sites}
    decisions = present(model, sites, config)
    decisions |= {site: Decision(None, reason=f"left alone: {why}") for site, why in obstacles.items() if why}
    with ExitStack() as originals:
        for site in (*sites, *selection.others):
            originals.enter_context(site.kind.suspended(site))
        if is_sharded(model):
            decisions |= _on_a_copy(model, sites, decisions, fallbacks, config)
        else:
            key = dependencies(model, obstacles, config)
            if (known := memory.recall(key)) is not None:
                return {site: known[site.name] for site in sites}
            decisions |= _by_kind(model, sites, decisions, fallbacks, config)
            memory.keep(key, decisions)
    return {site: decisions[site] for site in sites}


def _by_kind(
    model: nn.Module,
    sites: Sequence[Site],
    decided: Mapping[Site, Decision],
    fallbacks: Mapping[Site, Plan | None],
    config: InvActConfig,
    *,
    is_copy: bool = False,
) -> dict[Site, Decision]:
    """Decisions for all sites, of which some are decided. Each kind stays installed while later ones are measured."""
    decisions = dict(decided)
    modules = (each for site in sites for each in _watched(model, site))
    known = KnownCalls(model, modules, config.autocast_dtype)
    for kind in config.kinds:
        of_kind = [site for site in sites if site.kind is kind]
        left = [site for site in of_kind if site not in decisions]
        together = left if kind.measured != "around" else ()
        runs = Runs(model, known, config.autocast_dtype, together, in_part=kind.measured == "alone")
        planner = Planner(model, config, runs, is_copy=is_copy)
        if kind.measured == "together":
            decisions |= decide_together(planner, left, fallbacks)
        elif kind.measured == "alone":
            decisions |= decide_alone(planner, left, fallbacks)
        else:
            decisions |= {site: planner.decide(site, fallbacks[site]) for site in left}
        for site in of_kind:
            install(site, decisions[site], config)
    return decisions


def _watched(model: nn.Module, site: Site) -> Iterator[nn.Module]:
    """Of which it is to be known how the model calls them. The model itself is run only for a norm after all layers."""
    for each in around(model, site):
        if each.module is not model or site.kind.measured == "alone":
            yield each.module


def _on_a_copy(
    model: nn.Module,
    sites: Sequence[Site],
    decided: Mapping[Site, Decision],
    fallbacks: Mapping[Site, Plan | None],
    config: InvActConfig,
) -> dict[Site, Decision]:
    """The same for a model whose weights are sharded or missing.

    The copy computes with the sizes that a forward pass of this process has. It communicates with nobody, so the
    processes need not decide at the same time, nor all of them.
    """
    decisions = dict(decided)
    for site in sites:
        if site not in decisions and (why := _why_not_copied(model, site)):
            decisions[site] = unmeasured(config, site, fallbacks[site], why)
    if len(decisions) == len(sites):
        return decisions
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(without_memory(model))
        except NoProbeError as error:
            why = f"{NO_COPY}{error}"
            return decisions | {
                site: unmeasured(config, site, fallbacks[site], why) for site in sites if site not in decisions
            }
        twins = {site: replace(site, holder=copy.get_submodule(site.holder_name)) for site in sites}
        on_copy = _by_kind(
            copy,
            [*twins.values()],
            {twins[site]: decision for site, decision in decisions.items()},
            {twins[site]: fallback for site, fallback in fallbacks.items()},
            config,
            is_copy=True,
        )
    return {site: on_copy[twins[site]] for site in sites}


def _why_not_copied(model: nn.Module, site: Site) -> str | None:
    try:
        require_whole(model, site.holder)
    except ShardedError:
        return None
    except NoProbeError as error:
        return str(error)
    return None


def install(site: Site, decision: Decision, config: InvActConfig) -> None:
    """Do what was decided, whatever is installed."""
    if decision.plan is None:
        site.kind.restore(site)
    else:
        site.kind.install(site, decision.plan, config.backend)
