"""Models of many architectures, planned from a config.json."""

from __future__ import annotations

from pathlib import Path

from hf_invact import plan_memory
from tests.planning.small import each_type_that_runs, small_config

CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "deberta-v2": "DebertaV2ForMaskedLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
    "whisper": "WhisperForConditionalGeneration",
}


@each_type_that_runs()
def test_plans_from_a_config_file(model_type: str, tmp_path: Path) -> None:
    small_config(model_type).save_pretrained(tmp_path)
    plan = plan_memory(tmp_path / "config.json", batch_size=2, seq_len=16)
    assert plan.model_class == CLASSES[model_type]
    assert plan.report.patched
    assert plan.patched_bytes < plan.plain_bytes
    assert plan.patched["activation"] < plan.plain["activation"]
