"""Models whose gates are inverted: copied, compiled, and inspected."""

from __future__ import annotations

import copy
import pickle
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_invact import InvActConfig, patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from tests.helpers import normal
from tests.models import ACTIVATIONS, batch, loss_and_gradients, tiny_model


def test_a_block_that_inspects_its_activation_while_it_trains() -> None:
    def watching(self: Any, x: Tensor) -> Tensor:
        act = self.act_fn(self.gate_proj(x))
        with torch.no_grad():
            self.mean = act.abs().mean()
        result: Tensor = self.down_proj(act * self.up_proj(x))
        return result

    plain = tiny_model("llama")
    _, expected = loss_and_gradients(plain)
    for is_compiled in (False, True):
        model = patched_llama()
        for layer in model.model.layers:  # after patching, as a debugging session would do
            layer.mlp.forward = types.MethodType(watching, layer.mlp)
            if is_compiled:
                torch._dynamo.reset()
                layer.mlp.compile(backend="aot_eager", fullgraph=True)
        _, gradients = loss_and_gradients(model)
        torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-4)
        assert all(layer.mlp.mean > 0 for layer in model.model.layers)


def patched_llama() -> Any:
    model = tiny_model("llama")
    patch_model(model, ACTIVATIONS)
    return model


def replicated(model: Any) -> Any:
    """A copy as `nn.DataParallel` makes it for a device, except that both share the parameters here."""
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
    patch_model(block, InvActConfig(sites=("activation",), plan=plan))
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
    patch_model(model, InvActConfig(sites=("activation",), backend="counting"))
    calls.clear()
    model(**batch(model)).loss.backward()
    assert calls == {"forward": 2, "backward": 2}
    unpatch_model(model)
