"""Runs a model on tensors without memory, to predict what its training steps would keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn, optim
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..memory import SavedActivations, by_part
from ..patching import InvActConfig, PatchingError, PatchReport, unpatch_model
from ..patching.checkpoints import checkpointable_layers, set_checkpoints
from ..patching.decisions.memory import Memory
from ..patching.patch import patch
from .batch import batch_in_words, length_of, make_batch
from .budget.flops import forward_shares
from .errors import PlanningError
from .fake.tensors import fake_tensors, recompute_contexts
from .model.build import build_model, is_checkpointed, set_checkpointing
from .model.lora import casting_disabled, trained_first_matrices
from .model.real import copy_without_memory, has_input_grads, wrapped_forward
from .model.setup import Setup
from .model.source import Source, find_source
from .peak import Peak, make_optimizer, predict_peak
from .variants import TrainingVariant

RECOMPUTED = partial(checkpoint, use_reentrant=False, context_fn=recompute_contexts)

Progress = Callable[[str], None]
"""Is called with a few words about the next run."""


class DryRun:
    """A model on fake tensors. It is built once, then run for variants and sizes; each result is computed once.

    Use `dry_run` to make one: its tensors are of no use outside of that context.

    Args:
        setup: what is trained, and how.
        source: its config and class.
        progress: is called before each run.

    Attributes:
        model: on fake tensors.
        was_checkpointed: whether gradient checkpointing is on in the model that was given.
        notes: in what the model differs from the one that was given, each a sentence.
    """

    def __init__(self, setup: Setup, source: Source, progress: Progress) -> None:
        self.setup, self.source = setup, source
        self.model = _model_of(setup, source)
        unpatch_model(self.model)  # a model may come patched, and with checkpoints
        self._first_matrices = trained_first_matrices(self.model)
        self._has_input_grads = isinstance(setup.model, nn.Module) and has_input_grads(setup.model)
        self.was_checkpointed = is_checkpointed(self.model)
        self._progress = progress
        self._current: TrainingVariant | None = None
        self.notes = _notes(setup)
        self._reports: dict[TrainingVariant, PatchReport] = {}
        self._saved: dict[tuple[TrainingVariant, int, int | None], Mapping[str, int]] = {}
        self._peaks: dict[tuple[TrainingVariant, int, int | None, str, bool], Peak] = {}
        self._optimizers: dict[tuple[str, int], optim.Optimizer] = {}
        self._memory = Memory()

    def report(self, variant: TrainingVariant) -> PatchReport:
        """What a variant patches.

        Raises:
            PatchingError: nothing can be patched, or a pattern of the config matches nothing.
            PlanningError: the model has no gradient checkpointing.
        """
        if variant not in self._reports:
            self._switch_to(variant)
        return self._reports[variant]

    def length(self, seq_len: int | None) -> int | None:
        """The sequence length of the batches, which is None for models of images alone.

        Raises:
            PlanningError: the model needs a length and `seq_len` is None.
        """
        return length_of(self.model, seq_len)

    def saved(self, variant: TrainingVariant, batch_size: int, seq_len: int | None) -> Mapping[str, int]:
        """Bytes that one forward pass saves for the backward pass, by part of the model.

        Raises:
            PlanningError: the forward pass fails, or the model takes no such batch.
            PatchingError: as `report`.
        """
        key = variant, batch_size, seq_len
        if key not in self._saved:
            batch = self._batch(variant, batch_size, seq_len)
            with casting_disabled(self.model, variant.uncast):
                self._saved[key] = MappingProxyType(saved_by_part(self.model, batch, self.setup.autocast_dtype))
        return self._saved[key]

    def peak(
        self,
        variant: TrainingVariant,
        batch_size: int,
        seq_len: int | None,
        optimizer: str,
        *,
        accumulates: bool = False,
    ) -> Peak:
        """The peak memory of a training step.

        Args:
            optimizer: a name in `OPTIMIZERS`.
            accumulates: whether a step adds up the gradients of several batches.

        Raises:
            ValueError: an unknown optimizer.
            PlanningError, PatchingError: as `saved`.
        """
        key = variant, batch_size, seq_len, optimizer, accumulates
        if key not in self._peaks:
            batch = self._batch(variant, batch_size, seq_len)
            chosen = self._optimizer(optimizer)
            with planning_errors(self.model), casting_disabled(self.model, variant.uncast):
                self._peaks[key] = predict_peak(
                    self.model,
                    batch,
                    chosen,
                    forward_context=lambda: optional_autocast(self.setup.autocast_dtype),
                    accumulates=accumulates,
                    device=self.setup.facts.device,
                )
        return self._peaks[key]

    def forward_shares(self, batch_size: int, seq_len: int | None) -> dict[str, float]:
        """The share that each layer that can be checkpointed has in what a forward pass computes."""
        batch = make_batch(self.model, batch_size, seq_len, padded=self.setup.padded)
        with planning_errors(self.model), optional_autocast(self.setup.autocast_dtype):
            return forward_shares(lambda: self.model(**batch), checkpointable_layers(self.model))

    def _batch(self, variant: TrainingVariant, batch_size: int, seq_len: int | None) -> dict[str, Any]:
        self._switch_to(variant)
        self._progress(f"{variant.name}, {batch_in_words(batch_size, seq_len)}")
        return make_batch(self.model, batch_size, seq_len, padded=self.setup.padded)

    def _switch_to(self, variant: TrainingVariant) -> None:
        if variant == self._current:
            return
        self._current = None  # until the switch is complete
        unpatch_model(self.model)
        set_checkpointing(self.model, variant.checkpointed, input_grads=self._has_input_grads)
        for weight in self._first_matrices:
            weight.requires_grad_(not variant.frozen_a)
        self._reports[variant] = self._patch(variant) if variant.patched else PatchReport(())
        self._current = variant

    def _patch(self, variant: TrainingVariant) -> PatchReport:
        config = self.setup.config
        config = dataclasses.replace(
            config,
            autocast_dtype=config.autocast_dtype or self.setup.autocast_dtype,
            memory_budget=None,
            checkpoint_layers=variant.checkpoint_layers,
            patch_checkpointed=variant.patch_checkpointed,
        )
        if variant.plan is not None:
            config = dataclasses.replace(config, plan=variant.plan, sites=("activation",))
        report = patch(self.model, config, self._memory)
        if variant.checkpoint_layers is not None:
            set_checkpoints(self.model, report.checkpointed, RECOMPUTED)
        return report

    def _optimizer(self, name: str) -> optim.Optimizer:
        """One for all variants that train the same weights: once it has its state, a prediction needs a single step."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        key = name, len(trained)
        if key not in self._optimizers:
            self._optimizers[key] = make_optimizer(name, trained)
        return self._optimizers[key]


