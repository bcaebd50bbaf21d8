"""Compares the gradients of activations and gates of DTensors with native ones; started by torchrun in each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hf_invact import InvActConfig, patch_model, register_block
from hf_invact.curves import GELU
from hf_invact.ops import gate, invert, invert_xielu
from hf_invact.sites.activations import install
from tests.helpers import normal, record_saved

PLACEMENTS: list[Placement] = [Shard(0), Shard(1), Replicate(), Partial()]
FUNCTIONS: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (lambda x, other: invert(x, GELU), lambda x, other: F.gelu(x)),
    (lambda x, other: gate(x, other, GELU), lambda x, other: F.gelu(x) * other),
]


def placed(x: Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """A DTensor in column-major order, whose rows and columns two processes cannot share evenly."""
    if placement.is_partial():
        return DTensor.from_local(x / 2, mesh, [placement]).detach().requires_grad_()
    return distribute_tensor(x, mesh, [placement]).detach().requires_grad_()


def result_and_gradients(function: Callable[..., Tensor], *leaves: DTensor) -> list[Any]:
    result = function(*leaves)
    weights = distribute_tensor(normal(*result.shape, seed=2), leaves[0].device_mesh, [Shard(1)])
    gradients = torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)
    return [result, *(gradient for gradient in gradients if gradient is not None)]


def check_placements(mesh: DeviceMesh) -> None:
    x, other = normal(7, 5).T, normal(7, 5, seed=1).T
    for ours, native in FUNCTIONS:
        for placement in PLACEMENTS:
            for second in (placement, Replicate()):
                leaves = placed(x, mesh, placement), placed(other, mesh, second)
                results, expected = result_and_gradients(ours, *leaves), result_and_gradients(native, *leaves)
                assert torch.equal(results[0].full_tensor(), expected[0].full_tensor())
                if not placement.is_partial():
                    assert results[0].placements == expected[0].placements, (placement, second)
                    assert results[0].stride() == expected[0].stride(), (placement, second)
                for result, like in zip(results, expected, strict=True):
                    torch.testing.assert_close(result.full_tensor(), like.full_tensor(), rtol=1e-4, atol=1e-4)


def check_learned(mesh: DeviceMesh) -> None:
    """The native function, since the gradients of parameters are sums over all parts."""
    x, weights = placed(normal(8, 5), mesh, Shard(0)), [torch.full((1,), value) for value in (0.8, 0.6, 0.5)]
    alpha_p, alpha_n, beta = (placed(weight, mesh, Replicate()) for weight in weights)

    def xielu(x: Tensor) -> Tensor:
        return torch.where(x > 0, alpha_p * x * x + beta * x, (torch.expm1(x) - x) * alpha_n + beta * x)

    results, expected = (
        [each.full_tensor() for each in (y, *torch.autograd.grad(y.sum(), (x, alpha_p, alpha_n)))]
        for y in (invert_xielu(x, alpha_p, alpha_n, beta, xielu), xielu(x))
    )
    assert all(map(torch.equal, results, expected))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.act(self.up(x)))
        return result


def kept(model: nn.Module, x: Tensor) -> tuple[int, Tensor, list[Tensor]]:
    """Bytes of this process that autograd keeps, the result, and the whole gradients."""
    with record_saved() as saved:
        y = model(x)
    y.square().sum().backward()
    parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in saved]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    gradients = [weight.grad.full_tensor() for weight in model.parameters() if isinstance(weight.grad, DTensor)]
    model.zero_grad()
    return sum(storages.values()), y.detach(), gradients


def check_tensor_parallel(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    model, x = MLP(), normal(16, 8)
    parallelize_module(model, mesh, {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()})
    plain_bytes, plain, plain_gradients = kept(model, x)
    register_block(MLP, activation="act")
    patch_model(model, InvActConfig(plan="output"))
    assert [attribute for _, _, attribute in install.patched(model)] == ["act"]
    patched_bytes, patched, gradients = kept(model, x)
    assert torch.equal(patched, plain)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-5)
    assert plain_bytes - patched_bytes == 16 * 16 * 4 - 16 * 16 // 8


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    each_half = init_device_mesh("cpu", (2,))
    check_placements(each_half)
    check_learned(each_half)
    check_tensor_parallel(each_half)
    distributed.barrier()  # gloo aborts a process whose peer closes its connections first
    distributed.destroy_process_group()
