"""Patched models compile as one graph, compute the same, and save no more than unpatched ones."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import vmap
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

import hf_invact
from hf_invact import functional, patch_model, unpatch_model
from hf_invact.curves import GELU, SILU, Curve, leaky_relu
from hf_invact.memory import SavedActivations
from hf_invact.ops import SAVINGS, invert
from hf_invact.ops.bits import packed_size
from tests.helpers import inverted_gate, native_gate, normal, output_and_gradients
from tests.models import ACTIVATIONS, FusedGatedMLP, batch, each_model, loss_and_gradients, tiny_model

# Partitions the graph into forward and backward like the default compiler, and generates no code.
PARTITIONING = "aot_eager_decomp_partition"
TOKENS = 2 * 16

needs_a_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


NORM = "hf_invact::norm"
OPERATORS = {
    "gpt2": [NORM, NORM, "hf_invact::activation", NORM],
    "bert": [NORM, NORM, "hf_invact::activation", NORM, "hf_invact::activation"],  # the last two in the head
    "mistral": [NORM, NORM, "hf_invact::gate", NORM],
    "llama": [NORM, NORM, "hf_invact::gate", NORM],
}


def model_of(name: str) -> PreTrainedModel:
    """One layer, without dropout (compilers draw other masks), and with a loss that raises no warning."""
    dropouts = dict.fromkeys({"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop")}.get(name, ()), 0.0)
    if name == "bert":
        dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = tiny_model(name, use_cache=False, num_hidden_layers=1, **dropouts)
    if name != "bert":
        model.loss_type = "ForCausalLM"
    return model


def counted(function: Any, **options: Any) -> tuple[Any, CompileCounterWithBackend]:
    """The function compiled as one graph, and a counter of compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


@each_model
def test_a_model_is_one_graph_and_computes_the_same(name: str) -> None:
    model = model_of(name)
    patch_model(model)
    loss, gradients = loss_and_gradients(model)
    compiled, counter = counted(model)
    for _ in range(3):
        model.zero_grad()
        step = compiled(**batch(model)).loss
        step.backward()
    assert counter.frame_count == 1
    operators = [node.target.name() for node in counter.graphs[0].graph.nodes if "hf_invact" in str(node.target)]
    assert operators == OPERATORS[name]
    torch.testing.assert_close(step.detach(), loss, rtol=1e-5, atol=1e-6)
    compiled_gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-5)


def test_a_graph_for_all_lengths() -> None:
    model = model_of("mistral")
    patch_model(model)
    compiled, counter = counted(model, dynamic=True)
    counts = []
    for tokens in (16, 9):
        inputs = batch(model, tokens=tokens)
        loss = compiled(**inputs).loss
        loss.backward()
        torch.testing.assert_close(loss, model(**inputs).loss, rtol=1e-5, atol=1e-6)
        counts.append(counter.frame_count)
    assert counts[1] == counts[0]


def kept_by(function: Callable[..., Any], model: nn.Module, **inputs: Tensor) -> int:
    """Bytes that a compiled function saves for backward. Modules get no hooks, which would be compiled too."""
    function(**inputs)
    with SavedActivations(nn.Module(), ignore=[*model.parameters(), *model.buffers(), *inputs.values()]) as saved:
        result = function(**inputs)
    assert result is not None
    return saved.total_bytes


@each_model
def test_a_compiled_model_keeps_an_intermediate_tensor_less(name: str) -> None:
    def kept(model: PreTrainedModel) -> int:
        torch._dynamo.reset()
        return kept_by(torch.compile(model, backend=PARTITIONING, fullgraph=True), model, **batch(model))

    model = model_of(name)
    plain = kept(model)
    patch_model(model, ACTIVATIONS)
    # In BERT's head compilers save one tensor anyway, so the bits are additional.
    bits = packed_size(TOKENS * 96) + (packed_size(TOKENS * 32) if name == "bert" else 0)
    assert plain - kept(model) == 4 * TOKENS * 96 - bits


