"""A warning names the inverted activations that training does not call, and no others, once."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.models.llama.modeling_llama import LlamaMLP

from hf_invact import InvertedActivationsCallback
from tests.models import MODEL_NAMES, tiny_model
from tests.trainer.helpers import SAVED, arguments, installed_hooks, losses, make_trainer, training_logs

SITES = ("mlp.act_fn", "input_layernorm", "post_attention_layernorm")
START = "the first training forward pass did not call these patched sites: "


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The names in each warning."""
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message.removeprefix(START).partition(". ")[0] for message in messages if message.startswith(START)]


def without_its_mlp(layer: nn.Module) -> None:
    """Another library's layer, whose MLP is not called."""

    def forward(self: Any, x: Tensor, **kwargs: Any) -> Tensor:
        block = self.mlp
        result: Tensor = x + block.down_proj(F.silu(block.gate_proj(x)) * block.up_proj(x))
        return result

    layer.forward = types.MethodType(forward, layer)


def second_layer(model: PreTrainedModel) -> None:
    without_its_mlp(model.model.layers[1])


def both_layers(model: PreTrainedModel) -> None:
    second_layer(model)
    without_its_mlp(model.model.layers[0])


def another_modality(model: PreTrainedModel) -> None:
    model.vision = nn.ModuleList(LlamaMLP(model.config) for _ in range(3))


def and_a_head(model: PreTrainedModel) -> None:
    second_layer(model)
    model.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 2))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (second_layer, ", ".join(f"model.layers.1.{site}" for site in SITES)),
        (both_layers, ", ".join(f"model.layers.0-1.{site} (2)" for site in SITES)),
        (another_modality, "vision.0-2.act_fn (3)"),
        (
            and_a_head,
            ", ".join(["model.layers.1.mlp.act_fn, head.1", *(f"model.layers.1.{site}" for site in SITES[1:])]),
        ),
    ],
)
def test_names_what_is_not_called_once(
    change: Callable[[PreTrainedModel], None], names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    change(model)
    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(model, args, InvertedActivationsCallback())
    with caplog.at_level(logging.WARNING, logger="hf_invact"):
        trainer.train()
    assert warnings_of(caplog) == [names]
    assert installed_hooks(model) == 0
    (message,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith(START)]
    for part in ("another modality", "another library", "InvActConfig(exclude=[...])"):
        assert part in message
    with caplog.at_level(logging.WARNING, logger="hf_invact"):
        trainer.train()
    assert warnings_of(caplog) == [names, names]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MODEL_NAMES),
        ("llama", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}),
        ("llama", {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}),
        ("bert", {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}),
        ("gpt2", {"gradient_accumulation_steps": 2}),
    ],
    ids=[*MODEL_NAMES, "reentrant", "checkpointing", "evaluation", "accumulation"],
)
def test_says_nothing_where_all_are_called(
    name: str, options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(name)
    args = arguments(tmp_path, use_inverted_activations=True, max_steps=1, **options)
    with caplog.at_level(logging.WARNING, logger="hf_invact"):
        trainer = make_trainer(model, args, InvertedActivationsCallback())
        trainer.train()
    assert warnings_of(caplog) == []
    assert training_logs(trainer)[0][SAVED] > 0


@pytest.mark.parametrize("frozen", [1, 2], ids=["first layer", "all layers"])
def test_a_frozen_part_is_called(frozen: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[:frozen].requires_grad_(False)
    args = arguments(tmp_path, use_inverted_activations=True, max_steps=1)
    with caplog.at_level(logging.WARNING, logger="hf_invact"):
        make_trainer(model, args, InvertedActivationsCallback()).train()
    assert warnings_of(caplog) == []


def test_a_plain_function_is_seen_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bert", activation=F.gelu)
    model.unused = type(model.bert.encoder.layer[0].intermediate)(model.config)
    args = arguments(tmp_path, use_inverted_activations=True)
    with caplog.at_level(logging.WARNING, logger="hf_invact"):
        make_trainer(model, args, InvertedActivationsCallback()).train()
    assert warnings_of(caplog) == ["unused.intermediate_act_fn"]


def test_nothing_is_watched_after_the_first_step(tmp_path: Path) -> None:
    class CountHooks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            counts.append(installed_hooks(model))

    model, counts = tiny_model("llama"), list[int]()
    second_layer(model)
    args = arguments(tmp_path, use_inverted_activations=True)
    make_trainer(model, args, InvertedActivationsCallback(), CountHooks()).train()
    assert counts == [0, 0, 0]


def test_watching_changes_no_loss(tmp_path: Path) -> None:
    def train(callback: InvertedActivationsCallback) -> list[float]:
        args = arguments(tmp_path, use_inverted_activations=True)
        trainer = make_trainer(tiny_model("bert"), args, callback)
        trainer.train()
        return losses(trainer)

    class Unwatched(InvertedActivationsCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            pass

    assert train(InvertedActivationsCallback()) == train(Unwatched())
