"""Counts what a case saves for backward, on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_invact.memory import SavedActivations, by_part
from hf_invact.patching import InvActConfig, patch_model
from hf_invact.planning import Lora
from hf_invact.planning.batch import make_batch
from hf_invact.planning.dry_run import optional_autocast
from hf_invact.planning.fake.flash_attention import use_flash_attention
from hf_invact.planning.fake.tensors import fake_tensors
from hf_invact.planning.model.build import build_model, set_checkpointing
from hf_invact.planning.model.real import has_input_grads
from hf_invact.planning.model.setup import Setup
from hf_invact.planning.model.source import Source

from .cases import MemoryCase, MemoryVariant
from .compiled import compiled_bytes
from .published import as_in_the_notebook

LORA_RANK = 16
SAMPLED_LAYERS = (2, 3)
"""Compiled models are counted with these numbers of layers. All further layers keep the same."""
COUNTED = "counted"
EXTRAPOLATED = f"counted with {SAMPLED_LAYERS[0]} and {SAMPLED_LAYERS[1]} layers, which are alike"
NOT_TOLD_APART = "not told apart"
"""The only part of a compiled model: its graph has no modules."""


@dataclass(frozen=True)
class Count:
    """What a variant keeps.

    Attributes:
        parts: bytes by part of the model.
        weights: bytes of its parameters.
        plans: how many sites have each plan.
        method: how it was counted.
    """

    parts: Mapping[str, int]
    weights: int
    plans: Mapping[str, int]
    method: str = COUNTED

    def plain(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        return {
            "kept_bytes": sum(self.parts.values()),
            "parts": dict(self.parts),
            "weights_bytes": self.weights,
            "plans": dict(self.plans),
            "method": self.method,
        }


def count(case: MemoryCase, variant: MemoryVariant, device: str = "cuda") -> Count:
    """Count what one forward pass saves for backward with the kernels of a device.

    Args:
        device: "cuda" or "cpu".

    Raises:
        PlanningError, PatchingError: the model cannot be built, or cannot be patched in this way.
    """
    with built(case, variant, device) as (model, plans):
        weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        if not variant.compiled:
            return Count(_parts(case, model), weights, plans)
    layers = model.config.num_hidden_layers
    few, more = (_compiled(case, variant, device, number) for number in SAMPLED_LAYERS)
    kept = more + (layers - SAMPLED_LAYERS[1]) * (more - few)
    return Count({NOT_TOLD_APART: kept}, weights, plans, EXTRAPOLATED)


def _parts(case: MemoryCase, model: PreTrainedModel) -> dict[str, int]:
    with SavedActivations(model) as saved, optional_autocast(autocast_dtype(case)):
        output = model(**batch_of(case, model))
    assert output is not None  # must live until everything is counted
    return by_part(saved, model)


def _compiled(case: MemoryCase, variant: MemoryVariant, device: str, layers: int) -> int:
    fewer = replace(case, config={**case.config, "num_hidden_layers": layers})
    with built(fewer, variant, device) as (model, _), optional_autocast(autocast_dtype(case)):
        batch = batch_of(case, model)
        del batch["attention_mask"]
        return compiled_bytes(model, batch)


def autocast_dtype(case: MemoryCase) -> torch.dtype | None:
    """The dtype of autocast in the forward pass; None without autocast."""
    return torch.bfloat16 if case.autocast else None


@contextmanager
def built(case: MemoryCase, variant: MemoryVariant, device: str) -> Iterator[tuple[PreTrainedModel, dict[str, int]]]:
    """A context with a variant's model on fake tensors, and the number of its sites with each plan."""
    with fake_tensors(device):
        lora = None if case.adapters is None else Lora(r=LORA_RANK, dropout=case.dropout)
        source = source_of(case, variant)
        model = build_model(source, Setup(source.config, case.dtype, lora=lora, device=device))
        prepare(case, model)
        set_checkpointing(model, variant.checkpointed, input_grads=has_input_grads(model))
        yield model, patch(case, variant, model)


def source_of(case: MemoryCase, variant: MemoryVariant) -> Source:
    """The config and the class of a variant's model."""
    model_class = getattr(transformers, case.model_class)
    config = model_class.config_class(**case.config)
    if variant.activation is not None:
        name = "activation_function" if hasattr(config, "activation_function") else "hidden_act"
        setattr(config, name, variant.activation)
    return Source(case.model, config, model_class)


def prepare(case: MemoryCase, model: PreTrainedModel) -> None:
    """Apply what is special about a case: the dtype of its adapters, or the weights of the notebook."""
    if case.quantized:
        use_flash_attention(model)
        as_in_the_notebook(model)
    if case.adapters is not None:
        dtype = getattr(torch, case.adapters)
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.requires_grad:
                    setattr(module, name, nn.Parameter(weight.detach().to(dtype)))


def patch(case: MemoryCase, variant: MemoryVariant, model: PreTrainedModel) -> dict[str, int]:
    """Patch a model as a variant says. Returns the number of sites with each plan."""
    if variant.plan is None:
        return {}
    config = InvActConfig(plan=variant.plan, autocast_dtype=autocast_dtype(case), sites=variant.sites)
    report = patch_model(model, config)
    plans = [site.plan or "left alone" for site in report.sites]
    return {plan: plans.count(plan) for plan in dict.fromkeys(plans)}


def batch_of(case: MemoryCase, model: PreTrainedModel) -> dict[str, Tensor]:
    """Full sequences, with labels if the case has a loss."""
    batch = make_batch(model, case.batch_size, case.seq_len)
    if case.forward_only:
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return batch
