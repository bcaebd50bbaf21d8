"""A plan as text: the peak that patching lowers, and the one that it does not."""

from __future__ import annotations

import re

import pytest

import hf_invact
from hf_invact import InvActConfig
from hf_invact.planning import (
    Comparison,
    Lora,
    MemoryFit,
    MemoryPlan,
    Setup,
    compare_memory,
    dry_run,
    render,
    render_comparison,
    render_fit,
)
from hf_invact.planning.compare import comparison_from_run
from hf_invact.planning.fit import fit_from_run
from hf_invact.planning.plan import plan_from_run
from hf_invact.planning.text import verdict
from tests.models import ACTIVATIONS, tiny_model
from tests.planning.small import small_config


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
    sizes = {"KiB": 1.0, "B": 1 / 1024}
    numbers = [[float(size) * sizes[unit] for size, unit in re.findall(r"([\d.]+) (KiB|B)\b", row)] for row in kept]
    *parts, total = [row for row in numbers if len(row) == 2]
    assert [round(sum(column), 1) for column in zip(*parts, strict=True)] == pytest.approx(total, abs=0.1)


def test_without_an_optimizer_no_peak_is_told() -> None:
    text = render(hf_invact.plan_memory(tiny_model("bert").config, 1, 8))
    assert "peak" not in text


VIT = small_config("vit", num_hidden_layers=1)


@pytest.fixture(scope="module")
def raised() -> tuple[MemoryPlan, Comparison, MemoryFit]:
    """What is told of a model whose peak patching raises, with gradient checkpointing."""
    with dry_run(Setup(VIT, config=ACTIVATIONS)) as run:
        return (
            plan_from_run(run, 64, None, gradient_checkpointing=True, optimizer="sgd"),
            comparison_from_run(run, 64, optimizer="sgd"),
            fit_from_run(run, 64, None, 16 << 20, optimizer="sgd"),
        )


def test_patching_that_raises_the_peak_is_advised_against(raised: tuple[MemoryPlan, Comparison, MemoryFit]) -> None:
    checkpointed, comparison, fit = raised
    assert checkpointed.plain_peak is not None
    assert checkpointed.patched_peak is not None
    assert checkpointed.patched_peak.total_bytes > checkpointed.plain_peak.total_bytes
    advice = "Better with gradient checkpointing train this model unpatched"
    assert re.match(
        rf"Patching raises the peak, which falls in the backward, by [\d.]+ KiB\. {advice}", verdict(checkpointed)
    )
    assert advice in str(comparison)
    assert advice in str(fit)


def test_patching_that_lowers_the_peak_is_not_advised_against() -> None:
    assert "unpatched" not in str(compare_memory(small_config("llama"), 8, 64, optimizer="sgd"))


def test_a_plan_that_patches_nothing_says_so_and_why() -> None:
    lora, config = Lora(targets="attention"), InvActConfig(exclude=("*predictions*",), sites=("activation",))
    nothing = hf_invact.plan_memory(small_config("bert"), 2, 16, optimizer="sgd", lora=lora, config=config)
    text = render(nothing)
    assert "Nothing is patched, so the peak is the same." in text
    assert "\n\nNothing is patched: nothing would keep less" in text


@pytest.mark.parametrize("model_type", ["llama", "t5"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_what_patching_saves_is_told_of_the_batch(model_type: str, checkpointed: bool) -> None:
    for config in (InvActConfig(), ACTIVATIONS):
        text = render(
            hf_invact.plan_memory(small_config(model_type), 2, 16, gradient_checkpointing=checkpointed, config=config)
        )
        (head,) = [line for line in text.splitlines() if line.startswith("inverted activations:")]
        # The norms after the layers are not recomputed.
        assert ("less for the backward pass" in head) != (checkpointed and config == ACTIVATIONS)
        assert ("applies only while a layer is recomputed" in head) == checkpointed
        assert "per token less" not in text


def test_printing_a_record_prints_what_the_command_prints(raised: tuple[MemoryPlan, Comparison, MemoryFit]) -> None:
    plan, comparison, fit = raised
    assert (str(plan), str(comparison), str(fit)) == (render(plan), render_comparison(comparison), render_fit(fit))
    head, *rows, _, end = str(plan.plain_peak).splitlines()
    assert head.split() == ["peak", "of", "a", "step,", "in", "the", "forward", "backward", "optimizer", "step"]
    assert [row.split()[0] for row in rows][-1] == "all"
    assert end == "The peak falls in the backward."
