"""Compares the memory of the ways to train a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from ..patching import PatchReport
from .dry_run import DryRun, dry_run, patch_report, reasons_left_alone
from .errors import PlanningError
from .model.lora import adapters_need_casts, has_adapters
from .model.setup import Options, Setup
from .peak import Peak
from .variants import (
    BOTH,
    CHECKPOINTED,
    EXACT_GATE,
    FROZEN_A,
    FUSED,
    INVERTED,
    PAIRS,
    PLAIN,
    UNCAST,
    TrainingVariant,
    advice_to_leave_unpatched,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

COMPARED = (PLAIN, INVERTED, FUSED, EXACT_GATE, UNCAST, FROZEN_A, CHECKPOINTED, BOTH)
# Left out if they save no memory: the model already does the same.
_ONLY_IF_LESS = {
    FUSED: "PyTorch's fused activation",
    EXACT_GATE: "An exact gate that recomputes its activation, such as Liger's,",
    UNCAST: "PEFT without its casts",
}


@dataclass(frozen=True)
class VariantMemory:
    """The memory of one variant.

    Attributes:
        name: of the variant.
        saved: bytes saved for the backward pass, by part (of `hf_invact.memory.PARTS`).
        saved_bytes: their sum.
        share: of the bytes that the plain model saves.
        peak: peak memory of a training step; None if not asked for.
    """

    name: str
    saved: Mapping[str, int]
    saved_bytes: int
    share: float
    peak: Peak | None


@dataclass(frozen=True)
class Comparison:
    """The memory of the variants of a model, for the same batch.

    Attributes:
        model: its name, as given.
        model_class: the class that was planned.
        batch_size, seq_len, optimizer: as given (but seq_len is None for models of images alone).
        variants: those that apply, the plain one first.
        notes: why the others do not apply, and which apply to some layers only; each a sentence.
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
    """Predict what a model saves for its backward pass: plain, inverted, and with the alternatives.

    The variants are: inverted activations; PyTorch's fused activation, if the model has an unfused one; an exact gate
    that saves its two factors, as Liger's does, if MLPs are gated; activation checkpointing; and checkpointing with
    inverted activations. With LoRA there are also PEFT without the casts of its inputs, and LoRA-FA.

    Args:
        model, batch_size, seq_len, options: as for `hf_invact.plan_memory` (but for gradient_checkpointing).
        optimizer: also predict the peak memory of a training step with this optimizer.

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
        return comparison_from_run(run, batch_size, seq_len, optimizer=optimizer)


def comparison_from_run(
    run: DryRun, batch_size: int, seq_len: int | None = None, *, optimizer: str | None = None
) -> Comparison:
    """As `compare_memory`, for a model that is already built."""
    seq_len = run.length(seq_len)
    plain_bytes = sum(run.saved(PLAIN, batch_size, seq_len).values())
    compared = [variant for variant in COMPARED if not variant.needs_adapters or has_adapters(run.model)]
    applying, notes = applying_variants(run, compared)
    variants: list[VariantMemory] = []
    for variant in applying:
        saved = run.saved(variant, batch_size, seq_len)
        total = sum(saved.values())
        if variant in _ONLY_IF_LESS and total >= plain_bytes:
            notes.append(f"Left out: {variant.name}. {_ONLY_IF_LESS[variant]} keeps no less than this model.")
            continue
        notes += [*_notes_of(variant, run.report(variant)), *filter(None, [variant.note])]
        peak = None if optimizer is None else run.peak(variant, batch_size, seq_len, optimizer)
        share = total / plain_bytes if plain_bytes else 1.0
        variants.append(VariantMemory(variant.name, saved, total, share, peak))
    peaks = {variant.name: variant.peak.total_bytes for variant in variants if variant.peak is not None}
    notes += [
        advice_to_leave_unpatched(patched)
        for plain, patched in PAIRS
        if peaks.get(patched.name, 0) > peaks.get(plain.name, math.inf)
    ]
    name, model_class = run.source.name, type(run.model).__name__
    return Comparison(name, model_class, batch_size, seq_len, optimizer, tuple(variants), tuple(notes))


def applying_variants(run: DryRun, variants: Iterable[TrainingVariant]) -> tuple[list[TrainingVariant], list[str]]:
    """The variants that apply to a model, and notes on why the others do not.

    Raises:
        PatchingError: a pattern of the user's config matches nothing.
    """
    applying: list[TrainingVariant] = []
    left_out: dict[str, list[str]] = {}
    for variant in variants:
        if why := _why_not(run, variant):
            left_out.setdefault(why, []).append(variant.name)
        else:
            applying.append(variant)
    return applying, [f"Left out: {', '.join(names)}. {why}" for why, names in left_out.items()]


def _why_not(run: DryRun, variant: TrainingVariant) -> str:
    if variant.uncast and (why := adapters_need_casts(run.model, run.setup.autocast_dtype)):
        return why
    try:
        report, notes = patch_report(run, variant)
    except PlanningError as error:  # it has no gradient checkpointing
        return str(error)
    if not variant.patched or report.patched:
        return ""
    if report.sites:
        return f"It applies to no layer: {reasons_left_alone(report)}."
    return notes[0].partition(" Supported: ")[0]  # without the list of what is supported, which the plan's own note has


def _notes_of(variant: TrainingVariant, report: PatchReport) -> Iterator[str]:
    if report.patched < len(report.sites):
        count = f"{report.patched} of {len(report.sites)}"
        yield f"{variant.name} applies to {count} sites; the others: {reasons_left_alone(report)}."
