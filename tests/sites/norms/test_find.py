"""Which modules are norms."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from hf_invact import patch_model, register_norm, unpatch_model
from hf_invact.norms import LLAMA, Recognized
from hf_invact.sites.norms.find import find_norms, norm_of
from tests.helpers import normal
from tests.models import tiny_model
from tests.sites.norms.small import ALL


class Scaled(nn.Module):
    """A norm whose name does not say so."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.scale, self.epsilon = nn.Parameter(torch.ones(width)), 1e-5

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.scale * wide.to(states.dtype)


class LayerScale(nn.Module):
    """No norm, though it has a weight for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class ShiftedRMSNorm(nn.Module):
    """Named like a norm, with a form of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class CountingNorm(Scaled):
    """Of a known form, but with more than a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(states)


class Unknown(CountingNorm):
    """Registered by one of these tests."""


@pytest.mark.parametrize(
    ("module", "form"),
    [
        (nn.LayerNorm(8), "layer_norm"),
        (nn.RMSNorm(8), "rms_norm"),
        (LlamaRMSNorm(8), "llama"),
        (OlmoLayerNorm(8), "olmo"),
        (Scaled(), "llama"),
        (LayerScale(), None),
        (nn.Linear(8, 8), None),
        (nn.GroupNorm(1, 8), None),
        (nn.BatchNorm1d(8), None),
        (nn.PReLU(8), None),
        (nn.GELU(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_norms_are_recognized_by_what_they_compute(module: nn.Module, form: str | None) -> None:
    found = norm_of(module)
    assert found is None if form is None else isinstance(found, Recognized)
    assert not isinstance(found, Recognized) or found.form.name == form


def test_what_is_named_like_one_is_reported() -> None:
    model = nn.Sequential(nn.Linear(8, 8), ShiftedRMSNorm(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    report = patch_model(model, ALL)
    assert [(site.name, site.plan) for site in report.sites] == [("1", None), ("3", "norm-output")]
    assert "ShiftedRMSNorm computes something else than the known forms" in report.sites[0].reason


def test_what_differs_in_what_it_adds_is_told_apart() -> None:
    """Though the class is the same, and what was found for one of them is remembered."""
    found = [norm_of(LlamaRMSNorm(8, eps)) for eps in (1e-5, 1e-6, 1e-5)]
    assert [each.eps for each in found if isinstance(each, Recognized)] == [1e-5, 1e-6, 1e-5]


def test_a_norm_in_two_places_is_one_site() -> None:
    norm = nn.LayerNorm(8)
    model = nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 8), norm, nn.Linear(8, 8))
    report = patch_model(model, ALL)
    assert [(site.name, site.plan) for site in report.sites] == [("1", "norm-output")]
    assert report.sites[0].before == 2 * report.sites[0].after + 2 * 8 * 4 - 2 * 8  # each call keeps its own


def test_modules_that_peft_has_replaced_by_copies_are_left_out() -> None:
    model = get_peft_model(tiny_model("gpt2"), LoraConfig(target_modules=["c_attn"], modules_to_save=["ln_f"]))
    names = [name for name, _, attribute, _ in find_norms(model) if "ln_f" in name]
    assert names == ["base_model.model.transformer.ln_f.modules_to_save"]


def test_a_registered_norm() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Unknown(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="unknown form of a norm 'lama'; known: layer_norm"):
        register_norm(Unknown, "lama")
    assert norm_of(model[1]) is None
    register_norm(Unknown, "llama", weight="scale", eps="epsilon")
    register_norm(Unknown, "llama", weight="scale", eps="epsilon")
    with pytest.raises(ValueError, match="Unknown is registered already"):
        register_norm(Unknown, "gemma", weight="scale", eps="epsilon")
    x = normal(4, 8)
    expected = model(x)
    assert [site.plan for site in patch_model(model, ALL).sites] == ["norm-output"]
    assert torch.equal(model(x), expected)
    unpatch_model(model)
    del model[1].scale
    assert norm_of(model[1]) == "this Unknown has no attribute 'scale', which its registration names"


def test_one_that_is_registered_as_what_it_is_not_is_left_alone() -> None:
    class Mistaken(LayerScale):
        pass

    register_norm(Mistaken, "llama", eps=1e-6)
    model = nn.Sequential(nn.Linear(8, 8), Mistaken(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    report = patch_model(model, ALL)
    assert report.sites[1].plan is None
    assert "the block's result would change by" in report.sites[1].reason


class Unit(LlamaRMSNorm):
    """As FSDP2 makes of a module that is sharded by itself: whoever makes another gets one of the class it had."""

    def __new__(cls, *args: object) -> LlamaRMSNorm:  # type: ignore[misc]
        return LlamaRMSNorm(*args)


def test_a_class_that_makes_instances_of_another() -> None:
    norm = LlamaRMSNorm(8)
    norm.__class__ = Unit
    found = norm_of(norm)
    assert isinstance(found, Recognized)
    assert found.form == LLAMA
