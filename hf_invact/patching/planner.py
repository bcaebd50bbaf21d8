"""Chooses what each site does, by measuring what its block then keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from ..curves import Curve
from . import slot
from .compare import difference
from .config import InvActConfig
from .pending import NotAGateError
from .plans import AUTO_PLAN, GATE_OUTPUT, OUTPUT, PLANS, Plan
from .probe import Measurement, NoProbeError, Scope, measure
from .scopes import find_scope
from .shadow import on_whole_weights
from .signature import Signature, signature
from .slot import Inverse
from .surroundings import Surrounding, surroundings

COPIED = "measured on a copy without memory: its weights are sharded or missing"


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
    """Decides for the sites of one model, all of which hold their original activation. Equal blocks share a probe.

    Equal are those whose scope, and all that was tried before it, has the same `signature` and holds them in the same
    place. So what a layer beyond the scope is like does not matter: layers whose MLP can be run by itself share one
    probe, however they differ elsewhere.
    """

    def __init__(self, model: nn.Module, config: InvActConfig) -> None:
        self.model, self.config = model, config
        self._decisions: dict[tuple[object, ...], Decision] = {}
        self._signatures: dict[int, int] = {}
        self._kinds: dict[Signature, int] = {}

    def decide(self, name: str, attribute: str, inverse: Inverse, by_rule: Plan | None) -> Decision:
        """The decision for an activation.

        Args:
            name: qualified name of the block.
            attribute: where it holds the activation.
            inverse: what inverts the activation.
            by_rule: the plan where the block cannot be probed; None leaves it alone.
        """
        around = surroundings(self.model, name)
        key: tuple[object, ...] = (attribute, inverse.name, by_rule)
        keys: dict[nn.Module, tuple[object, ...]] = {}
        for each in around:
            keys[each.module] = key = (*key, each.path, self._signature(each.module))
            if key in self._decisions:
                return self._decisions[key]
        decision, scope = self._decide(name, attribute, inverse, by_rule, around)
        self._decisions[keys[scope] if scope else key] = decision
        return decision

    def _signature(self, module: nn.Module) -> int:
        if id(module) not in self._signatures:
            found = () if module is self.model else signature(module)
            self._signatures[id(module)] = self._kinds.setdefault(found, len(self._kinds))
        return self._signatures[id(module)]

    def _decide(
        self, name: str, attribute: str, inverse: Inverse, by_rule: Plan | None, around: list[Surrounding]
    ) -> tuple[Decision, nn.Module | None]:
        """The decision, and the module that was run for it, if it is one of the model."""
        try:
            return on_whole_weights(self.model, partial(self._probe, name, attribute, inverse, around))
        except NoProbeError as error:
            return self._unmeasured(by_rule, str(error)), None

    def _probe(
        self, name: str, attribute: str, inverse: Inverse, around: list[Surrounding], model: nn.Module
    ) -> tuple[Decision, nn.Module | None]:
        """Of the model, or a copy of it."""
        is_copy = model is not self.model
        scope = find_scope(model, name, attribute, self.config.autocast_dtype, None if is_copy else around)
        plain = measure(scope, self.config.autocast_dtype)
        decision = self._measured(scope, plain, model.get_submodule(name), attribute, inverse)
        if not is_copy:
            return decision, scope.module
        return replace(decision, reason=f"{decision.reason} ({COPIED})" if decision.reason else COPIED), None

    def _unmeasured(self, plan: Plan | None, why: str) -> Decision:
        if self.config.plan in PLANS:
            return Decision(PLANS[self.config.plan], reason=f"as the config says, not measured: {why}")
        if plan is None:
            return Decision(None, reason=f"left alone: not measured ({why})")
        return Decision(plan, reason=f"by rule, not measured: {why}")

    def _measured(
        self, scope: Scope, plain: Measurement, block: nn.Module, attribute: str, inverse: Inverse
    ) -> Decision:
        possible = PLANS.values() if isinstance(inverse, Curve) else (OUTPUT,)
        wanted = [plan for plan in possible if self.config.plan in (AUTO_PLAN, plan.name)]
        best, after = None, plain.bytes_per_token
        reasons = [f"{inverse.name} cannot have the plan {self.config.plan!r}"]
        for plan in wanted:
            try:
                # The plain backend, since what is kept does not depend on it, and others would be compiled for a probe.
                with slot.tried(block, attribute, inverse, "eager", plan):
                    measured = measure(scope, self.config.autocast_dtype)
            except NotAGateError as error:
                reasons.append(str(error))
                continue
            except NoProbeError as error:
                reasons.append(f"once patched, {error}")
                continue
            if changed := difference(plain, measured, scope.precision or scope.dtype):
                reasons.append(changed)
            elif measured.bytes_per_token < after or self.config.plan == plan.name:
                best, after = plan, measured.bytes_per_token
            else:
                reasons.append("nothing would keep less")
        reason = "" if best else f"left alone: {reasons[-1]}"
        return Decision(best, plain.bytes_per_token, after, reason)


def rule(is_gated: bool) -> Plan:
    """Where nothing can be measured: at the worst, where the next layer keeps no input, this costs the side bits."""
    return GATE_OUTPUT if is_gated else OUTPUT
