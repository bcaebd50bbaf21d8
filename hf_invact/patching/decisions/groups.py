"""Decides for sites that are measured in the same module at once. Alike groups of sites share what was found."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from torch import nn

from ...sites import Plan, Site
from ..errors import NoProbeError
from ..probing.probe import Scope
from .planner import Decision, Planner


def decide_by_group(
    planner: Planner,
    sites: Sequence[Site],
    fallbacks: Mapping[Site, Plan | None],
    measured: Callable[[Scope, Sequence[Site]], list[Decision]],
) -> dict[Site, Decision]:
    """Decisions for the sites of one kind in a model, none of which is patched.

    Args:
        measured: returns the decisions for sites that are measured in one module, in their order.
    """
    # The innermost first: what is found for them need not be observed where more is run for others.
    found = {site: planner.places.of(site) for site in sorted(sites, key=lambda site: -site.name.count("."))}
    places = {site: found[site] for site in sites}
    decisions: dict[Site, Decision] = {}
    groups: dict[nn.Module, list[Site]] = {}
    for site, place in places.items():
        if place.module is None:
            decisions[site] = planner.unmeasured(site, fallbacks[site], place.failure)
        else:
            groups.setdefault(place.module, []).append(site)
    known: dict[Hashable, list[Decision]] = {}
    for group in groups.values():
        key = tuple([(places[site].key, fallbacks[site]) for site in group])
        if key not in known:
            try:
                known[key] = measured(planner.places.scope(group[0], places[group[0]]), group)
            except NoProbeError as error:
                known[key] = [planner.unmeasured(site, fallbacks[site], str(error)) for site in group]
        decisions |= dict(zip(group, known[key], strict=True))
    return decisions
