"""Small models of Transformers: real architectures, fresh weights, no network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from hf_invact import InvActConfig

ACTIVATIONS = InvActConfig(sites=("activation",))
"""Patches nothing else, for tests of how activations are found, measured and patched."""
WITHOUT_NORMS = InvActConfig(sites=("adapter", "activation"))

VOCABULARY = 64
LAYERS = 2

# Weights of this size spread the inputs of the activations over both sides of the turning point.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 96},
    "bert": {"intermediate_size": 96},
    "mistral": {"intermediate_size": 96, "num_key_value_heads": 2},
    "llama": {"intermediate_size": 96, "num_key_value_heads": 2},
}
MODEL_NAMES = tuple(_CONFIGS)
each_model = pytest.mark.parametrize("name", MODEL_NAMES)


def tiny_model(name: str, *, activation: Any = None, **config: Any) -> PreTrainedModel:
    """A model with its language-modelling head, in training mode. Its weights depend only on the arguments.

    Args:
        name: one of `MODEL_NAMES`.
        activation: the activation of its MLP, a name or (BERT) a callable. Default: the architecture's own.
        config: further values of its config.
    """
    options = AutoConfig.for_model(name, **{**_COMMON, **_CONFIGS[name], **config})
    if activation is not None:
        # Set after the config's own validation, which rejects the callable that the model accepts.
        vars(options)["activation_function" if name == "gpt2" else "hidden_act"] = activation
    auto_class = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto_class.from_config(options).train()


def batch(model: PreTrainedModel, *, sequences: int = 2, tokens: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens that are their own labels, shape (sequences, tokens)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (sequences, tokens), generator=generator)
    ids = ids.to(model.device)
    return {"input_ids": ids, "labels": ids.clone()}


def loss_and_gradients(model: PreTrainedModel, *, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and the parameters' gradients by name; dropout draws from `seed`."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model(**batch(model)).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


class FusedGatedMLP(nn.Module):
    """A fused projection, the gate, and the linear layer after it."""

    def __init__(self, activation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.gate_up, self.down = nn.Linear(4, 2 * 40, bias=False), nn.Linear(40, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.activation(*self.gate_up(x).chunk(2, dim=-1)))
        return result
