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
from tests.models import MODEL_NAMES
from tests.planning.small import each_type_that_runs, small_config, small_model

SEQUENCES, TOKENS = 2, 16
FULL, LORA, DROPOUT = None, Lora(r=4), Lora(r=4, dropout=0.1)


def parts_of(model: PreTrainedModel, *, autocast: bool, padded: bool = False) -> dict[str, int]:
    batch = make_batch(model, SEQUENCES, TOKENS, padded=padded)
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
    model = small_model(model_type, dtype, plan.attention, lora)
    assert plan.plain == parts_of(model, autocast=autocast)
    dtype_of_autocast = torch.bfloat16 if autocast else None
    report = patch_model(model, InvActConfig(sites=sites, autocast_dtype=dtype_of_autocast))
    assert plan.report == report
    assert plan.patched == parts_of(model, autocast=autocast)


# The combinations with adapters, which take most of the time: all pairs of values, and each model has all values.
ADAPTED = {
    "gpt2": (("sdpa", LORA, False), ("eager", DROPOUT, True)),
    "llama": (("eager", LORA, False), ("sdpa", DROPOUT, True)),
    "bert": (("sdpa", LORA, True), ("eager", DROPOUT, False)),
    "mistral": (("sdpa", DROPOUT, False), ("eager", LORA, True)),
}
# These are not slow. Each two of them have all values.
FAST = {
    "gpt2": (("sdpa", FULL, False), ("eager", DROPOUT, True)),
    "llama": (("eager", FULL, False), ("sdpa", DROPOUT, True)),
    "bert": (("sdpa", LORA, True), ("eager", FULL, False)),
    "mistral": (("sdpa", FULL, False), ("eager", LORA, True)),
}


def cases() -> Iterator[Any]:
    """All combinations without adapters, and those of `ADAPTED`."""
    for model_type in MODEL_NAMES:
        for attention, lora, autocast in (*product(("sdpa", "eager"), (FULL,), (False, True)), *ADAPTED[model_type]):
            tuning = "full" if lora is None else f"lora dropout {lora.dropout}"
            name = f"{model_type}, {attention}, {tuning}, {'autocast' if autocast else 'float32'}"
            marks = [] if (attention, lora, autocast) in FAST[model_type] else [pytest.mark.slow]
            yield pytest.param(model_type, autocast, attention, lora, id=name, marks=marks)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize(("model_type", "autocast", "attention", "lora"), cases())
def test_predicts_what_a_real_run_keeps(model_type: str, autocast: bool, attention: str, lora: Lora | None) -> None:
    check(model_type, "float32", autocast, attention, lora)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_predicts_what_attention_keeps_where_tokens_are_padding(model_type: str, attention: str) -> None:
    padded, full = (
        plan_memory(
            *(small_config(model_type), SEQUENCES, TOKENS, "float32"), attention=attention, device="cpu", padded=each
        )
        for each in (True, False)
    )
    model = small_model(model_type, attention=attention)
    assert padded.plain == parts_of(model, autocast=False, padded=True)
    assert "Some tokens are padding, so attention keeps a mask." in padded.notes
    assert not set(padded.notes) <= set(full.notes)
    if (model_type, attention) == ("llama", "sdpa"):  # which otherwise needs no mask
        assert padded.plain["attention"] > full.plain["attention"]


ALL = InvActConfig().sites
# All pairs of values, and both models with each choice of sites.
MIXED = (
    ("llama", True, LORA, ("adapter",)),
    ("gpt2", False, DROPOUT, ("adapter",)),
    ("llama", False, LORA, ("activation",)),
    ("gpt2", True, DROPOUT, ("activation",)),
    ("llama", True, DROPOUT, ALL),
    ("llama", False, LORA, ALL),
    ("gpt2", True, LORA, ALL),
    ("gpt2", False, DROPOUT, ALL),
)


def mixed_cases() -> Iterator[Any]:
    for model_type, autocast, lora, sites in MIXED:
        dropout, how = "dropout" if lora is DROPOUT else "no dropout", "autocast" if autocast else "as loaded"
        name = f"{'+'.join(sites)}-{dropout}-{how}-{model_type}"
        marks = [] if sites == ("adapter",) else [pytest.mark.slow]
        yield pytest.param(*(model_type, autocast, lora, sites), id=name, marks=marks)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize(("model_type", "autocast", "lora", "sites"), mixed_cases())
def test_predicts_float32_adapters_of_bfloat16_weights(
    model_type: str, autocast: bool, lora: Lora, sites: tuple[str, ...]
) -> None:
    check(model_type, "bfloat16", autocast, "sdpa", lora, sites)


@pytest.mark.slow
@each_type_that_runs()
def test_predicts_what_a_real_run_of_any_architecture_keeps(model_type: str) -> None:
    check(model_type, "bfloat16", False, "sdpa", None)


@pytest.mark.slow
@each_type_that_runs(but=MODEL_NAMES)  # which are among the cases above
def test_predicts_what_a_real_run_of_any_architecture_keeps_under_autocast(model_type: str) -> None:
    check(model_type, "float32", True, "sdpa", None)
