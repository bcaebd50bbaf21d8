"""Whole training steps of models: unpatched, patched and checkpointed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_invact.patching import inverted_activations

from ...benchmark.settings import DTYPES
from ...benchmark.steps.measure import compare_variants
from ...benchmark.steps.models import CASES, ModelCase, build_model, make_batch
from ...benchmark.steps.training import Training
from ...benchmark.steps.variants import CHECKPOINTING, PLAIN, StepVariant, checkpointing
from ..case import Case, Conditions

INVERTED = "inverted"
ROUNDS = 15

# A kind of site that comes gets a line here, with the config that turns it on.
VARIANTS: Mapping[str, StepVariant] = MappingProxyType(
    {PLAIN: nullcontext, INVERTED: inverted_activations, CHECKPOINTING: checkpointing}
)


@dataclass(frozen=True)
class Trained:
    """A model, and the adapters that it is trained with.

    Attributes:
        lora: of PEFT's config; without it all weights are trained.
    """

    model: ModelCase
    lora: Mapping[str, Any] = field(default_factory=dict)


_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
_TINY_MISTRAL = next(case for case in CASES["quick"] if case.architecture == "mistral")
_ADAPTED = {
    # The model of configs/mistral-7b-lora.yaml, on one long sequence.
    "cuda": ModelCase("mistral-7b-lora", "Mistral-7B, LoRA", "mistral", 1, 4096, "bf16", {"sliding_window": None}),
    "cpu": ModelCase("mistral-tiny-lora", "Mistral, tiny, LoRA", "mistral", 2, 16, "bf16", _TINY_MISTRAL.config),
}
_FULL = {"cuda": CASES["cuda"], "cpu": CASES["quick"]}
MODELS = MappingProxyType(
    {kind: (*map(Trained, _FULL[kind]), Trained(adapted, _LORA)) for kind, adapted in _ADAPTED.items()}
)


def cases(kind: str) -> list[Case]:
    """One for each model."""
    return [Case(trained.model.model, partial(measure, trained)) for trained in MODELS[kind]]


def measure(trained: Trained, conditions: Conditions) -> dict[str, Any]:
    """What a model keeps, its peak, its loss and the time of a step, in each variant in turn."""
    case, training = trained.model, training_of(trained, conditions)
    model = training.model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    patching = _patching(model)
    rounds, facts = compare_variants(training, VARIANTS, ROUNDS, conditions.deadline)
    for variant in facts.values():
        if "first_loss" in variant and "first_loss" in facts[PLAIN]:
            variant["equal_loss"] = variant["first_loss"] == facts[PLAIN]["first_loss"]
    return {
        "title": case.title,
        "architecture": case.architecture,
        "config": case.config,
        "lora": dict(trained.lora) or None,
        "parameters": model.num_parameters(),
        "trained_parameters": sum(weight.numel() for weight in weights),
        "sequences": case.sequences,
        "tokens": case.tokens,
        "dtype": case.dtype,
        "patching": patching,
        "rounds": rounds,
        "variants": facts,
    }


def training_of(trained: Trained, conditions: Conditions) -> Training:
    """A model with random weights, its batch and its optimizer."""
    case, device, seed = trained.model, conditions.device, conditions.seed
    model = build_model(case, DTYPES[case.dtype], device, seed)
    batch = make_batch(case, model.config.vocab_size, device, seed)
    if trained.lora:
        model = _adapted(model, trained.lora)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return Training(model, batch, torch.optim.AdamW(weights, lr=0.0, fused=True), seed)


def _adapted(model: PreTrainedModel, lora: Mapping[str, Any]) -> Any:
    import peft  # no other model needs it

    # PEFT would keep the adapters of a bfloat16 model in float32.
    return peft.get_peft_model(model, peft.LoraConfig(**lora), autocast_adapter_dtype=False).train()


def _patching(model: PreTrainedModel) -> dict[str, Any]:
    """What is decided for the model on this device, and how long that takes."""
    began = time.monotonic()
    with inverted_activations(model) as report:
        seconds = round(time.monotonic() - began, 2)
        plans = Counter(site.plan or "left alone" for site in report.sites)
    return {"seconds": seconds, "summary": report.summary(), "plans": dict(plans)}
