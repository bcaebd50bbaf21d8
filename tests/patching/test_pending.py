"""The value of a gate's activation: part of a product where it is multiplied, else a tensor like any other."""

from __future__ import annotations

import copy
import operator
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_invact import InvActConfig, patch_model, unpatch_model
from hf_invact.curves import SILU
from hf_invact.memory import SavedActivations
from hf_invact.patching.pending import NotAGateError, PendingActivation
from tests.helpers import normal
from tests.models import batch, loss_and_gradients, tiny_model

SHAPE = (4, 8)
Use = Callable[[Any, Tensor], Tensor]


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    gate, up = (normal(*SHAPE, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
    return gate, up


def pending(gate: Tensor, *, is_strict: bool = False) -> PendingActivation:
    return PendingActivation(gate, SILU, "output", "eager", is_strict)


def in_place(act: Any, up: Tensor) -> Tensor:
    act *= up
    return act


PRODUCTS: dict[str, Use] = {
    "act * up": lambda act, up: act * up,
    "up * act": lambda act, up: up * act,
    "act *= up": in_place,
    "torch.mul(act, up)": torch.mul,
    "torch.mul(up, act)": lambda act, up: torch.mul(up, act),
    "torch.multiply": torch.multiply,
    "act.mul(up)": lambda act, up: act.mul(up),
    "up.mul(act)": lambda act, up: up.mul(act),
    "act.multiply(up)": lambda act, up: act.multiply(up),
    "operator.mul": operator.mul,
}
OTHERS: dict[str, Use] = {
    "act + up": lambda act, up: act + up,
    "up + act": lambda act, up: up + act,
    "act + 1": lambda act, up: act + 1,
    "1 - act": lambda act, up: 1 - act,
    "2 * act": lambda act, up: 2 * act,
    "act / 2": lambda act, up: act / 2,
    "-act": lambda act, up: -act,
    "act ** 2": lambda act, up: act**2,
    "act @ up.T": lambda act, up: act @ up.T,
    "up @ act.T": lambda act, up: up @ act.T,
    "act[:, :3]": lambda act, up: act[:, :3] * up[:, :3],
    "rows": lambda act, up: torch.stack([row * up[index] for index, row in enumerate(act)]),
    "reshape, then the product": lambda act, up: act.reshape(2, 16) * up.reshape(2, 16),
    "Linear": lambda act, up: F.linear(act, torch.ones(3, 8)),
    "dropout": lambda act, up: F.dropout(act, 0.0) * up,
    "act * act": lambda act, up: act * act,
    "cat": lambda act, up: torch.cat([act, up]),
    "einsum": lambda act, up: torch.einsum("ij,ij->i", act, up),
    "another shape": lambda act, up: act * up[:1],
    "another dtype": lambda act, up: act * up.double(),
    "out": lambda act, up: torch.mul(act, up, out=None) + 0,
    "keyword": lambda act, up: torch.where(condition=up > 0, input=act, other=up),
    "multiplied and added": lambda act, up: act * up + act,
    "added and multiplied": lambda act, up: (act + 1) * (act * up),
    "multiplied twice": lambda act, up: act * up + act * (up + 1),
}


def gradients(use: Use, act_of: Callable[[Tensor], Any]) -> tuple[Tensor, list[Tensor | None]]:
    gate, up = leaves()
    result = use(act_of(gate), up)
    return result.detach(), list(torch.autograd.grad(result.square().sum(), [gate, up], allow_unused=True))


@pytest.mark.parametrize("use", [*PRODUCTS.values(), *OTHERS.values()], ids=[*PRODUCTS, *OTHERS])
def test_values_and_gradients_are_those_of_the_activation(use: Use) -> None:
    result, got = gradients(use, pending)
    expected_result, expected = gradients(use, F.silu)
    assert torch.equal(result, expected_result)
    assert type(result) is Tensor
    for gradient, other in zip(got, expected, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:
            assert (gradient - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("use", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_is_one_operation(use: Use) -> None:
    gate, up = leaves()
    product = use(pending(gate, is_strict=True), up)
    assert product.grad_fn is not None
    inputs = [type(function).__name__ for function, _ in product.grad_fn.next_functions if function is not None]
    assert "hf_invact_gate" in type(product.grad_fn).__name__
    assert inputs == ["AccumulateGrad"] * 2


@pytest.mark.parametrize("use", OTHERS.values(), ids=OTHERS)
def test_strictly_nothing_but_a_product_is_allowed(use: Use) -> None:
    gate, up = leaves()
    if use is OTHERS["multiplied twice"]:
        use(pending(gate, is_strict=True), up)
        return
    with pytest.raises(NotAGateError, match="not multiplied with a tensor of its shape and dtype"):
        use(pending(gate, is_strict=True), up)


def test_a_value_that_is_used_twice_is_computed_once() -> None:
    gate, up = leaves()
    act = pending(gate)
    with SavedActivations(nn.Identity(), ignore=[gate, up]) as saved:
        results = act + up, act.exp(), act * up
    assert len(results) == 3
    size = gate.numel() * 4
    # The activation's output, its side bits, and the output of exp.
    assert saved.total_bytes == size + gate.numel() // 8 + size


def test_a_hook_on_the_activation_may_look_at_its_result() -> None:
    model = tiny_model("llama")
    _, plain = loss_and_gradients(model)
    patch_model(model)
    seen: list[Tensor] = []
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, args, result: seen.append(result.mean()))
    _, patched = loss_and_gradients(model)
    assert len(seen) == 1
    torch.testing.assert_close(patched, plain, rtol=1e-3, atol=1e-4)


def patched_llama() -> Any:
    model = tiny_model("llama")
    patch_model(model)
    return model


def replicated(model: Any) -> Any:
    """As `nn.DataParallel` copies it to a device, but for the parameters, which both share here."""
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in module._parameters.items():
            replica._parameters[name] = parameter
        replica._former_parameters = {}
    return copies[model]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "replica": replicated,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_patched_model_keeps_its_plan(copied: Callable[[Any], Any]) -> None:
    model = patched_llama()
    twin = copied(model)
    assert [layer.mlp.act_fn.plan.name for layer in twin.model.layers] == ["gate-output"] * 2
    with SavedActivations(model) as expected:
        model(**batch(model))
    with SavedActivations(twin) as saved:
        loss = twin(**batch(model)).loss
    assert saved.total_bytes == expected.total_bytes
    assert torch.equal(loss, model(**batch(model)).loss)


@pytest.mark.parametrize("plan", ["gate-output", "gate-inputs", "output"])
def test_a_compiled_model_computes_the_same(plan: str) -> None:
    torch._dynamo.reset()
    block = tiny_model("llama").model.layers[0].mlp
    patch_model(block, InvActConfig(plan=plan))
    x = normal(2, 16, 32)

    def run(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        return y.detach(), dx

    eager, compiled = run(block), run(torch.compile(block, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_the_operation_runs_once_for_each_gate(calls: Counter[str]) -> None:
    model = tiny_model("llama")
    patch_model(model, InvActConfig(backend="counting"))
    calls.clear()
    model(**batch(model)).loss.backward()
    assert calls == {"forward": 2, "backward": 2}
    unpatch_model(model)