WIDE = 4 * 16 * 40
KEPT_BY_A_FUSED_PROJECTION = {"native": 3 * WIDE, "output": 2 * WIDE + 16 * 40 // 8, "inputs": 3 * WIDE}


@pytest.mark.parametrize("saving", ["native", *SAVINGS])
def test_a_part_of_a_fused_projection_is_kept_without_the_other(saving: Any) -> None:
    model = FusedGatedMLP(native_gate(SILU) if saving == "native" else inverted_gate(SILU, saving))
    compiled = torch.compile(model, backend=PARTITIONING, fullgraph=True)
    assert kept_by(compiled, model, x=normal(16, 4)) == KEPT_BY_A_FUSED_PROJECTION[saving]


@pytest.mark.slow
@needs_a_compiler
def test_the_default_compiler() -> None:
    model = FusedGatedMLP(inverted_gate(GELU))
    x = normal(4, 16).T  # transposed, so that strides matter
    expected = output_and_gradients(model, x)
    with torch._inductor.config.patch(force_disable_caches=True):
        compiled = torch.compile(model, fullgraph=True)
        results = output_and_gradients(compiled, x)
        assert kept_by(compiled, model, x=x) == KEPT_BY_A_FUSED_PROJECTION["output"]
    for result, native in zip(results, expected, strict=True):
        torch.testing.assert_close(result, native, rtol=1e-4, atol=1e-5)


def test_another_activation_is_another_graph() -> None:
    model = hf_invact.nn.GELU()
    compiled, counter = counted(model)
    x = normal(100).requires_grad_()
    assert torch.equal(compiled(x), F.gelu(x))
    model.curve = SILU
    assert torch.equal(compiled(x), F.silu(x))
    assert counter.frame_count == 2


def test_patching_and_unpatching_a_compiled_model() -> None:
    model = model_of("bert")
    compiled, counter = counted(model)
    losses = [compiled(**batch(model)).loss]
    patch_model(model)
    losses.append(compiled(**batch(model)).loss)
    unpatch_model(model)
    losses.append(compiled(**batch(model)).loss)
    torch.testing.assert_close(losses, [losses[0]] * 3)
    # Back to the first graph.
    assert counter.frame_count == 2


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "quick_gelu": functional.quick_gelu,
    "softplus": functional.softplus,
    "softplus-of-another-beta": lambda x: functional.softplus(x, beta=2.0),
    "elu": functional.elu,
    "leaky_relu": functional.leaky_relu,
    "gate": lambda x: functional.gate(x, x + 1, "gelu"),
    "gate-with-both-inputs": lambda x: functional.gate(x, x + 1, saving="inputs"),
    "vmap": lambda x: vmap(functional.gelu)(x),
    "checkpoint": lambda x: checkpoint(lambda x: 3 * functional.gelu(2 * x), x, use_reentrant=False),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.filterwarnings("error:Dynamo detected")
def test_functions(function: Callable[[Tensor], Tensor]) -> None:
    x = normal(6, 11)
    compiled, counter = counted(function)
    for _ in range(2):
        results = output_and_gradients(compiled, x)
    for result, expected in zip(results, output_and_gradients(function, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["softplus", "elu", "leaky_relu"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_parameter_that_varies(name: str, dynamic: bool | None) -> None:
    ours, native = getattr(functional, name), getattr(F, name)
    x = normal(6, 11)
    compiled, counter = counted(lambda x, value: ours(x, value), dynamic=dynamic)
    for value in (1.5, 2.5, 2, 1.5):
        y, dx = output_and_gradients(lambda x, value=value: compiled(x, value), x)
        native_y, native_dx = output_and_gradients(lambda x, value=value: native(x, value), x)
        assert torch.equal(y, native_y)
        torch.testing.assert_close(dx, native_dx, rtol=1e-5, atol=1e-5)
    assert counter.frame_count <= 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_whose_activation_has_parameters(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.Softplus(2.75), nn.Linear(32, 8))
    patch_model(model)
    twin, x = duplicate(model), normal(4, 8)
    compiled, _ = counted(twin)
    torch.testing.assert_close(output_and_gradients(compiled, x), output_and_gradients(model, x), rtol=1e-6, atol=1e-6)


def lowered_by_autocast() -> Curve:
    """An activation that autocast computes in half precision, on CPUs too."""
    return replace(leaky_relu(0.25), forward=lambda x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype)))


@pytest.mark.parametrize("inside", [True, False], ids=["autocast-inside", "autocast-outside"])
def test_autocast(inside: bool) -> None:
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    curve = lowered_by_autocast()

    def function(x: Tensor) -> Tensor:
        if not inside:
            return invert(x, curve)
        with autocast():
            return invert(x, curve)

    compiled, _ = counted(function)
    x = normal(100)
    with autocast():
        expected = output_and_gradients(curve.forward, x)
        results = output_and_gradients(compiled, x)
    assert [result.dtype for result in results] == [torch.bfloat16, torch.float32]
    assert all(map(torch.equal, results, expected))
    if not inside:
        assert compiled(x.clone().requires_grad_()).dtype == torch.float32
