"""Batches of any size: token ids and masks without memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hf_invact import MemoryPlan, PlanningError, plan_memory
from hf_invact.inputs import integers
from hf_invact.planning import Setup, dry_run
from hf_invact.planning.fake.tensors import fake_tensors
from hf_invact.planning.variants import CHECKPOINTED, PLAIN
from tests.planning.small import each_type_that_runs, small_config

MIB_IN_KIB = 1 << 10


@pytest.mark.parametrize(
    ("model_type", "checkpointed"),
    [
        ("llama", False),
        ("deberta-v2", False),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("t5", True, marks=pytest.mark.slow),
    ],
)
def test_a_large_batch_is_planned_as_a_small_one(
    model_type: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned() -> MemoryPlan:
        return plan_memory(small_config(model_type), 2, 16, optimizer="sgd", gradient_checkpointing=checkpointed)

    real = planned()
    monkeypatch.setattr(integers, "REAL_TOKENS", 8)
    assert planned() == real


@pytest.mark.slow
# The others make their masks, positions and buckets by the same functions as one of these.
@each_type_that_runs(but=("roberta", "distilbert", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "vit"))
def test_a_large_batch_of_any_architecture_is_run_as_a_small_one(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpatched: models are patched with a few tokens, whatever the batch, and patches see neither ids nor masks."""

    def kept() -> list[object]:
        with dry_run(Setup(small_config(model_type))) as run:
            size = 2, run.length(16)
            return [(run.saved(way, *size), run.peak(way, *size, "sgd")) for way in (PLAIN, CHECKPOINTED)]

    real = kept()
    monkeypatch.setattr(integers, "REAL_TOKENS", 8)
    assert kept() == real


@pytest.mark.parametrize("model_type", ["llama", "deberta-v2"])
def test_a_hundred_thousand_sequences_take_no_memory(model_type: str) -> None:
    config = small_config(model_type)
    plan_memory(config, 1, 8)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    few, many = plan_memory(config, 100, 64), plan_memory(config, 100_000, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * MIB_IN_KIB
    assert many.plain_bytes / few.plain_bytes == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "message"),
    [
        (10**12, 16, "1,000,000,000,000 x 16 is 16,000,000,000,000 tokens in a batch, more than any device"),
        (0, 16, "batch_size must be at least 1, got 0"),
        (1, -3, "seq_len must be at least 1, got -3"),
    ],
    ids=["too many", "none", "negative"],
)
def test_sizes_that_cannot_be(batch_size: int, seq_len: int, message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        plan_memory(small_config("llama"), batch_size, seq_len)


def test_images_beyond_number() -> None:
    with pytest.raises(PlanningError, match=r"1,000,000,000,000 images in a batch, more than any .* lower batch_size$"):
        plan_memory(small_config("vit"), 10**12)


SIZE = 1000, 1000


@pytest.mark.parametrize(
    "ask",
    [
        lambda mask: mask.to(torch.bool).all(),
        lambda mask: mask.bool().sum() == mask.numel(),
        lambda mask: (mask.sum(-1) == SIZE[1]).all(),
        lambda mask: mask[:, -1:].all(),
        lambda mask: ~(mask == 0).any(),
        lambda mask: mask.view(-1).eq(1).all(dim=0),
        lambda mask: torch.logical_and(mask, mask.clone()).all(),
    ],
    ids=["all", "sum", "rows", "last", "none", "flat", "both"],
)
def test_a_large_mask_tells_that_it_hides_nothing(ask: Callable[[Tensor], Tensor]) -> None:
    with fake_tensors("cuda"):
        answer = ask(integers.mask_of_ones(*SIZE))
        assert not isinstance(answer, FakeTensor)
        assert bool(answer)


@pytest.mark.parametrize(
    "make",
    [lambda mask: mask.cumsum(-1), lambda mask: mask[:, None, :] * mask[:, :, None]],
    ids=["not elementwise", "larger"],
)
def test_what_else_is_made_of_a_large_mask_has_no_memory(make: Callable[[Tensor], Any]) -> None:
    with fake_tensors("cuda"):
        assert isinstance(make(integers.mask_of_ones(*SIZE)), FakeTensor)
