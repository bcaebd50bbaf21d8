"""After unpatching a model is exactly as it was, and no other model was ever touched."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_invact import PatchingError, inverted_activations, patch_model, unpatch_model
from hf_invact.patching import activation_sites
from hf_invact.sites.activations.patched import PatchedActivation
from tests.models import ACTIVATIONS, each_model, loss_and_gradients, tiny_model


def installed(model: nn.Module) -> list[object]:
    return [
        getattr(model.get_submodule(site.rpartition(".")[0]), site.rpartition(".")[2])
        for site in activation_sites(model)
    ]


def is_patched(model: nn.Module) -> bool:
    return any(isinstance(module, PatchedActivation) for module in model.modules())


def same_objects(some: list[object], others: list[object]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


@each_model
def test_the_same_objects_are_put_back(name: str) -> None:
    model = tiny_model(name)
    originals = installed(model)
    patch_model(model, ACTIVATIONS)
    assert all(isinstance(activation, PatchedActivation) for activation in installed(model))
    unpatch_model(model)
    assert same_objects(installed(model), originals)


@each_model
def test_the_pickled_model_is_byte_identical(name: str) -> None:
    model = tiny_model(name)
    before = pickle.dumps(model)
    patch_model(model, ACTIVATIONS)
    assert pickle.dumps(model) != before
    unpatch_model(model)
    assert pickle.dumps(model) == before


@each_model
def test_loss_and_gradients_are_as_before_patching(name: str) -> None:
    model = tiny_model(name)
    loss, gradients = loss_and_gradients(model)
    with inverted_activations(model, ACTIVATIONS):
        loss_and_gradients(model)
    loss_after, after = loss_and_gradients(model)
    assert torch.equal(loss_after, loss)
    assert all(torch.equal(after[key], gradient) for key, gradient in gradients.items())


@pytest.mark.parametrize("function", [F.gelu, F.silu], ids=["gelu", "silu"])
def test_a_plain_function_is_patched_and_put_back(function: Any) -> None:
    model = tiny_model("bert", activation=function)
    plain_loss, plain = loss_and_gradients(model)
    assert installed(model) == [function] * 3
    before = pickle.dumps(model)
    report = patch_model(model, ACTIVATIONS)
    assert [site.curve for site in report.sites] == [function.__name__] * 3
    assert all(isinstance(activation, PatchedActivation) for activation in installed(model))
    loss, gradients = loss_and_gradients(model)
    assert torch.equal(loss, plain_loss)
    assert any(not torch.equal(gradients[key], gradient) for key, gradient in plain.items()), "the patch did nothing"
    model.zero_grad()
    unpatch_model(model)
    assert installed(model) == [function] * 3
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_change_of_mode_while_patched_reaches_the_original(training: bool) -> None:
    model = tiny_model("llama").train(not training)
    patch_model(model, ACTIVATIONS)
    model.train(training)
    unpatch_model(model)
    assert {module.training for module in model.modules()} == {training}


def test_an_original_in_another_mode_than_its_model_keeps_it() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].mlp.act_fn.eval()
    with inverted_activations(model, ACTIVATIONS):
        pass
    assert [layer.mlp.act_fn.training for layer in model.model.layers] == [False, True]


@each_model
def test_unpatching_what_is_not_patched_is_harmless(name: str) -> None:
    model = tiny_model(name)
    originals, before = installed(model), pickle.dumps(model)
    unpatch_model(model)
    assert same_objects(installed(model), originals)
    assert pickle.dumps(model) == before
    unpatch_model(nn.Linear(2, 2))


@each_model
def test_a_copy_of_a_patched_model_is_patched_on_its_own(name: str) -> None:
    model = tiny_model(name)
    originals = installed(model)
    patch_model(model, ACTIVATIONS)
    twin = copy.deepcopy(model)
    assert is_patched(twin)
    loss, gradients = loss_and_gradients(model)
    twin_loss, twin_gradients = loss_and_gradients(twin)
    assert torch.equal(twin_loss, loss)
    assert all(torch.equal(twin_gradients[key], gradient) for key, gradient in gradients.items())

    unpatch_model(twin)
    assert not is_patched(twin)
    assert [type(activation) for activation in installed(twin)] == [type(original) for original in originals]
    assert is_patched(model)
    unpatch_model(model)
    assert same_objects(installed(model), originals)


def test_a_pickled_patched_model_can_be_unpatched() -> None:
    model = tiny_model("gpt2")
    kinds = [type(original) for original in installed(model)]
    patch_model(model, ACTIVATIONS)
    loaded = pickle.loads(pickle.dumps(model))
    assert is_patched(loaded)
    unpatch_model(loaded)
    assert not is_patched(loaded)
    assert [type(activation) for activation in installed(loaded)] == kinds


def test_context_manager_patches_inside_only() -> None:
    model = tiny_model("llama")
    originals = installed(model)
    with inverted_activations(model, ACTIVATIONS) as report:
        assert report.patched == 2
        assert is_patched(model)
    assert same_objects(installed(model), originals)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_context_manager_unpatches_when_an_exception_leaves_it(error: type[BaseException]) -> None:
    model = tiny_model("llama")
    originals = installed(model)
    with pytest.raises(error, match="out of memory"), inverted_activations(model, ACTIVATIONS):
        raise error("out of memory")
    assert same_objects(installed(model), originals)


def test_context_manager_refuses_as_patching_does() -> None:
    with (
        pytest.raises(PatchingError, match="no activation to invert in Linear"),
        inverted_activations(nn.Linear(2, 2), ACTIVATIONS),
    ):
        pytest.fail("entered")


@each_model
def test_no_other_model_is_changed(name: str) -> None:
    model, other = tiny_model(name), tiny_model(name)
    before = pickle.dumps(other)
    patch_model(model, ACTIVATIONS)
    loss_and_gradients(model)
    assert pickle.dumps(other) == before
    assert not is_patched(tiny_model(name))
