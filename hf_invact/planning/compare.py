"""What the choices that a user has keep in memory, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from ..patching import PatchReport
from .dry_run import DryRun, dry_run, patching_of, reasons
from .errors import PlanningError
from .model.setup import Options, Setup
from .peak import Peak
from .variants import BOTH, CHECKPOINTED, EXACT_GATE, FUSED, INVERTED, PAIRS, PLAIN, Variant, better_unpatched

if TYPE_CHECKING:
    from typing_extensions import Unpack

COMPARED = (PLAIN, INVERTED, FUSED, EXACT_GATE, CHECKPOINTED, BOTH)
# Left out where they keep no less than plain: the model does that by itself.
_ONLY_IF_LESS = {
    FUSED: "PyTorch's fused activation",
    EXACT_GATE: "An exact gate that computes its activation again, such as Liger's,",
}


@dataclass(frozen=True)
class VariantMemory:
    """What one variant needs.

    Attributes:
        name: of the variant.
        saved: bytes that are kept for the backward pass, by part (of `hf_invact.memory.PARTS`).
        saved_bytes: all of them.
        share: of what the plain model keeps.
        peak: the most that a training step holds; None where it was not asked for.
    """

    name: str
    saved: Mapping[str, int]
    saved_bytes: int
    share: float
    peak: Peak | None


@dataclass(frozen=True)
class Comparison:
    """What the variants of a model need for the same batch.

    Attributes:
        model: what the user called it.
        model_class: the class that was planned.
        batch_size, seq_len, optimizer: as they were asked for (but seq_len is None for models of images alone).
        variants: those that apply, the plain one first.
        notes: why the others do not apply, and where one applies to some layers alone; each a sentence.
    """

    model: str
    model_class: str
    batch_size: int
    seq_len: int | None
    optimizer: str | None
    variants: tuple[VariantMemory, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        from .text import render_comparison  # which imports this module

        return render_comparison(self)


def compare_memory(
    model: str | Path | PretrainedConfig,
    batch_size: int,
    seq_len: int | None = None,
    *,
    optimizer: str | None = None,
    **options: Unpack[Options],
) -> Comparison:
    """Predict what a model keeps for its backward pass: plain, inverted, and with what else there is.

    The variants are: inverted activations; the fused activation of PyTorch, where the model spells its own out; an
    exact gate that keeps its two factors, as Liger's does, where MLPs are gated; activation checkpointing; and
    checkpointing with inverted activations.

    Args:
        model, batch_size, seq_len, options: as for `hf_invact.plan_memory` (but for gradient_checkpointing).
        optimizer: predict the peak of a training step with it too.

    Raises:
        PlanningError, PatchingError, ValueError: as `hf_invact.plan_memory`.

    >>> from transformers import GPT2Config
    >>> small = GPT2Config(n_embd=64, n_layer=2, n_head=4)
    >>> for variant in compare_memory(small, batch_size=1, seq_len=128, device="cpu").variants:
    ...     print(variant.name, variant.saved.get("activation", 0))
    plain 655360
    inverted 139264
    fused activation 262144
    checkpointing 0
    checkpointing + inverted 0
    """
    with dry_run(Setup(model, **options)) as run:
        return comparison_of(run, batch_size, seq_len, optimizer=optimizer)


def comparison_of(
    run: DryRun, batch_size: int, seq_len: int | None = None, *, optimizer: str | None = None
) -> Comparison:
    """As `compare_memory`, of a model that is built already."""
    seq_len = run.length(seq_len)
    plain_bytes = sum(run.saved(PLAIN, batch_size, seq_len).values())
    applying, notes = applying_variants(run, COMPARED)
    variants: list[VariantMemory] = []
    for variant in applying:
        saved = run.saved(variant, batch_size, seq_len)
        total = sum(saved.values())
        if variant in _ONLY_IF_LESS and total >= plain_bytes:
            notes.append(f"Left out: {variant.name}. {_ONLY_IF_LESS[variant]} keeps no less than this model does.")
            continue
        notes += _notes_of(variant, run.report(variant))
        peak = None if optimizer is None else run.peak(variant, batch_size, seq_len, optimizer)
        share = total / plain_bytes if plain_bytes else 1.0
        variants.append(VariantMemory(variant.name, saved, total, share, peak))
    peaks = {variant.name: variant.peak.total_bytes for variant in variants if variant.peak is not None}
    notes += [
        better_unpatched(patched)
        for plain, patched in PAIRS
        if peaks.get(patched.name, 0) > peaks.get(plain.name, math.inf)
    ]
    name, model_class = run.source.name, type(run.model).__name__
    return Comparison(name, model_class, batch_size, seq_len, optimizer, tuple(variants), tuple(notes))


def applying_variants(run: DryRun, variants: Iterable[Variant]) -> tuple[list[Variant], list[str]]:
    """Those that a model can have, and notes that say why it cannot have the others.

    Raises:
        PatchingError: a pattern of the user's config matches nothing.
    """
    applying: list[Variant] = []
    left_out: dict[str, list[str]] = {}
    for variant in variants:
        if why := _why_not(run, variant):
            left_out.setdefault(why, []).append(variant.name)
        else:
            applying.append(variant)
    return applying, [f"Left out: {', '.join(names)}. {why}" for why, names in left_out.items()]


def _why_not(run: DryRun, variant: Variant) -> str:
    try:
        report, notes = patching_of(run, variant)
    except PlanningError as error:  # it cannot checkpoint
        return str(error)
    if not variant.patched or report.patched:
        return ""
    if report.sites:
        return f"No layer can have it: {reasons(report)}."
    return notes[0].partition(" Supported: ")[0]  # the plan's own note lists, besides, what is supported


def _notes_of(variant: Variant, report: PatchReport) -> Iterator[str]:
    if report.patched < len(report.sites):
        count = f"{report.patched} of {len(report.sites)}"
        yield f"{variant.name} is had by {count} activations; the others: {reasons(report)}."
