"""Small models with the adapters of PEFT."""

from __future__ import annotations

from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tests.models import tiny_model
from tests.trainer.helpers import records

# Regular expressions for the layers that get an adapter. For IA3 two lists: all layers, and those of them whose input
# is scaled instead of the output (`feedforward_modules`).
TARGETS = {
    "gpt2": {"attention": r".*\.attn\.(c_attn|c_proj)", "MLP": r".*\.mlp\.(c_fc|c_proj)"},
    "bert": {
        "attention": r".*\.attention\..*(query|key|value|dense)",
        "MLP": r".*\.layer\.\d+\.(intermediate|output)\.dense",
    },
    "llama": {"attention": r".*\.self_attn\..*_proj", "MLP": r".*\.mlp\..*_proj"},
}
TARGETS["mistral"] = TARGETS["llama"]
IA3 = {
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
}
IA3["mistral"] = IA3["llama"]


def with_adapters(model: nn.Module, config: PeftConfig, *, are_float32: bool = True) -> Any:
    """The model with adapters, whose weights depend only on these arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(model, config, autocast_adapter_dtype=are_float32)


def lora(name: str, targets: str = "all", dropout: float = 0.0, **options: Any) -> LoraConfig:
    return LoraConfig(
        r=4,
        target_modules="all-linear" if targets == "all" else TARGETS[name][targets],
        lora_dropout=dropout,
        init_lora_weights=False,  # else B is 0, and A has no gradient
        fan_in_fan_out=name == "gpt2",
        **options,
    )


def with_lora(
    name: str, targets: str, dropout: float, *, dtype: torch.dtype = torch.bfloat16, are_float32: bool
) -> nn.Module:
    """A model in half precision with LoRA."""
    return with_adapters(tiny_model(name).to(dtype), lora(name, targets, dropout), are_float32=are_float32)


def with_ia3(name: str) -> nn.Module:
    targets, feedforward = IA3[name]
    config = IA3Config(
        target_modules=targets,
        feedforward_modules=feedforward,
        init_ia3_weights=False,
        fan_in_fan_out=name == "gpt2",
    )
    return with_adapters(tiny_model(name), config)


def with_prompts(name: str) -> nn.Module:
    """Virtual tokens before the text. PEFT has them for no masked language model: BERT classifies then."""
    if name == "bert":
        config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
        return with_adapters(_classifier(), config)
    return with_adapters(tiny_model(name), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


def data_for_prompts(name: str) -> list[dict[str, Tensor]]:
    """Texts, with a class as their label where they are classified."""
    texts = records()
    return [{**text, "labels": text["labels"][0] % 2} for text in texts] if name == "bert" else texts


def _classifier() -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier: PreTrainedModel = AutoModelForSequenceClassification.from_config(tiny_model("bert").config)
        return classifier.train()
