"""Predictions against real models with real weights on the CPU: the same to the byte."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from hf_invact import InvActConfig, patch_model
from hf_invact.memory import SavedActivations, by_part
from hf_invact.planning import Lora, plan_memory
from tests.models import MODEL_NAMES, batch, tiny_model

SEQUENCES, TOKENS = 2, 16


def real(name: str, attention: str, lora: Lora | None) -> PreTrainedModel:
    model = tiny_model(name, attn_implementation=attention, use_cache=False)
    if lora is not None:
        peft = pytest.importorskip("peft")
        options = peft.LoraConfig(r=lora.r, lora_dropout=lora.dropout, target_modules="all-linear")
        model = peft.get_peft_model(model, options).get_base_model()
    return model.train()


def parts_of(model: PreTrainedModel, *, autocast: bool) -> dict[str, int]:
    inputs = batch(model, sequences=SEQUENCES, tokens=TOKENS)
    with SavedActivations(model) as saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    return by_part(saved, model)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("lora", [None, Lora(r=4), Lora(r=4, dropout=0.1)], ids=["full", "lora", "lora with dropout"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_predicts_what_a_real_run_keeps(name: str, attention: str, lora: Lora | None, autocast: bool) -> None:
    model = real(name, attention, lora)
    plan = plan_memory(
        tiny_model(name).config, SEQUENCES, TOKENS, "float32", autocast, lora, attention=attention, device="cpu"
    )
    assert dict(plan.plain) == parts_of(model, autocast=autocast)
    report = patch_model(model, InvActConfig(autocast_dtype=torch.bfloat16 if autocast else None))
    assert plan.report == report
    assert dict(plan.patched) == parts_of(model, autocast=autocast)
