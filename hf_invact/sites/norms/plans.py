"""What a norm can keep for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from ...ops import NormSaving
from ..kind import Plan


@dataclass(frozen=True)
class NormPlan(Plan):
    """A plan of a norm.

    Attributes:
        saving: as `ops.normalize` takes it.
    """

    saving: NormSaving


INPUT = NormPlan("norm-input", "the norm's input, and one or two numbers per row", exact=True, saving="input")
OUTPUT = NormPlan("norm-output", "the norm's output, and two to six numbers per row", exact=False, saving="output")

PLANS = (INPUT, OUTPUT)
