"""Models whose gates cannot be rebuilt from their product: they keep gate and up, and train exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_invact import InvActConfig, PatchingError, patch_model
from tests.models import ACTIVATIONS, batch, tiny_model


def small_gates(activation: str, dtype: torch.dtype) -> nn.Module:
    """A Llama most of whose `up` are below 2^-12, and whose products are nearly all subnormal in float16."""
    model = tiny_model("llama", activation=activation).to(dtype)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data.mul_(1e-3)
    return model


def losses_and_gradients(model: nn.Module) -> list[torch.Tensor]:
    loss = model(**batch(model)).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [("silu", torch.float16), ("relu6", torch.bfloat16), ("relu6", torch.float32)],
    ids=["silu-float16", "relu6-bfloat16", "relu6-float32"],
)
def test_train_bit_identically_to_the_unpatched_model(activation: str, dtype: torch.dtype) -> None:
    model = small_gates(activation, dtype)
    expected = losses_and_gradients(model)
    report = patch_model(model, ACTIVATIONS)
    assert {site.plan for site in report.sites} == {"gate-inputs"}
    assert all(map(torch.equal, losses_and_gradients(model), expected))


def test_the_plan_that_rebuilds_them_is_refused_with_the_one_that_works() -> None:
    reason = "in torch.float16 the output of silu cannot be computed from a product; the plan 'gate-inputs'"
    with pytest.raises(PatchingError, match=f"refused, since plan='gate-output' is demanded: .*{reason}"):
        patch_model(small_gates("silu", torch.float16), InvActConfig(sites=("activation",), plan="gate-output"))
