"""Saved bytes by part of a Transformer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_invact import patch_model
from hf_invact.memory import PARTS, SavedActivations, by_part
from tests.helpers import normal
from tests.models import LAYERS, batch, each_model, tiny_model

HIDDEN = 2 * 16 * 32 * 4  # bytes of one hidden state of a batch
INNER = 2 * 16 * 96 * 4  # of one output of the activation


def parts_of(name: str, *, patched: bool) -> tuple[dict[str, int], int]:
    model = tiny_model(name)
    if patched:
        patch_model(model)
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


@pytest.mark.parametrize(("name", "units"), [("gpt2", 5), ("bert", 2), ("mistral", 2), ("llama", 2)])
def test_an_activation_keeps_its_input_and_its_output(name: str, units: int) -> None:
    # BERT's head has an activation of its own, in a block that is not patched.
    head = 2 * HIDDEN if name == "bert" else 0
    assert parts_of(name, patched=False)[0]["activation"] == units * INNER * LAYERS + head
    assert parts_of(name, patched=True)[0]["activation"] == (1 + 1 / 32) * INNER * LAYERS + head


class Square(nn.Module):
    """Keeps its input, whatever its name."""

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


def test_nothing_kept_has_no_parts() -> None:
    with SavedActivations(nn.Identity()) as saved:
        pass
    assert by_part(saved, nn.Identity()) == {}
