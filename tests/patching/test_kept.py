"""What a block keeps for the backward pass, whatever is trained: as little as possible, never more than before."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_invact import InvActConfig, PatchingError, PatchReport, patch_model
from hf_invact.memory import SavedActivations
from hf_invact.patching import SiteReport
from hf_invact.sites import KINDS, all_plans
from tests.models import MODEL_NAMES, batch, each_model
from tests.patching.mlps import GATED, MLP, Training

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
ALL = ("up", "down")
TRAININGS = {
    "bf16": Training(),
    "autocast": Training(torch.float32, autocast=True),
    "down frozen": Training(frozen=("down",)),
    "MLP frozen": Training(frozen=ALL),
    "adapters bf16": Training(adapters=ALL),
    "adapters bf16, dropout": Training(adapters=ALL, dropout=0.05),
    "adapters fp32, autocast": Training(adapters=ALL, are_adapters_float32=True, autocast=True),
}
# In tensors of the intermediate size: (plain, patched) of a GELU MLP, and of a gated one. An adapter with dropout keeps
# the MLP's product itself and a bit per element; without, its own copy, until it shares what the activation keeps.
KEPT = {
    "bf16": ((2.0, 1.0625), (4.0, 2.0625)),
    "autocast": ((2.0, 1.0625), (4.0, 2.0625)),
    "down frozen": ((1.0, 1.0), (3.0, 2.0)),
    "MLP frozen": ((1.0, 1.0), (3.0, 2.0)),
    "adapters bf16": ((2.0, 1.0625), (4.0, 2.0625)),
    "adapters bf16, dropout": ((3.0, 1.125), (5.0, 2.125)),
    "adapters fp32, autocast": ((2.0, 1.0625), (4.0, 2.0625)),
}
# The paper's method alone, which finds nobody who keeps the product where adapters keep copies of it.
ACTIVATIONS_ALONE = KEPT | {
    "adapters bf16, dropout": ((3.0, 3.0), (5.0, 4.0)),
    "adapters fp32, autocast": ((2.0, 2.0), (4.0, 3.0)),
}
each_training = pytest.mark.parametrize("training", TRAININGS)


def patch(mlp: MLP, config: InvActConfig | None = None) -> PatchReport:
    with mlp.autocast():
        return patch_model(mlp.model, config)


def activation_in(report: PatchReport) -> SiteReport:
    """The one of the MLP: BERT's head has one as well."""
    return next(site for site in report.sites if site.kind == "activation")


@each_training
@each_model
def test_what_a_block_keeps_and_computes(name: str, training: str) -> None:
    """Its result is the same, and its gradients are close."""
    mlp = MLP(name, TRAININGS[training])
    plain = mlp.kept()
    y, gradients = mlp.result_and_gradients()
    patch(mlp, InvActConfig(sites=("activation",)))
    assert (plain, mlp.kept()) == ACTIVATIONS_ALONE[training][name in GATED]
    report = patch(mlp)
    assert (plain, mlp.kept()) == KEPT[training][name in GATED]
    shares = training in ("adapters bf16, dropout", "adapters fp32, autocast")  # else they keep their input as it comes
    adapters = [site.plan for site in report.sites if site.kind == "adapter"]
    assert adapters == ["adapter-input" if shares else None] * len(adapters)
    assert bool(adapters) == bool(mlp.training.adapters)
    site = activation_in(report)
    if mlp.kept() == plain:
        assert (site.plan, site.reason) == (None, "left alone: nothing would keep less")
    elif name in GATED:
        assert site.plan == ("gate-inputs" if mlp.kept().is_integer() else "gate-output")
    else:
        assert site.plan == "output"
    patched_y, patched = mlp.result_and_gradients()
    assert torch.equal(patched_y, y)
    for gradient, expected in zip(patched, gradients, strict=True):
        if site.plan is None or all_plans()[site.plan].exact:
            assert torch.equal(gradient, expected)
        else:
            assert (gradient.double() - expected.double()).norm() < 0.01 * expected.double().norm()


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    half, autocast = draw(st.sampled_from([(None, False), (None, True), ("bfloat16", False), ("bfloat16", True)]))
    subsets = st.sampled_from([(), ("up",), ("down",), ALL])
    return Training(
        dtype=torch.bfloat16 if half else torch.float32,
        autocast=autocast,
        frozen=draw(subsets),
        adapters=draw(subsets),
        dropout=draw(st.sampled_from([0.0, 0.05])),
        # Float32 adapters on half-precision weights work only under autocast.
        are_adapters_float32=autocast and draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(MODEL_NAMES), training=trainings())
def test_no_block_keeps_more_than_before(name: str, training: Training) -> None:
    mlp = MLP(name, training)
    plain = mlp.kept()
    patch(mlp)
    assert mlp.kept() <= plain


@pytest.mark.parametrize("training", ["bf16", "down frozen", "adapters bf16, dropout"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_no_plan_keeps_less_than_the_one_that_is_chosen(name: str, training: str) -> None:
    mlp = MLP(name, TRAININGS[training])
    patch(mlp)
    chosen = mlp.kept()
    for plan in (plan.name for kind in KINDS for plan in kind.plans):
        with suppress(PatchingError):  # it applies to no site, and what was chosen stays
            patch(mlp, InvActConfig(plan=plan))
        assert chosen <= mlp.kept()


@each_training
@each_model
def test_the_figures_of_the_report_are_those_of_a_training_step(name: str, training: str) -> None:
    """Of a layer whose input needs a gradient. In the first one it may not, and dropout then keeps no mask."""
    mlp = MLP(name, TRAININGS[training])
    if mlp.training.adapters:
        mlp.model.enable_input_require_grads()

    def total_bytes(sequences: int) -> int:
        torch.manual_seed(0)
        with SavedActivations(mlp.model) as saved, mlp.autocast():
            mlp.model(**batch(mlp.model, sequences=sequences))
        return saved.total_bytes

    def bytes_of_two_sequences() -> int:
        """Without copies of weights, which autocast keeps once."""
        return total_bytes(4) - total_bytes(2)

    plain = bytes_of_two_sequences()
    report = patch(mlp)
    assert plain - bytes_of_two_sequences() == report.saved_bytes_per_token * 2 * 16
