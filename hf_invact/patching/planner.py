"""Chooses what each site does, by measuring what its block then keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ..curves import Curve
from . import slot
from .config import InvActConfig
from .pending import NotAGateError
from .plans import AUTO_PLAN, GATE_OUTPUT, OUTPUT, PLANS, Plan
from .probe import Measurement, NoProbeError, Scope, measure
from .scopes import find_scope
from .slot import Inverse

# Of the largest output, in units of the dtype's epsilon: formulas of several roundings differ from fused ones by less.
SAME_RESULT = 8.0


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
    """Decides for the sites of one model, all of which hold their original activation. Equal blocks share a probe."""

    def __init__(self, model: nn.Module, config: InvActConfig) -> None:
        self.model, self.config = model, config
        self._decisions: dict[tuple[object, ...], Decision] = {}
        self._signatures: dict[nn.Module, tuple[object, ...]] = {}

    def decide(self, name: str, attribute: str, inverse: Inverse, by_rule: Plan | None) -> Decision:
        """The decision for an activation.

        Args:
            name: qualified name of the block.
            attribute: where it holds the activation.
            inverse: what inverts the activation.
            by_rule: the plan where the block cannot be probed; None leaves it alone.
        """
        block, parent = self.model.get_submodule(name), self.model.get_submodule(name.rpartition(".")[0])
        key = (attribute, inverse.name, by_rule, self._signature(block), self._signature(parent))
        if key not in self._decisions:
            self._decisions[key] = self._decide(name, attribute, inverse, by_rule)
        return self._decisions[key]

    def _signature(self, module: nn.Module) -> tuple[object, ...]:
        if module is self.model:
            return ()
        if module not in self._signatures:
            weights = tuple((w.shape, w.dtype, w.requires_grad, w.device.type) for w in module.parameters())
            self._signatures[module] = (type(module), repr(module), weights)
        return self._signatures[module]

    def _decide(self, name: str, attribute: str, inverse: Inverse, by_rule: Plan | None) -> Decision:
        try:
            scope = find_scope(self.model, name, attribute)
            plain = measure(scope, self.config.autocast_dtype)
        except NoProbeError as error:
            return self._unmeasured(by_rule, str(error))
        return self._measured(scope, plain, self.model.get_submodule(name), attribute, inverse)

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
            if difference := _difference(plain, measured):
                reasons.append(difference)
            elif measured.bytes_per_token < after or self.config.plan == plan.name:
                best, after = plan, measured.bytes_per_token
            else:
                reasons.append("nothing would keep less")
        reason = "" if best else f"left alone: {reasons[-1]}"
        return Decision(best, plain.bytes_per_token, after, reason)


def rule(is_gated: bool) -> Plan:
    """Where nothing can be measured: at the worst, where the next layer keeps no input, this costs the side bits."""
    return GATE_OUTPUT if is_gated else OUTPUT


def _difference(plain: Measurement, measured: Measurement) -> str | None:
    """How the result changes; None where it does not, or cannot be seen (without weights, or with unfit ones)."""
    if isinstance(plain.output, FakeTensor):
        return None
    if not plain.output.isfinite().all():
        return None
    allowed = SAME_RESULT * torch.finfo(plain.output.dtype).eps * plain.output.abs().max().item()
    change = (measured.output.double() - plain.output.double()).abs().max().item()
    if change <= allowed:
        return None
    return f"the block's result would change by {change:.2g}, which rounding does not explain"
