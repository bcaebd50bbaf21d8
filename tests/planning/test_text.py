"""What a plan says in words: the peak that moves, and the one that does not."""

from __future__ import annotations

import re

import pytest

import hf_invact
from hf_invact.planning import MemoryPlan, render
from hf_invact.planning.text import verdict
from tests.models import tiny_model


def plan(name: str, seq_len: int, **options: str) -> MemoryPlan:
    return hf_invact.plan_memory(tiny_model(name).config, 4, seq_len, optimizer="adamw", **options)


def test_a_peak_in_the_optimizer_step_does_not_move() -> None:
    few = plan("llama", 1)
    assert few.plain_peak is not None
    assert few.plain_peak.moment == "optimizer step"
    assert verdict(few).startswith("Patching does not lower the peak: it falls in the optimizer step")


def test_a_peak_in_the_backward_pass_moves() -> None:
    many = plan("gpt2", 64)
    assert many.plain_peak is not None
    assert many.patched_peak is not None
    assert many.patched_peak.total_bytes < many.plain_peak.total_bytes
    assert re.match(r"Patching lowers the peak by [\d.]+ KiB \(\d+\.\d%\)", verdict(many))


def test_the_table_adds_up() -> None:
    text = render(plan("gpt2", 16))
    kept = text.split("kept for the backward pass")[1].split("\n\n")[0].splitlines()[1:]
    numbers = [[float(number) for number in re.findall(r"([\d.]+) KiB", row)] for row in kept]
    *parts, total = [row for row in numbers if len(row) == 2]
    # Parts of less than a KiB are told in bytes.
    assert [round(sum(column), 1) for column in zip(*parts, strict=True)] == pytest.approx(total, abs=2)


def test_without_an_optimizer_no_peak_is_told() -> None:
    text = render(hf_invact.plan_memory(tiny_model("bert").config, 1, 8))
    assert "peak" not in text
