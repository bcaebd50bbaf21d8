"""Runs a model that has no memory, to ask what its training steps would keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import optim
from transformers import PreTrainedModel

from ..memory import SavedActivations, by_part
from ..patching import InvActConfig, PatchingError, PatchReport, patch_model, unpatch_model
from .batch import batch_in_words, length_of, make_batch
from .errors import PlanningError
from .fake.tensors import fake_tensors
from .model.build import build_model, set_checkpointing
from .model.setup import Setup, check_choice
from .model.source import Source, find_source
from .peak import OPTIMIZERS, Peak, make_optimizer, predict_peak
from .variants import PLAIN, Variant

Progress = Callable[[str], None]
"""Takes what is about to be done, in a few words."""


class DryRun:
    """A model on fake tensors. It is built once, and asked for variants and sizes; no answer is computed twice.

    Use `dry_run`: its tensors are of no use outside of that context.

    Args:
        setup: what is trained.
        source: its config and class.
        progress: is told what is about to be run.
    """

    def __init__(self, setup: Setup, source: Source, progress: Progress) -> None:
        self.setup, self.source = setup, source
        self.model: PreTrainedModel = build_model(source, dtype=setup.dtype, attention=setup.attention, lora=setup.lora)
        self._progress = progress
        self._present: Variant | None = PLAIN
        self._reports = {PLAIN: PatchReport(())}
        self._saved: dict[tuple[Variant, int, int | None], Mapping[str, int]] = {}
        self._peaks: dict[tuple[Variant, int, int | None, str], Peak] = {}
        self._optimizers: dict[str, optim.Optimizer] = {}

    def report(self, variant: Variant) -> PatchReport:
        """What a variant patches.

        Raises:
            PatchingError: nothing can be, or a pattern of the config matches nothing.
            PlanningError: the model cannot checkpoint.
        """
        if variant not in self._reports:
            self._become(variant)
        return self._reports[variant]

    def length(self, seq_len: int | None) -> int | None:
        """The length that batches have where `seq_len` is asked for: None for models of images alone.

        Raises:
            PlanningError: there must be one.
        """
        return length_of(self.model, seq_len)

    def saved(self, variant: Variant, batch_size: int, seq_len: int | None) -> Mapping[str, int]:
        """Bytes that one forward pass keeps for the backward pass, by part of the model.

        Raises:
            PlanningError: the forward pass fails, or takes no such batch.
            PatchingError: as `report`.
        """
        key = variant, batch_size, seq_len
        if key not in self._saved:
            batch = self._batch(variant, batch_size, seq_len)
            self._saved[key] = MappingProxyType(saved_by_part(self.model, batch, self.setup.autocast_dtype))
        return self._saved[key]

    def peak(self, variant: Variant, batch_size: int, seq_len: int | None, optimizer: str) -> Peak:
        """The most memory that a training step holds.

        Args:
            optimizer: a name in `OPTIMIZERS`.

        Raises:
            ValueError: the optimizer is not known.
            PlanningError, PatchingError: as `saved`.
        """
        key = variant, batch_size, seq_len, optimizer
        if key not in self._peaks:
            chosen = self._optimizer(optimizer)
            batch = self._batch(variant, batch_size, seq_len)
            with failing_in_one_line(self.model):
                self._peaks[key] = predict_peak(
                    self.model,
                    batch,
                    optimizer=chosen,
                    forward_context=lambda: running_as_trained(self.setup.autocast_dtype),
                )
        return self._peaks[key]

    def _batch(self, variant: Variant, batch_size: int, seq_len: int | None) -> dict[str, Any]:
        self._become(variant)
        self._progress(f"{variant.name}, {batch_in_words(batch_size, seq_len)}")
        return make_batch(self.model, batch_size, seq_len)

    def _become(self, variant: Variant) -> None:
        if variant == self._present:
            return
        self._present = None  # until all of it is done
        unpatch_model(self.model)
        set_checkpointing(self.model, variant.checkpointed)
        self._reports[variant] = self._patch(variant.plan) if variant.patched else PatchReport(())
        self._present = variant

    def _patch(self, plan: str | None) -> PatchReport:
        config = self.setup.config
        dtype = config.autocast_dtype or self.setup.autocast_dtype
        return patch_model(self.model, dataclasses.replace(config, plan=plan or config.plan, autocast_dtype=dtype))

    def _optimizer(self, name: str) -> optim.Optimizer:
        """The same for all variants, which then need no step to make its state."""
        if name not in self._optimizers:
            check_choice("optimizer", name, OPTIMIZERS)
            trained = [weight for weight in self.model.parameters() if weight.requires_grad]
            self._optimizers[name] = make_optimizer(name, trained)
        return self._optimizers[name]


def _say_nothing(doing: str) -> None:
    pass


def patching_of(run: DryRun, variant: Variant) -> tuple[PatchReport, tuple[str, ...]]:
    """What a variant patches, and a note where that is nothing.

    Raises:
        PatchingError: a pattern of the user's config matches nothing.
    """
    try:
        report = run.report(variant)
        return report, () if report.patched else (f"Nothing is patched: {reasons(report)}.",)
    except PatchingError as error:
        config = run.setup.config
        if config.include != InvActConfig.include or config.exclude:
            raise  # the user can mend the patterns
        return PatchReport(()), (f"Nothing is patched: {str(error).splitlines()[0].removesuffix(':')}.",)


def reasons(report: PatchReport) -> str:
    """Each once, of the activations that are left alone."""
    return "; ".join(
        dict.fromkeys(site.reason.removeprefix("left alone: ") for site in report.sites if site.curve is None)
    )


@contextmanager
def dry_run(setup: Setup, progress: Progress = _say_nothing) -> Iterator[DryRun]:
    """A model to ask, inside the context.

    Raises:
        PlanningError: it is not found, or cannot be built without weights.
    """
    source = find_source(setup.model)
    with fake_tensors(setup.device):
        yield DryRun(setup, source, progress)


def saved_by_part(model: PreTrainedModel, batch: dict[str, Any], autocast_dtype: torch.dtype | None) -> dict[str, int]:
    """Bytes that a model keeps of one forward pass for its backward pass, by part.

    Args:
        model: in training mode.
        batch: its arguments, with labels.
        autocast_dtype: what it runs under; None for none.

    Raises:
        PlanningError: its forward pass fails.
    """
    with failing_in_one_line(model), SavedActivations(model) as saved, running_as_trained(autocast_dtype):
        output = model(**batch)
    if output.loss is None:
        raise PlanningError(f"{type(model).__name__} returns no loss; name a class that can be trained")
    return by_part(saved, model)


@contextmanager
def failing_in_one_line(model: PreTrainedModel) -> Iterator[None]:
    """Raises a PlanningError for whatever a model raises."""
    try:
        yield
    except Exception as error:  # its code may raise anything
        raise PlanningError(
            f"{type(model).__name__} cannot be run without weights ({type(error).__name__}: {error}); measure it on "
            "its own device with hf_invact.memory.SavedActivations"
        ) from error


@contextmanager
def running_as_trained(autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Under autocast, where a dtype is given."""
    with torch.autocast("cpu", autocast_dtype or torch.bfloat16, enabled=autocast_dtype is not None):
        yield
