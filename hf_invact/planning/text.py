"""A memory plan as text, for a terminal."""

from __future__ import annotations

from ..memory.text import compared, kept_table, size, table
from .batch import batch_in_words
from .peak import CATEGORIES, Peak
from .records import MemoryPlan

# A peak that moves by less is called the same: the allocator's own losses are larger.
NOTHING = 0.001


def render(plan: MemoryPlan) -> str:
    """What is kept by part, what is patched, the peak of a step, and what else there is to know."""
    blocks = [_head(plan), kept_table(plain=plan.plain, patched=plan.patched)]
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


def _head(plan: MemoryPlan) -> str:
    facts = [
        f"{plan.model} ({plan.model_class})",
        f"batch of {batch_in_words(plan.batch_size, plan.seq_len)}",
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


def _peaks(plain: Peak, patched: Peak, optimizer: str) -> str:
    rows = [compared(name, (plain.by_category[name], patched.by_category[name])) for name in CATEGORIES]
    total = compared("all", (plain.total_bytes, patched.total_bytes))
    moments = ("in the", plain.moment, patched.moment, "")
    return table([(f"peak of a step ({optimizer})", "plain", "patched", ""), *rows, total, moments])
