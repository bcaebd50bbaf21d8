"""Memory against step time as Markdown, from pareto.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...common.markdown import source_line, table
from .curves import at_the_same_memory, checkpointing, ours, points

Results = Mapping[str, Any]

ABSENT = "-"
MIB = 2**20
_METHOD = """\
How much time each way to train costs for what it no longer keeps. All variants take turns on the same model in one
process, with every second round reversed; a ratio compares a step with the plain one of the same turn, and the table
gives the median with the quartiles in parentheses. *hf_invact, k layers checkpointed* is
`InvActConfig(checkpoint_layers=k)`, what a `memory_budget` installs. The last column is what checkpointing of every
n-th layer takes where it keeps as much, between its points."""


def section(results: Results) -> str:
    """A table for each model, a sentence on it, and the line that says where they were measured."""
    parts = [_METHOD]
    for entry in results["entries"]:
        if "variants" in entry:
            parts += [_table(entry), verdict(entry)]
        else:
            parts.append(f"Not measured: {entry['title']}: {entry.get('unavailable') or entry['failed']}.")
    return "\n\n".join([*parts, source_line(results)]) + "\n"


def verdict(entry: Results) -> str:
    """How many points of this package are faster than checkpointing that keeps as much."""
    curve = checkpointing(entry)
    compared = [(point, at) for point in ours(entry) if (at := at_the_same_memory(curve, point.kept)) is not None]
    faster = [point for point, at in compared if point.ratio < at]
    return (
        f"{entry['title']}: of the {len(compared)} points of hf_invact that checkpointing can keep as much as, "
        f"{len(faster)} are faster than it."
    )


def _table(entry: Results) -> str:
    size = " x ".join(map(str, entry["batch"]))
    head = [f"{entry['title']}, {entry['dtype']}, {size}", "kept, MiB", "step time, plain = 1", "checkpointing"]
    curve, own = checkpointing(entry), {point.name for point in ours(entry)}
    rows = []
    for point in points(entry).values():
        facts = entry["variants"][point.name]
        at = at_the_same_memory(curve, point.kept) if point.name in own else None
        rows.append([facts["title"], f"{point.kept / MIB:,.1f}", _time(facts), ABSENT if at is None else f"{at:.3f}"])
    return table(head, rows)


def _time(facts: Results) -> str:
    if "ratio" not in facts:
        return f"{facts['step_ms']:,.0f} ms"
    ratio = facts["ratio"]
    return f"{ratio['median']:.3f} ({ratio['lower']:.3f} to {ratio['upper']:.3f})"
