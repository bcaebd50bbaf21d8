"""Checkpointing as many layers as the config names, beside patching the others, and undoing it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_invact import InvActConfig, PatchingError, patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.patching.checkpoints import checkpointable_layers
from tests.models import LAYERS, batch, each_model, loss_and_gradients, tiny_model
from tests.planning.small import small_model


def checkpointing(model: nn.Module) -> list[tuple[str, Any, Any]]:
    """By module, the attributes with which Transformers switches it."""
    names = "gradient_checkpointing", "_gradient_checkpointing_func"
    return [(path, *(vars(module).get(name) for name in names)) for path, module in model.named_modules()]


def kept_in(model: nn.Module) -> set[str]:
    """The layers in which a forward pass saves something beside their input."""
    with SavedActivations(model) as saved:
        model(**batch(model))
    layers = checkpointable_layers(model)
    return {layer for layer in layers for module in saved.by_module if module.startswith(f"{layer}.")}


@each_model
@pytest.mark.parametrize("count", range(LAYERS + 1))
def test_the_first_layers_keep_nothing_and_the_others_are_patched(name: str, count: int) -> None:
    model = tiny_model(name)
    expected = loss_and_gradients(tiny_model(name))
    report = patch_model(model, InvActConfig(checkpoint_layers=count))
    layers = [*checkpointable_layers(model)]
    assert kept_in(model) == set(layers[count:])
    assert (report.checkpointed, report.layers) == (tuple(layers[:count]), LAYERS)
    for site, without in zip(report.sites, patch_model(tiny_model(name)).sites, strict=True):
        if site.name.startswith(tuple(f"{layer}." for layer in layers[:count])):
            assert (site.plan, site.reason) == (None, "left alone: its layer is checkpointed")
        else:
            assert site == without
    assert f"{count} of {LAYERS} layers checkpointed" in report.summary()
    loss, gradients = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(gradients, expected[1], rtol=1e-2, atol=1e-4)


def enabled() -> nn.Module:
    model = tiny_model("llama")
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
    return model


@pytest.mark.parametrize("make", [partial(tiny_model, "llama"), enabled], ids=["off", "on"])
def test_unpatching_switches_it_back(make: Any) -> None:
    model = make()
    before, pickled = checkpointing(model), pickle.dumps(model)
    for count in (1, 2, 0):
        patch_model(model, InvActConfig(checkpoint_layers=count))
    unpatch_model(model)
    assert checkpointing(model) == before
    assert pickle.dumps(model) == pickled


def test_another_config_leaves_it_as_it_was() -> None:
    model = enabled()
    before = checkpointing(model)
    patch_model(model, InvActConfig(checkpoint_layers=1))
    patch_model(model)
    assert checkpointing(model) == before


def test_options_of_the_model_are_kept_but_not_reentrant_checkpoints() -> None:
    options = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    for function, is_kept in ((options, True), (partial(checkpoint, use_reentrant=True), False)):
        model = tiny_model("llama")
        model._set_gradient_checkpointing(True, function)
        patch_model(model, InvActConfig(checkpoint_layers=1))
        found: Any = model.get_submodule("model.layers.0")._gradient_checkpointing_func
        assert (found is function) is is_kept
        assert found.keywords["use_reentrant"] is False


def test_what_was_switched_since_stays_so() -> None:
    model = tiny_model("llama")
    patch_model(model, InvActConfig(checkpoint_layers=1))
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))  # as a Trainer does
    switched = checkpointing(model)
    unpatch_model(model)
    assert checkpointing(model) == switched
    patch_model(model, InvActConfig(checkpoint_layers=1))
    assert len(kept_in(model)) == LAYERS - 1
    unpatch_model(model)
    assert checkpointing(model) == switched


def test_a_copy_is_unpatched_by_itself() -> None:
    model = tiny_model("llama")
    patch_model(model, InvActConfig(checkpoint_layers=1))
    other = copy.deepcopy(model)
    unpatch_model(other)
    assert len(kept_in(other)) == LAYERS
    assert len(kept_in(model)) == LAYERS - 1


def test_checkpointed_layers_can_be_patched_too() -> None:
    model = tiny_model("llama")
    report = patch_model(model, InvActConfig(checkpoint_layers=LAYERS, patch_checkpointed=True))
    assert report.patched == len(report.sites)
    assert "the layer that is being recomputed keeps" in report.summary()
    assert "the layer that is being recomputed keeps" in str(report)


def test_layers_of_an_encoder_come_before_those_of_its_decoder() -> None:
    model = small_model("t5", attention="eager")
    report = patch_model(model, InvActConfig(checkpoint_layers=3))
    assert report.layers == 4
    assert [name.partition(".")[0] for name in report.checkpointed] == ["encoder", "encoder", "decoder"]


def refused() -> Iterator[tuple[nn.Module, int, str]]:
    yield tiny_model("llama"), LAYERS + 1, f"checkpoint_layers=3, but LlamaForCausalLM has {LAYERS} layers"
    yield nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), 1, "Sequential has no layers that Transformers can"
    lacking = tiny_model("bert")
    lacking.__class__ = type("Lacking", (type(lacking),), {"supports_gradient_checkpointing": False})
    yield lacking, 1, "Lacking has no layers that Transformers can"


@pytest.mark.parametrize(("model", "count", "message"), refused(), ids=lambda each: getattr(each, "__class__", each))
def test_more_layers_than_there_are(model: nn.Module, count: int, message: str) -> None:
    before = checkpointing(model)
    with pytest.raises(PatchingError, match=message):
        patch_model(model, InvActConfig(checkpoint_layers=count))
    assert checkpointing(model) == before


@pytest.mark.parametrize("count", [-1, 1.0, "all", True], ids=repr)
def test_what_is_no_number_of_layers(count: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_layers must be a number of layers, at least 0, or null, got"):
        InvActConfig(checkpoint_layers=count)
