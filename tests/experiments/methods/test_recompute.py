"""Recomputation is exact, and frees what it recomputes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

from experiments.finetuning.gradients import gradient
from experiments.methods.recompute import recomputed_activations
from hf_invact.memory import SavedActivations
from tests.models import batch, each_model, tiny_model


@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_are_the_same_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name).to(dtype)
    tokens = batch(model)
    plain = gradient(model, tokens)
    with recomputed_activations(model):
        assert all(map(torch.equal, gradient(model, tokens), plain))
        with SavedActivations(model):  # its hooks are around
            assert all(map(torch.equal, gradient(model, tokens), plain))


class MLP(nn.Module):
    """Two linear layers, or a gate, with a change of the second one's input."""

    def __init__(self, is_gated: bool, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.up, self.act, self.last = nn.Linear(8, 40), nn.Linear(8, 40), nn.SiLU(), nn.Linear(40, 8)
        self.is_gated, self.between = is_gated, between
        self.storages: list[StorageWeakRef] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        self.storages.append(StorageWeakRef(y.untyped_storage()))
        if self.is_gated:
            y = self.up(x) * y
            self.storages.append(StorageWeakRef(y.untyped_storage()))
        y = self.between(y)
        result: Tensor = self.last(y)
        return result


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda y: y,
    "view": lambda y: y.view(2, 3, 40).transpose(0, 1)[:, 1],
    "written-to": lambda y: y.mul_(2),
    "product-with-number": lambda y: 3 * y,
    "square": lambda y: y * y,
    "own-output-saved": lambda y: y.tanh(),
}


def gradients(mlp: MLP) -> list[Tensor]:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return list(torch.autograd.grad(mlp(x).square().sum(), [x, *mlp.parameters()], allow_unused=True))


@pytest.mark.parametrize("is_gated", [False, True], ids=["mlp", "gate"])
@pytest.mark.parametrize("between", BETWEEN)
def test_whatever_is_done_to_the_output(is_gated: bool, between: str) -> None:
    torch.manual_seed(0)
    mlp = MLP(is_gated, BETWEEN[between])
    plain = gradients(mlp)
    with recomputed_activations(mlp):
        found = gradients(mlp)
    for gradient_, expected in zip(found, plain, strict=True):
        assert (gradient_ is None) == (expected is None)
        assert expected is None or torch.equal(gradient_, expected)


@pytest.mark.parametrize("is_gated", [False, True], ids=["mlp", "gate"])
@pytest.mark.parametrize("is_applied", [False, True], ids=["plain", "recomputed"])
def test_outputs_are_freed_after_the_forward_pass(is_gated: bool, is_applied: bool) -> None:
    mlp = MLP(is_gated, lambda y: y)
    x = torch.randn(6, 8)
    gc.disable()  # nothing may depend on it
    try:
        if is_applied:
            with recomputed_activations(mlp):
                loss = mlp(x).sum()
        else:
            loss = mlp(x).sum()
        freed = [storage.expired() for storage in mlp.storages]
    finally:
        gc.enable()
    assert freed == [is_applied] * len(mlp.storages)
    loss.backward()


def test_nothing_is_held_after_the_backward_pass() -> None:
    model = tiny_model("llama")
    with recomputed_activations(model):
        gc.disable()
        try:
            loss = _step(model)
        finally:
            gc.enable()
        assert loss() is None


def _step(model: PreTrainedModel) -> weakref.ref[Tensor]:
    inputs: list[weakref.ref[Tensor]] = []
    handle = model.model.layers[0].mlp.gate_proj.register_forward_hook(
        lambda module, args, output: inputs.append(weakref.ref(output))
    )
    model(**batch(model)).loss.backward()
    handle.remove()
    (reference,) = inputs
    return reference


def test_meters_see_what_is_kept_from_outside_and_from_inside() -> None:
    model = tiny_model("llama")
    tokens = batch(model)
    with recomputed_activations(model), SavedActivations(model, tokens.values()) as inside:
        model(**tokens)
    with SavedActivations(model, tokens.values()) as outside, recomputed_activations(model):
        model(**tokens)
    with SavedActivations(model, tokens.values()) as plain:
        model(**tokens)
    layers, intermediate = 2, 2 * 16 * 96 * 4
    assert plain.total_bytes - inside.total_bytes == layers * 2 * intermediate
    assert outside.total_bytes == inside.total_bytes
