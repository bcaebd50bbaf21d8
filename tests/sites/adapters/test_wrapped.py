"""Adapters that other code has wrapped, or on which it has hooks that look for tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_invact import InvActConfig, patch_model
from tests.helpers import normal


class Wrapper(nn.Module):
    """As FSDP1 wraps a matrix: attributes are those of what it wraps."""

    def __init__(self, module: nn.Module, seen: list[object]) -> None:
        super().__init__()
        self.module, self.seen = module, seen

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        result: Tensor = self.module(x)
        return result


def wrap(layer: Any, seen: list[object]) -> None:
    layer.lora_A["default"] = Wrapper(layer.lora_A["default"], seen)


def hook_on_the_matrix(layer: Any, seen: list[object]) -> None:
    layer.lora_A["default"].register_forward_pre_hook(as_of_deepspeed(lambda module, args: seen.append(args[0])))


def hook_on_the_dropout(layer: Any, seen: list[object]) -> None:
    layer.lora_dropout["default"].register_forward_hook(as_of_deepspeed(lambda module, args, y: seen.append(y)))


def as_of_deepspeed(hook: Any) -> Any:
    """Of a package whose hooks change no values."""
    hook.__module__ = "deepspeed.runtime"
    return hook


def adapted() -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0"], lora_dropout=0.1, init_lora_weights=False)
    return get_peft_model(nn.Sequential(nn.Linear(8, 16), nn.Tanh()), config).train()


def result(model: Any) -> Tensor:
    torch.manual_seed(1)
    y: Tensor = model(normal(4, 8))
    return y


@pytest.mark.parametrize("put", [wrap, hook_on_the_matrix, hook_on_the_dropout])
def test_it_gets_tensors_whether_patched_before_or_not(put: Callable[[Any, list[object]], None]) -> None:
    config = InvActConfig(sites=("adapter",), plan="adapter-input")
    model, seen = adapted(), list[object]()
    layer = model.base_model.model[0]
    assert patch_model(model, config).patched == 1
    put(layer, seen)
    y = result(model)
    assert [type(each) for each in seen] == [Tensor]
    assert torch.equal(y, result(adapted()))
    (site,) = patch_model(model, InvActConfig(sites=("adapter",))).sites
    assert not site.is_patched
    assert "tensor that" in site.reason
