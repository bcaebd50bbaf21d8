"""The operators of the benchmark at the size that tells most."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ...benchmark.operators.measure import OperatorCase, measure_operator, operator_cases
from ...benchmark.settings import Settings, settings_for
from ...benchmark.timing import Effort
from ..case import Case, Conditions

_LARGE = 1 << 26  # elements, as in the README


def cases(kind: str) -> list[Case]:
    """Each operator and dtype; a new operator is an entry of `benchmark.operators.measure.OPERATORS`."""
    settings = settings_of(kind, seed=0)
    return [
        Case(f"{case.operator}, {case.dtype}, {case.elements:,}", partial(measure, case))
        for case in operator_cases(settings)
    ]


def settings_of(kind: str, seed: int) -> Settings:
    """On a GPU both dtypes at one size. Compiling takes most of the time: in bf16 alone."""
    settings = settings_for(kind, None, seed, quick=kind == "cpu")
    if kind == "cpu":
        return replace(settings, sizes=settings.sizes[-1:])
    return replace(
        settings,
        dtypes=("bf16", "fp32"),
        sizes=(_LARGE,),
        compared_dtypes=("bf16",),
        operator_effort=Effort(seconds=0.15, least=10, most=100),
    )


def measure(case: OperatorCase, conditions: Conditions) -> dict[str, Any]:
    """As the benchmark has it."""
    return measure_operator(case, settings_of(conditions.device.type, conditions.seed), conditions.device)
