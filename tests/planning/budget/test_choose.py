"""The fewest layers to checkpoint for a memory budget: found, and as real models need."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedModel

from hf_invact import BudgetPlan, Lora, PlanningError, patch_model, plan_budget, unpatch_model
from hf_invact.planning import MOMENTS, Peak, make_optimizer, predict_peak
from hf_invact.planning.batch import make_batch
from hf_invact.planning.budget.choose import choose
from hf_invact.planning.variants import TrainingVariant, mixed
from tests.planning.small import small_config, small_model

LAYERS, SEQUENCES, TOKENS = 4, 8, 32
MORE_LAYERS: dict[str, dict[str, int]] = {"llama": {"num_hidden_layers": LAYERS}, "bert": {"num_hidden_layers": LAYERS}}


class Model:
    """Peaks as of a model whose layers are alike.

    Args:
        layers: how many.
        checkpointed, patched, plain: what a layer keeps when it is checkpointed, when it is patched, and otherwise.
        static: what does not depend on the layers.
    """

    def __init__(self, layers: int, checkpointed: int, patched: int, plain: int, static: int) -> None:
        self.layers, self.kept, self.static = layers, (checkpointed, patched, plain), static
        self.asked: set[TrainingVariant] = set()

    def peak_of(self, variant: TrainingVariant) -> Peak:
        self.asked.add(variant)
        count, (checkpointed, patched, plain) = variant.checkpoint_layers or 0, self.kept
        forward = count * checkpointed + (self.layers - count) * patched
        recomputed = count * checkpointed + (patched if variant.patch_checkpointed else plain) if count else 0
        totals = self.static + forward, self.static + max(forward, recomputed), self.static
        return Peak({moment: {"activations": total} for moment, total in zip(MOMENTS, totals, strict=True)})

    def fits(self, count: int, limit: int) -> bool:
        variants = mixed(count), mixed(count, patch_checkpointed=True)
        return any(self.peak_of(variant).total_bytes <= limit for variant in variants)


models = st.builds(
    Model, st.integers(1, 200), st.integers(0, 10), st.integers(10, 100), st.integers(10, 500), st.integers(0, 10**4)
)


@given(models, st.integers(0, 10**4))
def test_the_fewest_layers_are_found_with_few_predictions(model: Model, limit: int) -> None:
    chosen = choose(model.peak_of, model.layers, limit)
    assert len(model.asked) <= 14
    count = chosen.checkpoint_layers or 0
    if model.peak_of(chosen).total_bytes <= limit:
        assert not count or not model.fits(count - 1, limit)
        if chosen.patch_checkpointed:
            assert model.peak_of(mixed(count)).total_bytes > limit
    else:
        assert count == model.layers
        assert not any(model.fits(each, limit) for each in range(model.layers + 1))


@given(models, st.tuples(st.integers(0, 10**4), st.integers(0, 10**4)).map(sorted))
def test_less_memory_never_needs_fewer_layers(model: Model, limits: list[int]) -> None:
    less, more = (choose(model.peak_of, model.layers, limit).checkpoint_layers or 0 for limit in limits)
    assert less >= more


def made(model_type: str, lora: Lora | None) -> PreTrainedModel:
    return small_model(model_type, lora=lora, **MORE_LAYERS[model_type])


def measured(model: PreTrainedModel) -> int:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    batch = make_batch(model, SEQUENCES, TOKENS)
    return predict_peak(model, batch, make_optimizer("adamw_fused", trained), device="cpu").total_bytes


def checked(model: PreTrainedModel, plan: BudgetPlan) -> None:
    """Patched with the plan's config, a step of the model has the planned peak."""
    assert patch_model(model, plan.config) == plan.report
    assert measured(model) == plan.peak.total_bytes <= plan.budget_bytes
    unpatch_model(model)


