"""The ways to train a model, side by side."""

from __future__ import annotations

import pytest
from transformers import GPT2Config

from hf_invact import InvActConfig, Lora, PatchingError, plan_memory
from hf_invact.display.sizes import UNITS
from hf_invact.planning import CATEGORIES, Comparison, Setup, as_json, compare_memory, dry_run, render_comparison
from hf_invact.planning.text import unit_of
from hf_invact.planning.variants import (
    BOTH,
    CHECKPOINTED,
    EXACT_GATE,
    FROZEN_A,
    FUSED,
    INVERTED,
    PLAIN,
    UNCAST,
    TrainingVariant,
)
from tests.models import ACTIVATIONS
from tests.planning.small import small_config

SIZE = 2, 32


def names(comparison: Comparison) -> list[str]:
    return [variant.name for variant in comparison.variants]


@pytest.mark.parametrize(
    ("model_type", "left_out"),
    [("gpt2", {EXACT_GATE}), ("llama", {FUSED}), ("bert", {FUSED, EXACT_GATE}), ("t5", set())],
)
def test_what_applies_is_compared_and_the_rest_has_a_note(model_type: str, left_out: set[TrainingVariant]) -> None:
    layers = "num_layers" if model_type == "t5" else "num_hidden_layers"
    comparison = compare_memory(small_config(model_type, **{layers: 1}), *SIZE)
    applying = [v.name for v in (PLAIN, INVERTED, FUSED, EXACT_GATE, CHECKPOINTED, BOTH) if v not in left_out]
    assert names(comparison) == applying
    notes = [note for note in comparison.notes if note.startswith("Left out: ")]
    assert len(notes) == len(left_out)
    assert all(any(variant.name in note for note in notes) for variant in left_out)


def test_says_what_plans_say() -> None:
    comparison = compare_memory(small_config("llama"), *SIZE, optimizer="adamw", dtype="float32")
    by_name = {variant.name: variant for variant in comparison.variants}
    for checkpointed, plain, patched in ((True, CHECKPOINTED, BOTH), (False, PLAIN, INVERTED)):
        plan = plan_memory(
            small_config("llama"), *SIZE, dtype="float32", optimizer="adamw", gradient_checkpointing=checkpointed
        )
        assert (by_name[plain.name].saved, by_name[plain.name].peak) == (plan.plain, plan.plain_peak)
        assert (by_name[patched.name].saved, by_name[patched.name].peak) == (plan.patched, plan.patched_peak)
    assert by_name[INVERTED.name].share == plan.saving * -1 + 1
    alone = InvActConfig(plan="gate-inputs", sites=["activation"])
    exact = plan_memory(small_config("llama"), *SIZE, dtype="float32", config=alone)
    assert by_name[EXACT_GATE.name].saved == exact.patched


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize("lora", [None, Lora(dropout=0.1, targets="q_proj+down_proj")], ids=["full", "lora"])
def test_a_variant_leaves_no_trace_in_the_next(lora: Lora | None) -> None:
    setup = Setup(small_config("llama"), lora=lora, autocast=lora is not None)

    def alone(variant: TrainingVariant) -> tuple[object, object]:
        with dry_run(setup) as run:
            return run.saved(variant, *SIZE), run.peak(variant, *SIZE, "adamw_fused")

    expected = {variant: alone(variant) for variant in (PLAIN, CHECKPOINTED)}
    with dry_run(setup) as run:
        for variant in (BOTH, *([UNCAST, FROZEN_A] if lora else [])):
            run.peak(variant, 1, 16, "adamw_fused")
        for variant, answers in expected.items():
            assert (run.saved(variant, *SIZE), run.peak(variant, *SIZE, "adamw_fused")) == answers
            assert run.peak(BOTH, *SIZE, "adamw_fused") != answers[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize(
    ("lora", "autocast", "left_out"),
    [
        (Lora(r=4), True, {}),
        (Lora(r=4, dropout=0.1, targets="mlp"), True, {UNCAST: "keeps no less"}),
        (
            Lora(r=4, targets="mlp"),
            False,
            {UNCAST: "Only autocast multiplies inputs in bfloat16 with adapters in float32."},
        ),
    ],
    ids=["autocast", "autocast, dropout", "no autocast"],
)
def test_adapters_are_compared_with_what_peft_has(
    lora: Lora, autocast: bool, left_out: dict[TrainingVariant, str]
) -> None:
    config = small_config("llama", num_hidden_layers=1)
    comparison = compare_memory(config, *SIZE, lora=lora, autocast=autocast, optimizer="adamw_fused")
    by_name = {variant.name: variant for variant in comparison.variants}
    for variant in (UNCAST, FROZEN_A):
        (note,) = (note for note in comparison.notes if variant.name in note)
        assert left_out.get(variant, variant.note) in note
        assert (variant.name in by_name) == (variant not in left_out)
    states = {name: variant.peak.by_category["optimizer"] for name, variant in by_name.items() if variant.peak}
    assert 0 < states.pop(FROZEN_A.name) < states[PLAIN.name]  # frozen matrices have no state
    assert set(states) == by_name.keys() - {FROZEN_A.name}
    assert len(set(states.values())) == 1
    least = by_name.pop(INVERTED.name)
    assert by_name[PLAIN.name].share == 1
    assert all(variant.share < 1 for name, variant in by_name.items() if name != PLAIN.name)
    assert all(least.share < by_name[v.name].share for v in (UNCAST, EXACT_GATE) if v.name in by_name)


def test_no_answer_is_computed_twice() -> None:
    told: list[str] = []
    with dry_run(Setup(small_config("gpt2")), told.append) as run:
        for _ in range(2):
            run.saved(INVERTED, *SIZE)
            run.peak(INVERTED, *SIZE, "sgd")
    assert told == ["inverted, 2 x 32"] * 2


def test_one_note_tells_why_nothing_is_patched() -> None:
    comparison = compare_memory(small_config("gpt2", activation_function="relu"), *SIZE, config=ACTIVATIONS)
    assert names(comparison) == ["plain", "checkpointing"]
    (note,) = comparison.notes
    assert "its gradient already uses the output" in note
    assert "Supported" not in note


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PatchingError, match="matches none"):
        compare_memory(small_config("gpt2"), *SIZE, config=InvActConfig(include=("nothing",)))


def test_a_part_of_the_layers_is_told() -> None:
    comparison = compare_memory(small_config("llama"), *SIZE, config=InvActConfig(exclude=("*.1.mlp",)))
    assert any(note.startswith("inverted applies to 6 of 7 sites") for note in comparison.notes)


def test_the_table_has_what_the_record_has() -> None:
    comparison = compare_memory(GPT2Config(n_layer=2), 4, 128, optimizer="sgd")
    head, *rows = render_comparison(comparison).split("\n\n")[0].splitlines()
    unit = unit_of(comparison)
    assert head.startswith(f"kept, {unit}")
    assert len(rows) == len(comparison.variants) == 5
    for row, variant in zip(rows, comparison.variants, strict=True):
        assert row.startswith(variant.name)
        assert f"{variant.saved_bytes / UNITS[unit]:,.2f}  " in row
        assert f"{variant.share:.1%}" in row
        assert variant.peak is not None
        assert row.endswith(variant.peak.moment)


def test_json() -> None:
    comparison = compare_memory(small_config("gpt2"), *SIZE, optimizer="sgd")
    plain = as_json(comparison)["variants"][0]
    assert plain["saved"] == dict(comparison.variants[0].saved)
    assert plain["saved_bytes"] == sum(plain["saved"].values())
    assert list(plain["peak"]["by_moment"]["forward"]) == list(CATEGORIES)
