"""Plans of weights in 4 and 8 bits: as real ones keep, and as bitsandbytes holds them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from hf_invact import InvActConfig, Lora, MemoryPlan, PlanningError, patch_model, plan_memory
from hf_invact.memory import SavedActivations, by_part
from hf_invact.planning import make_optimizer, predict_peak
from hf_invact.planning.batch import make_batch
from tests.combinations.adapters import lora, with_adapters
from tests.combinations.test_quantized import FOUR_BITS, loaded, needs_bitsandbytes, quantized

pytestmark = needs_bitsandbytes

OPTIONS: dict[str, dict[str, Any]] = {"4bit": FOUR_BITS, "8bit": {"load_in_8bit": True}}
each_quantization = pytest.mark.parametrize("how", OPTIONS)
SEQUENCES, TOKENS = 2, 16


def kept(model: Any) -> dict[str, int]:
    with SavedActivations(model) as saved, torch.autocast("cpu", torch.bfloat16):
        model(**make_batch(model, SEQUENCES, TOKENS), use_cache=False)
    return by_part(saved, model)


@each_quantization
def test_a_quantized_model_keeps_what_is_planned(how: str) -> None:
    model: Any = quantized("llama", dropout=0.05, **OPTIONS[how])
    plan = plan_memory(model, SEQUENCES, TOKENS, autocast="bf16")
    assert plan.quantization == how
    model = model.get_base_model()
    assert plan.plain == kept(model)
    assert plan.report == patch_model(model, InvActConfig(autocast_dtype=torch.bfloat16))
    assert plan.patched == kept(model)


@each_quantization
def test_a_quantized_model_leaves_behind_what_is_planned_also_where_no_hook_sees_it(how: str) -> None:
    model: Any = quantized("llama", dropout=0.05, **OPTIONS[how]).get_base_model()
    plan = plan_memory(model, SEQUENCES, TOKENS, autocast="bf16", optimizer="adamw")
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.config.use_cache = False
    real = predict_peak(
        *(model, make_batch(model, SEQUENCES, TOKENS), make_optimizer("adamw", trained)),
        forward_context=lambda: torch.autocast("cpu", torch.bfloat16),
        device="cpu",
    )
    assert plan.plain_peak is not None
    planned = plan.plain_peak.by_moment["forward"]["activations"]
    # In 8 bits a layer also keeps a number for each row, a block of 512 bytes here.
    assert planned == pytest.approx(real.by_moment["forward"]["activations"], rel=0.04)


@pytest.mark.parametrize(
    ("name", "how", "device"),
    [
        ("llama", "4bit", "cuda"),
        pytest.param("llama", "8bit", "cuda", marks=pytest.mark.slow),
        pytest.param("bert", "8bit", "cpu", marks=pytest.mark.slow),
    ],
)
def test_a_config_is_planned_as_the_model_that_is_loaded(name: str, how: str, device: str) -> None:
    model: Any = with_adapters(copy.deepcopy(loaded(name, **OPTIONS[how])), lora(name, dropout=0.05)).train()
    config = copy.deepcopy(model.config)
    del config.quantization_config
    options: dict[str, Any] = {"autocast": "bf16", "device": device, "optimizer": "adamw"}
    rank = model.peft_config["default"].r
    expected = plan_memory(model, SEQUENCES, TOKENS, **options)
    plan = plan_memory(config, SEQUENCES, TOKENS, "bfloat16", lora=Lora(rank, 0.05), quantize=how, **options)
    names = [field.name for field in dataclasses.fields(MemoryPlan)]
    different = {each for each in names if getattr(plan, each) != getattr(expected, each)}
    # In so small a model most numbers are those of adapters, in float32.
    assert different <= {"model", "lora", "dtype"}


def test_the_bytes_of_weights() -> None:
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=8, **size)
    linear = 4 * 1024 * 1024 + 3 * 1024 * 4096
    others = 2 * (2 * 8 * 1024 + 3 * 1024)
    rest = {how: weights(config, how) - others for how in OPTIONS}
    # A scale in 8 bits for 64 weights, and one in 32 bits for 256 of these.
    assert rest["4bit"] == pytest.approx(linear * (0.5 + (1 + 4 / 256) / 64), rel=1e-2)
    assert rest["8bit"] == pytest.approx(linear, rel=1e-2)


def weights(config: LlamaConfig, how: str) -> int:
    return plan_memory(config, 1, 8, quantize=how, lora=Lora(r=1, targets="q_proj")).parameter_bytes


def test_weights_in_4_bits_are_less_at_the_peak() -> None:
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=8, **size)
    options: dict[str, Any] = {"lora": Lora(targets="q_proj"), "optimizer": "adamw_fused"}
    half, four = (plan_memory(config, 1, 8, quantize=how, **options).plain_peak for how in (None, "4bit"))
    assert half is not None
    assert four is not None
    less = half.by_category["parameters"] - four.by_category["parameters"]
    assert less == pytest.approx(2 * (4 * 512 * 512 + 3 * 512 * 2048) * (2 - 0.516), rel=1e-2)


def test_an_unknown_quantization() -> None:
    with pytest.raises(ValueError, match="quantize must be one of 4bit, 8bit, got '3bit'"):
        plan_memory(LlamaConfig(), 1, 8, quantize="3bit")


def test_it_is_said_that_bitsandbytes_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.nn.modules", None)
    with pytest.raises(PlanningError, match="quantized weights need the package bitsandbytes: pip install"):
        plan_memory(LlamaConfig(num_hidden_layers=1), 1, 8, quantize="4bit")
