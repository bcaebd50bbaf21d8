"""What an activation, or its product with another projection, can keep for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from ...ops import Saving
from ..kind import Plan


@dataclass(frozen=True)
class ActivationPlan(Plan):
    """A plan of an activation.

    Attributes:
        saving: as `ops.gate` and `ops.invert` take it.
        is_gate: whether it covers the product of the activation with another projection.
    """

    saving: Saving
    is_gate: bool = False


INPUT = ActivationPlan("input", "the input", exact=True, saving="inputs")
OUTPUT = ActivationPlan("output", "the output and one bit per element", exact=False, saving="output")
GATE_INPUTS = ActivationPlan("gate-inputs", "gate and up", exact=True, saving="inputs", is_gate=True)
GATE_OUTPUT = ActivationPlan(
    "gate-output", "the product, up and one bit per element", exact=False, saving="output", is_gate=True
)

PLANS = (GATE_INPUTS, INPUT, GATE_OUTPUT, OUTPUT)
