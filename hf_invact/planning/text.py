"""A memory plan as text, for a terminal."""

from __future__ import annotations

from ..display.sizes import size
from ..display.tables import saved_bytes_table, size_row, table
from .batch import batch_in_words
from .dry_run import BOTH, INVERTED, better_unpatched
from .peak import CATEGORIES, Peak
from .records import MemoryPlan

# A peak that moves by less is called the same: the allocator's own losses are larger.
NOTHING = 0.001


def render(plan: MemoryPlan) -> str:
    """What is kept by part, what is patched, the peak of a step, and what else there is to know."""
    blocks = [_head(plan), saved_bytes_table(plain=plan.plain, patched=plan.patched)]
    if plan.report.sites:
        blocks.append(_patching(plan))
    if plan.plain_peak is not None and plan.patched_peak is not None:
        blocks += [_peaks(plan.plain_peak, plan.patched_peak, plan.optimizer or ""), verdict(plan)]
    blocks += plan.notes
    return "\n\n".join(blocks)


def verdict(plan: MemoryPlan) -> str:
    """Whether the peak moves, and if not, why, in a sentence or two."""
    plain, patched = plan.plain_peak, plan.patched_peak
    assert plain is not None
    assert patched is not None
    if not plan.report.patched:
        return "Nothing is patched, so the peak is the same."
    less = plain.total_bytes - patched.total_bytes
    if less > NOTHING * plain.total_bytes:
        moved = f", and it falls in the {patched.moment} then" if patched.moment != plain.moment else ""
        return f"Patching lowers the peak by {size(less)} ({less / plain.total_bytes:.1%}){moved}."
    if less < 0:
        advice = better_unpatched(BOTH if plan.gradient_checkpointing else INVERTED)
        return f"Patching raises the peak, which falls in the {patched.moment}, by {size(-less)}. {advice}"
    if plain.moment == "optimizer step":
        return (
            "Patching does not lower the peak: it falls in the optimizer step, when no activation is kept. What is "
            "saved makes room for a larger batch or longer sequences."
        )
    return f"Patching does not lower the peak, which falls in the {plain.moment}."


def _patching(plan: MemoryPlan) -> str:
    """The report, but for its first line: what all sites keep less is told of this batch, not of a token.

    (Sites of an encoder and of a decoder see other tokens, and checkpointed layers keep nothing of either.)
    """
    _, _, sites = str(plan.report).partition("\n")
    head = f"inverted activations: {plan.report.patched} of {len(plan.report.sites)} sites patched"
    if less := plan.plain_bytes - plan.patched_bytes:
        head += f", {size(less)} less for the backward pass"
    if plan.gradient_checkpointing and plan.report.patched:
        head += "; in checkpointed layers this counts only while one is computed again"
    return f"{head}\n{sites}"


def _head(plan: MemoryPlan) -> str:
    facts = [
        f"{plan.model} ({plan.model_class})",
        f"batch of {batch_in_words(plan.batch_size, plan.seq_len)}",
        plan.dtype + (f" under autocast to {plan.autocast_dtype}" if plan.autocast else ""),
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
    rows = [size_row(name, (plain.by_category[name], patched.by_category[name])) for name in CATEGORIES]
    total = size_row("all", (plain.total_bytes, patched.total_bytes))
    moments = ("in the", plain.moment, patched.moment, "")
    return table([(f"peak of a step ({optimizer})", "plain", "patched", ""), *rows, total, moments])
