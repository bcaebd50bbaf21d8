"""Recomputed modules are found, whichever library recomputes them."""

from __future__ import annotations

import pytest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from hf_invact import patch_model
from hf_invact.trainer.checkpointed import checkpointed_modules
from tests.models import each_model, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
LAYERS = {"gpt2": "transformer.h", "bert": "bert.encoder.layer", "mistral": "model.layers", "llama": "model.layers"}


@each_model
def test_layers_of_transformers(name: str) -> None:
    model = tiny_model(name)
    assert checkpointed_modules(model) == ()
    model.gradient_checkpointing_enable()
    assert checkpointed_modules(model) == tuple(f"{LAYERS[name]}.{layer}" for layer in (0, 1))
    model.gradient_checkpointing_disable()
    assert checkpointed_modules(model) == ()


def test_layers_within_adapters() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    model.gradient_checkpointing_enable()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    names = checkpointed_modules(adapted)
    assert names == tuple(f"base_model.model.model.layers.{layer}" for layer in (0, 1))
    assert "Gradient checkpointing is on" in patch_model(adapted).summary(names)


def test_layers_in_the_wrapper_of_pytorch() -> None:
    model = tiny_model("llama")
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    names = checkpointed_modules(model)
    assert names == ("model.layers.0", "model.layers.1")
    assert "Gradient checkpointing is on" in patch_model(model).summary(names)


class Stack(nn.Module):
    """Checkpoints its layers itself, as models of earlier versions do."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = True
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(2))
        self.head = nn.Linear(8, 8)


def test_layers_of_a_stack_that_does_it_by_itself() -> None:
    assert checkpointed_modules(Stack()) == ("layers.0", "layers.1")
    assert checkpointed_modules(nn.ModuleDict({"encoder": Stack()})) == ("encoder.layers.0", "encoder.layers.1")
