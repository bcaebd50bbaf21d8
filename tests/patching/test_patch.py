"""Real models with and without the patch: same results, close gradients, less memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from hf_invact import InvActConfig, patch_model, unpatch_model
from hf_invact.memory import SavedActivations, intermediate_units
from hf_invact.nn import InvertedActivation
from hf_invact.patching import activation_sites
from hf_invact.sites.activations.patched import PatchedActivation
from tests.models import ACTIVATIONS, LAYERS, MODEL_NAMES, batch, each_model, loss_and_gradients, tiny_model


def assert_gradients_close(got: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Weight by weight. A gradient that is tiny relative to the largest is noise (that of a key's bias is rounding)."""
    assert got.keys() == expected.keys()
    noise = relative / 10 * max(gradient.double().norm() for gradient in expected.values())
    for name, gradient in expected.items():
        error = (got[name].double() - gradient.double()).norm()
        assert error <= relative * gradient.double().norm() + noise, name


def units_and_total(model: PreTrainedModel) -> tuple[float | None, int]:
    """What MLPs keep between their projections, in tensors of the intermediate size, and all the bytes kept."""
    torch.manual_seed(0)
    with SavedActivations(model) as saved:
        model(**batch(model))
    return intermediate_units(saved, model, activation_sites(model)), saved.total_bytes


def activations_outside_layers(model: PreTrainedModel) -> int:
    """BERT's prediction head has one."""
    return len(activation_sites(model)) - LAYERS


# GPT-2's own activation is unfused, and is replaced by the fused function.
@pytest.mark.parametrize(
    ("name", "activation"), [("gpt2", "gelu_pytorch_tanh"), ("bert", None), ("mistral", None), ("llama", None)]
)
def test_first_loss_is_bit_identical(name: str, activation: str | None) -> None:
    model = tiny_model(name, activation=activation)
    plain, _ = loss_and_gradients(model)
    patch_model(model, ACTIVATIONS)
    patched, _ = loss_and_gradients(model)
    assert torch.equal(patched, plain)


@each_model
def test_gradients_are_close(name: str) -> None:
    model = tiny_model(name)
    plain_loss, plain = loss_and_gradients(model)
    patch_model(model, ACTIVATIONS)
    loss, patched = loss_and_gradients(model)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    assert_gradients_close(patched, plain, relative=1e-5)
    assert any(not torch.equal(patched[name], plain[name]) for name in plain), "the patch has done nothing"


@each_model
def test_gradients_are_close_in_bfloat16(name: str) -> None:
    model = tiny_model(name).bfloat16()
    plain_loss, plain = loss_and_gradients(model)
    patch_model(model, ACTIVATIONS)
    loss, patched = loss_and_gradients(model)
    torch.testing.assert_close(loss, plain_loss, rtol=0.01, atol=0)
    assert_gradients_close(patched, plain, relative=0.03)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@each_model
def test_gradients_are_the_same_under_checkpointing(name: str, use_reentrant: bool, calls: Counter[str]) -> None:
    model = tiny_model(name)
    patch_model(model, replace(ACTIVATIONS, backend="counting"))
    loss, expected = loss_and_gradients(model)
    calls.clear()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed_loss, checkpointed = loss_and_gradients(model)
    assert torch.equal(checkpointed_loss, loss)
    assert_gradients_close(checkpointed, expected, relative=1e-6)
    # Reentrant checkpointing runs the first forward pass without gradients.
    head = activations_outside_layers(model)
    assert calls == {"forward": (LAYERS if use_reentrant else 2 * LAYERS) + head, "backward": LAYERS + head}


@pytest.mark.parametrize(
    ("name", "plain_units", "patched_units"), [("gpt2", 5, 1), ("bert", 2, 1), ("mistral", 4, 2), ("llama", 4, 2)]
)
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 1 / 32), (torch.bfloat16, 1 / 16)], ids=["fp32", "bf16"])
def test_a_site_keeps_what_the_next_layer_keeps_and_one_bit_per_element(
    name: str, plain_units: int, patched_units: int, dtype: torch.dtype, bits: float
) -> None:
    model = tiny_model(name).to(dtype)
    plain, plain_total = units_and_total(model)
    report = patch_model(model, ACTIVATIONS)
    patched, total = units_and_total(model)
    assert (plain, patched) == (plain_units, patched_units + bits)
    width = LAYERS * 96 + activations_outside_layers(model) * 32
    assert plain_total - total == (plain - patched) * 2 * 16 * width * dtype.itemsize
    assert plain_total - total == report.saved_bytes_per_token * 2 * 16


@each_model
def test_the_operation_runs_once_for_each_layer(name: str, calls: Counter[str]) -> None:
    model = tiny_model(name)
    patch_model(model, replace(ACTIVATIONS, backend="counting"))
    sites = len(activation_sites(model))
    calls.clear()
    model(**batch(model)).loss.backward()
    assert calls == {"forward": sites, "backward": sites}
    with torch.no_grad():
        model(**batch(model))
    unpatch_model(model)
    model(**batch(model)).loss.backward()
    assert calls == {"forward": sites, "backward": sites}


