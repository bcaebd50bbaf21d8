"""Small models with LoRA as PEFT adds it, trained with and without patching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_invact import InvActConfig
from hf_invact.memory import SavedActivations
from tests.models import batch, tiny_model

ALONE = InvActConfig(sites=("adapter",))  # which approximates nothing
DEMANDED = InvActConfig(sites=("adapter",), plan="adapter-input")  # also where nothing is kept less
BF16 = torch.bfloat16


def lora(**options: Any) -> LoraConfig:
    """On all linear layers, with a B that is not 0, without which A has no gradient."""
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **options})


def adapted(
    name: str = "llama",
    config: LoraConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    float32: bool = True,
    **options: Any,
) -> Any:
    """A model with adapters, the same at each call.

    Args:
        dtype: of its weights.
        float32: whether the adapters are in float32, PEFT's default; else in the model's.
        options: further values of the model's config.
    """
    config = config or lora(lora_dropout=0.1)
    config.fan_in_fan_out = name == "gpt2"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(tiny_model(name, **options).to(dtype), config, autocast_adapter_dtype=float32).train()


def autocast(enabled: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", BF16) if enabled else nullcontext()


@dataclass
class Trained:
    """Losses of each step, and of the first one the gradients, the bytes kept for the backward pass, and how many
    adapters were computed from an input that is kept as it came."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    kept: int = 0
    calls: int = 0


def train(model: Any, steps: int = 3, *, uses_autocast: bool = False) -> Trained:
    """Train with AdamW."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    torch.manual_seed(2)
    trained = Trained()
    for step in range(steps):
        with ExitStack() as stack:
            stack.enter_context(autocast(uses_autocast))
            if step == 0:
                saved, calls = stack.enter_context(SavedActivations(model)), stack.enter_context(counted())
            loss = model(**batch(model, seed=step)).loss
        loss.backward()
        trained.losses.append(loss.item())
        if step == 0:
            trained.gradients = {n: each.grad.clone() for n, each in weights.items() if each.grad is not None}
            trained.kept, trained.calls = saved.total_bytes, calls.count
        optimizer.step()
        optimizer.zero_grad()
    return trained


def layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.hf_invact.adapter_input.default
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[_Calls]:
    """Counts how many adapters are computed from an input that is kept as it came."""
    with _Calls() as calls:
        yield calls
