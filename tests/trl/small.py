"""TRL's trainers, with small models and data that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from experiments.finetuning.data.tokenizer import train_tokenizer
from tests.models import tiny_model

VOCABULARY = 300
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a small model learns a small text",
    "nothing is kept that is not needed",
    "one flag in the trainer of anybody",
] * 2
OPTIONS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": 32,
    "gradient_checkpointing": False,
}


def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, "llama", VOCABULARY, 64)


def sft(
    folder: Path, *callbacks: TrainerCallback, cls: type[SFTConfig] = SFTConfig, peft_config: Any = None, **options: Any
) -> SFTTrainer:
    return SFTTrainer(
        tiny_model("llama", vocab_size=VOCABULARY),
        cls(output_dir=str(folder), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        peft_config=peft_config,
    )


def dpo(
    folder: Path, *callbacks: TrainerCallback, has_reference: bool = True, peft_config: Any = None, **options: Any
) -> DPOTrainer:
    prompts, good = zip(*(text.split(" ", maxsplit=1) for text in TEXTS), strict=True)
    preferences = {"prompt": prompts, "chosen": good, "rejected": [text[::-1] for text in good]}
    return DPOTrainer(
        tiny_model("llama", vocab_size=VOCABULARY),
        tiny_model("llama", vocab_size=VOCABULARY) if has_reference else None,
        DPOConfig(output_dir=str(folder), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_dict(preferences),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        peft_config=peft_config,
    )
