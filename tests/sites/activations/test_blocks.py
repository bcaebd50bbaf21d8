"""The blocks that are known, and a user's own."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from hf_invact import patch_model, register_block, unpatch_model
from hf_invact.patching import activation_sites
from hf_invact.sites.activations.blocks import Block, find_activations, registered_blocks
from hf_invact.sites.names import full_name
from tests.helpers import normal
from tests.models import ACTIVATIONS, LAYERS, tiny_model


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.squash, self.down = nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.squash(self.up(x)))


class SpecialFeedForward(FeedForward):
    pass


def block_of(module: nn.Module) -> Block | None:
    """What the class of a module with one activation is registered as."""
    ((*_, registered),) = find_activations(module)
    return registered


@pytest.mark.parametrize(
    ("name", "first", "cls"),
    [
        ("gpt2", "transformer.h.0.mlp.act", "GPT2MLP"),
        ("bert", "bert.encoder.layer.0.intermediate.intermediate_act_fn", "BertIntermediate"),
        ("mistral", "model.layers.0.mlp.act_fn", "MistralMLP"),
        ("llama", "model.layers.0.mlp.act_fn", "LlamaMLP"),
    ],
)
def test_finds_the_blocks_of_a_model_in_its_order(name: str, first: str, cls: str) -> None:
    model = tiny_model(name)
    sites = [first.replace(".0.", f".{layer}.") for layer in range(LAYERS)]
    if name == "bert":
        sites.append("cls.predictions.transform.transform_act_fn")  # by its form
    assert activation_sites(model) == sites
    registered = [(name, block, at) for name, block, at, known in find_activations(model) if known is not None]
    assert [f"{name}.{attribute}" for name, _, attribute in registered] == sites[:LAYERS]
    assert [type(block).__name__ for _, block, _ in registered] == [cls] * LAYERS
    patch_model(model, ACTIVATIONS)
    assert activation_sites(model) == sites


def test_a_block_inside_any_module_and_alone() -> None:
    block = tiny_model("llama").model.layers[0].mlp
    assert activation_sites(block) == ["act_fn"]
    assert activation_sites(nn.ModuleDict({"adapter": nn.Sequential(block)})) == ["adapter.0.act_fn"]
    assert patch_model(block, ACTIVATIONS).sites[0].name == "act_fn"


def test_a_block_that_is_used_twice_is_one_block() -> None:
    block = tiny_model("llama").model.layers[0].mlp
    shared = nn.Sequential(block, block)
    assert patch_model(shared, ACTIVATIONS).patched == 1
    assert shared[1].act_fn is shared[0].act_fn
    unpatch_model(shared)
    assert shared[0].act_fn.__class__.__name__ == "SiLUActivation"


@pytest.mark.parametrize("cls", [FeedForward, SpecialFeedForward])
def test_a_registered_block_is_patched_and_so_are_its_subclasses(cls: type[FeedForward]) -> None:
    register_block(FeedForward, activation="squash")
    model = nn.Sequential(cls(), nn.Tanh(), cls())
    report = patch_model(model, ACTIVATIONS)
    assert [(site.name, site.block, site.curve) for site in report.sites] == [
        ("0.squash", cls.__name__, "silu"),
        ("2.squash", cls.__name__, "silu"),
    ]
    assert model(normal(2, 8)).grad_fn is not None


class GatedFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(self.squash(up) * up)


class LoggingFeedForward(GatedFeedForward):
    def forward(self, x: Tensor) -> Tensor:
        act = self.squash(self.up(x))
        return self.down(act * act.detach().mean())


def test_a_subclass_with_a_forward_of_its_own_need_not_be_gated() -> None:
    register_block(GatedFeedForward, activation="squash", is_gated=True)
    plans = {}
    for cls in (GatedFeedForward, type("Renamed", (GatedFeedForward,), {}), LoggingFeedForward):
        model = cls()
        for weight in model.parameters():
            weight.data = weight.data.new_empty(0)  # so that it cannot be probed
        (site,) = patch_model(model, ACTIVATIONS).sites
        plans[cls.__name__] = site.plan
    assert plans == {"GatedFeedForward": "gate-output", "Renamed": "gate-output", "LoggingFeedForward": "output"}


def test_a_subclass_may_be_registered_on_its_own() -> None:
    register_block(SpecialFeedForward, activation="squash")
    assert block_of(FeedForward()) is None  # and found by its form
    assert block_of(SpecialFeedForward()) == Block(full_name(SpecialFeedForward), "squash")


def test_a_registered_blocks_activation_is_found_whatever_it_is() -> None:
    register_block(FeedForward, activation="up")
    assert activation_sites(FeedForward()) == ["up"]


def test_registering_twice_alike_is_harmless() -> None:
    register_block(FeedForward, activation="squash")
    before = registered_blocks()
    register_block(FeedForward, activation="squash")
    assert registered_blocks() == before


def test_registering_twice_differently_is_refused() -> None:
    register_block(FeedForward, activation="squash")
    with pytest.raises(ValueError, match=r"FeedForward is registered already, with its activation in 'squash'"):
        register_block(FeedForward, activation="act")
    with pytest.raises(ValueError, match=r"its activation in 'squash', not gated"):
        register_block(FeedForward, activation="squash", is_gated=True)
    assert block_of(FeedForward()) == Block(full_name(FeedForward), "squash")
