"""Adapters in a plan: which layers can have them, and what they save."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from transformers import MistralConfig

from hf_invact import InvActConfig, Lora, MemoryPlan, PlanningError, plan_memory
from hf_invact.planning import Setup, dry_run
from hf_invact.planning.plan import plan_from_run
from tests.planning.small import small_config

GIB = 2**30


def planned(model_type: str, lora: Lora) -> MemoryPlan:
    return plan_memory(small_config(model_type), 1, 16, lora=lora)


def test_adapters_of_each_part() -> None:
    trained = {
        targets: planned("gpt2", Lora(r=2, targets=targets)).trainable_bytes for targets in ("all", "attention", "mlp")
    }
    assert 0 < trained["attention"] < trained["all"]
    assert 0 < trained["mlp"] < trained["all"]
    assert trained["attention"] + trained["mlp"] <= trained["all"]


def test_adapters_of_layers_by_name() -> None:
    # What is patched does not change what is trained.
    config = InvActConfig(sites=("activation",))
    trained = {
        targets: plan_memory(
            small_config("llama"), 1, 16, lora=Lora(r=2, targets=targets), config=config
        ).trainable_bytes
        for targets in (
            "attention",
            "q_proj",
            "k_proj",
            "q_proj+k_proj",
            "self_attn.q_proj",
            "attention+up_proj",
            "all",
        )
    }
    assert trained["q_proj"] + trained["k_proj"] == trained["q_proj+k_proj"] < trained["attention"]
    assert trained["self_attn.q_proj"] == trained["q_proj"]
    assert trained["attention"] < trained["attention+up_proj"] < trained["all"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "rank r"),
        ({"dropout": 1.0}, "dropout"),
        ({"targets": ""}, "all, attention, mlp or names of layers"),
        ({"targets": "all+q_proj"}, "all, attention, mlp or names of layers"),
    ],
    ids=["rank", "dropout", "no targets", "all and more"],
)
def test_adapters_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", ["norm", "q_proj+proj"])
def test_layers_that_a_model_lacks(targets: str) -> None:
    with pytest.raises(PlanningError, match=r"has no linear layer with the name .* LoRA can adapt q_proj, k_proj"):
        planned("llama", Lora(targets=targets))


def test_adapters_need_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PlanningError, match="pip install peft"):
        planned("llama", Lora())


def planned_with(setup: Setup, layers: int) -> list[int]:
    """The bytes that Mistral 7B of some layers keeps, plain and patched."""
    config = MistralConfig(sliding_window=None, num_hidden_layers=layers)
    with dry_run(replace(setup, model=config)) as run:
        plan = plan_from_run(run, 1, 4096)
    return [plan.plain_bytes, plan.patched_bytes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("autocast", "dropout", "plain", "activations", "patched"),
    [
        (False, 0.05, 41.265, 37.765, 12.909),
        ("bf16", 0.05, 31.815, 28.315, 12.923),
        ("bf16", 0.0, 27.112, 23.612, 12.329),
    ],
    ids=["as loaded", "as under the Trainer's bf16", "without dropout"],
)
def test_mistral_7b(autocast: bool | str, dropout: float, plain: float, activations: float, patched: float) -> None:
    """All layers but the first keep the same, so a model of two and one of three tell what one of 32 keeps."""
    setup = Setup(MistralConfig(sliding_window=None), autocast=autocast, lora=Lora(r=16, dropout=dropout))
    alone = replace(setup, config=InvActConfig(sites=("activation",)))
    for each, expected in ((setup, patched), (alone, activations)):
        two, three = (planned_with(each, layers) for layers in (2, 3))
        kept = [few + 30 * (more - few) for few, more in zip(two, three, strict=True)]
        assert [count / GIB for count in kept] == pytest.approx([plain, expected], abs=0.001)
        if each is setup and autocast and dropout:
            assert planned_with(each, 5) == [few + 3 * (more - few) for few, more in zip(two, three, strict=True)]
