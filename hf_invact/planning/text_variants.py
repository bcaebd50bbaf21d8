"""The variants of a model, and what fits of them, as text for a terminal."""

from __future__ import annotations

from ..display.parts import ordered_parts
from ..display.sizes import common_unit, size
from ..display.tables import cell_in_unit, table
from .fit import POSITIONS, SEARCH, TOKENS_STEP, Largest, MemoryFit
from .variants import Comparison, VariantMemory

NOT_COUNTED = "What kernels and the allocator need beyond the tensors is not counted, so leave some room."


def unit_of(comparison: Comparison) -> str:
    """The unit for all bytes of a comparison."""
    return common_unit(max(variant.saved_bytes for variant in comparison.variants))


def render_comparison(comparison: Comparison) -> str:
    """A row for each variant: what it keeps by part, its share of plain, and the peak of a step; and the notes."""
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
    """A row for each variant: the largest batch and the longest sequence, with their peaks; and what else to know."""
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
            "adapters (--lora), or take an optimizer with less state."
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
