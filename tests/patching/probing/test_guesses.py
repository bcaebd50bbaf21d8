"""The arguments that are guessed for a module if it is unknown how the model calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hf_invact.patching.probing.guesses import guessed_calls

CPU = torch.device("cpu")


class Layer(nn.Module):
    """Requires further arguments besides its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(
        self, hidden_states: Tensor, residual: Tensor, attention_mask: Tensor | None, cache: Any, flag: bool = True
    ) -> tuple[Tensor, None]:
        raise NotImplementedError


def test_what_a_layer_requires_besides_its_hidden_states() -> None:
    layer = Layer()
    ((few, many, tokens),) = guessed_calls(layer, layer, layer, torch.bfloat16, CPU)
    assert (few.args[0].shape, many.args[0].shape, tokens) == ((1, 4, 8), (1, 8, 8), 4)
    assert few.args[0].dtype == torch.bfloat16
    arguments = few.arguments()
    x, residual, mask, cache = arguments.args
    assert residual is x
    assert x.requires_grad
    assert (mask, cache, arguments.kwargs) == (None, None, {})


def test_likely_widths_and_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Linear(5, 6), nn.Linear(7, 6))
    model.config = SimpleNamespace(hidden_size=9)
    calls = guessed_calls(model, model, model, torch.float32, CPU)
    shapes = [tuple(few.args[0].shape) for few, _, _ in calls]
    assert shapes == [(1, 4, 9), (1, 4, 5), (1, 4, 7), (1, 3, 4, 1)]


def test_the_default_device_and_dtype_do_not_matter() -> None:
    layer = Layer()
    ((expected, _, _),) = guessed_calls(layer, layer, layer, torch.float32, CPU)
    with torch.device("meta"):
        ((few, _, _),) = guessed_calls(layer, layer, layer, torch.float32, CPU)
    assert torch.equal(few.args[0], expected.args[0])
