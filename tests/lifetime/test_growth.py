"""A long training holds as many objects at its end as at its beginning, and frees a step's tensors without the garbage
collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_invact import InvertedActivationsCallback, inverted_activations, patch_model, unpatch_model
from hf_invact.memory.module_calls import watch
from hf_invact.patching import activation_sites
from tests.helpers import threads
from tests.models import batch, each_model, tiny_model
from tests.trainer.helpers import arguments, make_trainer

STEPS = 1000
WARM_UP = 100
CONSUMERS = {"gpt2": "c_proj", "bert": "output.dense", "mistral": "down_proj", "llama": "down_proj"}


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    with threads(1):
        yield
    gc.enable()


def smallest_model(name: str) -> PreTrainedModel:
    return tiny_model(name, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)


def step(model: PreTrainedModel, inputs: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def live_tensors() -> int:
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_thousand_steps_leave_nothing_behind(name: str) -> None:
    model = smallest_model(name)
    patch_model(model)
    inputs = batch(model, sequences=1, tokens=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    counts = []
    for index in range(STEPS + 1):
        step(model, inputs, optimizer)
        if index == WARM_UP:
            gc.collect()  # what was created before the steps
        if index in (WARM_UP, STEPS):
            counts.append((live_tensors(), len(gc.get_objects()) // 10))
    (tensors, objects), (tensors_after, objects_after) = counts
    assert tensors_after == tensors
    assert objects_after - objects < 10
    assert gc.collect() == 0


def watched(model: PreTrainedModel, name: str) -> tuple[list[weakref.ref[Tensor]], list[weakref.ref[Tensor]]]:
    """The inputs of each activation, and of the layer after it, in the next forward pass."""
    inputs: list[weakref.ref[Tensor]] = []
    outputs: list[weakref.ref[Tensor]] = []

    def note(found: list[weakref.ref[Tensor]]) -> Callable[[Any], Any]:
        def watcher(call: Any) -> Any:
            found.append(weakref.ref(call.args[0]))
            return call()

        return watcher

    for site in activation_sites(model):  # not with hooks, which would prevent their inversion
        watch(model.get_submodule(site), note(inputs))
    for path, module in model.named_modules():
        if path.endswith(CONSUMERS[name]) and "attention" not in path and "attn" not in path:
            watch(module, note(outputs))
    return inputs, outputs


def alive(references: list[weakref.ref[Tensor]]) -> int:
    return sum(reference() is not None for reference in references)


@each_model
def test_the_tensors_of_a_step_are_freed_at_once(name: str) -> None:
    model = tiny_model(name)
    patch_model(model)
    inputs, outputs = watched(model, name)
    loss = model(**batch(model)).loss
    assert len(inputs) == len(activation_sites(model))
    assert (len(outputs), alive(outputs)) == (2, 2)
    assert alive(inputs) == 0, "the inputs of the activations must not be kept"
    loss.backward()
    assert alive(outputs) == 0


@each_model
def test_a_step_without_a_backward_pass_is_freed_at_once(name: str) -> None:
    model = tiny_model(name)
    patch_model(model)
    inputs, outputs = watched(model, name)
    loss = model(**batch(model)).loss
    assert alive(outputs) == 2
    del loss
    assert alive(inputs) == alive(outputs) == 0


@each_model
def test_what_probes_keep_is_freed_at_once(name: str) -> None:
    model = tiny_model(name)
    patch_model(model)  # the first probe of a process creates objects that stay
    unpatch_model(model)
    gc.collect()
    before = live_tensors()
    patch_model(model)
    assert live_tensors() == before


@each_model
def test_patching_makes_no_cycles(name: str) -> None:
    model = tiny_model(name)
    patch_model(model)  # the first probe of a process imports and caches things
    gc.collect()
    with inverted_activations(model):
        patched = [weakref.ref(model.get_submodule(site)) for site in activation_sites(model)]
        model(**batch(model)).loss.backward()
        assert [reference() is None for reference in patched] == [False] * len(patched)
    assert [reference() is None for reference in patched] == [True] * len(patched)
    assert gc.collect() == 0


def test_a_trainers_callback_holds_no_tensor_of_a_step(tmp_path: Path) -> None:
    model = tiny_model("llama")
    callback = InvertedActivationsCallback()
    trainer = make_trainer(model, arguments(tmp_path, use_inverted_activations=True), callback)
    inputs, outputs = watched(model, "llama")
    trainer.train()
    assert callback.saved is not None
    assert len(outputs) >= 6
    assert alive(inputs) == alive(outputs) == 0
