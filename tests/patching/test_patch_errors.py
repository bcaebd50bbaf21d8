"""What cannot be patched is refused with advice on what to do, and the model is left unchanged."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from hf_invact import InvActConfig, PatchingError, patch_model, register_activation, register_block, unpatch_model
from tests.models import ACTIVATIONS, tiny_model
from tests.patching.mlps import MLP, Training


@contextmanager
def refusal(model: nn.Module, *parts: str) -> Iterator[None]:
    """The block raises a PatchingError whose message has all these parts, and the model stays byte-identical."""
    before = pickle.dumps(model)
    with pytest.raises(PatchingError) as error:
        yield
    assert [part for part in parts if part not in str(error.value)] == []
    assert pickle.dumps(model) == before


def test_a_refusal_is_a_value_error() -> None:
    assert issubclass(PatchingError, ValueError)


def test_a_model_without_any_block() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with refusal(
        model,
        "no activation to invert in Sequential. ReLU is left alone: its gradient already uses the output",
        "Supported: AccurateGELUActivation, BloomGelu, ClippedGELUActivation, ELU, ",
        "hf_invact.register_activation",
        "register_block(BlockClass, activation=",
    ):
        patch_model(model, ACTIVATIONS)
    with refusal(nn.Linear(2, 2), "no activation to invert in Linear. Supported: "):
        patch_model(nn.Linear(2, 2), ACTIVATIONS)


@pytest.mark.skipif(torch.cuda.is_available() or torch.xpu.is_available(), reason="the model could be moved to a GPU")
def test_a_backend_without_kernels_for_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = tiny_model("gpt2")
    with refusal(model, "'triton' was chosen, but it has no kernels for cpu tensors", "Choose 'auto'"):
        patch_model(model, replace(ACTIVATIONS, backend="triton"))
    with refusal(model, "'triton' was chosen"):
        monkeypatch.setenv("HF_INVACT_BACKEND", "triton")
        patch_model(model, ACTIVATIONS)


def test_blocks_that_are_not_known_are_patched_or_left_alone_by_name() -> None:
    model = nn.ModuleDict(
        {
            "known by its form": nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)),
            "not used": nn.TransformerEncoderLayer(8, 2),
            "without a consumer": nn.Sequential(nn.Linear(2, 2), nn.GELU()),
        }
    )
    model["not used"].act = ACT2FN["gelu_new"]
    assert [(site.name, site.plan, site.reason) for site in patch_model(model, ACTIVATIONS).sites] == [
        ("known by its form.1", "output", ""),
        ("not used.act", None, "left alone: not measured (TransformerEncoderLayer does not call it)"),
        (
            "without a consumer.1",
            None,
            "left alone: not measured (what uses the result of Sequential cannot be run by itself)",
        ),
    ]


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_matches_nothing(field: str) -> None:
    model = tiny_model("llama", num_hidden_layers=5)
    with refusal(
        model, "the pattern '*.ffn' matches none", "model.layers.0.mlp, model.layers.1.mlp, ..., model.layers.4.mlp"
    ):
        patch_model(model, replace(ACTIVATIONS, **{field: ("*.mlp", "*.ffn")}))


def test_patterns_match_blocks_and_not_sites() -> None:
    model = tiny_model("llama")
    with refusal(
        model, "the pattern '*.act_fn' matches none of the model's blocks: model.layers.0.mlp, model.layers.1.mlp"
    ):
        patch_model(model, replace(ACTIVATIONS, include=("*.act_fn",)))


@pytest.mark.parametrize(
    "config",
    [
        replace(ACTIVATIONS, exclude=("*",)),
        replace(ACTIVATIONS, include=()),
        replace(ACTIVATIONS, include=("*.0.mlp",), exclude=("*.0.mlp",)),
    ],
    ids=["all excluded", "none included", "included and excluded"],
)
def test_a_config_that_leaves_no_block(config: InvActConfig) -> None:
    model = tiny_model("llama")
    with refusal(model, f"include={config.include} without exclude={config.exclude} leaves no block to patch"):
        patch_model(model, config)


@pytest.mark.parametrize("activation", [nn.Softsign(), nn.CELU()], ids=["Softsign", "CELU"])
def test_an_activation_that_is_not_known(activation: nn.Module) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.act_fn = activation
    kind = type(activation).__name__
    with refusal(
        model,
        f"model.layers.1.mlp.act_fn: the activation {kind} is not known",
        "Supported: AccurateGELUActivation, BloomGelu, ClippedGELUActivation, ELU, ",
        "hf_invact.register_activation",
        "exclude=[...]",
    ):
        patch_model(model, ACTIVATIONS)


def test_a_function_that_is_not_known() -> None:
    model = tiny_model("bert", activation=torch.erf)
    with refusal(model, "intermediate_act_fn: the activation <built-in method erf of", "is not known"):
        patch_model(model, ACTIVATIONS)


class Unhashable:
    """A callable that cannot be looked up in a dict."""

    __hash__ = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnSiLU(nn.SiLU):
    """A subclass, which may compute anything."""


def test_a_callable_that_cannot_be_looked_up_is_not_known_either() -> None:
    model = tiny_model("bert", activation=Unhashable())
    with refusal(model, "Unhashable", "is not known"):
        patch_model(model, ACTIVATIONS)


def test_the_remedies_that_the_message_names() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = nn.Softsign()
    assert patch_model(model, replace(ACTIVATIONS, exclude=("*.0.mlp",))).patched == 1
    unpatch_model(model)
    model.model.layers[0].mlp.act_fn = OwnSiLU()
    with refusal(model, "OwnSiLU is not known"):
        patch_model(model, ACTIVATIONS)
    register_activation("silu", used_as=[OwnSiLU])
    assert patch_model(model, ACTIVATIONS).patched == 2


def test_an_activation_that_is_registered_as_a_different_one() -> None:
    model = tiny_model("llama")
    activation = model.model.layers[0].mlp.act_fn = nn.Softsign()
    register_activation("silu", used_as=[nn.Softsign])
    first, second = patch_model(model, ACTIVATIONS).sites
    assert (first.plan, second.plan) == (None, "gate-output")
    assert re.fullmatch(
        r"left alone: the block's result would change by [0-9.]+, which rounding does not explain", first.reason
    )
    assert model.model.layers[0].mlp.act_fn is activation


def test_a_model_whose_activations_would_all_gain_nothing() -> None:
    model = tiny_model("llama", activation="relu")
    with refusal(model, "nothing to invert", "0 of 2 sites patched", "ReLU", "its gradient already uses the output"):
        patch_model(model, ACTIVATIONS)


def test_a_model_in_which_nothing_would_keep_less_where_that_is_required() -> None:
    model = MLP("gpt2", Training(frozen=("down",))).model
    assert patch_model(model, ACTIVATIONS).patched == 0
    with refusal(model, "require=True", "0 of 1 sites patched, so no memory is saved (nothing would keep less)"):
        patch_model(model, replace(ACTIVATIONS, require=True))
    assert patch_model(tiny_model("llama"), replace(ACTIVATIONS, require=True)).patched == 2


def test_parameters_that_hide_the_input() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = nn.LeakyReLU(-0.1)
    first, second = patch_model(model, ACTIVATIONS).sites
    assert (first.curve, second.curve) == (None, "silu")
    assert first.reason == "left alone: leaky_relu can be inverted only for a positive negative_slope, got -0.1"


def test_a_block_registered_with_an_attribute_that_it_does_not_have() -> None:
    class Block(nn.Module):
        pass

    register_block(Block, activation="act")
    with pytest.raises(PatchingError, match=r"layer: this Block has no attribute 'act'"):
        patch_model(nn.ModuleDict({"layer": Block()}))


@pytest.mark.parametrize(
    "config",
    [replace(ACTIVATIONS, include=("*.ffn",)), replace(ACTIVATIONS, exclude=("*",))],
    ids=["no match", "all excluded"],
)
def test_a_patched_model_stays_patched(config: InvActConfig) -> None:
    model = tiny_model("llama")
    patch_model(model, replace(ACTIVATIONS, exclude=("*.0.mlp",), backend="eager"))
    with refusal(model):
        patch_model(model, config)
    assert model.model.layers[1].mlp.act_fn.backend == "eager"
