"""LoRA on a quantized model, with kernels for CPUs."""

from __future__ import annotations

import copy
import tempfile
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BitsAndBytesConfig

from hf_invact import InvActConfig, patch_model
from tests.combinations.adapters import lora, with_adapters
from tests.combinations.table import ADAPTERS
from tests.combinations.training import STEPS, Combination, check_saved_bytes, compare, record
from tests.compatibility import Matrix
from tests.models import batch, each_model, tiny_model
from tests.sites.adapters.small import counted

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="quantized models need bitsandbytes: pip install '.[quantization]'"
)

FOUR_BITS = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}


def quantized(name: str, dropout: float = 0.0, **options: Any) -> nn.Module:
    """A model with quantized linear layers and LoRA on all of them, as PEFT's guide for QLoRA makes it."""
    model = prepare_model_for_kbit_training(copy.deepcopy(loaded(name, **options)), use_gradient_checkpointing=False)
    return with_adapters(model, lora(name, dropout=dropout)).train()


@cache
def loaded(name: str, **options: Any) -> nn.Module:
    auto_class = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(name).save_pretrained(folder)
        config = BitsAndBytesConfig(**options)
        model: nn.Module = auto_class.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    return model


QUANTIZED = [
    Combination(ADAPTERS, "QLoRA: 4 bits (nf4), `bf16=True`", partial(quantized, **FOUR_BITS), {"bf16": True}),
    Combination(
        ADAPTERS,
        "QLoRA, dropout 0.05, `bf16=True`",
        partial(quantized, dropout=0.05, **FOUR_BITS),
        {"bf16": True},
        adapters_alone=("gpt2",),  # Llama's are compared below, and PEFT's layer is the same in each model
    ),
    Combination(ADAPTERS, "LoRA on 8 bits, `bf16=True`", partial(quantized, load_in_8bit=True), {"bf16": True}),
]


@needs_bitsandbytes
@pytest.mark.slow
@each_model
@pytest.mark.parametrize("combination", QUANTIZED, ids=str)
def test_adapters_of_a_quantized_model_train_as_without_the_flag(
    combination: Combination, name: str, tmp_path: Path, matrix: Matrix
) -> None:
    plain, patched = compare(combination, name, tmp_path)
    kinds = {type(module).__name__ for module in patched.model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    check_saved_bytes(plain, patched, combination, name)
    record(matrix, combination, name, plain, patched)


def with_hqq(dropout: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A Llama whose linear layers HQQ has quantized to 4 bits, with LoRA on them."""
    hqq = pytest.importorskip("hqq.core.quantize", reason="needs HQQ")
    model, config = tiny_model("llama"), hqq.BaseQuantizeConfig(nbits=4, group_size=8)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in [*block.named_children()]:
                if isinstance(linear, nn.Linear):
                    setattr(block, name, hqq.HQQLinear(linear, config, compute_dtype=dtype, device="cpu"))
    options = LoraConfig(r=4, target_modules=r".*_proj", lora_dropout=dropout, init_lora_weights=False)
    return with_adapters(model, options)


_four, _eight = partial(quantized, "llama", **FOUR_BITS), partial(quantized, "llama", load_in_8bit=True)
NONE, CPU, AS_CUDA = "no autocast", "autocast", "autocast as on CUDA"
BIT_BY_BIT = [
    pytest.param(_four, CPU, 0.1, id="4-bit-bf16-0.1", marks=needs_bitsandbytes),
    pytest.param(_four, AS_CUDA, 0.1, id="4-bit-as-CUDA-0.1", marks=needs_bitsandbytes),
    pytest.param(_four, NONE, 0.0, id="4-bit-no-autocast-0.0", marks=needs_bitsandbytes),
    pytest.param(_eight, CPU, 0.0, id="8-bit-bf16-0.0", marks=needs_bitsandbytes),
    pytest.param(_eight, AS_CUDA, 0.1, id="8-bit-as-CUDA-0.1", marks=needs_bitsandbytes),
    pytest.param(_eight, NONE, 0.1, id="8-bit-no-autocast-0.1", marks=needs_bitsandbytes),
    # HQQ's own backward pass on a CPU fails under autocast to another dtype than it computes in.
    pytest.param(partial(with_hqq, dtype=torch.bfloat16), AS_CUDA, 0.1, id="HQQ-as-CUDA-0.1"),
    pytest.param(with_hqq, NONE, 0.0, id="HQQ-no-autocast-0.0"),
    pytest.param(with_hqq, NONE, 0.1, id="HQQ-no-autocast-0.1"),
]


@pytest.fixture
def autocast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a case trains under autocast to bfloat16.

    PEFT's quantized layers cast the input of adapters unless `torch.is_autocast_enabled()`, which without a device
    means CUDA. `AS_CUDA` makes it mean the CPU. With a device the answer has to stay true: at its end `torch.autocast`
    restores what it was told at its start, and would otherwise leave autocast enabled for every later test.
    """
    if request.param == AS_CUDA:
        is_enabled = torch.is_autocast_enabled
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": is_enabled(device))
    return bool(request.param != NONE)


@pytest.mark.parametrize(("build", "autocast", "dropout"), BIT_BY_BIT, indirect=["autocast"])
def test_adapters_of_quantized_layers_train_the_same_in_every_bit(build: Any, autocast: bool, dropout: float) -> None:
    patched = build(dropout=dropout)
    report = patch_model(patched, _adapters_alone(autocast))
    assert len(report.sites) == 14
    assert dropout == 0 or report.patched == 14
    _assert_same_in_every_bit(build(dropout=dropout), patched, autocast)


@pytest.mark.parametrize(
    ("build", "autocast"),
    [
        pytest.param(_four, AS_CUDA, id="4-bit-as-CUDA", marks=needs_bitsandbytes),
        pytest.param(_eight, AS_CUDA, id="8-bit-as-CUDA", marks=needs_bitsandbytes),
        pytest.param(partial(with_hqq, dtype=torch.bfloat16), AS_CUDA, id="HQQ-as-CUDA"),
        pytest.param(with_hqq, NONE, id="HQQ-no-autocast"),
    ],
    indirect=["autocast"],
)
def test_an_adapter_that_is_added_later_keeps_its_input_once_as_well(build: Any, autocast: bool) -> None:
    plain, patched = (build(dropout=0.1) for _ in range(2))
    patch_model(patched, _adapters_alone(autocast))
    for model in (plain, patched):
        torch.manual_seed(1)
        options = LoraConfig(r=2, target_modules=r".*_proj", lora_dropout=0.2, init_lora_weights=False)
        model.add_adapter("other", options)
        model.set_adapter("other")
    with counted() as calls:
        _assert_same_in_every_bit(plain, patched, autocast)
    assert calls.count == 14 * STEPS


def _adapters_alone(autocast: bool) -> InvActConfig:
    return InvActConfig(sites=("adapter",), autocast_dtype=torch.bfloat16 if autocast else None)


def _assert_same_in_every_bit(plain: nn.Module, patched: nn.Module, autocast: bool) -> None:
    """Train both: their losses and gradients are the same."""
    (losses, gradients), (found, found_gradients) = (_trained(model, autocast) for model in (plain, patched))
    assert len(set(losses)) == STEPS
    assert found == losses
    assert len(found_gradients) == len(gradients) == 2 * 7 * 2
    assert all(map(torch.equal, found_gradients, gradients))


def _trained(model: nn.Module, autocast: bool) -> tuple[list[float], list[Tensor]]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    torch.manual_seed(0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch(model, seed=step)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [weight.grad for weight in weights if weight.grad is not None]
