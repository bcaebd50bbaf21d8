"""flash-attn without the package: what its kernels save, which models are refused, and that nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoConfig, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_invact import Lora, MemoryPlan, PlanningError, plan_memory
from hf_invact.memory import SavedActivations
from hf_invact.planning.fake.flash_attention import _OURS, _attend
from hf_invact.planning.fake.tensors import fake_tensors
from tests.planning.small import SINCE, small_config

BATCH, HEADS, GROUPS, TOKENS = 2, 4, 2, 40
RANDOM_STATE = 16 + 8  # counted with sdpa's kernel, whose state is 8 bytes longer


def projected(heads: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """As models pass it: a view of the output of a linear layer."""
    return torch.empty(BATCH, TOKENS, heads, width, dtype=dtype, requires_grad=True).transpose(1, 2)


def plan(config: PretrainedConfig, **options: Any) -> MemoryPlan:
    return plan_memory(config, BATCH, 32, **{"attention": "flash_attention_2", **options})


@pytest.mark.parametrize(
    ("width", "value_width", "kept_width"),
    [(64, 64, 64), (20, 20, 24), (24, 16, 24)],
    ids=["as it is", "padded to a multiple of 8", "values padded to the keys' width"],
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_keeps_its_arguments_its_output_and_a_number_per_row(
    width: int, value_width: int, kept_width: int, dropout: float
) -> None:
    with fake_tensors("cuda"):
        query, key, value = projected(HEADS, width), projected(GROUPS, width), projected(GROUPS, value_width)
        with SavedActivations(nn.Identity()) as saved:
            attended, _ = _attend(nn.Identity(), query, key, value, None, dropout=dropout)
    assert attended.shape == (BATCH, TOKENS, HEADS, value_width)
    rows = BATCH * TOKENS
    tensors = rows * (2 * HEADS + 2 * GROUPS) * kept_width * 2  # query and output; key and value are not repeated
    assert saved.total_bytes == tensors + rows * HEADS * 4 + RANDOM_STATE


def test_numbers_that_peft_made_float32_are_cast_back() -> None:
    with fake_tensors("cuda"), torch.autocast("cpu", torch.bfloat16):
        attended, _ = _attend(nn.Identity(), *(projected(HEADS, 64, torch.float32) for _ in "qkv"), None)
    assert attended.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (small_config("gpt2"), {}),
        (small_config("bert"), {"dtype": "float32", "autocast": True}),
        (
            small_config("llama"),
            {"lora": Lora(r=2, targets="attention"), "gradient_checkpointing": True, "optimizer": "sgd"},
        ),
        pytest.param(small_config("whisper"), {}, marks=SINCE["whisper"]),
    ],
    ids=["gpt2", "bert, autocast", "llama, lora and checkpointing", "whisper"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
def test_keeps_what_the_flash_kernel_of_sdpa_keeps(config: PretrainedConfig, options: dict[str, Any]) -> None:
    flash, sdpa = plan(config, **options), plan(config, **options, attention="sdpa")
    assert (flash.attention, sdpa.attention) == ("flash_attention_2", "sdpa")
    assert (flash.plain, flash.patched) == (sdpa.plain, sdpa.patched)
    assert flash.plain_peak == sdpa.plain_peak


def test_a_window_needs_no_mask() -> None:
    reached, free = (plan(small_config("mistral", sliding_window=window)) for window in (8, 64))
    assert reached.plain == free.plain
    assert reached.notes == ()
    assert (
        reached.plain["attention"]
        < plan(small_config("mistral", sliding_window=8), attention="sdpa").plain["attention"]
    )


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (small_config("t5"), "T5ForConditionalGeneration"),
        (small_config("deberta-v2"), "DebertaV2ForMaskedLM"),
        (
            GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]),
            "GPTNeoForCausalLM",
        ),
    ],
    ids=["t5", "deberta", "a class for each attention"],
)
def test_models_that_lack_it_are_refused(config: PretrainedConfig, name: str) -> None:
    with pytest.raises(
        PlanningError, match=f"{name} has no flash_attention_2 .*choose the attention 'sdpa' or 'eager'"
    ):
        plan(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "no kernel for float32; plan with dtype='bfloat16' or autocast, or choose"),
        ({"device": "cpu"}, "no kernel for the CPU; plan for 'cuda', or choose"),
    ],
    ids=["float32", "cpu"],
)
def test_what_has_no_kernel_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        plan(small_config("llama"), **options)


def test_wide_heads_are_refused() -> None:
    with pytest.raises(PlanningError, match="no kernel for heads of 264, above 256; choose"):
        plan(small_config("llama", head_dim=264))


def test_a_mask_is_refused() -> None:
    with fake_tensors("cuda"), pytest.raises(ValueError, match="given a mask"):
        _attend(nn.Identity(), *(projected(HEADS, 64) for _ in "qkv"), torch.ones(1))


@pytest.mark.parametrize("model_type", ["llama", "t5"], ids=["planned", "refused"])
def test_is_registered_for_the_time_of_the_plan_alone(model_type: str) -> None:
    config = small_config(model_type)
    registered = [dict(functions) for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]
    before = config.to_dict(), config._attn_implementation
    with fake_tensors("cuda"):
        others = {name: function for name, function in ALL_ATTENTION_FUNCTIONS.items() if name != _OURS}
        assert others == registered[0]
    try:
        plan(config)
    except PlanningError:
        assert model_type == "t5"
    assert [dict(functions) for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)] == registered
    assert (config.to_dict(), config._attn_implementation) == before
