"""Models of real sizes, counted on fake tensors: no weights, no GPU, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from hf_invact import patch_model
from hf_invact.memory import SavedActivations
from tests.models import ACTIVATIONS

TOKENS = 4096
LAYERS = 32


@pytest.fixture(autouse=True)
def bfloat16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


def mistral(layers: int) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(num_hidden_layers=layers, sliding_window=None)).train()


def saved_bytes(layers: int, plan: str | None) -> int:
    """What a training step of Mistral-7B with this many layers saves for backward, 1 x 4,096 tokens, sdpa."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = mistral(layers)
        if plan is not None:
            patch_model(model, replace(ACTIVATIONS, plan=plan))
        tokens = torch.zeros(1, TOKENS, dtype=torch.long)
        with SavedActivations(model) as saved:
            model(input_ids=tokens, position_ids=torch.arange(TOKENS)[None], labels=tokens, use_cache=False)
        return saved.total_bytes


def of_all_layers(plan: str | None) -> int:
    """All layers keep equally much."""
    one, two = saved_bytes(1, plan), saved_bytes(2, plan)
    return one + (LAYERS - 1) * (two - one)


def test_mistral_7b_saves_twice_what_inverting_its_activation_alone_does() -> None:
    plain, activation, measured = (of_all_layers(plan) for plan in (None, "output", "auto"))
    intermediate = LAYERS * TOKENS * MistralConfig().intermediate_size * 2
    assert plain - activation == intermediate - intermediate // 16
    assert plain - measured == 2 * intermediate - intermediate // 16
    assert plain - measured > 2 * (plain - activation)
    # 27.6 GiB with the CPU's kernels.
    assert (plain - measured) / plain > 0.24


def test_the_report_of_mistral_7b() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        report = patch_model(mistral(LAYERS), ACTIVATIONS)
    inner = MistralConfig().intermediate_size * 2
    assert report.patched == LAYERS
    assert {(site.plan, site.before, site.after) for site in report.sites} == {
        ("gate-output", 4 * inner, 2 * inner + inner // 16)
    }
    assert report.saved_bytes_per_token == LAYERS * (2 * inner - inner // 16)
    assert "model.layers.0-31.mlp.act_fn (32)  MistralMLP" in str(report)


@pytest.mark.slow
def test_patching_a_7b_block_takes_seconds() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=128))
    model = model.to_empty(device="cpu")
    for weight in model.parameters():
        torch.nn.init.constant_(weight, 0.001)
    start = time.process_time()  # of all threads; other processes do not count
    report = patch_model(model, ACTIVATIONS)
    # Seconds; 21 s where PyTorch has no fast product of bfloat16 matrices.
    allowed = 20 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 60
    assert time.process_time() - start < allowed
    assert [site.plan for site in report.sites] == ["gate-output"] * 2


def test_without_weights_the_same_is_measured() -> None:
    with torch.device("meta"):
        model = mistral(2)
    report = patch_model(model, ACTIVATIONS)
    width = 14336
    kept = (4 * 2 * width, (2 * 2 + 1 / 8) * width)
    assert [(site.plan, site.before, site.after) for site in report.sites] == [("gate-output", *kept)] * 2
    assert all(site.reason.startswith("measured on a copy without memory") for site in report.sites)
