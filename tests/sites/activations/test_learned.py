"""Blocks whose activation has learned parameters: the module stays in place, and only its computation changes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.apertus.modeling_apertus import ApertusMLP

from hf_invact import InvActConfig, inverted_activations, patch_model, register_block, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.sites.activations.patched import LearnedActivation
from tests.helpers import normal
from tests.learned import CLASSES, WIDTH, FeedForward, each_name, kinds, loss_and_gradients, two_blocks
from tests.models import ACTIVATIONS


@pytest.fixture(autouse=True)
def registered_blocks(own_registries: None) -> None:
    register_block(FeedForward, activation="act_fn")
    register_block(ApertusMLP, activation="act_fn")


@each_name
def test_the_module_stays_and_its_class_is_replaced_and_restored(name: str) -> None:
    model = two_blocks(name)
    original, patched = CLASSES[name]
    activations, before = [block.act_fn for block in model], pickle.dumps(model)
    patch_model(model, ACTIVATIONS)
    assert kinds(model) == [patched, patched]
    assert [block.act_fn for block in model] == activations
    unpatch_model(model)
    assert kinds(model) == [original, original]
    assert [block.act_fn for block in model] == activations
    assert pickle.dumps(model) == before


@each_name
def test_report(name: str) -> None:
    model = two_blocks(name)
    kind = type(model[0]).__name__, CLASSES[name][0].__name__
    for _ in range(2):
        report = patch_model(model, ACTIVATIONS)
        assert report.patched == 2
        assert str(report).splitlines()[2].split()[:6] == ["0-1.act_fn", "(2)", *kind, "output", f"({name})"]


@each_name
def test_loss_is_bit_identical_and_gradients_are_close(name: str) -> None:
    model = two_blocks(name)
    plain_loss, plain = loss_and_gradients(model)
    patch_model(model, ACTIVATIONS)
    loss, patched = loss_and_gradients(model)
    assert torch.equal(loss, plain_loss)
    assert patched.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(patched[key], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    assert any(not torch.equal(patched[key], plain[key]) for key in plain), "the patch has done nothing"
    unpatch_model(model)
    assert all(torch.equal(gradient, plain[key]) for key, gradient in loss_and_gradients(model)[1].items())


@each_name
def test_parameters_and_state_dict_are_untouched(name: str) -> None:
    model = two_blocks(name)
    parameters, state = dict(model.named_parameters()), model.state_dict()
    patch_model(model, ACTIVATIONS)
    assert all(dict(model.named_parameters())[key] is parameter for key, parameter in parameters.items())
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    two_blocks(name).load_state_dict(model.state_dict())


# Plain PReLU keeps its input; plain xIELU its input, three intermediate results, and a mask of bytes.
@pytest.mark.parametrize(("name", "plain", "patched"), [("prelu", 2, 1), ("xielu", 5.25, 1 + 1 / 32)])
def test_keeps_the_output_and_at_most_one_bit_per_element(name: str, plain: float, patched: float) -> None:
    model = two_blocks(name)[0]
    x = normal(64, WIDTH)

    def kept() -> float:
        with SavedActivations(model) as saved:
            model(x)
        records = [record for record in saved.records if "act_fn" in (record.saved_by, record.output_of)]
        assert sum(record.bytes for record in records if record.bytes <= 16) <= 64
        return sum(record.bytes for record in records if record.bytes > 16) / saved.output_bytes["act_fn"]

    assert kept() == plain
    patch_model(model, ACTIVATIONS)
    assert kept() == patched


@each_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_training_has_the_same_losses_and_parameters(name: str, dtype: torch.dtype) -> None:
    def train(*, patched: bool) -> tuple[list[float], nn.Module]:
        model = two_blocks(name).to(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if patched:
            patch_model(model, ACTIVATIONS)
        losses = []
        for step in range(12):
            x = normal(64, WIDTH, dtype=dtype, seed=step)
            loss = (model(x) - x.roll(1, dims=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model

    plain_losses, plain = train(patched=False)
    losses, model = train(patched=True)
    assert losses[0] == plain_losses[0]
    assert losses[-1] < 0.95 * losses[0]
    assert losses == pytest.approx(plain_losses, rel=1e-5 if dtype is torch.float32 else 0.02)
    before = dict(two_blocks(name).to(dtype).named_parameters())
    for (key, got), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        if "act_fn" in key:
            assert not torch.equal(got, before[key]), "not trained"
            torch.testing.assert_close(got, expected, rtol=0.02, atol=1e-3)


@each_name
def test_without_gradients_it_is_the_original(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_blocks(name)
    x = normal(8, WIDTH)
    expected = model(x)
    patch_model(model, ACTIVATIONS)
    monkeypatch.setattr(f"hf_invact.sites.activations.learned.invert_{name}", None)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    model.requires_grad_(False)
    assert torch.equal(model(x), expected)
    with pytest.raises(TypeError):
        model(x.requires_grad_())


@each_name
def test_is_inverted_if_only_its_parameters_or_only_its_input_need_a_gradient(name: str) -> None:
    block: Any = two_blocks(name)[0]
    patch_model(block, ACTIVATIONS)
    assert "Inverted" in block.act_fn(normal(8, WIDTH)).grad_fn.name()
    block.act_fn.requires_grad_(False)
    assert "Inverted" in block.act_fn(normal(8, WIDTH).requires_grad_()).grad_fn.name()


@each_name
def test_a_copy_is_patched_on_its_own(name: str) -> None:
    model = two_blocks(name)
    patch_model(model, ACTIVATIONS)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)]
    loss, gradients = loss_and_gradients(model)
    for twin in twins:
        assert kinds(twin) == kinds(model)
        twin_loss, twin_gradients = loss_and_gradients(twin)
        assert torch.equal(twin_loss, loss)
        assert all(torch.equal(twin_gradients[key], gradient) for key, gradient in gradients.items())
        unpatch_model(twin)
        assert kinds(twin) == [CLASSES[name][0]] * 2
    assert kinds(model) == [CLASSES[name][1]] * 2


@each_name
def test_applies_the_config_whatever_came_before(name: str) -> None:
    model, (original, patched) = two_blocks(name), CLASSES[name]
    patch_model(model, ACTIVATIONS)
    first, second = patch_model(model, InvActConfig(sites=("activation",), exclude=("0",))).sites
    assert kinds(model) == [original, patched]
    assert (first.curve, first.reason) == (None, "left alone: excluded by the config")
    assert (second.curve, second.activation) == (name, original.__name__)
    with inverted_activations(model, ACTIVATIONS):
        assert kinds(model) == [patched, patched]
    assert kinds(model) == [original, original]


@each_name
def test_a_module_of_the_same_kind_elsewhere_is_not_changed(name: str) -> None:
    model = two_blocks(name)
    model.append(CLASSES[name][0]())
    patch_model(model, ACTIVATIONS)
    assert type(model[2]) is CLASSES[name][0]


@each_name
def test_a_patched_class_adds_nothing_but_forward(name: str) -> None:
    original, patched = CLASSES[name]
    assert issubclass(patched, LearnedActivation)
    assert issubclass(patched, original)
    assert patched.__init__ is original.__init__
    assert patched.extra_repr is original.extra_repr


def test_xielu_of_a_number_has_the_shape_of_the_original() -> None:
    block: Any = two_blocks("xielu")[0]
    x = torch.tensor(-0.3, requires_grad=True)
    expected = block.act_fn(x)
    patch_model(block, ACTIVATIONS)
    y = block.act_fn(x)
    assert torch.equal(y, expected)
    (dx,) = torch.autograd.grad(y.sum(), x)
    (plain,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(dx, plain)
