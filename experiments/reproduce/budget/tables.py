"""Memory budgets and what steps take of them, as Markdown, from budget.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_invact.display.sizes import size

from ...common.markdown import source_line, table

Results = Mapping[str, Any]

ABSENT = "-"
_PREDICTED_HEAD = ["model, batch", "budget", "reserved", "checkpointed", "predicted peak", "one less"]
_MEASURED_HEAD = ["model, batch", "budget", "checkpointed", "predicted peak", "measured", "ratio", "one less"]
_PREDICTED = """\
What `hf-invact plan` chooses for one GPU. Predicted, and not yet measured on a GPU. What is reserved is for CUDA's
context, for the memory that kernels take for themselves, and for what the allocator loses."""
_MEASURED = """\
Real training steps on a CPU, with budgets from what a step needs with nothing checkpointed down to what it needs with
everything checkpointed. *Measured* is the peak by the events of PyTorch's allocator, with weights, gradients and
optimizer state ({optimizer}). *One less* is the lower of the measured peaks with one checkpointed layer less: above the
budget, or fewer layers would have been enough."""


def section(results: Results) -> str:
    """A table of what is predicted for a GPU, one of what was measured, and where."""
    measured = [entry for entry in results["entries"] if "budgets" in entry]
    missing = [entry for entry in results["entries"] if entry not in measured]
    parts = [
        _PREDICTED,
        table(_PREDICTED_HEAD, [*_predicted(results)]),
        _MEASURED.format(optimizer=results["settings"]["optimizer"]),
        table(_MEASURED_HEAD, [row for entry in measured for row in _rows(entry)]),
        *(f"Not measured: {entry['title']}: {entry['unavailable']}." for entry in missing),
        f"The largest difference between a predicted and a measured peak is {largest_difference(results):.2%}.",
        source_line(results),
    ]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> str:
    """A sentence on what is predicted, one on what was measured, and where."""
    case = results["predicted"][0]
    return (
        f"{_named(case)}, in {size(case['budget_bytes'])}: {_layers(case)} layers checkpointed, which computes "
        f"{case['extra_forward']:.0%} of a forward pass again (predicted peak {size(case['predicted_bytes'])}, "
        f"{size(case['reserve_bytes'])} left free; not yet measured on a GPU). Predicted and measured peaks of real "
        f"steps on a CPU differ by at most {largest_difference(results):.2%}.\n\n{source_line(results)}\n"
    )


def largest_difference(results: Results) -> float:
    """Between predicted and measured peaks, relative to the measured one."""
    found = [budget for entry in results["entries"] for budget in entry.get("budgets", [])]
    return max((abs(each["predicted_bytes"] / each["measured_bytes"] - 1) for each in found), default=0.0)


def _predicted(results: Results) -> Iterator[list[str]]:
    for case in results["predicted"]:
        yield [
            _named(case),
            size(case["budget_bytes"]),
            size(case["reserve_bytes"]),
            f"{_layers(case)}, {case['extra_forward']:.1%} of a forward pass again",
            size(case["predicted_bytes"]),
            _optional(case["one_less_bytes"]),
        ]


def _rows(entry: Results) -> Iterator[list[str]]:
    for budget in entry["budgets"]:
        yield [
            _named(entry),
            size(budget["budget_bytes"]),
            _layers(budget),
            size(budget["predicted_bytes"]),
            size(budget["measured_bytes"]),
            f"{budget['predicted_bytes'] / budget['measured_bytes']:.4f}",
            _optional(budget["one_less_measured_bytes"]),
        ]


def _named(entry: Results) -> str:
    sequences, tokens = entry["batch"]
    return f"{entry['title']}, {sequences} x {tokens:,}"


def _layers(facts: Results) -> str:
    text = f"{facts['checkpointed']} of {facts['layers']}"
    return f"{text}, patched too" if facts["patch_checkpointed"] and facts["checkpointed"] else text


def _optional(count: int | None) -> str:
    return ABSENT if count is None else size(count)
