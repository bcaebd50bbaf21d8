"""Training is the same to the bit, and keeps less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from hf_invact import patch_model
from hf_invact.memory import SavedActivations
from tests.helpers import normal
from tests.sites.adapters.small import ALONE, BF16, DEMANDED, adapted, autocast, layers, lora, train

pytestmark = pytest.mark.filterwarnings("ignore:.*lora_bias=True", "ignore:.*is deprecated:FutureWarning")
F32 = torch.float32
# The dtype of the weights, whether adapters are in float32 (else in the same), and whether autocast is on.
PRECISIONS = {
    "fp32": (F32, True, False),
    "fp32, autocast": (F32, True, True),
    "bf16": (BF16, False, False),
    "bf16, adapters fp32": (BF16, True, False),
    "bf16, adapters fp32, autocast": (BF16, True, True),
}
CASES = [
    *(("llama", precision, dropout) for precision in PRECISIONS for dropout in (0.0, 0.1)),
    *((name, precision, 0.1) for name in ("gpt2", "bert") for precision in ("fp32, autocast", "bf16, adapters fp32")),
]
VARIATIONS: dict[str, dict[str, Any]] = {
    "rank-stabilized": {"use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "bias of B": {"lora_bias": True},
    "all biases": {"bias": "all"},
    "patterns": {"rank_pattern": {"q_proj": 2, "down_proj": 8}, "alpha_pattern": {"k_proj": 32}},
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize(("name", "precision", "dropout"), CASES)
def test_losses_and_gradients_are_the_same_to_the_bit(name: str, precision: str, dropout: float) -> None:
    """GPT-2 and BERT have dropouts of their own, which draw from the same random numbers."""
    dtype, float32, uses_autocast = PRECISIONS[precision]

    def make() -> Any:
        return adapted(name, lora(lora_dropout=dropout), dtype=dtype, float32=float32)

    plain = train(make(), 10, uses_autocast=uses_autocast)
    model = make()
    with autocast(uses_autocast):
        patch_model(model, DEMANDED)
    patched = train(model, 10, uses_autocast=uses_autocast)
    assert patched.losses == plain.losses
    assert len(set(plain.losses)) > 5
    assert all(torch.equal(patched.gradients[key], gradient) for key, gradient in plain.gradients.items())
    if dropout:
        assert patched.calls == len(layers(model))
        assert patched.kept < plain.kept
    else:
        assert (patched.calls > 0) == (precision not in ("fp32", "bf16"))  # where no copy is made


def test_twenty_steps() -> None:
    plain = train(adapted(), 20)
    model = adapted()
    patch_model(model, ALONE)
    assert train(model, 20).losses == plain.losses


@pytest.mark.parametrize("variation", VARIATIONS)
def test_ways_to_configure_it(variation: str) -> None:
    def make() -> Any:
        return adapted(config=lora(lora_dropout=0.1, **VARIATIONS[variation]))

    model = make()
    report = patch_model(model, ALONE)
    assert report.patched == len(report.sites) == len(layers(model))
    plain, patched = train(make(), 10), train(model, 10)
    assert patched.losses == plain.losses
    assert all(torch.equal(patched.gradients[key], gradient) for key, gradient in plain.gradients.items())
    assert patched.kept < plain.kept


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16, adapters fp32", "bf16, adapters fp32, autocast"])
def test_several_active_adapters(precision: str) -> None:
    """Those in another dtype share a cast, whose gradient is their sum, rounded once. Patched, each is rounded once, in
    each layer. What the last layer's adapters get does not depend on that."""
    dtype, float32, uses_autocast = PRECISIONS[precision]

    def make() -> Any:
        model = adapted(config=lora(lora_dropout=0.1), dtype=dtype, float32=float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model.add_adapter("other", lora(lora_dropout=0.2, r=2))
        if float32:
            for weight_name, weight in model.named_parameters():
                weight.data = weight.data.float() if "lora_" in weight_name else weight.data
        model.base_model.set_adapter(["default", "other"])
        return model

    model = make()
    with autocast(uses_autocast):
        patch_model(model, ALONE)
    steps = 1 if "adapters" in precision else 10
    patched = train(model, steps, uses_autocast=uses_autocast)
    plain = train(make(), steps, uses_autocast=uses_autocast)
    assert patched.calls == 2 * len(layers(model))
    assert patched.losses == plain.losses
    last = "layers.1.mlp.down_proj.lora"
    for key, gradient in plain.gradients.items():
        if steps == 10 or last in key:
            assert torch.equal(patched.gradients[key], gradient)
    apart = sum((patched.gradients[key] - each).square().sum() for key, each in plain.gradients.items())
    assert apart <= (2 * torch.finfo(BF16).eps) ** 2 * sum(each.square().sum() for each in plain.gradients.values())
    assert patched.kept < plain.kept


@dataclass(frozen=True)
class Kept:
    """What adapters keep per element of the input that three layers share, the rank's part left out.

    Attributes:
        plain, patched: in bytes.
    """

    x: torch.dtype
    float32: bool
    dropout: float
    autocast: bool
    plain: float
    patched: float


# With dropout PyTorch keeps a mask, on a CPU in the adapter's dtype, and what it leaves; without, only copies.
KEPT = {
    "fp32": Kept(F32, True, 0, False, plain=4, patched=4),
    "fp32, dropout": Kept(F32, True, 0.1, False, plain=3 * (4 + 4), patched=4 + 3 / 8),
    "fp32, autocast": Kept(F32, True, 0, True, plain=3 * 2, patched=4),
    "fp32, autocast, dropout": Kept(F32, True, 0.1, True, plain=3 * (2 + 4), patched=4 + 3 / 8),
    "bf16": Kept(BF16, False, 0, False, plain=2, patched=2),
    "bf16, dropout": Kept(BF16, False, 0.1, False, plain=3 * (2 + 2), patched=2 + 3 / 8),
    "bf16, adapters fp32": Kept(BF16, True, 0, False, plain=3 * 4, patched=2),
    "bf16, adapters fp32, dropout": Kept(BF16, True, 0.1, False, plain=3 * (4 + 4), patched=2 + 3 / 8),
    "bf16, adapters fp32, autocast": Kept(BF16, True, 0, True, plain=3 * 2, patched=2),
    "bf16, adapters fp32, autocast, dropout": Kept(BF16, True, 0.1, True, plain=3 * (2 + 4), patched=2 + 3 / 8),
}
FEATURES, RANK = 64, 4


class Shared(nn.Module):
    """Three layers that get the same input, as an attention's do."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(FEATURES, FEATURES) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.q_proj(x) + self.k_proj(x) + self.v_proj(x)
        return y


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_bytes_per_element_of_the_input(case: Kept) -> None:
    config = lora(r=RANK, lora_dropout=case.dropout, target_modules=["q_proj", "k_proj", "v_proj"])
    model: Any = get_peft_model(nn.Sequential(Shared()).to(case.x), config, autocast_adapter_dtype=case.float32)

    def kept(tokens: int) -> int:
        x = normal(1, tokens, FEATURES, dtype=case.x).requires_grad_()
        with autocast(case.autocast), SavedActivations(model) as saved:
            model(x * 1)  # autocast casts a leaf once
        return saved.total_bytes

    def per_element() -> float:
        """Without the product with A, which B keeps."""
        rank = RANK * (BF16 if case.autocast else F32 if case.float32 else case.x).itemsize
        return (kept(16) - kept(8)) / (8 * FEATURES) - 3 * rank / FEATURES

    plain = per_element()
    with autocast(case.autocast):
        patch_model(model, DEMANDED)
    assert (plain, per_element()) == (case.plain, case.patched)
