"""LoRA on a quantized model, with bitsandbytes' kernels for CPUs."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BitsAndBytesConfig

from tests.combinations.adapters import lora, with_adapters
from tests.combinations.table import ADAPTERS
from tests.combinations.training import Combination, check_saved_bytes, compare, record
from tests.compatibility import Matrix
from tests.models import each_model, tiny_model

pytest.importorskip("bitsandbytes", reason="quantized models need bitsandbytes: pip install '.[quantization]'")

FOUR_BITS = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}


def quantized(name: str, dropout: float = 0.0, **options: Any) -> nn.Module:
    """A model with quantized linear layers and LoRA on all of them, as PEFT's guide for QLoRA makes it."""
    auto_class = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(name).save_pretrained(folder)
        config = BitsAndBytesConfig(**options)
        model = auto_class.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return with_adapters(model, lora(name, dropout=dropout)).train()


QUANTIZED = [
    Combination(ADAPTERS, "QLoRA: 4 bits (nf4), `bf16=True`", partial(quantized, **FOUR_BITS), {"bf16": True}),
    Combination(
        ADAPTERS, "QLoRA, dropout 0.05, `bf16=True`", partial(quantized, dropout=0.05, **FOUR_BITS), {"bf16": True}
    ),
    Combination(ADAPTERS, "LoRA on 8 bits, `bf16=True`", partial(quantized, load_in_8bit=True), {"bf16": True}),
]


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("combination", QUANTIZED, ids=str)
def test_adapters_of_a_quantized_model_train_as_without_the_flag(
    combination: Combination, name: str, tmp_path: Path, matrix: Matrix
) -> None:
    plain, patched = compare(combination, name, tmp_path)
    kinds = {type(module).__name__ for module in patched.model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    check_saved_bytes(plain, patched, combination.tokens)
    record(matrix, combination, name, plain, patched)
