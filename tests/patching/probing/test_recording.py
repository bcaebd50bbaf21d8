"""When a run stops, which layers it replays, and what it keeps of a call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from hf_invact.inputs import small_inputs
from hf_invact.patching.probing.arguments import calls
from tests.models import tiny_model
from tests.patching.probing.modalities import Model, assert_equal, bart, fail, kinds_of, named, of_a_whole_run


def test_it_stops_before_the_last_kind_computes_anything() -> None:
    model = tiny_model("mistral")
    kinds = kinds_of(model)
    model.model.layers[0].mlp.forward = model.model.layers[1].forward = fail
    assert calls(model, kinds, samples=1).failure is None


def count_runs(modules: Any) -> list[nn.Module]:
    """A list that grows by each module that is run."""
    ran: list[nn.Module] = []

    def run(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        ran.append(module)
        return forward(*args, **kwargs)

    for module in modules:
        module.forward = partial(run, module, module.forward)
    return ran


def test_only_one_layer_of_an_encoder_before_a_decoder_is_run() -> None:
    model = bart(layers=12)
    kinds = kinds_of(model)
    ran = count_runs(model.encoder.layers)
    assert calls(model, kinds, samples=1).failure is None
    assert ran == [model.encoder.layers[0]]


@pytest.mark.parametrize(
    ("way", "runs"), [("plain", 1), ("is written to", 1), ("writes", 3), ("appends", 3)], ids=lambda value: str(value)
)
def test_a_layer_is_replayed_only_where_that_makes_no_difference(way: str, runs: int) -> None:
    model = Model(PretrainedConfig(way=way))
    for layer in model.layers[1:]:
        layer.load_state_dict(model.layers[0].state_dict())
    kinds: dict[nn.Module, Hashable] = {**named(model, "Layer"), model.last: "last"}
    ran = count_runs(model.layers)
    found = calls(model, kinds, samples=1).found
    assert len(ran) == runs
    assert found["last"].args[0].shape == (1, 4, 8)
    if runs == 3:
        assert_equal(found["last"].args, of_a_whole_run(model, kinds, 1)["last"][0])


@pytest.mark.parametrize("way", ["is written to", "writes"])
def test_what_is_recorded_is_not_what_the_model_writes_to(way: str) -> None:
    model = Model(PretrainedConfig(way=way))
    embedded = model.embedding(next(small_inputs(model, 1, 4))["input_ids"])
    assert torch.equal(calls(model, {**named(model, "Layer"), model.last: 0}, 1).found["Layer"].args[0], embedded)


def test_a_module_runs_on_the_arguments_and_gives_their_gradients() -> None:
    model = bart()
    layer = model.decoder.layers[0]
    call = calls(model, {layer: 0}, 2).found[0]
    before = [value.clone() for value in tree_leaves((call.args, call.kwargs)) if isinstance(value, Tensor)]
    arguments = call.arguments()
    output = layer(*arguments.args, **arguments.kwargs)
    output = output[0] if isinstance(output, tuple) else output
    hidden, encoded = torch.autograd.grad(output.sum(), arguments.leaves)
    assert hidden.shape == encoded.shape == (2, 4, 32)
    for tensor in arguments.tensors:
        with torch.no_grad():
            tensor.zero_()  # what a module may do
    after = [value for value in tree_leaves((call.args, call.kwargs)) if isinstance(value, Tensor)]
    assert all(map(torch.equal, before, after))
