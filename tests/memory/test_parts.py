"""Saved bytes by part of a Transformer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_invact import patch_model
from hf_invact.memory import PARTS, SavedActivations, by_part, intermediate_units
from hf_invact.patching import activation_sites
from tests.helpers import normal
from tests.models import ACTIVATIONS, LAYERS, batch, each_model, tiny_model

HIDDEN = 2 * 16 * 32 * 4  # bytes of one hidden state of a batch
INNER = 2 * 16 * 96 * 4  # of one output of the activation


def parts_of(name: str, *, patched: bool) -> tuple[dict[str, int], int]:
    model = tiny_model(name)
    if patched:
        patch_model(model, ACTIVATIONS)
    torch.manual_seed(0)
    with SavedActivations(model) as saved:
        model(**batch(model))
    return by_part(saved, model), saved.total_bytes


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@each_model
def test_parts_sum_to_the_total(name: str, patched: bool) -> None:
    parts, total = parts_of(name, patched=patched)
    assert sum(parts.values()) == total > 0
    assert list(parts) == [part for part in PARTS if part in parts]
    assert min(parts.values()) > 0
    assert {"activation", "mlp", "attention", "norm", "embedding", "head and loss"} <= set(parts)
    assert ("dropout" in parts) == (name in ("gpt2", "bert"))
    assert "other" not in parts


@each_model
def test_patching_changes_the_activations_part_alone(name: str) -> None:
    plain, _ = parts_of(name, patched=False)
    patched, _ = parts_of(name, patched=True)
    assert plain.pop("activation") > patched.pop("activation")
    assert plain == patched


# Between its projections, and in BERT's prediction head.
@pytest.mark.parametrize(
    ("name", "plain", "patched"),
    [("gpt2", 5, 1), ("bert", 2, 1), ("mistral", 4, 2), ("llama", 4, 2)],
)
def test_what_an_mlp_keeps(name: str, plain: int, patched: int) -> None:
    size = INNER * LAYERS + (HIDDEN if name == "bert" else 0)
    assert parts_of(name, patched=False)[0]["activation"] == plain * size
    assert parts_of(name, patched=True)[0]["activation"] == (patched + 1 / 32) * size


@each_model
def test_units_are_tensors_of_the_intermediate_size(name: str) -> None:
    model = tiny_model(name)
    sites = activation_sites(model)
    with SavedActivations(model) as saved:
        model(**batch(model))
    size = INNER * LAYERS + (HIDDEN if name == "bert" else 0)
    assert intermediate_units(saved, model, sites) == by_part(saved, model)["activation"] / size
    assert intermediate_units(saved, model, sites[:1]) == intermediate_units(saved, model, sites)
    assert intermediate_units(saved, model, []) is None


def test_nothing_that_ran_has_no_units() -> None:
    model = tiny_model("llama")
    with SavedActivations(model) as saved:
        pass
    assert intermediate_units(saved, model, activation_sites(model)) is None


class Square(nn.Module):
    """Saves its input, whatever its name."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1.0).square()


class OddNorm(Square):
    pass


@pytest.mark.parametrize(
    ("name", "module", "part"),
    [
        ("encoder.layer.0.attention.self.query", Square(), "attention"),
        ("h.0.attn", Square(), "attention"),
        ("layers.0.self_attn.q_proj", Square(), "attention"),
        ("layers.0.mlp.up_proj", Square(), "mlp"),
        ("encoder.layer.0.output.dense", Square(), "mlp"),
        ("layers.0.mlp.act_fn", Square(), "activation"),
        ("h.0.mlp.act", Square(), "activation"),
        ("encoder.layer.0.intermediate.intermediate_act_fn", Square(), "activation"),
        ("layers.0.self_attn.dropout", nn.Dropout(0.5), "dropout"),
        ("layers.0.input_layernorm", OddNorm(), "norm"),
        ("ln_f", nn.LayerNorm(8), "norm"),
        ("embed_tokens", Square(), "embedding"),
        ("wte", Square(), "embedding"),
        ("lm_head", Square(), "head and loss"),
        ("cls", Square(), "head and loss"),
        ("rotary", Square(), "other"),
    ],
)
def test_part_of_a_module(name: str, module: nn.Module, part: str) -> None:
    model = nn.Module()
    *parents, last = name.split(".")
    holder = model
    for parent in parents:
        holder.add_module(parent, nn.Module())
        holder = getattr(holder, parent)
    holder.add_module(last, module)
    with SavedActivations(model) as saved:
        module(normal(4, 8).requires_grad_())
    assert by_part(saved, model) == {part: saved.total_bytes}


def test_what_the_model_itself_keeps_is_its_loss() -> None:
    model = nn.Identity()
    with SavedActivations(model) as saved:
        normal(3).requires_grad_().square()
    assert by_part(saved, model) == {"head and loss": 12}


class Wrapper(nn.Module):
    """Wraps a model, as PEFT and DDP do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.module(**inputs)


@each_model
def test_a_wrapper_changes_no_part(name: str) -> None:
    model = Wrapper(Wrapper(tiny_model(name)))
    torch.manual_seed(0)
    with SavedActivations(model) as saved:
        model(**batch(model.module.module))
    assert by_part(saved, model) == parts_of(name, patched=False)[0]


def test_a_layer_is_no_wrapped_model() -> None:
    model = nn.Sequential(nn.Linear(4, 8))
    with SavedActivations(model) as saved:
        model(normal(2, 4))
    assert by_part(saved, model) == {"other": 2 * 4 * 4}


def test_nothing_kept_has_no_parts() -> None:
    with SavedActivations(nn.Identity()) as saved:
        pass
    assert by_part(saved, nn.Identity()) == {}


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["recomputed once", "reentrant"])
def test_what_checkpoints_keep_has_a_part_of_its_own(use_reentrant: bool) -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))
    hidden = torch.randn(4, 8, requires_grad=True)
    with SavedActivations(layers, ignore=[hidden]) as saved:
        for layer in layers:
            hidden = checkpoint(layer, hidden, use_reentrant=use_reentrant)
        hidden = layers[0](hidden)
    parts = by_part(saved, layers)
    assert parts.pop("checkpoints") == 2 * 4 * 8 * 4  # the first layer's input is ignored
    assert sum(parts.values()) == 2 * 4 * 8 * 4
