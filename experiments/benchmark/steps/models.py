"""The models whose training steps are measured, with random weights and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

CLASSES = 2


@dataclass(frozen=True)
class ModelCase:
    """A model, and the batch that it is trained on.

    Attributes:
        model: its name in the results.
        architecture: its model type in Transformers.
        config: values that differ from the architecture's defaults.
    """

    model: str
    title: str
    architecture: str
    sequences: int
    tokens: int
    dtype: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, Any]:
        """Identifies its entry in the results."""
        return {"model": self.model}

    @property
    def is_classifier(self) -> bool:
        """Whether it is trained to classify sequences, not to predict tokens."""
        return self.architecture == "bert"


# About 1.2 and 1.4 billion parameters: the first has Llama-3.2-1B's shape, the second Mistral-7B's proportions.
_LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
_MISTRAL_1B = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
# Without dropout in attention, the fused attention is used on a CPU too, as it is on a GPU.
_BERT_4 = {"num_hidden_layers": 4, "attention_probs_dropout_prob": 0.0}
_GPT2_SMALL = {"vocab_size": 2048, "n_embd": 384, "n_layer": 4, "n_head": 6, "attn_pdrop": 0.0}
_GATED_SMALL = {
    "vocab_size": 2048,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
_TINY = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
_TINY_GATED = {**_TINY, "intermediate_size": 64, "num_key_value_heads": 2}

CASES = MappingProxyType(
    {
        "cuda": (
            ModelCase("gpt2", "GPT-2 (124M)", "gpt2", 8, 1024, "bf16"),
            ModelCase("bert-base", "BERT-base", "bert", 16, 512, "bf16"),
            ModelCase("mistral-1b", "Mistral, 1.4B", "mistral", 4, 2048, "bf16", _MISTRAL_1B),
            ModelCase("llama-1b", "Llama, 1.2B", "llama", 4, 2048, "bf16", _LLAMA_1B),
        ),
        "cpu": (
            ModelCase("bert-4x768", "BERT, 4 layers of width 768", "bert", 8, 128, "fp32", _BERT_4),
            ModelCase("gpt2-4x384", "GPT-2, 4 layers of width 384", "gpt2", 4, 128, "fp32", _GPT2_SMALL),
            ModelCase("mistral-4x384", "Mistral, 4 layers of width 384", "mistral", 4, 128, "fp32", _GATED_SMALL),
            ModelCase("llama-4x384", "Llama, 4 layers of width 384", "llama", 4, 128, "fp32", _GATED_SMALL),
        ),
        "quick": (
            ModelCase("gpt2-tiny", "GPT-2, tiny", "gpt2", 2, 16, "fp32", _TINY),
            ModelCase("bert-tiny", "BERT, tiny", "bert", 2, 16, "fp32", {**_TINY, "intermediate_size": 64}),
            ModelCase("mistral-tiny", "Mistral, tiny", "mistral", 2, 16, "fp32", _TINY_GATED),
            ModelCase("llama-tiny", "Llama, tiny", "llama", 2, 16, "fp32", _TINY_GATED),
        ),
    }
)


def build_model(case: ModelCase, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    """The model in training mode, with random weights that depend on the seed alone."""
    known = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "use_cache": False}
    labels = {"num_labels": CLASSES} if case.is_classifier else {}
    config = AutoConfig.for_model(case.architecture, **{**known, **labels, **case.config})
    auto_class = AutoModelForSequenceClassification if case.is_classifier else AutoModelForCausalLM
    torch.manual_seed(seed)
    with device:
        model = auto_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).train()


def make_batch(case: ModelCase, vocabulary: int, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Random tokens, shape (sequences, tokens), and labels: the tokens, or a class for each sequence."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (case.sequences, case.tokens), generator=generator)
    classes = torch.randint(CLASSES, (case.sequences,), generator=generator)
    return {"input_ids": ids.to(device), "labels": (classes if case.is_classifier else ids).to(device)}
