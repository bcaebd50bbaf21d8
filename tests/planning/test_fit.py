"""The largest batch and the longest sequence that fit."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, PretrainedConfig

from hf_invact import plan_memory
from hf_invact.planning import MOMENTS, MemoryFit, Peak, fit_memory, render_fit
from hf_invact.planning.search import largest_that_fits
from hf_invact.planning.variants import BOTH, CHECKPOINTED, INVERTED, PLAIN
from tests.planning.small import small_config

LLAMA = LlamaConfig(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    vocab_size=256,
    max_position_embeddings=128,
)
MIB = 2**20
MEMORY = 16 * MIB


def peaks(config: PretrainedConfig, batch_size: int, seq_len: int, **options: Any) -> tuple[int, int]:
    plan = plan_memory(config, batch_size, seq_len, optimizer="adamw_fused", **options)
    assert plan.plain_peak is not None
    assert plan.patched_peak is not None
    return plan.plain_peak.total_bytes, plan.patched_peak.total_bytes


@pytest.fixture(scope="module")
def llama() -> MemoryFit:
    return fit_memory(LLAMA, 3, 100, MEMORY)


def test_every_variant_is_searched(llama: MemoryFit) -> None:
    assert [variant.name for variant in llama.variants] == [v.name for v in (PLAIN, INVERTED, CHECKPOINTED, BOTH)]
    assert all(variant.batch_size.end == "memory" and variant.batch_size.size > 3 for variant in llama.variants)
    assert all(variant.seq_len is not None and variant.seq_len.size > 128 for variant in llama.variants)


@pytest.mark.parametrize("index", [0, 3], ids=["plain", "both"])
def test_the_largest_batch_fits_and_the_next_does_not(llama: MemoryFit, index: int) -> None:
    found, checkpointed = llama.variants[index].batch_size, index >= 2
    assert peaks(LLAMA, found.size, 100, gradient_checkpointing=checkpointed)[index % 2] == found.peak_bytes <= MEMORY
    assert peaks(LLAMA, found.size + 1, 100, gradient_checkpointing=checkpointed)[index % 2] > MEMORY


@pytest.mark.parametrize("index", [1, 2], ids=["inverted", "checkpointing"])
def test_the_longest_sequence_fits_and_the_next_does_not(llama: MemoryFit, index: int) -> None:
    found, checkpointed = llama.variants[index].seq_len, index >= 2
    assert found is not None
    assert found.size % 64 == 0
    assert peaks(LLAMA, 3, found.size, gradient_checkpointing=checkpointed)[index % 2] == found.peak_bytes <= MEMORY
    assert peaks(LLAMA, 3, found.size + 64, gradient_checkpointing=checkpointed)[index % 2] > MEMORY


def test_half_of_the_layers_checkpointed_is_in_between() -> None:
    fit = fit_memory(small_config("llama", num_hidden_layers=8), 2, 64, MEMORY)
    sizes = {variant.name: variant.batch_size.size for variant in fit.variants}
    assert [*sizes] == ["plain", "inverted", "4 layers checkpointed", "checkpointing", "checkpointing + inverted"]
    assert sizes["inverted"] < sizes["4 layers checkpointed"] < sizes["checkpointing"]


def fit_of(model_type: str, memory_bytes: int, **changes: Any) -> MemoryFit:
    return fit_memory(small_config(model_type, num_hidden_layers=1, **changes), 2, 32, memory_bytes)


def test_a_table_of_positions_ends_the_search() -> None:
    fit = fit_of("bert", 64 * MIB, max_position_embeddings=200)
    (length,) = {(variant.seq_len.size, variant.seq_len.end) for variant in fit.variants if variant.seq_len}
    assert length == (200, "positions")
    assert "200, all its positions" in render_fit(fit)


def test_images_have_no_length() -> None:
    fit = fit_of("vit", 8 * MIB)
    assert all(variant.seq_len is None for variant in fit.variants)
    assert all(variant.batch_size.end == "memory" for variant in fit.variants)
    text = render_fit(fit)
    assert "takes images alone" in text
    assert "steps of" not in text


def test_nothing_fits() -> None:
    fit = fit_of("llama", 100_000)
    assert fit.static_bytes > 100_000
    assert {variant.batch_size.size for variant in fit.variants} == {0}
    text = render_fit(fit)
    assert "not even 1" in text
    assert "not even 64" in text
    assert "the weights, gradients and optimizer state alone need" in text


def test_says_what_is_not_counted_and_what_was_not_trained(llama: MemoryFit) -> None:
    text = render_fit(llama)
    assert "is not counted, so leave some room" in text
    assert "steps of 64 tokens" in text
    assert llama.notes == ("Beyond 128 tokens (its max_position_embeddings) the model has not been trained.",)


def peak(forward: float, backward: float = 0, optimizer: float = 0) -> Peak:
    return Peak(
        {
            moment: {"parameters": 1000, "gradients": 0, "optimizer": 0, "activations": int(count)}
            for moment, count in zip(MOMENTS, (forward, backward, optimizer), strict=True)
        }
    )


CURVES = {
    "affine": lambda n: peak(7 * n),
    "affine from a height": lambda n: peak(20_000 + 7 * n),
    "quadratic": lambda n: peak(3 * n + 0.01 * n * n),
    "flat and then steep": lambda n: peak(9 * n, optimizer=40_000),
    "a step": lambda n: peak(5 * n, backward=0 if n < 3000 else 10**6),
    "a root": lambda n: peak(900 * n**0.5),
}


@pytest.mark.parametrize("start", [1, 100, 10**5])
@pytest.mark.parametrize("name", CURVES)
def test_the_search_is_right_and_short(name: str, start: int) -> None:
    asked: list[int] = []

    def peak_at(size: int) -> Peak:
        asked.append(size)
        return CURVES[name](size)

    memory = 51_000
    found = largest_that_fits(peak_at, memory, start=start, last=10**6)
    assert peak_at(found).total_bytes <= memory < CURVES[name](found + 1).total_bytes
    assert len(set(asked)) == len(asked) - 1
    assert len(asked) - 1 <= (50 if name in ("a step", "a root") else 6)


@pytest.mark.parametrize(("memory", "expected"), [(900, 0), (10**9, 50)], ids=["none", "all"])
def test_the_search_at_its_ends(memory: int, expected: int) -> None:
    assert largest_that_fits(CURVES["affine"], memory, start=7, last=50) == expected
