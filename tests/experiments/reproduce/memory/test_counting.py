"""What is counted for the cases."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import transformers

from experiments.reproduce.memory.cases import (
    ACTIVATION,
    CASES,
    CHECKPOINTED,
    CHECKPOINTED_OURS,
    EXACT_GATE,
    FUSED,
    FUSED_OURS,
    GELU_IN_PLACE_OF_SILU,
    OURS,
    PLAIN,
    WITHOUT_NORMS,
    MemoryVariant,
)
from experiments.reproduce.memory.counting import Count, built, count, patch, prepare, source_of
from experiments.reproduce.memory.published import as_in_the_notebook
from hf_invact.memory import SavedActivations, by_part

LAYERS = 2
QUICK = {case.key: replace(case, config={**case.config, "num_hidden_layers": LAYERS}) for case in CASES["quick"]}
FULL = {case.key: case for case in CASES["full"]}
# Deciding for adapters takes most of the time: patched once here; `make reproduce-quick` counts all variants.
ADAPTED = {("mistral-peft-dropout-autocast", CHECKPOINTED_OURS)}
EAGER = [
    pytest.param(case.key, variant, id=f"{case.key}, {variant.name}", marks=pytest.mark.slow)
    for case in CASES["quick"]
    for variant in case.variants
    if not variant.compiled and (case.adapters is None or variant.plan is None or (case.key, variant) in ADAPTED)
]


@cache
def counted(key: str, variant: MemoryVariant) -> Count:
    return count(QUICK[key], variant)


def total(key: str, variant: MemoryVariant) -> int:
    return sum(counted(key, variant).parts.values())


def test_bert_with_its_weights_is_what_the_notebook_shows() -> None:
    case = FULL["bert-base"]
    assert case.published is not None
    for variant, published in ((PLAIN, case.published.plain), (ACTIVATION, case.published.inverted)):
        found = count(case, variant)
        assert found.weights / 2**30 == pytest.approx(case.published.weights, abs=0.0015)
        assert (sum(found.parts.values()) + found.weights) / 2**30 == pytest.approx(published, abs=0.015)


def test_published_changes() -> None:
    changes = [case.published.change for case in CASES["full"] if case.published]
    assert [f"{change:.1%}" for change in changes] == ["-23.1%", "-15.7%", "-15.7%"]


@pytest.mark.parametrize(("key", "variant"), EAGER)
def test_every_variant_can_be_counted(key: str, variant: MemoryVariant) -> None:
    assert total(key, variant) > 0
    assert bool(counted(key, variant).plans) == (variant.plan is not None)


@pytest.mark.parametrize("key", ["bert-base", "mistral-7b", "llama-7b", "gpt2-fp32", "gpt2-bf16", "gpt2-autocast"])
def test_ours_keeps_least_of_what_runs_as_it_is(key: str) -> None:
    others = [variant for variant in QUICK[key].variants if not (variant.checkpointed or variant.compiled)]
    assert total(key, OURS) == min(total(key, variant) for variant in others) < total(key, PLAIN)
    # Under autocast GPT-2's norms return float32, of which the next layers keep copies.
    less = total(key, WITHOUT_NORMS) - total(key, OURS)
    assert less == 0 if key == "gpt2-autocast" else less > 0


def test_a_gate_keeps_two_tensors_less_and_the_bits_more() -> None:
    elements = QUICK["mistral-7b"].seq_len * 224 * LAYERS  # tokens, width, layers
    plain = total("mistral-7b", PLAIN)
    assert plain - total("mistral-7b", ACTIVATION) == 2 * elements - elements // 8
    assert plain - total("mistral-7b", EXACT_GATE) == 2 * elements
    assert plain - total("mistral-7b", WITHOUT_NORMS) == 2 * 2 * elements - elements // 8


def test_what_is_inverted_is_computed_by_the_fused_function() -> None:
    fused_ours, ours, fused, plain = (total("gpt2-bf16", each) for each in (FUSED_OURS, OURS, FUSED, PLAIN))
    assert fused_ours == ours < fused < plain


def test_autocast_keeps_some_of_it_in_half_precision() -> None:
    assert total("gpt2-bf16", PLAIN) < total("gpt2-autocast", PLAIN) < total("gpt2-fp32", PLAIN)


def test_checkpoints_keep_the_same_patched_but_for_the_norm_after_them() -> None:
    both, checkpointed, ours = (total("llama-7b", each) for each in (CHECKPOINTED_OURS, CHECKPOINTED, OURS))
    tokens, width = QUICK["llama-7b"].seq_len, 64
    # Neither its input in float32 nor the normalized values in bfloat16, but one channel of these, and its index.
    of_the_norm = tokens * (width * (4 + 2) - 4) - 8
    assert checkpointed - both == of_the_norm
    assert checkpointed < ours


@pytest.mark.parametrize(("key", "dtype"), [("mistral-lora", torch.bfloat16), ("mistral-peft", torch.float32)])
def test_adapters_have_the_dtype_that_the_setting_says(key: str, dtype: torch.dtype) -> None:
    with built(QUICK[key], PLAIN, "cuda") as (model, _):
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {dtype}


class TestTheNotebooksMistral:
    """4-bit weights without adapters, emulated."""

    key = "mistral-published"
    case = QUICK[key]
    elements = case.seq_len * 224 * LAYERS

    def test_an_inverted_activation_saves_one_float32_tensor_less_its_bits(self) -> None:
        saved = total(self.key, PLAIN) - total(self.key, GELU_IN_PLACE_OF_SILU)
        assert saved == 4 * self.elements - self.elements // 8

    def test_layers_keep_their_inputs_in_bfloat16(self) -> None:
        width, tokens = 64, self.case.seq_len
        kept = counted(self.key, PLAIN).parts
        # Query, key, value and output; the head keeps nothing.
        assert kept["attention"] >= LAYERS * 4 * tokens * width * 2
        # In float32 gate, its activation and up; the copies of the product, and of what gate and up are made of.
        assert kept["activation"] == LAYERS * tokens * (3 * 4 * 224 + 2 * 224 + 2 * 2 * width)

    def test_ours_keeps_gate_and_up(self) -> None:
        assert counted(self.key, WITHOUT_NORMS).plans == {"gate-inputs": LAYERS}
        assert total(self.key, PLAIN) - total(self.key, WITHOUT_NORMS) == 4 * self.elements

    def test_computes_the_same_but_for_rounding_and_reaches_the_embeddings(self) -> None:
        config = dict(self.case.config)
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**config)).eval()
        ids = torch.arange(16)[None]
        expected = model(ids).logits
        as_in_the_notebook(model)
        found = model(ids).logits
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
        assert found.dtype == torch.float32
        assert found.requires_grad
        assert not any(weight.requires_grad for weight in model.parameters())
        found.sum().backward()

    def test_keeps_for_real_what_is_counted(self) -> None:
        """On a CPU all parts agree but attention, which has another kernel there."""
        source = source_of(self.case, PLAIN)
        model = source.model_class(source.config)
        as_in_the_notebook(model)
        ids = torch.zeros(self.case.batch_size, self.case.seq_len, dtype=torch.long)
        with SavedActivations(model, ignore=[ids]) as saved:
            output = model(ids, use_cache=False)
        assert output is not None
        real, expected = by_part(saved, model), dict(counted(self.key, PLAIN).parts)
        del real["attention"], expected["attention"]
        assert real == expected


def test_a_case_that_is_of_plain_weights_is_left_alone() -> None:
    case = replace(QUICK["llama-7b"], dtype="float32")
    source = source_of(case, PLAIN)
    model = source.model_class(source.config)
    before = {name: weight.dtype for name, weight in model.named_parameters()}
    prepare(case, model)
    assert patch(case, PLAIN, model) == {}
    assert {name: weight.dtype for name, weight in model.named_parameters()} == before