def _model_of(setup: Setup, source: Source) -> PreTrainedModel:
    if isinstance(setup.model, nn.Module):
        return copy_without_memory(setup.model, setup.facts.device)
    return build_model(source, setup)


def _notes(setup: Setup) -> tuple[str, ...]:
    notes = ["Some tokens are padding, so attention keeps a mask."] if setup.padded else []
    if isinstance(setup.model, nn.Module) and (wrapper := wrapped_forward(setup.model)):
        notes.append(f"The model's forward is wrapped by {wrapper}; that of its class is planned, which may keep more.")
    return tuple(notes)


def no_progress(doing: str) -> None:
    """Ignore the progress."""


def patch_report(run: DryRun, variant: TrainingVariant) -> tuple[PatchReport, tuple[str, ...]]:
    """What a variant patches, and a note on the reason if that is nothing.

    Raises:
        PatchingError: a pattern of the user's config matches nothing.
    """
    try:
        report = run.report(variant)
        return report, () if report.patched else (f"Nothing is patched: {reasons_left_alone(report)}.",)
    except PatchingError as error:
        config = run.setup.config
        if config.include != InvActConfig.include or config.exclude:
            raise  # the user can fix the patterns
        return PatchReport(()), (f"Nothing is patched: {str(error).splitlines()[0].removesuffix(':')}.",)


def reasons_left_alone(report: PatchReport) -> str:
    """Why activations are left alone, each reason once."""
    return "; ".join(
        dict.fromkeys(site.reason.removeprefix("left alone: ") for site in report.sites if site.curve is None)
    )


@contextmanager
def dry_run(setup: Setup, progress: Progress = no_progress) -> Iterator[DryRun]:
    """Builds the model on fake tensors, which exist inside the context.

    Raises:
        PlanningError: the model is not found, or cannot be built without weights.
    """
    source = find_source(setup.model)
    with fake_tensors(setup.facts.device):
        yield DryRun(setup, source, progress)


def saved_by_part(model: PreTrainedModel, batch: dict[str, Any], autocast_dtype: torch.dtype | None) -> dict[str, int]:
    """Bytes that one forward pass of a model saves for the backward pass, by part.

    Args:
        model: in training mode.
        batch: its arguments, with labels.
        autocast_dtype: None for no autocast.

    Raises:
        PlanningError: its forward pass fails.
    """
    with planning_errors(model), SavedActivations(model) as saved, optional_autocast(autocast_dtype):
        output = model(**batch)
    if output.loss is None:
        raise PlanningError(f"{type(model).__name__} returns no loss; name a class that can be trained")
    return by_part(saved, model)


@contextmanager
def planning_errors(model: PreTrainedModel) -> Iterator[None]:
    """Raises a PlanningError for any exception inside."""
    try:
        yield
    except Exception as error:  # the code of a model may raise anything
        raise PlanningError(
            f"{type(model).__name__} cannot be run without weights ({type(error).__name__}: {error}); measure it on "
            "its own device with hf_invact.memory.SavedActivations"
        ) from error


@contextmanager
def optional_autocast(autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to a dtype; nothing for None."""
    with torch.autocast("cpu", autocast_dtype or torch.bfloat16, enabled=autocast_dtype is not None):
        yield
