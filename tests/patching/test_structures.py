"""Transformers models whose blocks are not registered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_invact import patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.patching import activation_sites
from hf_invact.sites.activations.blocks import find_activations
from tests.helpers import normal
from tests.models import ACTIVATIONS
from tests.patching.structures import STRUCTURES, Structure, each_structure, inputs_of, output_and_gradients

PER_TOKEN = 96 * 4  # bytes of a tensor of the intermediate size


@each_structure
def test_sites_plans_and_figures(structure: Structure) -> None:
    model = structure.model()
    assert all(registered is None for *_, registered in find_activations(model))
    report = patch_model(model, ACTIVATIONS)
    assert tuple(site.name for site in report.sites) == structure.sites
    for site in report.sites:
        assert (site.plan, site.reason) == (structure.plan, "")
        assert site.before is not None
        assert site.after is not None
        assert site.before - site.after == structure.saved * PER_TOKEN
    originals = [type(model.get_submodule(name).original) for name in structure.sites]
    unpatch_model(model)
    assert [type(model.get_submodule(name)) for name in activation_sites(model)] == originals


@each_structure
def test_results_are_the_same_and_gradients_are_close(structure: Structure) -> None:
    model = structure.model()
    plain, plain_gradients = output_and_gradients(model)
    patch_model(model, ACTIVATIONS)
    patched, gradients = output_and_gradients(model)
    if structure.is_fused:
        assert torch.equal(patched, plain)
    else:
        torch.testing.assert_close(patched, plain, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == plain_gradients.keys()
    noise = 1e-5 * max(gradient.norm() for gradient in plain_gradients.values())
    for name, expected in plain_gradients.items():
        assert (gradients[name] - expected).norm() <= 1e-4 * expected.norm() + noise, name


@each_structure
def test_a_training_step_keeps_less_by_as_much_as_the_report_says(structure: Structure) -> None:
    def total_bytes() -> int:
        torch.manual_seed(0)
        with SavedActivations(model) as saved:
            model(**inputs_of(model))
        return saved.total_bytes

    model = structure.model()
    plain = total_bytes()
    report = patch_model(model, ACTIVATIONS)
    tokens = 2 * (17 if structure.name == "vit" else 16)
    assert plain - total_bytes() == report.saved_bytes_per_token * tokens > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_half_of_a_fused_projection_does_not_keep_the_other_alive(dtype: torch.dtype) -> None:
    (structure,) = (structure for structure in STRUCTURES if structure.name == "phi3")
    model = structure.model().to(dtype)
    block = model.layers[0].mlp

    def units() -> float:
        x = normal(2, 16, 32, dtype=dtype).requires_grad_()
        with SavedActivations(block, ignore=[x]) as saved:
            block(x)
        return saved.total_bytes / (2 * 16 * 96 * dtype.itemsize)

    assert units() == 4
    patch_model(model, ACTIVATIONS)
    assert units() == 2 + 1 / (8 * dtype.itemsize)


def test_a_frozen_fused_projection() -> None:
    """Nothing else keeps the product. The exact plan is chosen: its inputs are views of one tensor, which it keeps."""
    (structure,) = (structure for structure in STRUCTURES if structure.name == "phi3")
    model = structure.model()
    model.layers[0].mlp.down_proj.requires_grad_(False)
    (site,) = patch_model(model, ACTIVATIONS).sites
    assert (site.plan, site.before, site.after) == ("gate-inputs", 3 * PER_TOKEN, 2 * PER_TOKEN)


def test_experts_in_a_list() -> None:
    """As in older models: each expert is a block of its own, and all of them share a probe."""

    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 8)
            self.act_fn = nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.act_fn(self.gate(x)) * self.up(x))

    model = nn.ModuleDict({"experts": nn.ModuleList(Expert() for _ in range(3)), "out": nn.Linear(8, 8)})
    report = patch_model(model, ACTIVATIONS)
    assert [site.plan for site in report.sites] == ["gate-output"] * 3
    assert "experts.0-2.act_fn (3)" in str(report)
