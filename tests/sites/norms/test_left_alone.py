"""Norms that are left alone, or computed as the unpatched ones are, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from hf_invact import InvActConfig, PatchingError, PatchReport, patch_model
from hf_invact.sites.norms.find import norm_of
from tests.helpers import normal
from tests.sites.norms.small import NORMED, NORMS

llama = NORMED[0]


def reasons(report: PatchReport) -> set[str]:
    return {site.reason.removeprefix("left alone: ") for site in report.sites if site.plan is None}


def test_a_forward_that_another_library_has_replaced() -> None:
    model = llama.model()
    norm = model.model.norm
    norm.forward = OlmoLayerNorm.forward.__get__(norm)
    report = patch_model(model, NORMS)
    assert report.patched == 4
    (reason,) = reasons(report)
    assert (
        reason
        == "another library has replaced its forward by transformers.models.olmo.modeling_olmo.OlmoLayerNorm.forward"
    )


def test_those_that_accelerate_has_a_hook_on() -> None:
    """It would keep calling the forward that it has found."""
    model = llama.model()
    for module in model.modules():
        if not list(module.children()):
            add_hook_to_module(module, ModelHook())
    with pytest.raises(PatchingError, match="such as Accelerate, has replaced its forward"):
        patch_model(model, NORMS)


@pytest.mark.usefixtures("liger")
def test_those_of_liger() -> None:
    from liger_kernel.transformers import LigerRMSNorm

    model = llama.model()
    model.model.norm = LigerRMSNorm(64)
    report = patch_model(model, NORMS)
    assert report.patched == 4
    assert reasons(report) == {"Liger computes it in a kernel of its own"}


def test_one_with_a_hook_of_other_code() -> None:
    model = llama.model()
    model.model.norm.register_forward_hook(lambda module, args, output: None)
    report = patch_model(model, NORMS)
    assert report.patched == 4
    (reason,) = reasons(report)
    assert reason.startswith("other code has a hook on it (tests.sites.norms.test_left_alone.")


def test_a_hook_that_comes_later() -> None:
    """It may change the result in place, which is no longer kept then."""
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    x = normal(4, 8)
    model[1].register_forward_hook(lambda module, args, output: output.mul_(2))
    model(x).sum().backward()
    expected = model[0].weight.grad
    model.zero_grad()
    model[1]._forward_hooks.clear()
    patch_model(model, NORMS)
    model[1].register_forward_hook(lambda module, args, output: output.mul_(2))
    with pytest.warns(UserWarning, match="LayerNorm is not inverted while other code has a hook on it"):
        model(x).sum().backward()
    assert torch.equal(model[0].weight.grad, expected)


def test_biases_that_hide_the_normalised_input() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight[:5] = 1e-3
        model[1].bias[:5] = 1.0
    with pytest.raises(PatchingError, match="4 more channels than it would keep have a bias far larger"):
        patch_model(model, InvActConfig(sites=("norm",), require=True))
    with torch.no_grad():
        model[1].weight[1:5] = 1.0
    assert [site.plan for site in patch_model(model, NORMS).sites] == ["norm-output"]


def test_in_float16_the_input_is_kept() -> None:
    """Its range of exponents is too small to divide the output by the weight."""
    report = patch_model(llama.model(torch.float16), NORMS)
    assert {site.plan for site in report.sites} == {"norm-input"}


class Writes(nn.Module):
    """Writes to the input or to the result of its norm."""

    def __init__(self, norm: nn.Module, *, to_result: bool = False, to_input: bool = False) -> None:
        super().__init__()
        self.norm, self.first, self.last = norm, nn.Linear(8, 8), nn.Linear(8, 8)
        self.to_result, self.to_input = to_result, to_input

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.norm(x)
        if self.to_input:
            x += 1
        if self.to_result:
            y += 1
        y = self.last(y)
        return y + x


@pytest.mark.parametrize(
    ("norm", "writes", "plan"),
    [
        (nn.LayerNorm(8), {}, "norm-output"),
        (nn.LayerNorm(8), {"to_result": True}, None),
        (nn.RMSNorm(8).bfloat16(), {"to_input": True}, "norm-output"),
        (nn.RMSNorm(8).bfloat16(), {"to_input": True, "to_result": True}, None),
    ],
)
def test_what_the_model_writes_to_is_not_kept(norm: nn.Module, writes: dict[str, Any], plan: str | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Writes(norm, **writes), nn.Linear(8, 8)).to(norm.weight.dtype)
    report = patch_model(model, NORMS)
    assert [site.plan for site in report.sites] == [plan]
    assert not report.sites[0].reason or report.sites[0].reason.endswith("is written to afterwards")
    model(normal(4, 8, dtype=norm.weight.dtype)).sum().backward()


@pytest.mark.parametrize("change", ["no weight", "another dtype", "another shape"])
def test_a_weight_that_is_replaced_afterwards(change: str) -> None:
    """The results, the gradients and the errors are those of the unpatched module."""

    def changed(is_patched: bool) -> object:
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        torch.manual_seed(0)
        for weight in model.parameters():
            nn.init.normal_(weight)
        if is_patched:
            patch_model(model, NORMS)
        norm = model[1]
        if change == "no weight":
            norm.weight = None
        else:
            norm.weight = nn.Parameter(
                torch.ones(8, dtype=torch.float64) if change == "another dtype" else torch.ones(4)
            )
        try:
            model(normal(4, 8)).sum().backward()
        except RuntimeError as error:
            return str(error)
        return model[0].weight.grad

    plain, patched = changed(False), changed(True)
    if isinstance(plain, str):
        assert patched == plain
    else:
        torch.testing.assert_close(patched, plain)


def test_plans_can_be_demanded() -> None:
    model = llama.model()
    for plan in ("norm-input", "norm-output"):
        report = patch_model(model, InvActConfig(sites=("norm",), plan=plan))
        assert {site.plan for site in report.sites} == {plan}


def test_what_is_not_run_is_not_measured() -> None:
    """Norms that keep copies of their input are patched nevertheless, with the plan that never keeps more."""
    model = llama.model()

    def refuses(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("not here")

    model.model.layers[0].forward = refuses
    model.model.layers[1].forward = refuses
    report = patch_model(model, NORMS)
    plans = {(site.name, site.plan, site.before) for site in report.sites}
    assert {plan for _, plan, _ in plans} == {"norm-input"}
    assert {before for _, _, before in plans} == {None}


def test_patterns_name_a_norm_or_what_holds_it() -> None:
    model = llama.model()
    report = patch_model(model, InvActConfig(sites=("norm",), exclude=("*.input_layernorm", "model.layers.1")))
    assert {site.name for site in report.sites if site.plan} == {
        "model.layers.0.post_attention_layernorm",
        "model.norm",
    }
    assert reasons(report) == {"excluded by the config"}


def test_weights_that_zero_3_has_sharded() -> None:
    """DeepSpeed leaves an empty tensor in each process, and notes on it what it is."""
    model = llama.model()
    weight = model.model.norm.weight
    weight.ds_id, weight.data = 0, torch.empty(0)
    assert norm_of(model.model.norm) == "ZeRO-3 has sharded its weights, so it cannot be run"


def test_weights_that_fsdp1_has_flattened() -> None:
    """Each process holds another part of them, which may be of a size that could be run; PyTorch marks the modules."""
    model = llama.model()
    for module in model.model.layers.modules():
        module._is_fsdp_managed_module = True
    report = patch_model(model, InvActConfig(sites=("norm",)))
    assert report.patched == 1
    assert reasons(report) == {"FSDP1 has sharded its weights, so it cannot be run"}


def test_that_there_are_no_activations_is_said_where_norms_are_patched() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    report = patch_model(model, InvActConfig(sites=("activation", "norm")))
    assert report.summary().endswith("; no activation was found")
    assert "no activation was found: ReLU is left alone: its gradient already uses the output. Supported: " in str(
        report
    )
    assert "was found" not in str(patch_model(model, NORMS))
