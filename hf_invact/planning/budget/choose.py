"""Chooses the smallest number of layers to checkpoint whose predicted peak fits into a memory budget.

A layer is either patched or checkpointed: what a checkpointed layer keeps is freed, so patching it would cost time for
nothing. Only where the peak falls while a layer is recomputed, checkpointed layers are patched, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PretrainedConfig

from ...patching import InvActConfig, PatchReport
from ...patching.budget import parse_budget
from ...patching.checkpoints import checkpointable_layers
from ..dry_run import DryRun, dry_run
from ..errors import PlanningError
from ..model.setup import Options, Setup
from ..peak import Peak
from ..search import largest_that_fits
from ..variants import TrainingVariant, mixed
from .refusal import why_not

if TYPE_CHECKING:
    from typing_extensions import Unpack

CONTEXT, RESERVED_SHARE = 512 * 2**20, 0.025
"""Of a GPU's memory: bytes of CUDA's context and libraries, and the share that kernels and the allocator may take."""


@dataclass(frozen=True)
class BudgetPlan:
    """Which layers are checkpointed for a memory budget.

    Attributes:
        model: its name, as given.
        model_class: the class that was planned.
        batch_size, seq_len, optimizer, accumulates: as given (but seq_len is None for models of images alone).
        budget_bytes: all that training may take.
        reserve_bytes: of these, what is left for what is not predicted: CUDA's context, the memory that kernels need
            for themselves, and what the allocator loses (0 on a CPU); and what else the process holds.
        layers: how many could be checkpointed.
        checkpointed: the names of those that are.
        patch_checkpointed: whether these are patched as well.
        peak: the predicted peak of a step.
        one_less: that with one checkpointed layer less, which does not fit; None where none is checkpointed.
        extra_forward: the share of a forward pass's operations that is run again.
        report: what is patched.
        config: with which `hf_invact.patch_model` does this.
        notes: what else the user should know, each a sentence.
    """

    model: str
    model_class: str
    batch_size: int
    seq_len: int | None
    optimizer: str
    accumulates: bool
    budget_bytes: int
    reserve_bytes: int
    layers: int
    checkpointed: tuple[str, ...]
    patch_checkpointed: bool
    peak: Peak
    one_less: Peak | None
    extra_forward: float
    report: PatchReport
    config: InvActConfig
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from .text import render_budget  # which imports this module

        return render_budget(self)


def plan_budget(
    model: str | Path | PretrainedConfig | nn.Module,
    batch_size: int,
    seq_len: int | None,
    memory_budget: str | int,
    *,
    optimizer: str = "adamw_fused",
    accumulates: bool = False,
    **options: Unpack[Options],
) -> BudgetPlan:
    """Find the fewest layers to checkpoint with which a training step fits into a memory budget.

    All other layers are patched, which comes first, since it costs no time. The first layers are the ones that are
    checkpointed: they are recomputed last, when what the others have kept is freed.

    Args:
        model, batch_size, seq_len, options: as for `hf_invact.plan_memory` (but for gradient_checkpointing).
        memory_budget: "24GiB", "24GB" or bytes; of a model on a GPU also "90%" or "auto" (all that is free).
        optimizer: of the training step (see `OPTIMIZERS`).
        accumulates: whether a step adds up the gradients of several batches.

    Raises:
        PlanningError: nothing fits (it says what would), or as `hf_invact.plan_memory`.
        PatchingError, ValueError: as `hf_invact.plan_memory`; a budget that cannot be read.

    >>> from transformers import LlamaConfig
    >>> size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
    >>> plan = plan_budget(LlamaConfig(vocab_size=256, **size), 32, 128, "50MB", device="cpu")
    >>> len(plan.checkpointed), plan.config.checkpoint_layers
    (5, 5)
    """
    setup = Setup(model, **options)
    budget = parse_budget(memory_budget)
    if budget.amount is None and not isinstance(model, nn.Module):
        raise ValueError(f"memory_budget={memory_budget!r} needs a model on a GPU; for a config give an amount")
    amount = budget.amount if not isinstance(model, nn.Module) else budget.on(next(model.parameters()).device)
    assert amount is not None
    with dry_run(setup) as run:
        return budget_from_run(run, batch_size, seq_len, amount, optimizer=optimizer, accumulates=accumulates)


def budget_from_run(
    run: DryRun,
    batch_size: int,
    seq_len: int | None,
    budget_bytes: int,
    *,
    optimizer: str = "adamw_fused",
    accumulates: bool = False,
    other_bytes: int = 0,
) -> BudgetPlan:
    """As `plan_budget`, for a model that is already built.

    Args:
        budget_bytes: all that training may take.
        other_bytes: of it, what else the process holds: another model, DistributedDataParallel's copies of gradients.
    """
    seq_len = run.length(seq_len)
    layers = [*checkpointable_layers(run.model)]
    reserve = reserve_bytes(budget_bytes, run.setup.facts.device) + other_bytes

    def peak_of(variant: TrainingVariant, batch_size: int = batch_size, seq_len: int | None = seq_len) -> Peak:
        return run.peak(variant, batch_size, seq_len, optimizer, accumulates=accumulates)

    def lowest_peak(batch_size: int, seq_len: int | None) -> Peak:
        return min(
            (peak_of(each, batch_size, seq_len) for each in _with(len(layers))), key=lambda peak: peak.total_bytes
        )

    variant = choose(peak_of, len(layers), budget_bytes - reserve)
    peak = peak_of(variant)
    if peak.total_bytes > budget_bytes - reserve:
        raise PlanningError(why_not(run, lowest_peak, len(layers), (batch_size, seq_len), budget_bytes, reserve))
    count = variant.checkpoint_layers or 0
    shares = run.forward_shares(batch_size, seq_len) if count else {}
    return BudgetPlan(
        model=run.source.name,
        model_class=type(run.model).__name__,
        batch_size=batch_size,
        seq_len=seq_len,
        optimizer=optimizer,
        accumulates=accumulates,
        budget_bytes=budget_bytes,
        reserve_bytes=reserve,
        layers=len(layers),
        checkpointed=tuple(layers[:count]),
        patch_checkpointed=variant.patch_checkpointed,
        peak=peak,
        one_less=peak_of(_lowest(peak_of, count - 1)) if count else None,
        extra_forward=sum(shares[name] for name in layers[:count]),
        report=run.report(variant),
        config=dataclasses.replace(
            run.setup.config,
            memory_budget=None,
            seq_len=None,
            checkpoint_layers=count,
            patch_checkpointed=variant.patch_checkpointed,
        ),
        notes=run.notes,
    )


def reserve_bytes(budget_bytes: int, device: str) -> int:
    """What is left of a budget for what is not predicted."""
    return 0 if device == "cpu" else CONTEXT + int(RESERVED_SHARE * budget_bytes)


def with_reserve(peak_bytes: int, device: str) -> int:
    """The budget that leaves so much for the predicted peak.

    >>> budget = with_reserve(10 * 2**30, "cuda")
    >>> budget - reserve_bytes(budget, "cuda") - 10 * 2**30 in (0, 1)
    True
    """
    return peak_bytes if device == "cpu" else math.ceil((peak_bytes + CONTEXT) / (1 - RESERVED_SHARE))


def choose(peak_of: Callable[[TrainingVariant], Peak], layers: int, limit: int) -> TrainingVariant:
    """The variant with the fewest checkpointed layers that fits; if none does, the one with the lowest peak.

    Args:
        peak_of: predicts the peak of a variant; it remembers its answers.
        layers: how many can be checkpointed.
        limit: bytes.
    """

    def fits(variant: TrainingVariant) -> bool:
        return peak_of(variant).total_bytes <= limit

    if fits(mixed(0)) or not layers:
        return mixed(0)
    for patch_checkpointed in (True, False):
        if fits(mixed(layers, patch_checkpointed=patch_checkpointed)):
            break
    else:
        return _lowest(peak_of, layers)

    def peak_at(kept: int) -> Peak:
        return peak_of(mixed(layers - kept, patch_checkpointed=patch_checkpointed))

    kept = largest_that_fits(peak_at, limit, last=layers, known={0: peak_at(0), layers: peak_of(mixed(0))})
    return _fewest(fits, layers - kept)


def _lowest(peak_of: Callable[[TrainingVariant], Peak], count: int) -> TrainingVariant:
    """Of the variants with so many checkpointed layers, that with the lower peak."""
    return min(_with(count), key=lambda each: peak_of(each).total_bytes)


def _with(count: int) -> tuple[TrainingVariant, TrainingVariant]:
    """The variants with so many checkpointed layers."""
    return mixed(count), mixed(count, patch_checkpointed=True)


def _fewest(fits: Callable[[TrainingVariant], bool], count: int) -> TrainingVariant:
    """The variant with as few checkpointed layers as fits, at most `count`; not patched in these if that fits too."""
    for fewer in (count - 1, count):
        for variant in _with(fewer):
            if fewer >= 0 and fits(variant):
                return _fewest(fits, fewer) if fewer < count else variant
    raise AssertionError(f"{count} checkpointed layers were found to fit")
