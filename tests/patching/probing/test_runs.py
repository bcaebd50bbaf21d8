from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact import InvActConfig, patch_model
from hf_invact.patching.probing.probe import Scope
from hf_invact.patching.probing.runs import Runs
from hf_invact.sites import Site
from tests.models import tiny_model


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the modules that were run to see where sites can be measured."""
    found: list[str] = []
    run = Runs._run

    def counted(self: Runs, scope: Scope, sites: list[Site]) -> Any:
        found.append(type(scope.module).__name__)
        assert {site.holder for site in sites} <= {*scope.module.modules()}
        return run(self, scope, sites)

    monkeypatch.setattr(Runs, "_run", counted)
    return found


# A norm at the end of a layer is used by the next layer, the last by what follows all layers.
BERT = [
    *("BertSelfOutput", "BertAttention", "BertLayer", "BertOutput", "BertEncoder", "BertModel", "BertForMaskedLM"),
    *("BertPredictionHeadTransform", "BertLMPredictionHead", "BertEmbeddings"),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bert", BERT), ("llama", ["LlamaDecoderLayer", "LlamaModel", "LlamaForCausalLM"])],
    ids=["bert", "llama"],
)
def test_modules_are_run_once_however_many_layers_there_are(name: str, expected: list[str], runs: list[str]) -> None:
    model = tiny_model(name, num_hidden_layers=5)
    sites = patch_model(model, InvActConfig(sites=("norm",))).sites
    assert {site.plan for site in sites if "layer" in site.name} == {"norm-output"}
    assert runs == expected


class Layer(nn.Module):
    """Ends with its norm, which the next layer uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x + self.linear(x))
        return y


def test_only_sites_in_a_module_are_observed_where_names_begin_alike(runs: list[str]) -> None:
    model = nn.Sequential(*(Layer() for _ in range(11)))
    for place, layer in enumerate(model):
        layer.place = place  # so that no two are alike, and 1 is run as well as 10
    assert {site.plan for site in patch_model(model, InvActConfig(sites=("norm",))).sites[:-1]} == {"norm-output"}
    assert runs.count("Layer") == 11


class Checkpointed(nn.Sequential):
    """Runs its first layer without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self[0](x)
        for layer in self[1:]:
            x = layer(x)
        return x


def test_each_of_several_sites_in_one_run_is_judged_by_itself(runs: list[str]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Checkpointed(Layer(), Layer(), Layer()), nn.Linear(8, 8))
    first, second, third = patch_model(model, InvActConfig(sites=("norm",))).sites
    assert first.plan is None
    assert "without gradients" in first.reason
    assert (second.plan, third.plan) == ("norm-output", "norm-output")
    assert runs.count("Checkpointed") == 1