@each_model
def test_results_without_gradients_are_bit_identical(name: str) -> None:
    model = tiny_model(name).eval()
    inputs = {"input_ids": batch(model)["input_ids"]}
    with torch.no_grad():
        plain = model(**inputs).logits
        patch_model(model, ACTIVATIONS)
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "bert"])
def test_generates_the_same_tokens(name: str) -> None:
    model = tiny_model(name).eval()
    prompt = batch(model, tokens=4)["input_ids"]
    options = {
        "max_new_tokens": 12,
        "min_new_tokens": 12,
        "do_sample": False,
        "attention_mask": torch.ones_like(prompt),
    }
    plain = model.generate(prompt, **options)
    patch_model(model, ACTIVATIONS)
    generated = model.generate(prompt, **options)
    assert generated.shape == (2, 16)
    assert torch.equal(generated, plain)


@each_model
def test_parameters_and_state_dict_are_untouched(name: str) -> None:
    model = tiny_model(name)
    parameters, state = dict(model.named_parameters()), model.state_dict()
    patch_model(model, ACTIVATIONS)
    patched = dict(model.named_parameters())
    assert list(patched) == list(parameters)
    assert all(patched[key] is parameters[key] for key in parameters)
    assert list(model.state_dict()) == list(state)


@each_model
def test_a_model_saved_while_patched_loads_into_plain_transformers(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    patch_model(model, ACTIVATIONS)
    model.save_pretrained(tmp_path)
    auto_class = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    loaded = auto_class.from_pretrained(tmp_path)
    assert not any(isinstance(module, InvertedActivation) for module in loaded.modules())
    assert loaded.config.to_dict() == {**model.config.to_dict(), "dtype": "float32", "_name_or_path": str(tmp_path)}
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())


def test_report_lists_every_site() -> None:
    report = patch_model(tiny_model("llama"), replace(ACTIVATIONS, exclude=("*.0.mlp",)))
    assert report.patched == 1
    assert str(report).splitlines() == [
        "inverted activations: 1 of 2 sites patched, 756 B per token less for the backward pass",
        "  site                       block     original        plan                each keeps per token  why",
        "  model.layers.0.mlp.act_fn  LlamaMLP  SiLUActivation  -                                         "
        "left alone: excluded by the config",
        "  model.layers.1.mlp.act_fn  LlamaMLP  SiLUActivation  gate-output (silu)  1.50 KiB -> 780 B",
        "  gate-output: keeps the product, up and one bit per element; approximate gradients",
    ]


@each_model
def test_patching_twice_is_patching_once(name: str) -> None:
    model = tiny_model(name)
    originals = [model.get_submodule(site) for site in activation_sites(model)]
    assert patch_model(model, ACTIVATIONS) == patch_model(model, ACTIVATIONS)
    patched = [module for module in model.modules() if isinstance(module, PatchedActivation)]
    assert [module.original for module in patched] == originals
    unpatch_model(model)
    assert [model.get_submodule(site) for site in activation_sites(model)] == originals


@pytest.mark.parametrize(
    ("config", "backends"),
    [
        (ACTIVATIONS, ["auto", "auto"]),
        (replace(ACTIVATIONS, backend="eager"), ["eager", "eager"]),
        (replace(ACTIVATIONS, include=("model.layers.1.*",), backend="eager"), [None, "eager"]),
        (replace(ACTIVATIONS, include=("*.0.mlp", "*.1.mlp")), ["auto", "auto"]),
        (replace(ACTIVATIONS, exclude=("*.[1-9].mlp",)), ["auto", None]),
        (replace(ACTIVATIONS, include=("*.mlp",), exclude=("*.0.*",)), [None, "auto"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("patched_before", [False, True], ids=["fresh", "patched"])
def test_applies_the_config_whatever_came_before(
    config: InvActConfig, backends: list[str | None], patched_before: bool
) -> None:
    model = tiny_model("llama")
    originals = [layer.mlp.act_fn for layer in model.model.layers]
    if patched_before:
        patch_model(model, replace(ACTIVATIONS, exclude=("*.1.mlp",)))
    report = patch_model(model, config)
    assert [site.curve is not None for site in report.sites] == [backend is not None for backend in backends]
    assert ["excluded" in site.reason for site in report.sites] == [backend is None for backend in backends]
    for layer, original, backend in zip(model.model.layers, originals, backends, strict=True):
        installed = layer.mlp.act_fn
        assert (installed is original) == (backend is None)
        assert getattr(installed, "backend", None) == backend


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_leaves_alone_what_would_gain_nothing(activation: str) -> None:
    model = tiny_model("llama")
    kept = tiny_model("llama", activation=activation).model.layers[0].mlp.act_fn
    model.model.layers[0].mlp.act_fn = kept
    first, second = patch_model(model, ACTIVATIONS).sites
    assert (first.curve, first.reason) == (None, "left alone: its gradient already uses the output")
    assert (second.curve, second.reason) == ("silu", "")
    assert model.model.layers[0].mlp.act_fn is kept


def test_leaves_alone_what_is_inverted_by_the_model_itself() -> None:
    from hf_invact.nn import SiLU

    model = tiny_model("llama")
    own = model.model.layers[1].mlp.act_fn = SiLU()
    assert [site.reason for site in patch_model(model, ACTIVATIONS).sites] == [
        "",
        "left alone: inverted already, by the model itself",
    ]
    unpatch_model(model)
    assert model.model.layers[1].mlp.act_fn is own
