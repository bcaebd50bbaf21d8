"""What cases are counted to keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from hf_invact.experiments.reproduce.memory_cases import (
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
    Case,
    Variant,
)
from hf_invact.experiments.reproduce.memory_counting import count, patch, prepare, source_of
from hf_invact.experiments.reproduce.memory_published import as_in_the_notebook
from hf_invact.memory import SavedActivations, by_part

QUICK = {case.key: case for case in CASES["quick"]}
FULL = {case.key: case for case in CASES["full"]}
EAGER = [
    pytest.param(case, variant, id=f"{case.key}, {variant.name}")
    for case in CASES["quick"]
    for variant in case.variants
    if not variant.compiled
]


def total(case: Case, variant: Variant) -> int:
    return sum(count(case, variant).parts.values())


def test_bert_with_its_weights_is_what_the_notebook_shows() -> None:
    case = FULL["bert-base"]
    assert case.published is not None
    for variant, published in ((PLAIN, case.published.plain), (ACTIVATION, case.published.inverted)):
        counted = count(case, variant)
        assert counted.weights / 2**30 == pytest.approx(case.published.weights, abs=0.0015)
        assert (sum(counted.parts.values()) + counted.weights) / 2**30 == pytest.approx(published, abs=0.015)


def test_published_changes() -> None:
    changes = [case.published.change for case in CASES["full"] if case.published]
    assert [f"{change:.1%}" for change in changes] == ["-23.1%", "-15.7%", "-15.7%"]


@pytest.mark.parametrize(("case", "variant"), EAGER)
def test_every_variant_can_be_counted(case: Case, variant: Variant) -> None:
    counted = count(case, variant)
    assert sum(counted.parts.values()) > 0
    assert bool(counted.plans) == (variant.plan is not None)


@pytest.mark.parametrize("key", ["bert-base", "mistral-7b", "llama-7b", "gpt2-fp32", "gpt2-bf16", "gpt2-autocast"])
def test_ours_keeps_least_of_what_runs_as_it_is(key: str) -> None:
    case = QUICK[key]
    ours = total(case, OURS)
    others = [variant for variant in case.variants if not (variant.checkpointed or variant.compiled)]
    assert ours == min(total(case, variant) for variant in others)
    assert ours < total(case, PLAIN)


def test_a_gate_keeps_two_tensors_less_and_the_bits_more() -> None:
    case = QUICK["mistral-7b"]
    elements = case.seq_len * 224 * 4  # tokens, width, layers
    plain = total(case, PLAIN)
    assert plain - total(case, ACTIVATION) == 2 * elements - elements // 8
    assert plain - total(case, EXACT_GATE) == 2 * elements
    assert plain - total(case, OURS) == 2 * 2 * elements - elements // 8


def test_what_is_inverted_is_computed_by_the_fused_function() -> None:
    case = QUICK["gpt2-bf16"]
    assert total(case, FUSED_OURS) == total(case, OURS) < total(case, FUSED) < total(case, PLAIN)


def test_checkpoints_keep_the_same_patched() -> None:
    case = QUICK["llama-7b"]
    assert total(case, CHECKPOINTED_OURS) == total(case, CHECKPOINTED) < total(case, OURS)


@pytest.mark.parametrize(("key", "dtype"), [("mistral-lora", torch.bfloat16), ("mistral-peft", torch.float32)])
def test_adapters_have_the_dtype_that_the_setting_says(key: str, dtype: torch.dtype) -> None:
    from hf_invact.experiments.reproduce.memory_counting import built

    with built(QUICK[key], PLAIN, "cuda") as (model, _):
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {dtype}


class TestTheNotebooksMistral:
    """4-bit weights without adapters, emulated."""

    case = QUICK["mistral-published"]
    elements = case.seq_len * 224 * 4

    def test_an_inverted_activation_saves_one_float32_tensor_less_its_bits(self) -> None:
        saved = total(self.case, PLAIN) - total(self.case, GELU_IN_PLACE_OF_SILU)
        assert saved == 4 * self.elements - self.elements // 8

    def test_layers_keep_their_inputs_in_bfloat16(self) -> None:
        width, tokens = 64, self.case.seq_len
        kept = count(self.case, PLAIN).parts
        # Query, key, value and output; the head keeps nothing.
        assert kept["attention"] >= 4 * 4 * tokens * width * 2
        assert kept["activation"] == 4 * (3 * 4 + 2) * tokens * 224  # gate, its activation, up; and the product's copy

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
        """On a CPU, where attention is another: in everything else."""
        source = source_of(self.case, PLAIN)
        model = source.model_class(source.config)
        as_in_the_notebook(model)
        ids = torch.zeros(self.case.batch_size, self.case.seq_len, dtype=torch.long)
        with SavedActivations(model, ignore=[ids]) as saved:
            output = model(ids, use_cache=False)
        assert output is not None
        real, counted = by_part(saved, model), dict(count(self.case, PLAIN).parts)
        del real["attention"], counted["attention"]
        assert real == counted


def test_a_case_that_is_of_plain_weights_is_left_alone() -> None:
    case = replace(QUICK["llama-7b"], dtype="float32")
    source = source_of(case, PLAIN)
    model = source.model_class(source.config)
    before = {name: weight.dtype for name, weight in model.named_parameters()}
    prepare(case, model)
    assert patch(case, PLAIN, model) == {}
    assert {name: weight.dtype for name, weight in model.named_parameters()} == before
