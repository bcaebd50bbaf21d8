"""Predictions against real models with real weights on the CPU: equal to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_invact import InvActConfig, Lora, patch_model, plan_memory
from hf_invact.memory import SavedActivations, by_part
from hf_invact.planning.batch import make_batch
from hf_invact.planning.model.source import find_source
from tests.models import MODEL_NAMES
from tests.planning.small import each_type_that_runs, small_config

SEQUENCES, TOKENS = 2, 16
FULL, LORA, DROPOUT = None, Lora(r=4), Lora(r=4, dropout=0.1)


def real_model(model_type: str, dtype: str, attention: str, lora: Lora | None) -> PreTrainedModel:
    source = find_source(small_config(model_type))
    source.config.get_text_config().use_cache = source.config.use_cache = False
    model = source.model_class._from_config(
        source.config, dtype=getattr(torch, dtype), attn_implementation=attention
    ).train()
    if lora is None:
        return model
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(
        r=lora.r, lora_dropout=lora.dropout, target_modules="all-linear", fan_in_fan_out=model_type == "gpt2"
    )
    return peft.get_peft_model(model, options).get_base_model()


def parts_of(model: PreTrainedModel, *, autocast: bool) -> dict[str, int]:
    batch = make_batch(model, SEQUENCES, TOKENS)
    with SavedActivations(model) as saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**batch)
    return by_part(saved, model)


def check(
    model_type: str,
    dtype: str,
    autocast: bool,
    attention: str,
    lora: Lora | None,
    sites: tuple[str, ...] = InvActConfig().sites,
) -> None:
    plan = plan_memory(
        *(small_config(model_type), SEQUENCES, TOKENS, dtype, autocast, lora),
        attention=attention,
        device="cpu",
        config=InvActConfig(sites=sites),
    )
    model = real_model(model_type, dtype, plan.attention, lora)
    assert plan.plain == parts_of(model, autocast=autocast)
    dtype_of_autocast = torch.bfloat16 if autocast else None
    report = patch_model(model, InvActConfig(sites=sites, autocast_dtype=dtype_of_autocast))
    assert plan.report == report
    assert plan.patched == parts_of(model, autocast=autocast)


# Two combinations per model are not slow. Those of two neighbours cover all values of all options.
FAST = (
    {("sdpa", FULL, False), ("eager", DROPOUT, True)},
    {("sdpa", LORA, True), ("eager", FULL, False)},
)


def cases() -> Iterator[Any]:
    """All combinations."""
    options = list(product(("sdpa", "eager"), (FULL, LORA, DROPOUT), (False, True)))
    for index, model_type in enumerate(MODEL_NAMES):
        for attention, lora, autocast in options:
            tuning = "full" if lora is None else f"lora dropout {lora.dropout}"
            name = f"{model_type}, {attention}, {tuning}, {'autocast' if autocast else 'float32'}"
            marks = [] if (attention, lora, autocast) in FAST[index % 2] else [pytest.mark.slow]
            yield pytest.param(model_type, autocast, attention, lora, id=name, marks=marks)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize(("model_type", "autocast", "attention", "lora"), cases())
def test_predicts_what_a_real_run_keeps(model_type: str, autocast: bool, attention: str, lora: Lora | None) -> None:
    check(model_type, "float32", autocast, attention, lora)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize("model_type", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("autocast", [False, True], ids=["as loaded", "autocast"])
@pytest.mark.parametrize("lora", [LORA, DROPOUT], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(
    "sites", [("adapter",), ("activation",), ("adapter", "activation")], ids=["adapters", "activations", "both"]
)
def test_predicts_float32_adapters_of_bfloat16_weights(
    model_type: str, autocast: bool, lora: Lora, sites: tuple[str, ...]
) -> None:
    check(model_type, "bfloat16", autocast, "sdpa", lora, sites)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "autocast"), [("bfloat16", False), ("float32", True)], ids=["bfloat16", "autocast"])
@each_type_that_runs
def test_predicts_what_a_real_run_of_any_architecture_keeps(model_type: str, dtype: str, autocast: bool) -> None:
    check(model_type, dtype, autocast, "sdpa", None)
