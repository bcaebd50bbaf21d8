"""Measures one operator in one dtype and size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any, TypeAlias

import torch

from ..settings import COLUMNS, DTYPES, Settings
from ..timing import Call, Failure, alternate, failure_of, significant, warm_up
from . import adapters, implementations, norms
from .adapters import ADAPTER_INPUTS, AdapterInput
from .catalogue import ACTIVATIONS, Operator
from .implementations import COMPILED, INVERTED, LIGER, LIGER_FUNCTIONS, NATIVE, Implementation, Unavailable
from .norms import NORMS, Norm

COPY = "copy"
Prepare = Callable[..., Implementation]
Measured: TypeAlias = Operator | AdapterInput | Norm
OPERATORS: Mapping[str, Measured] = MappingProxyType(
    {**ACTIVATIONS, **{operator.name: operator for operator in (*ADAPTER_INPUTS, *NORMS)}}
)
# What prepares the implementations of each kind.
_MODULES: Mapping[type[Measured], ModuleType] = MappingProxyType(
    {Operator: implementations, AdapterInput: adapters, Norm: norms}
)


@dataclass(frozen=True)
class OperatorCase:
    """An operator in one dtype and size."""

    operator: str
    dtype: str
    elements: int

    @property
    def key(self) -> dict[str, Any]:
        """Identifies its entry in the results."""
        return vars(self)


def operator_cases(settings: Settings) -> list[OperatorCase]:
    """All cases, the most informative first."""
    return [
        OperatorCase(name, dtype, elements)
        for dtype in settings.dtypes
        for elements in settings.sizes
        for name in OPERATORS
    ]


def measure_operator(case: OperatorCase, settings: Settings, device: torch.device) -> dict[str, Any]:
    """The entry of the results: forward, backward, and where everything is measured, both through autograd."""
    operator, dtype = OPERATORS[case.operator], DTYPES[case.dtype]
    is_compared = settings.compares(case.dtype, case.elements)
    if is_compared and (settings.compiles or len(settings.backends) > 1):
        torch.compiler.reset()  # otherwise the graphs of earlier cases count towards the compiler's limit
    generator = torch.Generator(device).manual_seed(settings.seed)
    dy, inputs = operator.tensors((case.elements // COLUMNS, COLUMNS), dtype, generator)
    ready: dict[str, Implementation] = {}
    failures: dict[str, Failure] = {}
    for name, prepare in _implementations(operator, settings, is_compared).items():
        try:
            ready[name] = prepare(operator, dy=dy, inputs=inputs)
        except Unavailable as error:
            failures[name] = Failure(str(error), expected=True)
        except Exception as error:  # of any kind: the other measurements go on
            failures[name] = failure_of(error)
    directions = ("forward", "backward", "autograd") if is_compared else ("forward", "backward")
    size = case.elements, dtype.itemsize
    return {
        **case.key,
        **{each: _measure(each, operator, ready, failures, size, settings, device) for each in directions},
    }


def _implementations(operator: Measured, settings: Settings, is_compared: bool) -> dict[str, Prepare]:
    module = _MODULES[type(operator)]
    chosen: dict[str, Prepare] = {NATIVE: module.native}
    if is_compared and settings.compiles:
        chosen[COMPILED] = module.compiled
    if operator.name in LIGER_FUNCTIONS or isinstance(operator, Norm):
        chosen[LIGER] = module.liger
    for backend in settings.backends if is_compared else settings.backends[:1]:
        chosen[INVERTED + backend] = partial(module.inverted, backend_name=backend)
    return chosen


def _measure(
    direction: str,
    operator: Measured,
    ready: dict[str, Implementation],
    failures: dict[str, Failure],
    size: tuple[int, int],
    settings: Settings,
    device: torch.device,
) -> dict[str, Any]:
    calls = {name: implementation.calls[direction] for name, implementation in ready.items()}
    moved = operator.inverted_traffic.bytes(direction, *size)
    calls = {COPY: _copy(moved, device), **calls}
    # In training, autograd functions make these calls, in which no gradients are recorded.
    with nullcontext() if direction == "autograd" else torch.no_grad():
        failures = {**failures, **warm_up(calls, device)}
        calls = {name: call for name, call in calls.items() if name not in failures}
        times = alternate(calls, device, settings.operator_effort) if calls else {}
    medians = {name: statistics.median(of_call) for name, of_call in times.items()}
    found: dict[str, Any] = {
        name: _figures(medians[name], implementation.traffic.bytes(direction, *size), moved, medians)
        for name, implementation in ready.items()
        if name in medians
    }
    for name, figures in found.items():
        if name.startswith(INVERTED):
            figures |= {
                f"ratio_to_{other}": significant(medians[name] / medians[other]) if other in medians else None
                for other in (NATIVE, COMPILED, LIGER)
            }
    copied = _figures(medians[COPY], moved, moved, medians) if COPY in medians else failures.pop(COPY).record()
    return {
        "repetitions": max(map(len, times.values()), default=0),
        "copy": copied,
        "implementations": {**found, **{name: failure.record() for name, failure in failures.items()}},
    }


def _figures(seconds: float, moved: int, copied: int, medians: dict[str, float]) -> dict[str, Any]:
    rate = moved / seconds
    share = significant(rate / (copied / medians[COPY])) if COPY in medians else None
    figures = {"ms": significant(1000 * seconds), "bytes": moved, "gb_per_s": significant(rate / 1e9)}
    return {**figures, "copy_share": share}


def _copy(moved: int, device: torch.device) -> Call:
    """A copy that reads and writes this many bytes in total."""
    source, target = (torch.zeros(max(1, moved // 8), dtype=torch.float32, device=device) for _ in range(2))
    return lambda: target.copy_(source)
