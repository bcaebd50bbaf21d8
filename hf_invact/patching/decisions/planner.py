"""Chooses a plan for each site, by measuring what the module around it then keeps."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from ...sites import NotApplicable, Plan, Site
from ..config import InvActConfig
from ..errors import NoProbeError
from ..probing.compare import difference
from ..probing.probe import Measurement, Scope, measure, measure_below, rounded_gradients
from ..probing.runs import Runs
from .places import Places

COPIED = "measured on a copy without memory: its weights are sharded or missing"
NO_COPY = "its weights are sharded or missing, and of a copy without memory: "


@dataclass(frozen=True)
class Decision:
    """What to install at a site, and why.

    Attributes:
        plan: None leaves the site as it is.
        before, after: bytes that its block keeps per token, where they were measured.
        reason: empty where the plan is the smallest that was measured.
    """

    plan: Plan | None
    before: int | None = None
    after: int | None = None
    reason: str = ""


class Planner:
    """Decides for the sites of one kind in a model, none of which is patched. Alike sites share a probe.

    What is installed for other kinds stays as it is meanwhile.

    Args:
        model: what is run, or whose modules are.
        runs: of its modules.
        is_copy: whether it is a copy without memory. Reasons then say so.
    """

    def __init__(self, model: nn.Module, config: InvActConfig, runs: Runs, *, is_copy: bool = False) -> None:
        self.config, self.is_copy = config, is_copy
        self.places = Places(model, runs)
        self._decisions: dict[Hashable, Decision] = {}

    def decide(self, site: Site, fallback: Plan | None) -> Decision:
        """The decision for a site.

        Args:
            fallback: the plan where the site cannot be measured; None leaves it alone.
        """
        place = self.places.of(site)
        key = place.key, fallback
        if key not in self._decisions:
            try:
                scope = self.places.scope(site, place)
                plain = measure(scope, self.config.autocast_dtype)
                self._decisions[key] = self.noted(self._measured(scope, plain, site))
            except NoProbeError as error:
                self._decisions[key] = self.unmeasured(site, fallback, str(error))
        return self._decisions[key]

    def unmeasured(self, site: Site, fallback: Plan | None, failure: str) -> Decision:
        """The decision for a site for which nothing can be run."""
        return unmeasured(self.config, site, fallback, f"{NO_COPY}{failure}" if self.is_copy else failure)

    def noted(self, decision: Decision) -> Decision:
        """A decision that was measured, which says so where it was on a copy."""
        if not self.is_copy:
            return decision
        return replace(decision, reason=f"{decision.reason} ({COPIED})" if decision.reason else COPIED)

    def _measured(self, scope: Scope, plain: Measurement, site: Site) -> Decision:
        demanded = self.config.demanded(site.kind)
        best, after = None, None if demanded else plain.bytes_per_token
        again = partial(rounded_gradients, scope, self.config.autocast_dtype)
        reasons: list[str] = []
        for plan in demanded or site.kind.plans:
            try:
                measured = self._trial(scope, site, plan, after)
                changed = measured and difference(plain, measured, scope.precision or scope.dtype, again)
            except NotApplicable as error:
                reasons.append(str(error))
            except NoProbeError as error:
                reasons.append(f"once patched, {error}")
            else:
                if measured is None:
                    reasons.append("nothing would keep less")
                elif changed:
                    reasons.append(changed)
                else:
                    best, after = plan, measured.bytes_per_token
        if best is None:
            return Decision(None, plain.bytes_per_token, plain.bytes_per_token, f"left alone: {reasons[-1]}")
        return Decision(best, plain.bytes_per_token, after)

    def _trial(self, scope: Scope, site: Site, plan: Plan, limit: int | None) -> Measurement | None:
        """What a plan leads to; None where it keeps as many bytes per token as the limit, or more."""
        with site.kind.suspended(site):
            # What is kept does not depend on the backend, and others than this would be compiled for a probe.
            site.kind.install(site, plan, "eager", strict=True)
            if limit is None:
                return measure(scope, self.config.autocast_dtype)
            return measure_below(scope, self.config.autocast_dtype, limit)


def unmeasured(config: InvActConfig, site: Site, fallback: Plan | None, why: str) -> Decision:
    """What to do at a site that cannot be measured.

    Args:
        fallback: the plan to install then; None leaves it alone, unless the config demands one.
        why: it cannot be measured.
    """
    if demanded := config.demanded(site.kind):
        plan = fallback if fallback in demanded else demanded[0]
        return Decision(plan, reason=f"as the config says, not measured: {why}")
    if fallback is None:
        return Decision(None, reason=f"left alone: not measured ({why})")
    return Decision(fallback, reason=f"by default, not measured: {why}")
