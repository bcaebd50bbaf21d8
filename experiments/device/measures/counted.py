"""What the reproduction counts on tensors without memory, measured on the device."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...benchmark.timing import failure_of
from ...reproduce.memory import cases as memory_cases
from ...reproduce.memory import counting as memory_counting
from ...reproduce.memory import measured as memory_measured
from ..case import Case, Conditions

_EFFORT = {"cuda": "full", "cpu": "quick"}
NO_METER = "a CPU does not say what is allocated"


def cases(kind: str) -> list[Case]:
    """Each model, setting and variant whose weights are real."""
    return [
        Case(f"{case.key}, {variant.name}", partial(measure, case, variant))
        for case in memory_cases.CASES[_EFFORT[kind]]
        if not case.quantized
        for variant in case.variants
        if variant in memory_cases.MEASURED_ON_GPU
    ]


def measure(
    case: memory_cases.MemoryCase, variant: memory_cases.MemoryVariant, conditions: Conditions
) -> dict[str, Any]:
    """What a forward pass leaves behind, beside what is counted for the same device."""
    device = conditions.device
    if device.type == "cuda":
        found = memory_measured.measure_kept(case, variant, device)
    else:  # the forward pass runs all the same
        found = {**memory_measured.measure_kept(case, variant, device, lambda: 0), "measured_bytes": None}
        found["measured_note"] = found["measured_note"] or NO_METER
    try:
        counted = memory_counting.count(case, variant, device.type).plain()
    except Exception as error:  # of whatever kind: it must not cost what was measured
        counted = failure_of(error).record()
    setting = {"case": case.key, "model": case.model, "setting": case.setting, "variant": variant.name}
    return {**setting, **found, "counted": counted}
