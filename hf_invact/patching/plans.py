"""What can be done at a site."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from ..ops import Saving

AUTO_PLAN = "auto"


@dataclass(frozen=True)
class Plan:
    """What an activation, or its product with another projection, keeps for the backward pass.

    Attributes:
        name: as `InvActConfig.plan` spells it.
        keeps: in words.
        exact: whether its gradients are the native ones.
        saving: as `ops.gate` and `ops.invert` take it.
        is_gate: whether it is the product that is inverted.
    """

    name: str
    keeps: str
    exact: bool
    saving: Saving
    is_gate: bool = False


INPUT = Plan("input", "the input", exact=True, saving="inputs")
OUTPUT = Plan("output", "the output and one bit per element", exact=False, saving="output")
GATE_INPUTS = Plan("gate-inputs", "gate and up", exact=True, saving="inputs", is_gate=True)
GATE_OUTPUT = Plan("gate-output", "the product, up and one bit per element", exact=False, saving="output", is_gate=True)

# Where two keep as much, the first is installed.
PLANS = MappingProxyType({plan.name: plan for plan in (GATE_INPUTS, INPUT, GATE_OUTPUT, OUTPUT)})
