"""The native function is called by tracers, and for tensors that are not an array of numbers."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_invact import functional
from hf_invact.curves import SILU
from hf_invact.norms import LLAMA
from hf_invact.ops import gate, invert, normalize, wants_gradient
from tests.helpers import normal


class GatedMLP(nn.Module):
    """Has parameters, so that its activations require gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(invert(gate(self.gate(x), self.up(x), SILU), SILU))
        return result

    def natively(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(F.silu(F.silu(self.gate(x)) * self.up(x)))
        return result


class Norms(nn.Module):
    """The functions, as a module of a user calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(normal(8, seed=seed)) for seed in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(functional.layer_norm(x, (8,), self.first, self.second), self.first, None, LLAMA, 1e-6)

    def natively(self, x: Tensor) -> Tensor:
        return LLAMA.forward(F.layer_norm(x, (8,), self.first, self.second), self.first, None, 1e-6)


def exported(model: nn.Module, x: Tensor) -> nn.Module:
    return torch.export.export(model, (x,)).module()


TRACERS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "jit": lambda model, x: torch.jit.trace(model, (x,)),
    "export": exported,
}


@pytest.mark.parametrize("trace", TRACERS.values(), ids=TRACERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # from the checks of shapes
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("build", [GatedMLP, Norms])
def test_a_traced_graph_is_native(
    build: Callable[[], GatedMLP | Norms], trace: Callable[[nn.Module, Tensor], nn.Module], training: bool
) -> None:
    model, x = build().train(training), normal(4, 8)
    traced = trace(model, x)
    assert not re.search(r"ops\.hf_invact|hf_invact::", str(traced.graph))
    assert torch.equal(traced(x), model.natively(x))
    assert all(weight.grad_fn is None for weight in traced.parameters())
    traced(x).sum().backward()


AFFINE = torch.ones(4), torch.zeros(4)


def jagged(x: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor([x[:3], x[3:]], layout=torch.jagged)


def nested(x: Tensor) -> Tensor:
    return torch.nested.as_nested_tensor([x[:3], x[3:]], layout=torch.strided)


@pytest.mark.parametrize("pack", [jagged, nested])
@pytest.mark.parametrize(
    ("ours", "native"),
    [
        (lambda x: invert(x, SILU), F.silu),
        (lambda x: gate(x, 2 * x, SILU), lambda x: F.silu(x) * (2 * x)),
        (lambda x: functional.layer_norm(x, (4,), *AFFINE), lambda x: F.layer_norm(x, (4,), *AFFINE)),
    ],
    ids=["activation", "gate", "norm"],
)
def test_sequences_of_different_lengths(
    pack: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor], native: Callable[[Tensor], Tensor]
) -> None:
    results, gradients = [], []
    for function in (ours, native):
        x = normal(8, 4).requires_grad_()
        result = function(pack(x))
        result.backward(torch.ones_like(result))
        results.append(result)
        gradients.append(x.grad)
    assert torch.equal(results[0].values(), results[1].values())
    assert torch.equal(*gradients)


def test_other_layouts() -> None:
    x = normal(4, 8).requires_grad_()
    assert wants_gradient(x)
    assert wants_gradient(x.detach(), x)
    assert not wants_gradient(x.detach())
    assert not wants_gradient(x.to_sparse())
    assert not wants_gradient(x, x.to_mkldnn())
