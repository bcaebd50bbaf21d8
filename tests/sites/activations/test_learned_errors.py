"""Activations with learned parameters that cannot be inverted: they are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from transformers.activations import XIELUActivation
from transformers.models.apertus.modeling_apertus import ApertusMLP

from hf_invact import PatchingError, patch_model, register_block, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.sites.activations.learned import PatchedPReLU, PatchedXIELU
from tests.helpers import normal
from tests.learned import WIDTH, FeedForward, each_name, kinds, loss_and_gradients, two_blocks
from tests.models import ACTIVATIONS


@pytest.fixture(autouse=True)
def registered_blocks(own_registries: None) -> None:
    register_block(FeedForward, activation="act_fn")
    register_block(ApertusMLP, activation="act_fn")


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def set_weight(block: Any, value: float) -> None:
    block.act_fn.weight.data[-1] = value


def test_a_subclass_may_compute_anything() -> None:
    class Own(nn.PReLU):
        pass

    model = two_blocks("prelu")
    model[0].act_fn = Own()
    with pytest.raises(PatchingError, match=r"activation Own is not known. Supported: .*PReLU.*XIELUActivation"):
        patch_model(model, ACTIVATIONS)


@pytest.mark.parametrize("weight", [0.0, -0.25, 1e-6, float("nan")])
def test_prelu_with_a_weight_that_hides_the_input_is_left_alone(weight: float) -> None:
    model = two_blocks("prelu")
    set_weight(model[0], weight)
    first, second = patch_model(model, ACTIVATIONS).sites
    assert kinds(model) == [nn.PReLU, PatchedPReLU]
    assert second.curve == "prelu"
    assert first.curve is None
    assert first.reason == (
        f"left alone: prelu can be inverted only for positive weights (at least 6e-05), got {weight:.3g}"
    )


def test_prelu_of_a_patched_block_is_judged_again() -> None:
    model = two_blocks("prelu")
    patch_model(model, ACTIVATIONS)
    set_weight(model[0], -1.0)
    assert [site.curve for site in patch_model(model, ACTIVATIONS).sites] == [None, "prelu"]
    assert kinds(model) == [nn.PReLU, PatchedPReLU]


@pytest.mark.parametrize("beta", [0.0, -0.5, float("nan")])
def test_xielu_with_a_beta_that_hides_the_input_is_left_alone(beta: float) -> None:
    model = two_blocks("xielu")
    model[0].act_fn.beta.fill_(beta)
    first, _ = patch_model(model, ACTIVATIONS).sites
    assert first.reason == f"left alone: xielu can be inverted only for a positive beta, got {beta:.3g}"
    assert kinds(model) == [XIELUActivation, PatchedXIELU]


def test_xielu_with_its_own_kernel_is_left_alone() -> None:
    model = two_blocks("xielu")
    model[0].act_fn._xielu_cuda_obj = object()
    first, _ = patch_model(model, ACTIVATIONS).sites
    assert first.reason.startswith("left alone: it runs the kernel of the xielu package")
    assert kinds(model) == [XIELUActivation, PatchedXIELU]


@each_name
def test_parameters_without_values_are_left_alone(name: str) -> None:
    model = two_blocks(name)
    model[0].to("meta")
    first, _ = patch_model(model, ACTIVATIONS).sites
    assert first.reason.startswith("left alone: its parameters are on the meta device")


@each_name
def test_an_activation_that_accelerate_has_wrapped_is_left_alone(name: str) -> None:
    model = two_blocks(name)
    add_hook_to_module(model[0].act_fn, ModelHook())
    first, _ = patch_model(model, ACTIVATIONS).sites
    assert first.reason.startswith("left alone: another library, such as Accelerate, has replaced its forward")


@each_name
def test_an_activation_that_accelerate_has_wrapped_once_is_left_alone(name: str) -> None:
    model = two_blocks(name)
    add_hook_to_module(model[0].act_fn, ModelHook())
    remove_hook_from_module(model[0].act_fn)
    first, _ = patch_model(model, ACTIVATIONS).sites
    assert first.reason.startswith("left alone: another library, such as Accelerate, has replaced its forward")


def test_nothing_is_left_to_invert() -> None:
    model = two_blocks("prelu")
    for block in model:
        set_weight(block, -1.0)
    with pytest.raises(PatchingError, match=r"nothing to invert(.|\n)*only for positive weights"):
        patch_model(model, ACTIVATIONS)


def test_a_weight_that_becomes_negative_is_computed_exactly_with_one_warning_for_each_module() -> None:
    model = nn.Sequential(FeedForward(4), FeedForward(4))
    x = normal(8, 4, WIDTH)  # the channels are dimension 1
    patch_model(model, ACTIVATIONS)
    with no_warning():
        loss_and_gradients(model, x)
    for block in model:
        set_weight(block, -0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss, gradients = loss_and_gradients(model, x)
        loss_and_gradients(model, x)
    assert len(caught) == 2
    assert "a PReLU is no longer inverted" in str(caught[0].message)
    assert "got -0.5" in str(caught[0].message)

    # Again, once it is positive.
    set_weight(model[0], 0.5)
    set_weight(model[1], 0.5)
    with no_warning(), SavedActivations(model) as saved:
        model(x)
    assert not any(record.saved_by == "0.act_fn" and record.output_of == "0.up" for record in saved.records)

    for block in model:
        set_weight(block, -0.5)
    unpatch_model(model)
    assert not any("has_warned" in vars(block.act_fn) for block in model)
    plain_loss, plain = loss_and_gradients(model, x)
    assert torch.equal(plain_loss, loss)
    assert all(torch.equal(gradients[key], gradient) for key, gradient in plain.items())
