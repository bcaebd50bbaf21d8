"""Amounts of memory that a user may write, and nonsense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_invact import InvActConfig, PatchingError, patch_model
from hf_invact.patching.budget import Budget, parse_budget

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("24GiB", Budget(24 * 2**30)),
        ("24GB", Budget(24 * 10**9)),
        ("512 MiB", Budget(512 * 2**20)),
        (1 << 30, Budget(1 << 30)),
        (1e9, Budget(10**9)),
        ("1073741824", Budget(1 << 30)),
        ("90%", Budget(share=0.9)),
        ("12.5 %", Budget(share=0.125)),
        ("auto", Budget()),
    ],
)
def test_amounts(text: Any, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert InvActConfig.from_dict({"memory_budget": text}).memory_budget == text


@pytest.mark.parametrize("text", ["many", "", "24 apples", "-1GiB", "0", 0, -5, 1.5, True, None, [24], "0GiB"])
def test_nonsense(text: Any) -> None:
    with pytest.raises(ValueError, match=r"invalid memory budget .*; write an amount such as 24GiB or 24GB"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0%", "101%"])
def test_a_share_of_nothing_or_of_more_than_all(text: str) -> None:
    with pytest.raises(ValueError, match="a share of the device's memory is more than 0% and at most 100%"):
        InvActConfig(memory_budget=text)


def test_what_a_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 << 30)
    assert parse_budget("auto").on(GPU) == 15 << 30  # what is free, and what this process has already
    assert parse_budget("50%").on(GPU) == 12 << 30
    assert parse_budget("1GiB").on(GPU) == parse_budget("1GiB").on(CPU) == 1 << 30


@pytest.mark.parametrize("text", ["auto", "90%"])
def test_a_part_of_no_gpu(text: str) -> None:
    with pytest.raises(ValueError, match="needs a GPU, and the model is on cpu: write an amount such as 24GiB"):
        parse_budget(text).on(CPU)


def test_two_ways_to_say_how_many_layers() -> None:
    with pytest.raises(ValueError, match="checkpoint_layers=3: give one of the two"):
        InvActConfig(memory_budget="24GiB", checkpoint_layers=3)


@pytest.mark.parametrize("tokens", [0, 1.5, "long", True], ids=repr)
def test_what_is_no_length(tokens: Any) -> None:
    with pytest.raises(ValueError, match="seq_len must be a number of tokens, at least 1, or null, got"):
        InvActConfig(seq_len=tokens)


def test_without_a_batch_a_budget_is_refused() -> None:
    with pytest.raises(PatchingError, match=r"ask hf_invact.plan_budget\(model, batch_size, seq_len, memory_budget\)"):
        patch_model(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), InvActConfig(memory_budget="24GiB"))
