"""Adapters that are left alone, and why: they train as before, and what else can be patched is."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from hf_invact import InvActConfig, PatchReport, patch_model, unpatch_model
from tests.models import batch, tiny_model
from tests.sites.adapters.small import ALONE, adapted, layers, lora, train

pytestmark = pytest.mark.filterwarnings("ignore")
OTHERS = "left alone: of adapters, only those of LoRA on PEFT's own linear layers can be patched"


def with_config(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(tiny_model("llama"), getattr(peft, name)(target_modules=["q_proj", "down_proj"], **options))


TUNERS: dict[str, Callable[[], Any]] = {
    "AdaLoRA": lambda: with_config("AdaLoraConfig", total_step=10),
    "LoHa": lambda: with_config("LoHaConfig"),
    "LoKr": lambda: with_config("LoKrConfig"),
    "IA3": lambda: with_config("IA3Config", feedforward_modules=["down_proj"]),
    "OFT": lambda: with_config("OFTConfig", oft_block_size=4),
    "BOFT": lambda: with_config("BOFTConfig", boft_block_size=4),
    "VeRA": lambda: with_config("VeraConfig"),
    "HRA": lambda: with_config("HRAConfig"),
    "FourierFT": lambda: with_config("FourierFTConfig", n_frequency=4),
}


@pytest.mark.parametrize("tuner", TUNERS)
def test_other_tuners(tuner: str) -> None:
    """Activations are patched beside them."""
    model = TUNERS[tuner]()
    report = patch_model(model)
    adapters = [site for site in report.sites if site.kind == "adapter"]
    assert adapters
    assert {site.reason for site in adapters} == {OTHERS}
    assert [site.is_patched for site in report.sites if site.kind == "activation"] == [True, True]
    loss = model(**batch(model)).loss
    loss.backward()
    unpatch_model(model)


VARIANTS: dict[str, dict[str, Any]] = {
    "DoraLinearVariant": {"use_dora": True, "lora_dropout": 0.1},
    "ALoraLinearVariant": {"alora_invocation_tokens": [5, 6], "lora_dropout": 0.1, "task_type": "CAUSAL_LM"},
    "VeloraLinearVariant": {"velora_config": ("VeloraConfig", {})},
    "KasaLinearVariant": {"kasa_config": ("KasaConfig", {})},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_lora(variant: str) -> None:
    options = dict(VARIANTS[variant])
    for key, value in options.items():
        if isinstance(value, tuple):
            if not hasattr(peft, value[0]):
                pytest.skip(f"this version of peft has no {value[0]}")
            options[key] = getattr(peft, value[0])(**value[1])

    def make() -> Any:
        torch.manual_seed(0)
        options_of_lora = {"target_modules": ["q_proj", "down_proj"], **options}
        return get_peft_model(tiny_model("llama"), peft.LoraConfig(r=4, **options_of_lora)).train()

    model = make()
    report = patch_model(model, ALONE)
    reason = f"left alone: its adapter is a variant of LoRA ({variant}), which computes with the input itself"
    assert [site.reason for site in report.sites] == [reason] * 4
    assert train(model).losses == train(make()).losses


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv, self.proj = nn.Embedding(8, 16), nn.Conv1d(16, 16, 1), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.proj(self.conv(self.embedding(x).mT).mT)
        return y


def test_layers_that_are_not_linear() -> None:
    """Embeddings get no activations as input, and are no sites."""
    config = lora(lora_dropout=0.1, target_modules=["conv", "proj"])
    config.target_modules.add("embedding")
    model = get_peft_model(Mixed(), config)
    report = patch_model(model, InvActConfig(sites=("adapter",), plan="adapter-input"))
    assert [(site.activation, site.reason) for site in report.sites if not site.is_patched] == [
        ("lora's Conv1d", OTHERS)
    ]
    assert [site.name.rpartition(".")[2] for site in report.sites if site.is_patched] == ["proj"]


def test_parameters_of_experts() -> None:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    targets = {"target_modules": ["q_proj", "k_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    model = get_peft_model(MixtralForCausalLM(config), lora(**targets))
    report = patch_model(model, InvActConfig(plan="adapter-input"))
    found = {site.name.rpartition(".")[2]: (site.plan, site.reason) for site in report.sites if site.kind == "adapter"}
    assert found["experts"] == (None, OTHERS)
    assert found["q_proj"][0] == found["k_proj"][0] == "adapter-input"


class Own(Linear):
    """A user's own."""


def reasons(report: PatchReport, name: str) -> set[str]:
    return {site.reason for site in report.sites if name in site.name}


def test_subclasses_of_a_layer() -> None:
    model = adapted()
    for name, layer in layers(model).items():
        if name.endswith("q_proj"):
            layer.__class__ = Own
    report = patch_model(model, ALONE)
    assert reasons(report, "q_proj") == {OTHERS}
    assert reasons(report, "k_proj") == {""}
    assert all(type(layer) is Own for name, layer in layers(model).items() if name.endswith("q_proj"))


def bound(package: str, name: str, module: nn.Module) -> Any:
    """A forward of another package, bound to a module."""
    space: dict[str, Any] = {"__name__": f"{package}.kernels"}
    exec(f"def {name}(self, *args, **kwargs): return type(self).forward(self, *args, **kwargs)", space)
    return types.MethodType(space[name], module)


@pytest.mark.parametrize(("package", "library"), [("unsloth", "Unsloth"), ("axolotl", "Axolotl")])
def test_kernels_of_other_libraries(package: str, library: str) -> None:
    model = adapted()
    layer = model.get_submodule("base_model.model.model.layers.0")
    layer.self_attn.apply_qkv = bound(package, "apply_lora_qkv", layer.self_attn)
    layer.self_attn.apply_o = bound(package, "apply_lora_o", layer.self_attn)
    layer.mlp.forward = bound(package, "apply_lora_mlp", layer.mlp)
    report = patch_model(model, ALONE)
    why = f"left alone: {library} computes its adapters in a kernel, and does not call it"
    assert reasons(report, "layers.0.") == {why}
    assert reasons(report, "layers.1.") == {""}
    assert train(model).losses == train(adapted()).losses


def test_a_replaced_forward() -> None:
    model = adapted()
    layer = layers(model)["base_model.model.model.layers.0.self_attn.q_proj"]
    layer.forward = bound("other", "forward", layer)
    report = patch_model(model, ALONE)
    (why,) = reasons(report, "layers.0.self_attn.q_proj")
    assert why == "left alone: another library has replaced its forward by other.kernels.forward"
    assert train(model).losses == train(adapted()).losses


def test_nothing_is_imported_and_nothing_found_without_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "peft.tuners.tuners_utils")
    report = patch_model(tiny_model("llama"))
    assert {site.kind for site in report.sites} == {"activation", "norm"}
    assert "peft.tuners.tuners_utils" not in sys.modules
