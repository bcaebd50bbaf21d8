"""Finds the largest batch and the longest sequence that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from ..inputs.sizes import longest_sequence, takes_text
from ..patching.checkpoints import checkpointable_layers
from .batch import batch_in_words
from .budget.choose import choose
from .compare import applying_variants
from .dry_run import DryRun, dry_run
from .model.setup import Options, Setup
from .peak import Peak
from .search import TOKENS_STEP, largest_that_fits, static_bytes
from .variants import (
    BOTH,
    CHECKPOINTED,
    INVERTED,
    PAIRS,
    PLAIN,
    TrainingVariant,
    advice_to_leave_unpatched,
    mixed,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

MOST_TOKENS = 1 << 22
"""Tokens (or images) in a batch at which a search ends."""

MEMORY, POSITIONS, SEARCH = "memory", "positions", "search"


@dataclass(frozen=True)
class Largest:
    """The largest size that fits.

    Attributes:
        size: sequences, images or tokens; 0 if not even the smallest fits.
        peak_bytes: the predicted peak at this size; at the smallest, if not even that fits.
        end: why it is not larger: "memory", "positions" (the model has no more), or "search" (it ended there).
    """

    size: int
    peak_bytes: int
    end: str


@dataclass(frozen=True)
class VariantFit:
    """What fits with one variant.

    Attributes:
        name: of the variant.
        batch_size: the largest batch, at the given sequence length.
        seq_len: the longest sequence, at the given batch size, in steps of `TOKENS_STEP` tokens; None for models of
            images alone.
    """

    name: str
    batch_size: Largest
    seq_len: Largest | None


@dataclass(frozen=True)
class MemoryFit:
    """What fits into memory.

    Attributes:
        model: its name, as given.
        model_class: the class that was planned.
        memory_bytes, batch_size, seq_len, optimizer: as given (but seq_len is None for models of images alone).
        static_bytes: weights, gradients and optimizer state, whatever the batch.
        variants: those that apply, the plain one first.
        notes: what else the user should know, each a sentence.
    """

    model: str
    model_class: str
    memory_bytes: int
    batch_size: int
    seq_len: int | None
    optimizer: str
    static_bytes: int
    variants: tuple[VariantFit, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        from .text import render_fit  # which imports this module

        return render_fit(self)


def fit_memory(
    model: str | Path | PretrainedConfig,
    batch_size: int,
    seq_len: int | None,
    memory_bytes: int,
    *,
    optimizer: str = "adamw_fused",
    **options: Unpack[Options],
) -> MemoryFit:
    """Find the largest batch and the longest sequence whose predicted peak fits.

    Compared are plain, inverted, inverted with half of the layers checkpointed, checkpointed, and both.

    Args:
        model, batch_size, seq_len, options: as for `hf_invact.plan_memory` (but for gradient_checkpointing). Batches
            are searched at the length `seq_len`, sequences at the size `batch_size`.
        memory_bytes: the limit for the peak of a training step. Leave room for what is not counted: the memory that
            kernels and the allocator need beyond the tensors.
        optimizer: of the training step (see `OPTIMIZERS`).

    Raises:
        PlanningError, PatchingError, ValueError: as `hf_invact.plan_memory`.

    >>> from transformers import LlamaConfig
    >>> size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> small = LlamaConfig(vocab_size=256, **size)
    >>> fit = fit_memory(small, batch_size=1, seq_len=128, memory_bytes=64 << 20)
    >>> [(variant.name, variant.batch_size.size) for variant in fit.variants[:2]]
    [('plain', 47), ('inverted', 74)]
    """
    with dry_run(Setup(model, **options)) as run:
        return fit_from_run(run, batch_size, seq_len, memory_bytes, optimizer=optimizer)


def fit_from_run(
    run: DryRun, batch_size: int, seq_len: int | None, memory_bytes: int, *, optimizer: str = "adamw_fused"
) -> MemoryFit:
    """As `fit_memory`, for a model that is already built."""
    if memory_bytes < 1:
        raise ValueError(f"memory_bytes must be at least 1, got {memory_bytes}")
    seq_len = run.length(seq_len)
    plain_peak = run.peak(PLAIN, batch_size, seq_len, optimizer)
    applying, notes = applying_variants(run, _fitted(len(checkpointable_layers(run.model))))
    variants = tuple(
        VariantFit(
            variant.name,
            _largest_batch(run, variant, batch_size, seq_len, memory_bytes, optimizer),
            _longest(run, variant, batch_size, seq_len, memory_bytes, optimizer),
        )
        for variant in applying
    )
    return MemoryFit(
        model=run.source.name,
        model_class=type(run.model).__name__,
        memory_bytes=memory_bytes,
        batch_size=batch_size,
        seq_len=seq_len,
        optimizer=optimizer,
        static_bytes=static_bytes(plain_peak, "optimizer step"),
        variants=variants,
        notes=(
            *notes,
            *_notes_of_less(variants),
            *_length_notes(run, variants),
            *_mix_notes(run, batch_size, seq_len, memory_bytes, optimizer),
        ),
    )


def _fitted(layers: int) -> tuple[TrainingVariant, ...]:
    """With half of the layers checkpointed, as for a memory budget, between those with none and all."""
    return PLAIN, INVERTED, *([mixed(layers // 2)] if layers > 1 else []), CHECKPOINTED, BOTH


def _largest_batch(
    run: DryRun, variant: TrainingVariant, batch_size: int, seq_len: int | None, memory_bytes: int, optimizer: str
) -> Largest:
    last = max(MOST_TOKENS // (seq_len or 1), 1)

    def peak_at(size: int) -> Peak:
        return run.peak(variant, size, seq_len, optimizer)

    found = largest_that_fits(peak_at, memory_bytes, start=batch_size, last=last)
    return Largest(found, peak_at(max(found, 1)).total_bytes, SEARCH if found == last else MEMORY)


def _longest(
    run: DryRun, variant: TrainingVariant, batch_size: int, seq_len: int | None, memory_bytes: int, optimizer: str
) -> Largest | None:
    if seq_len is None:
        return None
    positions = longest_sequence(run.model)
    most = min(positions or MOST_TOKENS, max(MOST_TOKENS // batch_size, 1))
    last = -(-most // TOKENS_STEP)

    def tokens(steps: int) -> int:
        return min(steps * TOKENS_STEP, most)

    def peak_at(steps: int) -> Peak:
        return run.peak(variant, batch_size, tokens(steps), optimizer)

    found = largest_that_fits(peak_at, memory_bytes, start=seq_len // TOKENS_STEP, last=last)
    end = MEMORY if found < last else POSITIONS if most == positions else SEARCH
    return Largest(tokens(found), peak_at(max(found, 1)).total_bytes, end)


def _notes_of_less(variants: tuple[VariantFit, ...]) -> list[str]:
    """Advice where a smaller batch fits with a patched variant than with its plain counterpart."""
    batches = {variant.name: variant.batch_size.size for variant in variants}
    return [
        advice_to_leave_unpatched(patched)
        for plain, patched in PAIRS
        if batches.get(patched.name, math.inf) < batches.get(plain.name, 0)
    ]


def _mix_notes(run: DryRun, batch_size: int, seq_len: int | None, memory_bytes: int, optimizer: str) -> Iterator[str]:
    """How many layers have to be checkpointed for the batch that was asked for, if it fits."""

    def peak_of(variant: TrainingVariant) -> Peak:
        return run.peak(variant, batch_size, seq_len, optimizer)

    layers = len(checkpointable_layers(run.model))
    chosen = choose(peak_of, layers, memory_bytes)
    if chosen.checkpoint_layers and peak_of(chosen).total_bytes <= memory_bytes:
        yield (
            f"For a batch of {batch_in_words(batch_size, seq_len)} it is enough to checkpoint "
            f"{chosen.checkpoint_layers} of {layers} layers where the others are inverted (see --budget)."
        )


def _length_notes(run: DryRun, variants: tuple[VariantFit, ...]) -> list[str]:
    """Rotary positions have no limit, but models are trained up to some length."""
    if not takes_text(run.model):
        return ["There is no sequence length: this model takes images alone."]
    known = getattr(run.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(variant.seq_len.size for variant in variants if variant.seq_len is not None)
    if longest_sequence(run.model) is not None or not isinstance(known, int) or longest <= known:
        return []
    return [f"Beyond {known:,} tokens (its max_position_embeddings) the model has not been trained."]
