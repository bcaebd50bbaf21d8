"""Every method on whole models: what it changes, what it saves for backward, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from experiments.benchmark.operators.implementations import Unavailable
from experiments.benchmark.steps.variants import inverted_by
from experiments.finetuning.gradients import cosine_distance, gradient
from experiments.methods.catalogue import COMPARED, METHODS
from hf_invact.memory import SavedActivations, intermediate_units
from hf_invact.patching import activation_sites
from tests.models import batch, tiny_model

# Tensors of the intermediate size between the projections, float32: an MLP's output, and a gate's other three.
UNITS = {
    "plain": (2.0, 4.0),
    "inverted": (1 + 1 / 32, 2 + 1 / 32),
    "inverted-activation": (1 + 1 / 32, 3 + 1 / 32),
    "published": (1 + 1 / 32, 3 + 1 / 32),
    "few-bit-4": (1 + 4 / 32, 3 + 4 / 32),
    "few-bit-3": (1 + 3 / 32, 3 + 3 / 32),
    "few-bit-2": (1 + 2 / 32, 3 + 2 / 32),
    "mesa-8": (1 + 8 / 32 + 2 / 256, 3 + 8 / 32 + 2 / 256),
    "actnn-2": (1 + 2 / 32 + 1 / 256, 3 + 2 / 32 + 1 / 256),
    "nested-forward-ad": (2.0, 4.0),
    "recompute": (1.0, 2.0),
}
LARGEST_DISTANCE = {
    **{"published": 1e-3, "few-bit-4": 1e-2, "few-bit-3": 2e-2, "few-bit-2": 0.1, "mesa-8": 1e-4, "actnn-2": 0.5},
    **{"nested-forward-ad": 1e-12, "inverted": 1e-9, "inverted-activation": 1e-9},
}

each_method = pytest.mark.parametrize("name", COMPARED)
each_architecture = pytest.mark.parametrize("architecture", ["bert", "llama"])


def state_of(model: torch.nn.Module) -> list[Any]:
    """Every object in it, and its hooks."""
    return [
        (name, module, dict(vars(module)), dict(module._modules), len(module._forward_hooks), module.training)
        for name, module in model.named_modules()
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize("install", [COMPARED["inverted"].applied, inverted_by("eager")], ids=["method", "step"])
def test_what_is_compared_with_others_are_the_activations_alone(install: Callable[[Any], Any]) -> None:
    model = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear")
    )
    with install(model) as report:
        assert {site.plan for site in report.sites} == {"gate-inputs"}


@each_method
@each_architecture
def test_same_loss_and_near_gradient_and_no_trace(name: str, architecture: str) -> None:
    model = tiny_model(architecture)
    tokens = batch(model, tokens=32)
    plain, before = gradient(model, tokens), state_of(model)
    loss = model.eval()(**tokens).loss
    model.train()
    with COMPARED[name].applied(model):
        found = gradient(model, tokens)
        assert torch.equal(model.eval()(**tokens).loss, loss)
        model.train()
    if name != "checkpointing":  # Transformers records in the model that it was switched off
        assert state_of(model) == before
    if COMPARED[name].is_exact:
        assert all(map(torch.equal, found, plain))
    else:
        assert 0 < cosine_distance(found, plain) < LARGEST_DISTANCE[name]


@pytest.mark.parametrize("name", UNITS)
@each_architecture
def test_keeps_what_it_says(name: str, architecture: str) -> None:
    model = tiny_model(architecture)
    sites = [site for site in activation_sites(model) if "layer" in site]
    tokens = batch(model, tokens=32)
    with COMPARED[name].applied(model), SavedActivations(model, tokens.values()) as saved:
        model(**tokens)
    assert intermediate_units(saved, model, sites) == pytest.approx(UNITS[name][architecture == "llama"], abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_repeats_itself_for_the_same_seed_and_draws_what_dropout_draws(name: str) -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.5)
    gradients = []
    for _ in range(2):
        with METHODS[name].applied(model), torch.random.fork_rng():
            torch.manual_seed(3)
            model(**batch(model)).loss.backward()
            gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
            drawn = torch.rand(1)
        model.zero_grad()
    assert all(map(torch.equal, *gradients))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model(**batch(model))
        assert torch.equal(torch.rand(1), drawn)


def test_refuses_an_activation_without_a_formula_and_leaves_the_model_alone() -> None:
    model = tiny_model("gpt2")
    before = state_of(model)
    refused = pytest.raises(Unavailable, match="published for gelu and silu, none for gelu_tanh")
    with refused, METHODS["published"].applied(model):
        pass
    assert state_of(model) == before


def test_refuses_a_model_without_activations() -> None:
    refused = pytest.raises(Unavailable, match="no known activation")
    with refused, METHODS["few-bit-3"].applied(torch.nn.Linear(2, 2)):
        pass


def test_is_undone_where_training_raises() -> None:
    model = tiny_model("llama")
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt), METHODS["recompute"].applied(model):
        raise KeyboardInterrupt
    assert state_of(model) == before


def test_activations_take_over_the_mode_that_the_model_was_brought_into() -> None:
    model = tiny_model("llama")
    activation = model.model.layers[0].mlp.act_fn
    with METHODS["few-bit-3"].applied(model):
        model.eval()
    assert model.model.layers[0].mlp.act_fn is activation
    assert not activation.training
