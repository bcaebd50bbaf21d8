"""Chooses a plan for each site, by measuring what the module around it then keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ..sites import NotApplicable, Plan, Site
from .config import InvActConfig
from .errors import NoProbeError
from .probing.compare import difference
from .probing.known import KnownCalls
from .probing.probe import Measurement, Scope, measure, measure_below
from .probing.scopes import find_scope
from .probing.signature import Signature, signature
from .probing.surroundings import surroundings

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
    """Decides for the sites of one kind in a model, none of which is patched. Alike blocks share a probe.

    What is installed for other kinds stays as it is meanwhile. Blocks are alike if the module that is run for them, and
    all that was tried before it, have the same `signature` and hold them in the same place. What a layer is like beyond
    that does not matter: layers whose MLP can be run by itself share one probe, however they differ elsewhere.

    Args:
        model: what is run, or whose modules are.
        known: how the model calls the modules around its sites.
        is_copy: whether it is a copy without memory. Reasons then say so.
    """

    def __init__(self, model: nn.Module, config: InvActConfig, known: KnownCalls, *, is_copy: bool = False) -> None:
        self.model, self.config, self.known, self.is_copy = model, config, known, is_copy
        self._decisions: dict[tuple[object, ...], Decision] = {}
        self._signatures: dict[int, int] = {}
        self._numbers: dict[Signature, int] = {}

    def decide(self, site: Site, fallback: Plan | None) -> Decision:
        """The decision for a site.

        Args:
            fallback: the plan where the site cannot be measured; None leaves it alone.
        """
        around = surroundings(self.model, site.holder_name)
        key: tuple[object, ...] = (site.key, fallback)
        keys: dict[nn.Module, tuple[object, ...]] = {}
        for each in around:
            keys[each.module] = key = (*key, each.path, self._signature(each.module))
            if key in self._decisions:
                return self._decisions[key]
        try:
            scope, outermost = find_scope(self.model, site, around, self.known, self.config.autocast_dtype)
            key = keys[outermost]
            decision = self._measured(scope, measure(scope, self.config.autocast_dtype), site)
            if self.is_copy:
                decision = replace(decision, reason=f"{decision.reason} ({COPIED})" if decision.reason else COPIED)
        except NoProbeError as error:
            why = f"{NO_COPY}{error}" if self.is_copy else str(error)
            decision = unmeasured(self.config, site, fallback, why)
        self._decisions[key] = decision
        return decision

    def _signature(self, module: nn.Module) -> int:
        if id(module) not in self._signatures:
            found = () if module is self.model else signature(module)
            self._signatures[id(module)] = self._numbers.setdefault(found, len(self._numbers))
        return self._signatures[id(module)]

    def _measured(self, scope: Scope, plain: Measurement, site: Site) -> Decision:
        demanded = self.config.demanded(site.kind)
        best, after = None, None if demanded else plain.bytes_per_token
        reasons: list[str] = []
        for plan in demanded or site.kind.plans:
            try:
                measured = self._trial(scope, site, plan, after)
            except NotApplicable as error:
                reasons.append(str(error))
            except NoProbeError as error:
                reasons.append(f"once patched, {error}")
            else:
                if measured is None:
                    reasons.append("nothing would keep less")
                elif changed := difference(plain, measured, scope.precision or scope.dtype):
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