@pytest.mark.parametrize(
    ("model_type", "lora"),
    [
        ("llama", None),
        ("bert", None),
        ("llama", Lora(dropout=0.1)),
        pytest.param("bert", Lora(dropout=0.1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_real_model_stays_within_its_budget_and_one_layer_less_would_not(model_type: str, lora: Lora | None) -> None:
    model = made(model_type, lora)
    patch_model(model)
    most = measured(model)
    unpatch_model(model)
    counts = []
    for share in (1.0, 0.9, 0.75):
        try:
            plan = plan_budget(model, SEQUENCES, TOKENS, int(share * most))
        except PlanningError:
            continue
        checked(model, plan)
        counts.append(len(plan.checkpointed))
        if plan.one_less is not None:
            assert plan.one_less.total_bytes > plan.budget_bytes
            config = {**vars(plan.config), "checkpoint_layers": counts[-1] - 1}
            patch_model(model, type(plan.config)(**config))
            assert measured(model) >= plan.one_less.total_bytes
    assert counts[0] == 0
    assert len(counts) > 1
    assert counts == sorted(counts)


WIDE = LlamaConfig(
    hidden_size=32, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=32, head_dim=8
)


def test_checkpointed_layers_are_patched_where_a_recomputed_one_decides_the_peak() -> None:
    plans = [plan_budget(WIDE, 64, 128, budget, device="cpu") for budget in ("64MB", "56MB")]
    assert [(len(plan.checkpointed), plan.patch_checkpointed) for plan in plans] == [(1, False), (1, True)]
    assert "checkpointed layers are patched too" in str(plans[1])
    assert all(site.is_patched for site in plans[1].report.sites)


def test_what_is_refused_says_by_how_much_and_what_would_fit() -> None:
    config, budget = small_config("llama", num_hidden_layers=LAYERS), "24MB"
    with pytest.raises(
        PlanningError, match=f"even with all {LAYERS} layers checkpointed the predicted peak"
    ) as refused:
        plan_budget(config, 64, 256, budget, device="cpu")
    message = str(refused.value)
    batches = re.findall(r"(\d+) x (\d+)", message)
    assert len(batches) == 3
    for sequences, tokens in batches[1:]:
        plan = plan_budget(config, int(sequences), int(tokens), budget, device="cpu")
        assert plan.peak.total_bytes <= plan.budget_bytes
    with pytest.raises(PlanningError, match="does not fit"):
        plan_budget(config, int(batches[1][0]) + 1, 256, budget, device="cpu")


def test_a_budget_under_the_weights() -> None:
    with pytest.raises(PlanningError, match=r"Weights, gradients and optimizer state alone need .*: train adapters"):
        plan_budget(small_config("llama"), 1, 8, "100KB", device="cpu")


def test_a_model_without_layers_that_can_be_checkpointed() -> None:
    model: Any = small_model("bert")
    model.__class__ = type("Lacking", (type(model),), {"supports_gradient_checkpointing": False})
    plan = plan_budget(model, 2, 8, "1GiB")
    assert (plan.layers, plan.checkpointed) == (0, ())
    with pytest.raises(PlanningError, match="it has no layers that can be checkpointed: the predicted peak"):
        plan_budget(model, 64, 64, "1MB")


def test_gradients_are_there_where_several_batches_are_added_up() -> None:
    config = small_config("llama")
    once, added = (
        plan_budget(config, SEQUENCES, TOKENS, "1GiB", device="cpu", accumulates=each).peak for each in (False, True)
    )
    assert once.by_moment["forward"]["gradients"] == 0
    assert added.by_moment["forward"]["gradients"] == added.by_moment["optimizer step"]["gradients"] > 0


def test_a_part_of_a_gpu_is_reserved() -> None:
    plan = plan_budget(small_config("llama"), SEQUENCES, TOKENS, "1GiB")
    assert plan.reserve_bytes == 512 * 2**20 + 2**30 // 40
    assert f"memory budget of 1.00 GiB, of which {537.6:.2f} MiB are reserved: 0 of 2 layers checkpointed" in str(plan)
    with pytest.raises(PlanningError, match=r"MiB of it are reserved for what is not predicted"):
        plan_budget(small_config("llama"), SEQUENCES, TOKENS, "512MiB")


@pytest.mark.parametrize("budget", ["auto", "50%"])
def test_a_config_has_no_gpu(budget: str) -> None:
    with pytest.raises(ValueError, match="needs a model on a GPU; for a config give an amount"):
        plan_budget(small_config("llama"), 1, 8, budget)
