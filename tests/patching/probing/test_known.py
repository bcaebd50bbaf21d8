"""How the calls of a model's modules are shared, and what is done where there are none."""

from __future__ import annotations

import pytest
from torch import nn

from hf_invact import patch_model
from hf_invact.patching.probing.known import KnownCalls
from tests.models import ACTIVATIONS, tiny_model


def test_equal_layers_share_the_calls_with_few_and_with_many_samples() -> None:
    model = tiny_model("llama")
    first, second = (layer.mlp for layer in model.model.layers)
    known = KnownCalls(model, [first, second], None)
    calls = known.of(first)
    assert calls is not None
    assert known.of(second) == calls
    assert [call.args[0].shape for call in calls] == [(2, 4, 32), (4, 4, 32)]
    assert known.of(model) is None
    assert known.failure is None


def test_the_call_of_the_model_itself() -> None:
    model = tiny_model("llama")
    calls = KnownCalls(model, [model], None).of(model)
    assert calls is not None
    assert [call.kwargs["input_ids"].shape for call in calls] == [(2, 4), (4, 4)]


def test_a_frozen_model_gets_a_gradient_for_its_hidden_states() -> None:
    """Training may give it one: by a prompt that is trained, or by `enable_input_require_grads`."""
    model = tiny_model("bert").requires_grad_(False)
    known = KnownCalls(model, [model.bert.encoder.layer[0]], None)
    calls = known.of(model.bert.encoder.layer[0])
    assert calls is not None
    assert [sum(call.needs_gradient) for call in calls] == [1, 1]
    (leaf,) = calls[0].arguments().leaves
    assert leaf.shape == (2, 4, 32)
    assert all(site.before is not None for site in patch_model(model, ACTIVATIONS).sites)


def test_what_is_no_model_of_transformers_has_no_calls() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    known = KnownCalls(model, list(model), None)
    assert known.of(model[0]) is None
    assert known.failure is None


def test_a_model_that_cannot_be_run_says_why_and_its_blocks_are_measured_with_guesses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no tokens today")

    model = tiny_model("llama")
    monkeypatch.setattr(model.model.embed_tokens, "forward", fail)
    known = KnownCalls(model, [model.model.layers[0].mlp], None)
    assert known.of(model.model.layers[0].mlp) is None
    assert "no tokens today" in str(known.failure)
    monkeypatch.undo()
    expected = patch_model(tiny_model("llama"), ACTIVATIONS)
    monkeypatch.setattr(model.model.embed_tokens, "forward", fail)
    assert patch_model(model, ACTIVATIONS) == expected
