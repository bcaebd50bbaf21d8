"""A memory plan as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .peak import CATEGORIES, Peak
from .records import MemoryPlan

# A peak that moves by less is called the same: the allocator's own losses are larger.
NOTHING = 0.001


def render(plan: MemoryPlan) -> str:
    """What is kept by part, what is patched, the peak of a step, and what else there is to know."""
    blocks = [_head(plan), _saved(plan)]
    if plan.report.sites:
        blocks.append(str(plan.report))
    if plan.plain_peak is not None and plan.patched_peak is not None:
        blocks += [_peaks(plan.plain_peak, plan.patched_peak, plan.optimizer or ""), verdict(plan)]
    blocks += plan.notes
    return "\n\n".join(blocks)


def verdict(plan: MemoryPlan) -> str:
    """Whether the peak moves, and if not, why, in one sentence."""
    plain, patched = plan.plain_peak, plan.patched_peak
    assert plain is not None
    assert patched is not None
    change = 1 - patched.total_bytes / plain.total_bytes
    if change > NOTHING:
        moved = f", and it falls in the {patched.moment} then" if patched.moment != plain.moment else ""
        return f"Patching lowers the peak by {size(plain.total_bytes - patched.total_bytes)} ({change:.1%}){moved}."
    if plain.moment == "optimizer step":
        return (
            "Patching does not lower the peak: it falls in the optimizer step, when no activation is kept. What is "
            "saved makes room for a larger batch or longer sequences."
        )
    return f"Patching does not lower the peak, which falls in the {plain.moment}."


def size(count: int) -> str:
    """Bytes in the largest unit that is not larger."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):,.2f} {unit}"
    return f"{count} B"


def _head(plan: MemoryPlan) -> str:
    facts = [
        f"{plan.model} ({plan.model_class})",
        f"batch of {plan.batch_size} x {plan.seq_len:,}",
        plan.dtype + (" under autocast" if plan.autocast else ""),
        f"{plan.attention} attention",
    ]
    if plan.lora is not None:
        facts.append(f"LoRA r={plan.lora.r}, dropout {plan.lora.dropout:g}, on {plan.lora.targets}")
    if plan.gradient_checkpointing:
        facts.append("gradient checkpointing")
    return (
        f"{', '.join(facts)}\nweights {size(plan.parameter_bytes)}, of which {size(plan.trainable_bytes)} are trained"
    )


def _saved(plan: MemoryPlan) -> str:
    parts = list(plan.plain) + [part for part in plan.patched if part not in plan.plain]
    rows = [_row(part, plan.plain.get(part, 0), plan.patched.get(part, 0)) for part in parts]
    total = _row("all", plan.plain_bytes, plan.patched_bytes)
    return table([("kept for the backward pass", "plain", "patched", ""), *rows, total])


def _peaks(plain: Peak, patched: Peak, optimizer: str) -> str:
    rows = [_row(name, plain.by_category[name], patched.by_category[name]) for name in CATEGORIES]
    total = _row("all", plain.total_bytes, patched.total_bytes)
    moments = ("in the", plain.moment, patched.moment, "")
    return table([(f"peak of a step ({optimizer})", "plain", "patched", ""), *rows, total, moments])


def _row(name: str, plain: int, patched: int) -> tuple[str, ...]:
    change = "" if plain == patched or not plain else f"{patched / plain - 1:+.1%}"
    return name, size(plain), size(patched), change


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Iterable[str], widths: Sequence[int]) -> str:
    first, *others = row
    cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return "  ".join(cells).rstrip()
