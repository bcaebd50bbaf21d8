"""The variants of the step times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from experiments.methods.catalogue import METHODS
from experiments.reproduce.steps.variants import Compiled, title, variants_for
from hf_invact.nn import InvertedActivation
from hf_invact.patching import inverted_activations
from tests.models import batch, tiny_model


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_all_are_there() -> None:
    ours = ["plain", "inverted-eager", "inverted-compile", "fused", "checkpointing", "liger"]
    assert list(variants_for(tiny_model("gpt2"))) == [*ours, *METHODS, "compiled", "compiled-inverted"]
    assert "fused" not in variants_for(tiny_model("llama"))
    assert not {"compiled", "compiled-inverted"} & set(variants_for(tiny_model("llama"), compiles=False))


def test_every_variant_has_a_title_of_its_own() -> None:
    titles = [title(name) for name in variants_for(tiny_model("gpt2"))]
    assert len(set(titles)) == len(titles)
    assert not {"compiled", "few-bit-2", "inverted-eager"} & set(titles)


def is_inverted(model: torch.nn.Module) -> bool:
    return any(isinstance(module, InvertedActivation) for module in model.modules())


def test_a_model_is_compiled_once_however_often_it_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module: setattr(module, "_compiled_call_impl", torch.compile(module._call_impl, backend=counter)),
    )
    model = tiny_model("llama", use_cache=False, num_hidden_layers=1)
    model.loss_type = "ForCausalLM"
    inputs, variant = batch(model), Compiled(inverted_activations)
    plain = model(**inputs).loss
    plain.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for _ in range(3):
        model.zero_grad()
        with variant(model):
            loss = model(**inputs).loss
            loss.backward()
        assert not is_inverted(model)
        with inverted_activations(model):  # as another variant does in between
            assert is_inverted(model)
            model(**inputs)
    assert counter.frame_count == 1
    torch.testing.assert_close(loss, plain)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-4)


def test_a_compiled_model_is_inverted_by_the_fastest_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    model = tiny_model("bert")
    variant = variants_for(model)["compiled-inverted"]
    assert isinstance(variant, Compiled)
    with variant(model):
        twin = variant._twin
    assert {module.backend for module in twin.modules() if isinstance(module, InvertedActivation)} == {"compile"}


def test_a_compiled_model_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: setattr(module, "_compiled_call_impl", "compiled"))
    model = tiny_model("bert")
    variant = Compiled(inverted_activations)
    monkeypatch.setattr(model, "forward", lambda: 1 / 0)
    with variant(model):
        assert model._compiled_call_impl == "compiled"
    model._compiled_call_impl = None
    with pytest.raises(ZeroDivisionError), variant(model):
        model.forward()
    assert model._compiled_call_impl is None
    assert not is_inverted(model)
    twin = variant._twin
    assert is_inverted(twin)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
