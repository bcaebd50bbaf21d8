"""What is not a model, or not yet, is refused with one sentence that says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_invact import (
    PatchingError,
    inverted_activations,
    patch_model,
    register_activation,
    register_block,
    unpatch_model,
)
from hf_invact.patching import activation_sites


def in_context(model: Any) -> None:
    with inverted_activations(model):
        pass


@pytest.mark.parametrize("call", [patch_model, unpatch_model, activation_sites, in_context])
@pytest.mark.parametrize(
    ("model", "what"),
    [
        (None, "got None"),
        ("gpt2", "got the string 'gpt2'. Load that model first"),
        (nn.Linear, "got the class Linear. Make an instance of it first"),
        ([nn.GELU()], "got list"),
    ],
    ids=["none", "string", "class", "list"],
)
def test_what_is_not_a_module(call: Callable[[Any], object], model: object, what: str) -> None:
    with pytest.raises(PatchingError, match=f"^expected a model, an instance of torch.nn.Module, {re.escape(what)}"):
        call(model)


class Block(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), act, nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.up(x)))
        return y


@pytest.mark.parametrize("lazy", [lambda: nn.LazyLinear(4), nn.LazyBatchNorm1d], ids=["weights", "buffers"])
def test_layers_that_have_no_weights_yet(lazy: Callable[[], nn.Module]) -> None:
    layer = lazy()
    model = nn.Sequential(Block(nn.GELU()), nn.Sequential(layer))
    with pytest.raises(PatchingError, match=rf"^1\.0: this {type(layer).__name__} has no weights .* Run the model on"):
        patch_model(model)
    unpatch_model(model)
    model(torch.randn(3, 8))
    assert patch_model(model).patched == 1


@dataclass(frozen=True)
class HoldsAList:
    """Claims to be hashable, and is not."""

    values: list[int]

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class ComparesByValue(nn.GELU):
    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)


def test_activations_that_cannot_be_hashed() -> None:
    (site,) = patch_model(nn.Sequential(Block(HoldsAList([1])), Block(nn.GELU()))).sites
    assert site.name == "1.act"
    register_block(Block, "act")
    with pytest.raises(PatchingError, match=re.escape("0.act: the activation HoldsAList(values=[1]) is not known")):
        patch_model(nn.Sequential(Block(HoldsAList([1]))))
    with pytest.raises(PatchingError, match=r"^0\.act: PyTorch cannot list .* its ComparesByValue cannot be hashed"):
        patch_model(nn.Sequential(Block(ComparesByValue())))


@pytest.mark.parametrize(
    "activation", [HoldsAList([1]), nn.GELU(), None, "gelu"], ids=["unhashable", "module", "none", "name"]
)
def test_what_cannot_be_recognized_as_an_activation_is_not_registered(activation: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot be hashed|expected module classes and functions, got an instance of"):
        register_activation("silu", used_as=[activation])
