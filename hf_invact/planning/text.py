"""Plans, comparisons and fits as text for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..display.parts import ordered_parts
from ..display.sizes import common_unit, size
from ..display.tables import cell_in_unit, saved_bytes_table, size_row, table
from .batch import batch_in_words
from .compare import Comparison, VariantMemory
from .fit import POSITIONS, SEARCH, Largest, MemoryFit
from .peak import CATEGORIES, Peak
from .plan import MemoryPlan
from .search import TOKENS_STEP
from .variants import BOTH, INVERTED, advice_to_leave_unpatched

# A relative change of the peak below this is reported as none: fragmentation in the allocator is larger.
NEGLIGIBLE = 0.001
NOT_COUNTED = "Memory that kernels and the allocator need beyond the tensors is not counted, so leave some room."


def render(plan: MemoryPlan) -> str:
    """The saved bytes by part, what is patched, the peak of a step, and the notes."""
    blocks = [_head(plan), saved_bytes_table(plain=plan.plain, patched=plan.patched)]
    if plan.report.sites:
        blocks.append(_patching(plan))
    if plan.plain_peak is not None and plan.patched_peak is not None:
        blocks += [_peaks(plan.plain_peak, plan.patched_peak, plan.optimizer or ""), verdict(plan)]
    blocks += plan.notes
    return "\n\n".join(blocks)


def verdict(plan: MemoryPlan) -> str:
    """Whether patching changes the peak, and if not, why: one or two sentences."""
    plain, patched = plan.plain_peak, plan.patched_peak
    assert plain is not None
    assert patched is not None
    if not plan.report.patched:
        return "Nothing is patched, so the peak is the same."
    less = plain.total_bytes - patched.total_bytes
    if less > NEGLIGIBLE * plain.total_bytes:
        moved = f", which then falls in the {patched.moment}" if patched.moment != plain.moment else ""
        return f"Patching lowers the peak by {size(less)} ({less / plain.total_bytes:.1%}){moved}."
    if less < 0:
        advice = advice_to_leave_unpatched(BOTH if plan.gradient_checkpointing else INVERTED)
        return f"Patching raises the peak, which falls in the {patched.moment}, by {size(-less)}. {advice}"
    if plain.moment == "optimizer step":
        return (
            "Patching does not lower the peak: it falls in the optimizer step, when no activation is kept. The memory "
            "saved leaves room for a larger batch or longer sequences."
        )
    return f"Patching does not lower the peak, which falls in the {plain.moment}."


def _patching(plan: MemoryPlan) -> str:
    """The report with another first line, which gives the saving for the whole batch, not per token.

    (Sites of an encoder and of a decoder process different tokens, and checkpointed layers save nothing of either.)
    """
    _, _, sites = str(plan.report).partition("\n")
    head = f"inverted activations: {plan.report.patched} of {len(plan.report.sites)} sites patched"
    if less := plan.plain_bytes - plan.patched_bytes:
        head += f", {size(less)} less for the backward pass"
    if plan.gradient_checkpointing and plan.report.patched:
        head += "; in checkpointed layers this applies only while a layer is recomputed"
    return f"{head}\n{sites}"


def _head(plan: MemoryPlan) -> str:
    facts = [
        f"{plan.model} ({plan.model_class})",
        f"batch of {batch_in_words(plan.batch_size, plan.seq_len)}",
        plan.dtype + (f" under autocast to {plan.autocast_dtype}" if plan.autocast else ""),
        f"{plan.attention} attention",
    ]
    if plan.quantization:
        facts.append(f"linear layers in {plan.quantization.replace('bit', ' bits')}")
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


def unit_of(comparison: Comparison) -> str:
    """The unit for all bytes of a comparison."""
    return common_unit(max(variant.saved_bytes for variant in comparison.variants))


def render_comparison(comparison: Comparison) -> str:
    """A row for each variant: its saved bytes by part, their share of plain, the peak of a step; then the notes."""
    unit = unit_of(comparison)
    parts = ordered_parts(variant.saved for variant in comparison.variants)
    rows = [_row(variant, parts, unit) for variant in comparison.variants]
    head = [f"kept, {unit}", *parts, "all", "of plain"]
    if comparison.optimizer is not None:
        head += ["peak of a step", "in the"]
    return "\n\n".join([table([head, *rows]), *comparison.notes])


def _row(variant: VariantMemory, parts: list[str], unit: str) -> list[str]:
    cells = [cell_in_unit(variant.saved.get(part, 0), unit) for part in parts]
    row = [variant.name, *cells, cell_in_unit(variant.saved_bytes, unit), f"{variant.share:.1%}"]
    return row if variant.peak is None else [*row, size(variant.peak.total_bytes), variant.peak.moment]


def render_fit(fit: MemoryFit) -> str:
    """A row for each variant: the largest batch and the longest sequence with their peaks; then the notes."""
    has_text = fit.seq_len is not None
    batch = f"batch of {fit.seq_len:,} tokens" if has_text else "batch of images"
    head = [f"fits {size(fit.memory_bytes)}, {fit.optimizer}", batch, "its peak"]
    if has_text:
        head += [f"tokens in a batch of {fit.batch_size:,}", "its peak"]
    rows = [
        [
            variant.name,
            *_cells(variant.batch_size, 1),
            *(_cells(variant.seq_len, TOKENS_STEP) if variant.seq_len else ()),
        ]
        for variant in fit.variants
    ]
    blocks = [table([head, *rows])]
    if fit.static_bytes > fit.memory_bytes:
        blocks.append(
            f"Nothing fits: the weights, gradients and optimizer state alone need {size(fit.static_bytes)}. Train "
            "adapters (--lora), or choose an optimizer with less state."
        )
    if has_text:
        blocks.append(f"Sequences are searched in steps of {TOKENS_STEP} tokens.")
    return "\n\n".join([*blocks, NOT_COUNTED, *fit.notes])


def _cells(largest: Largest, smallest: int) -> list[str]:
    return [_size_of(largest, smallest), size(largest.peak_bytes)]


def _size_of(largest: Largest, smallest: int) -> str:
    if not largest.size:
        return f"not even {smallest}"
    if largest.end == POSITIONS:
        return f"{largest.size:,}, all its positions"
    return f"at least {largest.size:,}" if largest.end == SEARCH else f"{largest.size:,}"


def as_json(record: Any) -> dict[str, Any]:
    """A plan, a comparison or a fit as values for JSON: sizes in bytes, and the sites of the report one by one."""
    values: dict[str, Any] = _plain(record)
    report = values.pop("report", {})
    values.update(report)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Peak):
        return {"moment": value.moment, "total_bytes": value.total_bytes, "by_moment": _plain(value.by_moment)}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
